"""The bytes of a plan: arrays of structs, one after another, and a heap of texts, sets and tables.

The layouts are those of ``_plan.pxd``; their sizes are checked against the compiled module's at import.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from itertools import starmap

from fastproxy import _plan

NONE = 0xFFFFFFFF
HEADER = struct.Struct("<IIQQQQ" + "II" * len(_plan.SECTIONS))
EMPTY = (HEADER.size, 0)  # offset and length of an empty text
STRUCTS = {
    "listener": struct.Struct("<11I"),
    "host": struct.Struct("<Q21I4x"),
    "rule": struct.Struct("<5I"),
    "predicate": struct.Struct("<BBBxIIIIII"),
    "attr": struct.Struct("<7I"),
    "node": struct.Struct("<9I"),
    "child": struct.Struct("<2I"),
    "ref": struct.Struct("<2I"),
    "set": struct.Struct("<4I"),
    "table": struct.Struct("<I"),
    "route": struct.Struct("<19I4x" + "QIIII" * 2),
    "destination": struct.Struct("<II" + "QIIII" * 2),
    "remove": struct.Struct("<3I"),
    "redirect": struct.Struct("<8I"),
    "cluster": struct.Struct("<11I"),
    "endpoint": struct.Struct("<IHH16sIIIIQ"),
    "dfa": struct.Struct("<4I"),
    "program": struct.Struct("<2I"),
    "code": struct.Struct("<BBBxII"),
    "data": struct.Struct("<B"),
}
assert {name: s.size for name, s in STRUCTS.items()} == _plan.SIZES, "layouts differ from _plan.pxd"
assert HEADER.size == _plan.HEADER

MAX_BYTES = 1 << 30


class PlanError(ValueError):
    """Tables that cannot become a plan; the message names the row."""


class Texts(dict[bytes, tuple[int, int]]):
    """The heap. ``texts[text]``: offset and length; the same text is kept once."""

    def __init__(self) -> None:
        super().__init__({b"": EMPTY})
        self.pieces: list[bytes] = []
        self._end = HEADER.size

    def __missing__(self, text: bytes) -> tuple[int, int]:
        found = self[text] = (self._end, len(text))
        self._end += len(text)
        self.pieces.append(text)
        return found

    def blob(self, blob: bytes) -> int:
        """Offset of a piece of data aligned to 8."""
        padding = bytes(-self._end % 8)
        at = self._end + len(padding)
        self._end = at + len(blob)
        self.pieces += (padding, blob)
        return at


class Writer:
    """Collects the rows of each section; :meth:`finish` packs them and lays them out. A row names others by
    number, so nothing moves; the few fields that hold an offset are noted by :meth:`refers`."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in STRUCTS}
        self.table: list[int] = []
        self.texts = Texts()
        self._references: dict[tuple[str, int, str], list[int]] = defaultdict(list)

    def row(self, section: str, *values: object) -> int:
        """Append a row; its number."""
        rows = self.rows[section]
        rows.append(values)
        return len(rows) - 1

    def numbers(self, values: list[int]) -> int:
        """Append numbers to the table; the number of the first."""
        first = len(self.table)
        self.table += values
        return first

    def refers(self, section: str, field: int, target: str) -> list[int]:
        """Numbers of the rows whose u32 at byte ``field`` holds a row number of ``target``, to add to; it
        becomes its offset."""
        return self._references[section, field, target]

    def finish(self, epoch: int, version: int) -> bytes:
        """The block. The heap comes first, so that offsets into it are known while rows are written."""
        packed = {name: b"".join(starmap(STRUCTS[name].pack, rows)) for name, rows in self.rows.items()}
        packed["data"] = b"".join(self.texts.pieces)
        packed["table"] = struct.pack(f"<{len(self.table)}I", *self.table)
        at: dict[str, int] = {}
        end = HEADER.size
        for name in ("data", *[n for n in _plan.SECTIONS if n != "data"]):
            at[name] = end
            end += -(-len(packed[name]) // 8) * 8
        if end > MAX_BYTES:
            raise PlanError(f"plan of {end >> 20} MiB is too large; the limit is {MAX_BYTES >> 20} MiB")
        body = bytearray(end)
        sections: list[int] = []
        for name in _plan.SECTIONS:
            body[at[name] : at[name] + len(packed[name])] = packed[name]
            sections += (at[name], len(packed[name]) // STRUCTS[name].size)
        words = memoryview(body).cast("I")
        for (section, field, target), rows in self._references.items():
            first, step = (at[section] + field) // 4, STRUCTS[section].size // 4
            base, size = at[target], STRUCTS[target].size
            for row in rows:
                words[first + row * step] = base + words[first + row * step] * size
        total = _plan.checksum(memoryview(body)[HEADER.size :])
        HEADER.pack_into(body, 0, _plan.MAGIC, _plan.FORMAT, epoch, version, end, total, *sections)
        return bytes(body)
