"""Documents as bytes: how keepers write changes and contents. msgpack rows, compressed by zstd.

A row is ``[kind, namespace, name, text, file, line, created version, its place, version]``; a deletion in a
list of changes is ``[kind, namespace, name]``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import msgpack
import zstandard

from ctrl.model import Change, Contents, Draft, Entry, Resource, StoreError

MAX_UNPACKED = 1 << 30  # of what a store holds for one version; a bomb is refused
Row = list[Any]


def row_of(resource: Resource) -> Row:
    r = resource
    return [r.kind, r.namespace, r.name, r.text, r.file, r.line, *r.created, r.version]


def resource_of(row: Iterable[Any]) -> Resource:
    kind, namespace, name, text, file, line, created, place, version = row
    return Resource(kind, namespace, name, text, file, line, (created, place), version)


def pack_changes(changes: Iterable[Change]) -> bytes:
    return _pack([list(c.identity) if c.resource is None else row_of(c.resource) for c in changes])


def unpack_changes(data: bytes) -> tuple[Change, ...]:
    """Raises StoreError: these bytes are damaged."""
    try:
        rows = _unpack(data)
        return tuple(_change_of(row) for row in rows)
    except (ValueError, TypeError) as error:
        raise damaged("changes", error) from error


def pack_contents(contents: Contents) -> bytes:
    return _pack([row_of(resource) for resource in contents])


def unpack_contents(version: int, data: bytes) -> Contents:
    """Raises StoreError: these bytes are damaged."""
    try:
        resources = [resource_of(row) for row in _unpack(data)]
    except (ValueError, TypeError) as error:
        raise damaged("contents", error) from error
    return Contents(version, {resource.identity: resource for resource in resources})


def draft_words(draft: Draft) -> dict[str, str]:
    """All of a draft but its changes."""
    return {"who": draft.who, "what": draft.what, "hash": draft.hash, "message": draft.message}


def squeeze(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


def expand(data: bytes) -> bytes:
    """Raises ValueError: this was not squeezed, or is too large."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= MAX_UNPACKED:
            raise ValueError(f"{size} bytes unpacked")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def pack_entry(entry: Entry, **more: Any) -> str:
    """As JSON, with more keys of the keeper's own."""
    return json.dumps(asdict(entry) | more, separators=(",", ":"))


def unpack_entry(text: str | bytes) -> Entry:
    """Raises StoreError: this text is damaged."""
    try:
        d = json.loads(text)
        verbs = tuple((verb, kind, namespace, name) for verb, kind, namespace, name in d["verbs"])
        words = (d["who"], d["what"], d["hash"], d["message"])
        return Entry(d["version"], d["epoch"], d["at_ms"], *words, verbs)
    except (ValueError, TypeError, KeyError) as error:
        raise damaged("history", error) from error


def damaged(what: str, error: object) -> StoreError:
    return StoreError(f"the {what} in the store are damaged ({error}): restore a backup of the store")


def _change_of(row: Row) -> Change:
    if len(row) == 3:
        kind, namespace, name = row
        return Change((kind, namespace, name), None)
    resource = resource_of(row)
    return Change(resource.identity, resource)


def _pack(rows: list[Row]) -> bytes:
    try:
        return squeeze(msgpack.packb(rows))
    except UnicodeEncodeError as error:
        raise StoreError(f"this text is no Unicode and cannot be kept ({error})") from error


def _unpack(data: bytes) -> list[Row]:
    rows = msgpack.unpackb(expand(data))
    if not isinstance(rows, list):
        raise ValueError("no list")
    return rows
