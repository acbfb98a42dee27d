"""Sets of characters as sorted ranges, their case folds, and their UTF-8 bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

Ranges = tuple[tuple[int, int], ...]  # inclusive, ascending, apart

LAST = 0x10FFFF
DIGIT: Ranges = ((48, 57),)
WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
SPACE: Ranges = ((9, 10), (12, 13), (32, 32))  # RE2's \s is without \v
POSIX: dict[str, Ranges] = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": DIGIT,
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": WORD,
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The ranges in order, overlapping and touching ones made one."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def negate(ranges: Ranges) -> Ranges:
    """All other characters."""
    out: list[tuple[int, int]] = []
    following = 0
    for low, high in ranges:
        if low > following:
            out.append((following, low - 1))
        following = high + 1
    if following <= LAST:
        out.append((following, LAST))
    return tuple(out)


@cache
def _folds() -> dict[int, tuple[int, ...]]:
    """Character -> the others that are the same but for case (one character each way)."""
    groups: dict[str, set[int]] = {}
    for code in range(0x1E944):
        char = chr(code)
        # "ſ" and "K" (Kelvin) fold to "s" and "k" by way of their upper and lower case
        key = char.lower()
        key = key.upper().lower() if len(key) == 1 and len(key.upper()) == 1 else key
        if len(key) == 1 and (key != char or key.upper() != char):
            groups.setdefault(key, set()).add(code)
    out: dict[int, tuple[int, ...]] = {}
    for members in groups.values():
        if len(members) > 1:
            out.update({code: tuple(sorted(members - {code})) for code in members})
    return out


def fold(ranges: Ranges) -> Ranges:
    """The ranges and all that differs from them in case only."""
    also: list[tuple[int, int]] = []
    for code, others in _folds().items():
        if any(low <= code <= high for low, high in ranges):
            also += [(other, other) for other in others]
    return union([*ranges, *also])


_EDGES = (0x7F, 0x7FF, 0xFFFF, LAST)


def utf8(ranges: Ranges) -> Iterator[tuple[tuple[int, int], ...]]:
    """Sequences of byte ranges that together are the UTF-8 of these characters; surrogates have none."""
    for low, high in ranges:
        for a, b in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high)):
            start = a
            for edge in _EDGES:
                if start <= min(b, edge):
                    yield from _sequences(start, min(b, edge))
                    start = edge + 1


def _sequences(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """The same for characters whose UTF-8 is equally long: split until each byte's range is independent."""
    for bits in (6, 12, 18):
        mask = (1 << bits) - 1
        if low | mask < high | mask and low > 0x7F:
            if low & mask:
                yield from _sequences(low, low | mask)
                yield from _sequences((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _sequences(low, (high & ~mask) - 1)
                yield from _sequences(high & ~mask, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
