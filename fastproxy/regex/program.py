"""A tree -> instructions over bytes, in order of preference; for the automaton and for the Pike machine."""

from __future__ import annotations

from typing import NamedTuple

from fastproxy.regex import chars
from fastproxy.regex.parse import Alt, At, Cat, Chars, Group, Node, RegexError, Repeat

BYTES, SPLIT, SAVE, ASSERT, MATCH = range(5)  # Op in _plan.pxd
GROUPS = 10  # PROGRAM_GROUPS, the whole match included
MAX_PROGRAM = 512  # PROGRAM_SIZE
MAX_INSTRUCTIONS = 20000  # before an automaton is made of them


class Code(NamedTuple):
    """One instruction: ``x`` and ``y`` as ``Op`` says."""

    op: int
    low: int
    high: int
    x: int
    y: int


class _Step:
    """An instruction while others still point at it."""

    __slots__ = ("high", "low", "number", "op", "x", "y", "z")

    def __init__(self, op: int, low: int = 0, high: int = 0, z: int = 0) -> None:
        self.op, self.low, self.high, self.z = op, low, high, z
        self.x: _Step = self
        self.y: _Step | None = None
        self.number = 0


class _Assembler:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.steps: list[_Step] = []
        self.shared: dict[tuple[int, int, int], _Step] = {}

    def step(self, step: _Step, following: _Step | None = None) -> _Step:
        if len(self.steps) + 3 >= self.limit:
            raise RegexError(f"pattern needs more than {self.limit} instructions")
        if following is not None:
            step.x = following
        self.steps.append(step)
        return step

    def split(self, first: _Step, second: _Step) -> _Step:
        step = self.step(_Step(SPLIT), first)
        step.y = second
        return step

    def bytes(self, low: int, high: int, following: _Step) -> _Step:
        key = (low, high, id(following))
        if key not in self.shared:
            self.shared[key] = self.step(_Step(BYTES, low, high), following)
        return self.shared[key]

    def emit(self, node: Node, following: _Step) -> _Step:
        """Steps for ``node`` that go on with ``following``; the first of them."""
        if isinstance(node, Chars):
            return self.chars(node, following)
        if isinstance(node, Cat):
            for part in reversed(node.parts):
                following = self.emit(part, following)
            return following
        if isinstance(node, Alt):
            out = self.emit(node.parts[-1], following)
            for part in reversed(node.parts[:-1]):
                out = self.split(self.emit(part, following), out)
            return out
        if isinstance(node, Group):
            if node.number >= GROUPS:
                return self.emit(node.node, following)
            end = self.step(_Step(SAVE, z=2 * node.number + 1), following)
            return self.step(_Step(SAVE, z=2 * node.number), self.emit(node.node, end))
        if isinstance(node, At):
            return self.step(_Step(ASSERT, z=node.what), following)
        return self.repeat(node, following)

    def chars(self, node: Chars, following: _Step) -> _Step:
        out: _Step | None = None
        for sequence in chars.utf8(node.ranges):
            first = following
            for low, high in reversed(sequence):
                first = self.bytes(low, high, first)
            out = first if out is None else self.split(first, out)
        if out is None:  # an empty class: a step that no byte can take
            return self.step(_Step(BYTES, 1, 0), following)
        return out

    def repeat(self, node: Repeat, following: _Step) -> _Step:
        def choice(body: _Step, rest: _Step) -> _Step:
            return self.split(body, rest) if node.greedy else self.split(rest, body)

        out = following
        if node.most is None:
            loop = self.step(_Step(SPLIT))
            body = self.emit(node.node, loop)
            loop.x, loop.y = (body, following) if node.greedy else (following, body)
            out = loop
            if node.least:  # x{n,} is n - 1 times x and x+, which is x and the loop
                out = body
                for _ in range(node.least - 1):
                    out = self.emit(node.node, out)
            return out
        for _ in range(node.most - node.least):
            out = choice(self.emit(node.node, out), following)
        for _ in range(node.least):
            out = self.emit(node.node, out)
        return out


def assemble(tree: Node, limit: int = MAX_INSTRUCTIONS) -> tuple[Code, ...]:
    """The program: SAVE 0 first; SAVE 1 and MATCH last. RegexError when it is longer than ``limit``."""
    assembler = _Assembler(limit)
    match = _Step(MATCH)
    end = _Step(SAVE, z=1)
    end.x = match
    start = _Step(SAVE, z=0)
    start.x = assembler.emit(tree, end)
    steps = [start, *assembler.steps, end, match]
    for number, step in enumerate(steps):
        step.number = number
    return tuple(Code(s.op, s.low, s.high, s.x.number, s.y.number if s.y is not None else s.z) for s in steps)
