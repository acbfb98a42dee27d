"""A program -> a DFA that accepts what the program matches whole; bounded in states, table and work."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from fastproxy.regex.parse import Assertion, RegexError
from fastproxy.regex.program import ASSERT, BYTES, MATCH, SAVE, SPLIT, Code

MAX_STATES = 4096  # DFA_STATES
MAX_TABLE = 1 << 18  # states times classes
MAX_WORK = 1_000_000  # instructions followed while building: a fraction of a second

# What stands before or after a position, as far as assertions tell.
EDGE, WORD, NEWLINE, OTHER = range(4)
_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")


class Dfa(NamedTuple):
    """State 0 is dead. ``next[state * classes + byte_class[byte]]``. ``literal``: what every match begins
    with; ``whole``: it is all that can match."""

    states: int
    classes: int
    start: int
    byte_class: bytes
    accept: bytes
    next: array[int]
    literal: bytes
    whole: bool


def _kind(byte: int) -> int:
    return WORD if byte in _WORD else NEWLINE if byte == 10 else OTHER


def _asserted(what: int, before: int, after: int) -> bool:
    if what == Assertion.TEXT_START:
        return before == EDGE
    if what == Assertion.TEXT_END:
        return after == EDGE
    if what == Assertion.LINE_START:
        return before in (EDGE, NEWLINE)
    if what == Assertion.LINE_END:
        return after in (EDGE, NEWLINE)
    return ((before == WORD) != (after == WORD)) == (what == Assertion.WORD)


def _classes(program: tuple[Code, ...], kinds: bool) -> list[int]:
    """Class of each byte: bytes that no instruction and no assertion tells apart are of one class."""
    edges = {0}
    for code in program:
        if code.op == BYTES:
            edges |= {code.low, code.high + 1}
    out: list[int] = []
    number = -1
    for byte in range(256):
        if byte in edges or (kinds and _kind(byte) != _kind(byte - 1)):
            number += 1
        out.append(number)
    return out


class _Builder:
    def __init__(self, program: tuple[Code, ...]) -> None:
        self.program = program
        asserted = {code.y for code in program if code.op == ASSERT}
        # Only what the program asks for is told apart, or states would double for nothing.
        self.kinds = bool(asserted - {Assertion.TEXT_START, Assertion.TEXT_END})
        self.asserts = bool(asserted)
        self.byte_class = _classes(program, self.kinds)
        self.classes = self.byte_class[-1] + 1
        self.sample = [self.byte_class.index(number) for number in range(self.classes)]
        self.work = 0
        self.numbers: dict[tuple[frozenset[int], int], int] = {}
        self.todo: list[tuple[frozenset[int], int]] = []

    def state(self, cores: frozenset[int], before: int) -> int:
        if not cores:
            return 0
        key = (cores, before)
        number = self.numbers.get(key)
        if number is None:
            number = len(self.numbers) + 1
            if number >= MAX_STATES or number * self.classes > MAX_TABLE:
                raise RegexError(f"pattern needs more than {number} states")
            self.numbers[key] = number
            self.todo.append(key)
        return number

    def follow(self, cores: frozenset[int], before: int, after: int) -> tuple[list[Code], bool]:
        """Byte instructions that are reached without reading, and whether the end of the pattern is."""
        seen = set(cores)
        stack = list(cores)
        bytes_: list[Code] = []
        ended = False
        while stack:
            code = self.program[stack.pop()]
            self.work += 1
            if code.op == BYTES:
                bytes_.append(code)
                continue
            if code.op == MATCH:
                ended = True
                continue
            ways = (code.x, code.y) if code.op == SPLIT else (code.x,)
            if code.op == ASSERT and not _asserted(code.y, before, after):
                continue
            for way in ways:
                if way not in seen:
                    seen.add(way)
                    stack.append(way)
        if self.work > MAX_WORK:
            raise RegexError("pattern is too complex")
        return bytes_, ended

    def row(self, cores: frozenset[int], before: int) -> tuple[list[int], bool]:
        """States after each class, and whether this one accepts."""
        followed: dict[int, list[Code]] = {}
        bytes_, ended = self.follow(cores, before, EDGE)
        if not self.asserts:
            followed = {WORD: bytes_, NEWLINE: bytes_, OTHER: bytes_}
        elif not self.kinds:
            bytes_, _ = self.follow(cores, before, OTHER)
            followed = {WORD: bytes_, NEWLINE: bytes_, OTHER: bytes_}
        out: list[int] = []
        for byte in self.sample:
            kind = _kind(byte)
            if kind not in followed:
                followed[kind], _ = self.follow(cores, before, kind)
            self.work += len(followed[kind])
            reached = frozenset(code.x for code in followed[kind] if code.low <= byte <= code.high)
            out.append(self.state(reached, kind if self.kinds else OTHER))
        return out, ended


def build(program: tuple[Code, ...], literal: bytes, whole: bool) -> Dfa:
    """Subset construction. Assertions look at the byte before, kept in the state, and the one after, read
    next."""
    assert program[0].op == SAVE
    builder = _Builder(program)
    start = builder.state(frozenset({0}), EDGE if builder.asserts else OTHER)
    rows: dict[int, list[int]] = {}
    accepting: set[int] = set()
    while builder.todo:
        key = builder.todo.pop()
        number = builder.numbers[key]
        rows[number], ended = builder.row(*key)
        if ended:
            accepting.add(number)
    states = len(builder.numbers) + 1
    table = array("H", [0] * builder.classes)
    for number in range(1, states):
        table.extend(rows[number])
    return Dfa(
        states,
        builder.classes,
        start,
        bytes(builder.byte_class),
        bytes(number in accepting for number in range(states)),
        table,
        literal,
        whole,
    )
