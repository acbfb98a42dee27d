"""What must hold for any bytes that the parser is given. Used by hypothesis and by the fuzzer.

Each function raises AssertionError with the input when something does not hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fastproxy import _http1
from tests.support.guard import Guard

Parse = Callable[..., Any]
PREFIXES = 48  # of a long input, as many are tried besides the whole


def prefixes(data: bytes, rng: random.Random) -> list[int]:
    """Lengths to cut at: all of a short input, else a sample, always with the ends."""
    if len(data) <= PREFIXES:
        return list(range(len(data) + 1))
    return sorted({0, 1, len(data) - 1, len(data), *rng.sample(range(len(data)), PREFIXES)})


def head(parse: Parse, data: bytes, guard: Guard, rng: random.Random, **options: Any) -> Any:
    """A head is read the same in four ways and by both twins; what is found lies inside of it."""
    result = parse(data, **options)
    assert parse(data, portable=True, **options) == result, ("portable", data)
    assert parse(guard.place(data), **options) == result, ("guard", data)
    if result != 0:
        assert parse(data + b"\0\r\n", **options) == result, ("trailing", data)
    for size in prefixes(data, rng):
        part = parse(guard.place(data[:size]), **options)
        assert part == parse(guard.place(data[:size]), portable=True, **options), ("portable", data[:size])
        assert part in (0, result), ("prefix", size, data)
    if isinstance(result, int):
        assert result == 0 or -result in _http1.BAD.values(), ("unknown", result, data)
        return result
    assert 0 < result.length <= len(data)
    whole = data[: result.length]
    assert whole.endswith(b"\r\n\r\n"), ("end", data)
    assert b"\n" not in whole.replace(b"\r\n", b""), ("bare line feed", data)
    assert b"\r" not in whole.replace(b"\r\n", b""), ("bare carriage return", data)
    assert b"\0" not in whole, ("NUL", data)
    names = [line.name.lower() for line in result.fields]
    assert whole.count(b"\r\n") in (len(names) + 2, len(names) + 3), ("lines", data)
    for line in result.fields:
        assert line.name and line.value == line.value.strip(b" \t"), ("line", line, data)
        assert line.hash == _http1.field_hash(line.name.swapcase()), ("hash", line, data)
        known = _http1.KNOWN.get(line.name.lower().decode("latin-1"), 0)
        assert line.known in (known, _http1.NOMINATED), ("known", line, data)
    assert names.count(b"content-length") <= 1 or not hasattr(result, "method") and result.framing == "none"
    if result.framing == "chunked":
        assert result.content_length is None
        assert [
            line.value.lower() for line in result.fields if line.name.lower() == b"transfer-encoding"
        ] == [b"chunked"], ("coding", data)
    if result.framing == "length":
        assert 0 <= result.content_length < 1 << 63
    return result


def chunked(data: bytes, guard: Guard, rng: random.Random) -> tuple[int, bytes]:
    """A chunked body is read the same whole, in pieces, by skipping and by reading."""
    reader = _http1.ChunkedReader()
    used, content = reader.feed(guard.place(data))
    assert len(content) <= len(data)
    skipper = _http1.ChunkedReader()
    assert skipper.skip(guard.place(data)) == used, data
    assert skipper.state == reader.state, data

    slow, fast = _http1.ChunkedReader(), _http1.ChunkedReader()
    parts, total, at = [], 0, 0
    while at < len(data) and not slow.done:
        piece = guard.place(data[at : at + rng.choice((1, 1, 2, 3, 7, 100))])
        step, part = slow.feed(piece)
        assert fast.skip(piece) == step, data
        parts.append(part)
        if step < 0:
            total = step
            break
        total += step
        at += step
    assert (total, slow.state) == (used, reader.state), data
    assert b"".join(parts) == content, data
    return used, content


def path(data: bytes, guard: Guard) -> None:
    """A normal form stays one, does not leave its root, and is what the fast way takes for plain."""
    plain = _http1.is_plain_path(guard.place(data))
    assert plain == _http1.is_plain_path(data, portable=True), data
    for slashes in _http1.SLASHES:
        for merge in (True, False):
            result = _http1.normalise_path(guard.place(data), slashes=slashes, merge=merge)  # type: ignore[arg-type]
            if plain and (slashes == "keep" or merge):
                assert result == data, (slashes, merge, data)
            if isinstance(result, int):
                assert result == -_http1.BAD["PATH"]
                continue
            assert len(result) <= len(data)
            again = _http1.normalise_path(result, slashes=slashes, merge=merge)  # type: ignore[arg-type]
            assert again == result, (slashes, merge, data)
            segments = result.split(b"/")
            assert b"." not in segments and b".." not in segments, (slashes, merge, data)
            assert not data or result.startswith(b"/"), data
            assert not merge or b"//" not in result, data
            if slashes == "decode":
                assert not any(part in result.upper() for part in (b"%2F", b"%5C", b"\\")), data
            if merge:
                assert _http1.is_plain_path(result) == (b"%" not in result and b"\\" not in result), data
