"""Sets of rules, and the radix trie that finds them by value; ``_plan_match.pxi`` reads both."""

from __future__ import annotations

import heapq
import struct
from collections import defaultdict

from fastproxy.plan.writer import NONE, Writer

CHAIN = 4  # PLAN_CHAIN
UNITED = 1  # NODE_UNITED

Rules = list[int]  # ascending
ByDim = dict[int, Rules]


class Sets:
    """Rule sets of one plan, as sparse bitsets of two levels; equal ones are kept once."""

    def __init__(self, out: Writer) -> None:
        self._out = out
        self._refs = out.rows["ref"]
        self._known: dict[tuple[int, ...], int] = {}

    def add(self, rules: Rules) -> int:
        """Number of the set of these rules."""
        key = tuple(rules)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._write(rules)
        return found

    def _write(self, rules: Rules) -> int:
        words: dict[int, int] = {}
        for rule in rules:
            at = rule >> 6
            words[at] = words.get(at, 0) | 1 << (rule & 63)
        first = rules[0] >> 12
        count = (rules[-1] >> 12) + 1 - first
        summary = [0] * count
        for at in words:
            summary[(at >> 6) - first] |= 1 << (at & 63)
        ranks, rank = [], 0
        for word in summary:
            ranks.append(rank)
            rank += word.bit_count()
        blob = struct.pack(f"<{count + len(words)}Q{count}I", *summary, *words.values(), *ranks)
        return self._out.row("set", first, count, self._out.texts.blob(blob), len(words))

    def refs(self, by_dim: ByDim) -> tuple[int, int]:
        """First and count of the references to these sets."""
        first = len(self._refs)
        for dim in sorted(by_dim):
            self._refs.append((dim, self.add(by_dim[dim])))
        return first, len(by_dim)


class Trie:
    """Values -> rules that ask for exactly this value, or for a value that starts so."""

    def __init__(self) -> None:
        self._exact: dict[bytes, ByDim] = defaultdict(lambda: defaultdict(list))
        self._prefix: dict[bytes, ByDim] = defaultdict(lambda: defaultdict(list))

    def __bool__(self) -> bool:
        return bool(self._exact or self._prefix)

    def exact(self, value: bytes, dim: int, rule: int) -> None:
        """Rules come in ascending order."""
        self._exact[value][dim].append(rule)

    def prefix(self, value: bytes, dim: int, rule: int) -> None:
        self._prefix[value][dim].append(rule)

    def write(self, out: Writer, sets: Sets) -> int:
        """Number of the root, or NONE. Children are numbered when their parent is written, so they are
        higher."""
        if not self:
            return NONE
        keys = sorted(self._exact.keys() | self._prefix.keys())
        nodes, child = out.rows["node"], out.rows["child"]
        root = len(nodes)
        rows: list[tuple[int, ...]] = [()]
        # node, its keys [low, high), bytes of them above it and with its label, prefixes on the way to it
        todo: list[tuple[int, int, int, int, int, tuple[bytes, ...]]] = [(0, 0, len(keys), 0, 0, ())]
        while todo:
            number, low, high, above, depth, way = todo.pop()
            label = out.texts[keys[low][above:depth]]
            exact = prefix = (0, 0)
            flags = 0
            if len(keys[low]) == depth:
                key = keys[low]
                low += 1
                if key in self._exact:
                    exact = sets.refs(self._exact[key])
                if key in self._prefix:
                    if len(way) == CHAIN:
                        self._prefix[key] = self._unite([*way, key])
                        flags, way = UNITED, ()
                    prefix = sets.refs(self._prefix[key])
                    way = (*way, key)
            children = len(child)
            count = 0
            while low < high:
                byte, end = keys[low][depth], low + 1
                while end < high and keys[end][depth] == byte:
                    end += 1
                child.append((byte, root + len(rows)))
                todo.append((len(rows), low, end, depth, _common(keys[low], keys[end - 1], depth + 1), way))
                rows.append(())
                low, count = end, count + 1
            rows[number] = (*label, children, count, *exact, *prefix, flags)
        nodes += rows
        return root

    def _unite(self, keys: list[bytes]) -> ByDim:
        dims = {dim for key in keys for dim in self._prefix[key]}
        return {
            dim: sorted({*heapq.merge(*(self._prefix[key].get(dim, []) for key in keys))}) for dim in dims
        }


def _common(a: bytes, b: bytes, start: int) -> int:
    """Length of the longest common prefix of two keys that share ``start`` bytes."""
    end = min(len(a), len(b))
    if a[:end] == b[:end]:
        return end
    while a[start] == b[start]:
        start += 1
    return start
