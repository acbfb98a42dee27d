"""What a change would make of the contents, tried before it is written: pure, and run in the plane's worker
thread.

A document of the change that cannot be compiled with its neighbours is left out of it. A change that makes a
document unfit that was there before is left out too, where it can be told which one it is: bad news for its
author, not for whoever applied the other document last year.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ctrl.model import Change, Contents, Identity, Resource
from fastproxy.resources.problem import Problem
from fastproxy.rows import Changes, Rows, changes_between, digest

if TYPE_CHECKING:
    from ctrl.views import Made, Views

MAX_CULPRITS = 16  # changes of one apply that are left out for what they do to others


@dataclass(slots=True)
class Known:
    """The contents of a version, compiled for everybody (``views.ALL``): what its hash in the history is
    of."""

    contents: Contents
    made: Made
    rows: Rows

    @property
    def hash(self) -> str:
        return self.rows.hash.hex()


@dataclass(slots=True)
class Trial:
    """``changes`` that are left, what they make, and why the others are not there. ``step``: what they do to
    the
    rows of all; ``total``: their sum afterwards, as in :class:`fastproxy.rows.Rows`."""

    changes: tuple[Change, ...]
    contents: Contents
    made: Made
    step: Changes
    total: int
    refused: list[Problem] = field(default_factory=list)

    @property
    def hash(self) -> str:
        return digest(self.total).hex()


def know(views: Views, contents: Contents) -> Known:
    """Compile contents for everybody."""
    made = views.make(contents, None)
    return Known(contents, made, Rows.pack(made.tables))


def attempt(
    views: Views, known: Known, version: int, changes: Iterable[Change], whole: bool = False
) -> Trial:
    """``changes`` on the contents that are known, as ``version``. whole: take them all, as for a rollback to
    a version that once was good; what is unfit is only told."""
    base = known.contents
    left = [c for c in changes if _differs(base, c)]
    refused: list[Problem] = []
    ill = {p.identity for p in known.made.problems}
    accused = 0
    while True:
        contents = base.after(version, left)
        made = known.made if not left else views.make(contents, None)
        if whole or not left:
            break
        ours = {c.identity for c in left if c.resource is not None}
        unfit = {p.identity for p in made.problems}
        if unfit & ours:
            refused += [p for p in made.problems if p.identity in ours]
            left = [c for c in left if c.identity not in unfit or c.resource is None]
            continue
        victim = next((p for p in made.problems if p.identity not in ill), None)
        if victim is None or accused == MAX_CULPRITS:
            break
        accused += 1
        guilty = _culprit(views, base, version, left, victim.identity)
        if guilty is None:
            break
        refused.append(_accuse(guilty, victim))
        left.remove(guilty)
    step = changes_between(known.rows, made.tables) if left else Changes()
    return Trial(tuple(left), contents, made, step, known.rows.total_after(step), refused)


def texts(base: Contents, changes: Iterable[Change]) -> Iterator[tuple[Identity, str, str]]:
    """(identity, text before, text after), an empty text where there is none: what a diff is made of."""
    for change in changes:
        old = base.resources.get(change.identity)
        yield change.identity, old.text if old else "", change.resource.text if change.resource else ""


def _differs(base: Contents, change: Change) -> bool:
    old = base.resources.get(change.identity)
    if change.resource is None:
        return old is not None
    return (
        old is None
        or old.text != change.resource.text
        or change.resource.created not in ((0, 0), old.created)
    )


def _culprit(
    views: Views, base: Contents, version: int, changes: list[Change], victim: Identity
) -> Change | None:
    """The change with which ``victim`` becomes unfit, when the ones before it are made and it is made next.

    By halving: the empty prefix is good and the whole is bad, so there is a place between where it turns.
    """
    good, bad = 0, len(changes)
    while bad - good > 1:
        middle = (good + bad) // 2
        made = views.make(base.after(version, changes[:middle]), None)
        if any(p.identity == victim for p in made.problems):
            bad = middle
        else:
            good = middle
    return changes[good] if changes else None


def _accuse(guilty: Change, victim: Problem) -> Problem:
    kind, namespace, name = victim.identity
    other = f"{kind} {namespace}/{name}" if name else str(victim)
    what = f"{victim.field}: {victim.message}" if victim.field else victim.message
    resource: Resource | None = guilty.resource
    verb = "with it" if resource else "without it"
    return Problem(
        resource.file if resource else "",
        resource.line if resource else 0,
        "",
        f"{verb} {other} cannot be served: {what}",
        *guilty.identity,
    )
