"""Regular expressions of one plan: each is compiled and written once."""

from __future__ import annotations

from typing import NamedTuple

from fastproxy.plan.writer import PlanError, Writer
from fastproxy.regex import RegexError, compile_dfa, compile_program


class Pattern(NamedTuple):
    """``number``: of the table. ``literal``: what every match begins with; ``whole``: it is all that
    matches, and there is no table."""

    number: int
    literal: bytes
    whole: bool


class Patterns:
    """Writes tables and programs, equal ones once."""

    def __init__(self, out: Writer) -> None:
        self._out = out
        self._dfas: dict[str, Pattern] = {}
        self._programs: dict[tuple[str, str], int] = {}

    def dfa(self, pattern: str) -> Pattern:
        """The table that accepts what ``pattern`` matches whole."""
        if pattern not in self._dfas:
            try:
                dfa = compile_dfa(pattern)
            except RegexError as wrong:
                raise PlanError(f"regex: {wrong}") from None
            number = 0
            if not dfa.whole:
                accept = dfa.accept + bytes(-dfa.states % 8)
                blob = dfa.byte_class + accept + dfa.next.tobytes()
                number = self._out.row("dfa", self._out.texts.blob(blob), dfa.states, dfa.classes, dfa.start)
            self._dfas[pattern] = Pattern(number, dfa.literal, dfa.whole)
        return self._dfas[pattern]

    def program(self, pattern: str, rewrite: str) -> int:
        """The program that finds the matches to rewrite."""
        key = (pattern, rewrite)
        if key not in self._programs:
            try:
                codes = compile_program(pattern, rewrite)
            except RegexError as wrong:
                raise PlanError(f"uriRegexRewrite: {wrong}") from None
            first = len(self._out.rows["code"])
            for code in codes:
                self._out.row("code", code.op, code.low, code.high, code.x, code.y)
            self._programs[key] = self._out.row("program", first, len(codes))
        return self._programs[key]
