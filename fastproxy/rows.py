"""Rows: the tables of one version as packed bytes, and the one hash that proves that two parties hold the
same.

A row is the msgpack of one value of :mod:`fastproxy.tables`, packed once, by the publisher; everybody else
moves, compares and hashes these bytes and unpacks them only to use them.

A row is what changes alone: of the table ``endpoints`` that is one endpoint, ``<host>|<port>
<address>:<port>``, not the list of all that serve a port. So one endpoint among a thousand costs one row. An
address that is listed twice has ``#2`` behind it; a service without endpoints has no row. Unpacked, endpoints
are in the order of their keys.

The hash of the tables is a sum: every row gives a number of 1024 bits (SHAKE128 of table, key and bytes), the
sum of all numbers modulo 2**1024 is hashed with SHA-256. So it says nothing about order or history, and a
change of one row among ten thousand costs one row. A sum of 1024 bits withstands Wagner's attack with about
2**64 work (Bellare and Micciancio 1997, "A new paradigm for collision-free hashing"); who may publish is
CURVE's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgpack

from fastproxy.tables import FORMAT, NAMES, Tables

ENDPOINTS = "endpoints"  # the table that is parted
MODULUS_BITS = 1024
HASH_BYTES = 32
_MASK = (1 << MODULUS_BITS) - 1
MAX_KEY = 4096  # characters
MAX_ROW = 16 * 1024 * 1024  # bytes

Packed = dict[str, dict[str, bytes]]  # table -> key -> row


class RowsError(ValueError):
    """These changes do not fit these rows; nothing was changed. Says which table and key."""


@dataclass(slots=True)
class Changes:
    """Puts and deletes of one step from one version to another. A key is in one of the two at most."""

    puts: Packed = field(default_factory=dict)
    deletes: dict[str, list[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.puts.values()) or any(self.deletes.values())

    def __len__(self) -> int:
        return sum(map(len, self.puts.values())) + sum(map(len, self.deletes.values()))

    def keys(self) -> Iterator[tuple[str, str]]:
        """(table, key) of everything that is touched."""
        for table, rows in self.puts.items():
            for key in rows:
                yield table, key
        for table, keys in self.deletes.items():
            for key in keys:
                yield table, key


def _number(table: str, key: str, row: bytes) -> int:
    name = key.encode()
    head = b"%s\0%d\0" % (table.encode(), len(name))  # lengths first: no two rows read the same
    return int.from_bytes(hashlib.shake_128(head + name + row).digest(MODULUS_BITS // 8), "little")


class Rows:
    """All rows of one version. ``total``: the sum behind :attr:`hash`."""

    __slots__ = ("tables", "total")

    def __init__(self) -> None:
        self.tables: Packed = {name: {} for name in NAMES}
        self.total = 0

    def __repr__(self) -> str:
        return f"<Rows {', '.join(f'{len(rows)} {name}' for name, rows in self.tables.items())}>"

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    @property
    def hash(self) -> bytes:
        """32 bytes; equal exactly when the rows are."""
        return digest(self.total)

    @classmethod
    def of(cls, packed: Mapping[str, Mapping[str, bytes]]) -> Rows:
        """Rows of a whole snapshot. Raises RowsError for an unknown table."""
        rows = cls()
        rows.apply(Changes({table: dict(some) for table, some in packed.items()}))
        return rows

    @classmethod
    def pack(cls, tables: Tables) -> Rows:
        """Rows of tables that were just made."""
        rows = cls()
        rows.apply(changes_between(rows, tables))
        return rows

    def total_after(self, changes: Changes) -> int:
        """:attr:`total` as it will be after :meth:`apply`. RowsError: they do not fit; nothing changes
        here."""
        total = self.total
        for table, puts in changes.puts.items():
            rows = self._table(table)
            for key, row in puts.items():
                old = rows.get(key)
                if old is not None:
                    total -= _number(table, key, old)
                total += _number(table, key, row)
        for table, keys in changes.deletes.items():
            rows = self._table(table)
            if len(keys) != len(set(keys)):
                raise RowsError(f"{table}: a key is deleted twice")
            for key in keys:
                gone = rows.get(key)
                if gone is None or key in changes.puts.get(table, ()):
                    raise RowsError(f"{table}[{key}] cannot be deleted: it is not there")
                total -= _number(table, key, gone)
        return total & _MASK

    def apply(self, changes: Changes, total: int | None = None) -> None:
        """Make these changes. ``total``: from :meth:`total_after`, when it is known. Raises RowsError before
        anything changed."""
        total = self.total_after(changes) if total is None else total
        for table, puts in changes.puts.items():
            self.tables[table].update(puts)
        for table, keys in changes.deletes.items():
            rows = self.tables[table]
            for key in keys:
                del rows[key]
        self.total = total

    def unpack(self) -> Tables:
        """The tables. Raises ValueError where a row is no msgpack."""
        out: dict[str, Any] = {"format": FORMAT}
        for name, rows in self.tables.items():
            values = {key: unpack_row(name, key, row) for key, row in sorted(rows.items())}
            out[name] = _grouped(values) if name == ENDPOINTS else values
        return cast(Tables, out)

    def _table(self, name: str) -> dict[str, bytes]:
        rows = self.tables.get(name)
        if rows is None:
            raise RowsError(f"there is no table {name!r}")
        return rows


def digest(total: int) -> bytes:
    """The hash of rows whose numbers have this sum."""
    return hashlib.sha256(total.to_bytes(MODULUS_BITS // 8, "little")).digest()


def pack_row(row: Any) -> bytes:
    """The bytes of a row. The order of its keys is that of the program that made it: the same everywhere."""
    return cast(bytes, msgpack.packb(row))


def unpack_row(table: str, key: str, row: bytes) -> Any:
    """The value of a row. Raises ValueError with its place."""
    try:
        return msgpack.unpackb(row)
    except Exception as e:  # msgpack raises what it likes for hostile bytes
        raise ValueError(f"{table}[{key}] is not msgpack: {e}") from None


def changes_between(old: Rows, new: Tables) -> Changes:
    """What turns ``old`` into the rows of ``new``: only what differs, in order of the tables."""
    changes = Changes()
    for name in NAMES:
        before = old.tables[name]
        after: Mapping[str, Any] = new[name]  # type: ignore[literal-required]
        if name == ENDPOINTS:
            after = _parted(after)
        puts = {}
        for key, value in after.items():
            row = pack_row(value)
            if before.get(key) != row:
                puts[key] = row
        if puts:
            changes.puts[name] = puts
        deletes = [key for key in before if key not in after]
        if deletes:
            changes.deletes[name] = sorted(deletes)
    return changes


def merged(rows: Rows, touched: Mapping[tuple[str, str], bool]) -> Changes:
    """One step that brings a reader to ``rows`` who lacks only what happened to these (table, key).

    ``touched``: whether the reader has the key. What came and went meanwhile is left out.
    """
    changes = Changes()
    for (table, key), known in touched.items():
        row = rows.tables[table].get(key)
        if row is not None:
            changes.puts.setdefault(table, {})[key] = row
        elif known:
            changes.deletes.setdefault(table, []).append(key)
    return changes


def patched(tables: Tables, changes: Changes) -> Tables:
    """New tables with these changes; what did not change is shared.

    Raises ValueError where a row is no msgpack.
    """
    out: dict[str, Any] = dict(tables)
    for name in {*changes.puts, *changes.deletes}:
        puts = {key: unpack_row(name, key, row) for key, row in changes.puts.get(name, {}).items()}
        deletes = changes.deletes.get(name, [])
        rows = out[name] = dict(out[name])
        if name == ENDPOINTS:
            touched = {key.partition(" ")[0] for key in (*puts, *deletes)}
            rows = _parted({key: rows.pop(key, []) for key in touched})
        rows.update(puts)
        for key in deletes:
            rows.pop(key, None)
        if name == ENDPOINTS:
            out[name].update(_grouped(dict(sorted(rows.items()))))
    return cast(Tables, out)


def _parted(endpoints: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The table ``endpoints`` by endpoint."""
    out: dict[str, Any] = {}
    for key, some in endpoints.items():
        for endpoint in some:
            try:
                whole = name = f"{key} {endpoint['address']}:{endpoint['port']}"
            except (TypeError, KeyError):  # from a row that was never checked
                raise ValueError(f"endpoints[{key}]: one of these is no endpoint") from None
            again = 1
            while name in out:
                again += 1
                name = f"{whole}#{again}"
            out[name] = endpoint
    return out


def _grouped(rows: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The inverse; the order is that of ``rows``."""
    out: dict[str, list[Any]] = {}
    for key, endpoint in rows.items():
        out.setdefault(key.partition(" ")[0], []).append(endpoint)
    return out
