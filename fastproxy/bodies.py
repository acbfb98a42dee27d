"""Bodies of the control protocol's messages: the rows of a snapshot, or the changes of an update.

They come from the network: sizes are bounded before anything is unpacked, every item is checked, and what is
wrong raises WireError, nothing else. docs/control-protocol.md says how they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgpack
import zstandard

from fastproxy.rows import MAX_KEY, MAX_ROW, Changes, Packed
from fastproxy.tables import NAMES

MAX_BODY = 256 * 1024 * 1024  # as it is after decompression
MAX_WINDOW = 8 * 1024 * 1024  # of zstd: what a reader must set aside
_INFLATER = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)  # of one thread: who decodes is a loop

T = TypeVar("T")


class WireError(ValueError):
    """This is no message of the protocol; says which field. The peer is wrong, nothing was taken from it."""


def pack_body(value: Changes | Packed) -> bytes:
    """``{table: [{key: row}, [key, …]]}`` for changes, ``{table: {key: row}}`` for a snapshot. Empty tables
    are left out; tables come in the order of ``tables.NAMES``, keys in that of the mapping."""
    out: dict[str, Any] = {}
    for name in NAMES:
        if isinstance(value, Changes):
            puts, deletes = value.puts.get(name, {}), value.deletes.get(name, [])
            if puts or deletes:
                out[name] = [puts, deletes]
        elif value.get(name):
            out[name] = value[name]
    return cast(bytes, msgpack.packb(out))


def inflate(frame: bytes, size: int, compressed: bool) -> bytes:
    """The body as it was packed, never more than ``size`` says. Raises WireError."""
    if size > MAX_BODY:
        raise WireError(f"a body of {size} bytes; the limit is {MAX_BODY}")
    if compressed:
        try:
            # a frame that names another size than the header is refused before a byte of it is unpacked; one
            # that names none is read as a stream, which stops where it is told to
            if zstandard.frame_content_size(frame) >= 0:
                if zstandard.frame_content_size(frame) != size:
                    raise WireError(f"the body's frame is not of its size, {size}")
                frame = _INFLATER.decompress(frame, max_output_size=size)
            else:
                with _INFLATER.stream_reader(frame) as reader:
                    frame = reader.read(size + 1)
        except (zstandard.ZstdError, MemoryError) as e:
            raise WireError(f"the body cannot be decompressed: {e}") from None
    if len(frame) != size:
        raise WireError(
            f"the body has {'more' if len(frame) > size else 'fewer'} bytes than its size, {size}"
        )
    return frame


def unpack_changes(body: bytes) -> Changes:
    """Raises WireError."""
    steps = _tables(body, _step)
    return Changes(
        {name: puts for name, (puts, _) in steps.items() if puts},
        {name: deletes for name, (_, deletes) in steps.items() if deletes},
    )


def unpack_rows(body: bytes) -> Packed:
    """Raises WireError."""
    return _tables(body, _rows)


def _tables(body: bytes, read: Callable[[msgpack.Unpacker, str], T]) -> dict[str, T]:
    """What ``read`` makes of each table.

    Item by item: what a length claims is not set aside before it is there, and nothing is nested deeper than
    the protocol says. Read as a whole, five bytes can ask for a list of a billion.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(body), 1), max_array_len=0, max_map_len=0)
    unpacker.feed(body)
    out: dict[str, T] = {}
    name = ""
    try:
        for _ in range(unpacker.read_map_header()):
            name = unpacker.unpack()
            if type(name) is not str or name not in NAMES or name in out:
                text = name[:40] if type(name) is str else type(name).__name__  # it may be a large one
                raise WireError(f"body: there is no table {text!r}, or it is there twice")
            out[name] = read(unpacker, name)
        end = unpacker.tell()
    except WireError:
        raise
    except Exception as e:  # msgpack raises what it likes for hostile bytes
        raise WireError(f"body.{name} is not as the protocol says: {type(e).__name__} {e}") from None
    if end != len(body):
        raise WireError("the body goes on behind its end")
    return out


def _step(unpacker: msgpack.Unpacker, table: str) -> tuple[dict[str, bytes], list[str]]:
    if unpacker.read_array_header() != 2:
        raise WireError(f"body.{table} is not [puts, deletes]")
    puts = _rows(unpacker, table)
    return puts, [_key(unpacker, table) for _ in range(unpacker.read_array_header())]


def _rows(unpacker: msgpack.Unpacker, table: str) -> dict[str, bytes]:
    count, out = unpacker.read_map_header(), {}
    for _ in range(count):
        key, row = _key(unpacker, table), unpacker.unpack()
        if type(row) is not bytes or len(row) > MAX_ROW:
            raise WireError(f"body.{table}[{key[:40]}]: a row is at most {MAX_ROW} bytes of msgpack")
        out[key] = row
    if len(out) != count:
        raise WireError(f"body.{table}: a key is there twice")
    return out


def _key(unpacker: msgpack.Unpacker, table: str) -> str:
    key = unpacker.unpack()
    if type(key) is not str or len(key) > MAX_KEY:
        raise WireError(f"body.{table}: a key is a string of at most {MAX_KEY} characters")
    return key
