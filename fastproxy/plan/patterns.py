"""Regular expressions of one plan: each is compiled and written once."""

from __future__ import annotations

from typing import NamedTuple

from fastproxy.plan.writer import PlanError, Writer


class Pattern(NamedTuple):
    """``literal``: what every match begins with; ``whole``: it is all there is, no table was written."""

    number: int
    literal: bytes
    whole: bool


class Patterns:
    def __init__(self, out: Writer) -> None:
        self._out = out

    def dfa(self, pattern: str) -> Pattern:
        raise PlanError(f"regular expressions are not compiled yet: {pattern}")

    def program(self, pattern: str, rewrite: str) -> int:
        raise PlanError(f"regular expressions are not compiled yet: {pattern}")
