"""The bytes of a plan: arrays of structs, one after another, and a heap of texts, sets and tables.

The layouts are those of ``_plan.pxd``; their sizes are checked against the compiled module's at import.
"""

from __future__ import annotations

import struct

from fastproxy import _plan

NONE = 0xFFFFFFFF
HEADER = struct.Struct("<IIQQQQ" + "II" * len(_plan.SECTIONS))
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


class Writer:
    """Collects the arrays; :meth:`finish` lays them out. Rows name other rows by number, so nothing moves;
    the few fields that hold an offset of a row are noted by :meth:`refer` and filled in at the end."""

    def __init__(self) -> None:
        self.arrays: dict[str, bytearray] = {name: bytearray() for name in _plan.SECTIONS}
        self.data = self.arrays["data"]
        self._texts: dict[bytes, tuple[int, int]] = {b"": (HEADER.size, 0)}
        self._references: list[tuple[str, int, str]] = []

    def count(self, section: str) -> int:
        """Rows so far, which is the number of the next."""
        return len(self.arrays[section]) // STRUCTS[section].size

    def row(self, section: str, *values: object) -> int:
        """Append a row; its number."""
        array = self.arrays[section]
        layout = STRUCTS[section]
        number = len(array) // layout.size
        array += layout.pack(*values)
        return number

    def table(self, values: list[int]) -> int:
        """Append numbers to the table; the number of the first."""
        array = self.arrays["table"]
        first = len(array) // 4
        array += struct.pack(f"<{len(values)}I", *values)
        return first

    def text(self, text: bytes) -> tuple[int, int]:
        """Offset and length of a text; the same text is kept once."""
        found = self._texts.get(text)
        if found is None:
            found = (HEADER.size + len(self.data), len(text))
            self._texts[text] = found
            self.data += text
        return found

    def blob(self, blob: bytes) -> int:
        """Offset of a piece of data aligned to 8."""
        self.data += bytes(-len(self.data) % 8)
        at = HEADER.size + len(self.data)
        self.data += blob
        return at

    def refer(self, section: str, row: int, field: int, target: str) -> None:
        """The u32 at byte ``field`` of that row holds a row number of ``target``; it becomes its offset."""
        self._references.append((section, row * STRUCTS[section].size + field, target))

    def finish(self, epoch: int, version: int) -> bytes:
        """The block. The heap comes first, so that offsets into it are known while rows are written."""
        at: dict[str, int] = {}
        end = HEADER.size
        for name in ("data", *[n for n in _plan.SECTIONS if n != "data"]):
            at[name] = end
            end += -(-len(self.arrays[name]) // 8) * 8
        if end > MAX_BYTES:
            raise PlanError(f"plan of {end >> 20} MiB is too large; the limit is {MAX_BYTES >> 20} MiB")
        for section, position, target in self._references:
            array = self.arrays[section]
            (number,) = struct.unpack_from("<I", array, position)
            struct.pack_into("<I", array, position, at[target] + number * STRUCTS[target].size)
        body = bytearray(end)
        sections: list[int] = []
        for name in _plan.SECTIONS:
            array = self.arrays[name]
            body[at[name] : at[name] + len(array)] = array
            sections += (at[name], len(array) // STRUCTS[name].size)
        total = _plan.checksum(memoryview(body)[HEADER.size :])
        HEADER.pack_into(body, 0, _plan.MAGIC, _plan.FORMAT, epoch, version, end, total, *sections)
        return bytes(body)
