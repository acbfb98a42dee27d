"""A change that somebody wants, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ctrl.model import Conflict, Identity
from ctrl.rollout import Plan
from fastproxy.resources.problem import Problem


class Unfit(ValueError):
    """Nothing was applied: these documents, or this request, cannot be."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


class Busy(Conflict):
    """A version is being rolled out; nothing else is written until it is settled or aborted."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a change is to be made. strict: all of it or nothing. plan: by stages; None: by all at once."""

    who: str = "unknown"
    message: str = ""
    dry_run: bool = False
    strict: bool = False
    plan: Plan | None = None


@dataclass(slots=True)
class Outcome:
    """What became of a change. version: of the head when nothing changed, of the candidate when it is rolled
    out. diff: (identity, text before, text after), of a dry run."""

    epoch: int
    version: int
    hash: str
    verbs: tuple[tuple[str, str, str, str], ...] = ()
    diff: list[tuple[Identity, str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    dry_run: bool = False
    rollout: bool = False
