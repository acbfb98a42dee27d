"""Regular expressions of the configuration: RE2's syntax, compiled by the agent, run by the plan in linear
time.

A *match* is of the whole value, as Envoy's ``safe_regex``, by a DFA. A *rewrite* replaces every match in a
path, as RE2's GlobalReplace, by a program for a Pike machine (``_plan_rewrite.pxi``). Both work on the
bytes of UTF-8.
"""

from __future__ import annotations

from functools import lru_cache

from fastproxy.regex.automaton import Dfa, build
from fastproxy.regex.parse import RegexError, literal, parse
from fastproxy.regex.program import GROUPS, MAX_PROGRAM, Code, assemble

__all__ = [
    "Code",
    "Dfa",
    "RegexError",
    "check_regex",
    "check_rewrite",
    "compile_dfa",
    "compile_program",
]


@lru_cache(maxsize=512)
def compile_dfa(pattern: str) -> Dfa:
    """The automaton that accepts exactly the values that ``pattern`` matches whole. RegexError says why
    not."""
    tree, _ = parse(pattern)
    start, whole = literal(tree)
    return build(assemble(tree), start, whole)


@lru_cache(maxsize=128)
def compile_program(pattern: str, rewrite: str) -> tuple[Code, ...]:
    """The program of a rewrite. RegexError when the pattern or the replacement is wrong, or it is too
    long."""
    tree, groups = parse(pattern)
    if groups >= GROUPS:
        raise RegexError(f"{groups} groups; a rewrite may have {GROUPS - 1}")
    _check_replacement(rewrite, groups)
    return assemble(tree, limit=MAX_PROGRAM)


def _check_replacement(rewrite: str, groups: int) -> None:
    """RE2's CheckRewriteString; and what it makes stands in a request line."""
    if any(c in " #\x7f" or c < " " for c in rewrite):
        raise RegexError("space, control character or # in the rewrite")
    at = 0
    while (at := rewrite.find("\\", at)) >= 0:
        following = rewrite[at + 1 : at + 2]
        if following.isascii() and following.isdigit():
            if int(following) > groups:
                raise RegexError(f"\\{following} in the rewrite, but the pattern has {groups} groups")
        elif following != "\\":
            raise RegexError("a backslash in a rewrite is followed by a digit or another backslash")
        at += 2


def check_regex(pattern: str) -> str | None:
    """None when a match can use this pattern, else why not."""
    try:
        compile_dfa(pattern)
    except RegexError as wrong:
        return str(wrong)
    return None


def check_rewrite(pattern: str, rewrite: str) -> str | None:
    """None when ``uriRegexRewrite`` can use this pattern and replacement, else why not."""
    try:
        compile_program(pattern, rewrite)
    except RegexError as wrong:
        return str(wrong)
    return None
