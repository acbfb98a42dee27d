"""What holds for all heads, bodies and paths, not only for those somebody thought of."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastproxy import _http1
from tests.support import invariants
from tests.support.guard import Guard

GUARD = Guard(1 << 17)
TOKEN = (string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode()
VALUE = bytes(b for b in range(256) if (b >= 32 and b != 127) or b == 9)

names = st.one_of(
    st.sampled_from([name.title() for name in _http1.KNOWN_NAMES]),
    st.lists(st.sampled_from(TOKEN), min_size=1, max_size=40).map(bytes),
).filter(lambda name: name.lower() not in {b"host", b"content-length", b"transfer-encoding", b"connection"})
values = st.lists(st.sampled_from(VALUE), max_size=60).map(lambda v: bytes(v).strip(b" \t"))
white = st.sampled_from([b"", b" ", b"\t", b" \t "])
fields = st.lists(st.tuples(names, white, values, white), max_size=20)
targets = st.lists(st.sampled_from(string.ascii_letters + "/?&=%._-~;,@:!$'()*+"), max_size=60).map(
    lambda t: b"/" + "".join(t).encode()
)
seeds = st.integers(0, 2**32)
# bytes that are nearly HTTP: what a mutation would make, not noise that ends at the first byte
pieces = st.lists(
    st.sampled_from(
        [
            b"GET ",
            b"/",
            b" HTTP/1.1",
            b"\r\n",
            b"\n",
            b"\r",
            b"Host: a",
            b"A: b",
            b":",
            b" ",
            b"\t",
            b"\0",
            b"\xff",
        ]
        + [
            b"Content-Length: ",
            b"5",
            b"Transfer-Encoding: ",
            b"chunked",
            b",",
            b"gzip",
            b"Connection: ",
            b"HTTP/1.1 200 OK",
        ]
        + [
            b"x" * 15,
            b"x" * 16,
            b"x" * 17,
            b"-",
            b"0",
            b";a=",
            b'"',
            b"%2e",
            b".",
            b"..",
            b"%2f",
            b"\\",
            b"?",
            b"#",
        ]
    ),
    max_size=24,
).map(b"".join)


@given(st.lists(st.sampled_from(TOKEN), min_size=1, max_size=32).map(bytes), targets, fields)
def test_a_generated_request_comes_back(
    method: bytes, target: bytes, lines: list[tuple[bytes, bytes, bytes, bytes]]
) -> None:
    if method == b"CONNECT":
        method = b"CONNECTED"
    data = b"%s %s HTTP/1.1\r\nHost: a\r\n" % (method, target)
    data += b"".join(name + b":" + before + value + after + b"\r\n" for name, before, value, after in lines)
    data += b"\r\n"
    result = _http1.parse_request(data + b"next")
    assert isinstance(result, _http1.Request)
    assert result.length == len(data)
    assert (result.method, result.target) == (method, target)
    path, mark, query = target.partition(b"?")
    assert (result.path, result.query) == (path, query if mark else None)
    assert [(line.name, line.value) for line in result.fields[1:]] == [(line[0], line[2]) for line in lines]
    for known, first in enumerate(result.first):
        assert not first or result.fields[first - 1].known == known
        assert first or all(line.known != known or not known for line in result.fields)
    assert _http1.parse_request(data, portable=True) == result


@given(st.integers(100, 599), values, fields, st.booleans())
def test_a_generated_response_comes_back(
    status: int, reason: bytes, lines: list[tuple[bytes, bytes, bytes, bytes]], to_head: bool
) -> None:
    data = b"HTTP/1.1 %d %s\r\n" % (status, reason)
    data += b"".join(name + b":" + before + value + after + b"\r\n" for name, before, value, after in lines)
    data += b"\r\n"
    result = _http1.parse_response(data + b"next", to_head=to_head)
    assert isinstance(result, _http1.Response)
    assert (result.length, result.status, result.reason) == (len(data), status, reason)
    assert [(line.name, line.value) for line in result.fields] == [(line[0], line[2]) for line in lines]
    none = to_head or status < 200 or status in (204, 304)
    assert result.framing == ("none" if none else "close")


@given(
    st.one_of(st.binary(max_size=80), pieces),
    seeds,
    st.sampled_from([61440, 20, 60]),
    st.sampled_from([100, 2]),
)
def test_any_bytes_as_a_head(data: bytes, seed: int, head: int, count: int) -> None:
    rng = random.Random(seed)
    invariants.head(_http1.parse_request, data, GUARD, rng, head=head, fields=count, target=30)
    start = b"HTTP/1.1 200 OK\r\n"
    invariants.head(_http1.parse_response, data, GUARD, rng, head=head, fields=count)
    invariants.head(_http1.parse_response, start + data, GUARD, rng, to_head=bool(seed & 1))
    invariants.head(_http1.parse_request, b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n", GUARD, rng)


extensions = st.sampled_from([b"", b";a", b";a=b", b';a="b \\" c"', b";a;b=c"])


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=300), extensions, st.integers(0, 8)), max_size=12),
    st.lists(st.tuples(names, values), max_size=4),
    seeds,
)
def test_a_chunked_body_comes_back(
    chunks: list[tuple[bytes, bytes, int]], trailers: list[tuple[bytes, bytes]], seed: int
) -> None:
    trailers = [(name, value) for name, value in trailers if name.lower() not in _http1.NO_TRAILERS]
    data = b"".join(
        b"0" * zeros + b"%x" % len(content) + extension + b"\r\n" + content + b"\r\n"
        for content, extension, zeros in chunks
    )
    data += b"0\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in trailers) + b"\r\n"
    used, content = invariants.chunked(data + b"next", GUARD, random.Random(seed))
    assert used == len(data)
    assert content == b"".join(chunk[0] for chunk in chunks)


@given(st.one_of(st.binary(max_size=60), pieces), seeds)
def test_any_bytes_as_a_chunked_body(data: bytes, seed: int) -> None:
    rng = random.Random(seed)
    invariants.chunked(data, GUARD, rng)
    invariants.chunked(b"0\r\n" + data, GUARD, rng)
    invariants.chunked(b"5" + data + b"\r\nhello\r\n0\r\n\r\n", GUARD, rng)


@given(
    st.lists(
        st.sampled_from(
            [b"/", b".", b"..", b"%2e", b"%2F", b"%5c", b"\\", b"a", b"%", b"%41", b"%00", b"x" * 13]
        )
    )
)
@settings(max_examples=300)
def test_any_path(parts: list[bytes]) -> None:
    invariants.path(b"/" + b"".join(parts), GUARD)
    invariants.path(b"".join(parts), GUARD)


@given(st.binary(max_size=64))
def test_any_bytes_as_a_path(data: bytes) -> None:
    invariants.path(data, GUARD)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64])
@pytest.mark.parametrize("portable", [False, True], ids=["wide", "portable"])
def test_every_byte_at_every_border(size: int, portable: bool) -> None:
    """One odd byte after ``size`` plain ones, in name, value and target: both twins know all 256 bytes."""
    for byte in range(256):
        odd = b"x" * size + bytes([byte]) + b"y" * 20
        head = b"GET / HTTP/1.1\r\nHost: a\r\n"
        name = _http1.parse_request(head + odd + b": z\r\n\r\n", portable=portable)
        if byte in TOKEN:
            assert isinstance(name, _http1.Request)
        elif byte == ord(":"):
            assert isinstance(name, _http1.Request) == bool(size)
        else:
            assert isinstance(name, int) and name < 0
        value = _http1.parse_request(head + b"X: " + odd + b"\r\n\r\n", portable=portable)
        assert isinstance(value, _http1.Request) == (byte in VALUE)
        target = _http1.parse_request(b"GET /" + odd + b" HTTP/1.1\r\nHost: a\r\n\r\n", portable=portable)
        assert isinstance(target, _http1.Request) == (32 < byte < 127 and byte != ord("#"))
