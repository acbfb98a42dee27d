"""The parser's tables, names and limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastproxy import _http1
from fastproxy.errors import TABLE, Kind

MAP = (Path(_http1.__file__).parent / "_http1.pxd").read_text()
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
COMMON = """
accept accept-charset accept-encoding accept-language access-control-request-headers authorization baggage
cache-control content-encoding content-language content-type dnt end-user etag if-match if-modified-since
if-none-match if-range if-unmodified-since last-modified link max-forwards origin pragma priority
proxy-authorization range referer sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest
sec-fetch-mode sec-fetch-site sec-fetch-user set-cookie traceparent tracestate upgrade-insecure-requests
vary x-b3-sampled x-b3-spanid x-b3-traceid x-envoy-attempt-count x-forwarded-client-cert x-forwarded-port
x-real-ip x-tenant
"""


def numbers(prefix: str) -> dict[str, int]:
    """Names of an enum in the map -> numbers."""
    return {name: int(value) for name, value in re.findall(rf"^    {prefix}(\w+) = (\d+)", MAP, re.MULTILINE)}


def test_bad_numbers_are_those_of_the_error_table() -> None:
    assert numbers("BAD_") == _http1.BAD
    assert {kind.name: kind.value for kind in Kind if kind < 32} == _http1.BAD
    assert all(Kind(number) in TABLE for number in _http1.BAD.values())


def test_known_numbers_are_those_of_the_map() -> None:
    known = numbers("KNOWN_")
    own = {name.upper().replace("-", "_"): number for name, number in _http1.KNOWN.items()}
    assert known == own | {"NONE": 0, "NOMINATED": _http1.NOMINATED, "COUNT": len(own) + 2}


def test_flags_framings_and_forms_are_those_of_the_map() -> None:
    flags = numbers("HEAD_")
    assert set(_http1.FLAGS.values()) == set(flags.values())
    assert [name.lower() for name in numbers("FRAMING_")] == list(_http1.FRAMING)
    assert [name.lower() for name in numbers("FORM_")] == list(_http1.FORM)
    assert {name.lower(): number for name, number in numbers("SLASH_").items()} == _http1.SLASHES


@pytest.mark.parametrize("name", _http1.KNOWN_NAMES)
def test_known_names_are_found_in_any_case_and_nothing_near_them(name: bytes) -> None:
    for written in (name, name.upper(), name.title()):
        result = _http1.parse_response(b"HTTP/1.1 200 OK\r\n" + written + b": 5\r\n\r\n")
        if name == b"transfer-encoding":
            assert result == -_http1.BAD["CODING"]
            continue
        assert isinstance(result, _http1.Response)
        assert result.fields[0].known == _http1.KNOWN[name.decode()]
        assert result.first[result.fields[0].known] == 1
    for at in range(len(name)):
        for other in (b"x", b"_", b"~", b"."):
            near = name[:at] + other + name[at + 1 :]
            if near in _http1.KNOWN_NAMES or near == name:
                continue
            result = _http1.parse_response(b"HTTP/1.1 200 OK\r\n" + near + b": 5\r\n\r\n")
            assert isinstance(result, _http1.Response)
            assert result.fields[0].known == 0, near


def test_hashes_tell_common_names_apart() -> None:
    names = [name.encode() for name in COMMON.split()] + list(_http1.KNOWN_NAMES)
    hashes = {_http1.field_hash(name) for name in names}
    assert len(hashes) == len(names)
    assert 0 not in hashes
    # the plan keeps a bloom of (hash & 63): names must spread over it
    assert len({value & 63 for value in hashes}) > 30


def test_hash_and_names_have_no_case() -> None:
    for name in (b"a", b"Te", b"X-Long-Name-Of-A-Field", b"exactly8", b"seven77"):
        assert _http1.field_hash(name.upper()) == _http1.field_hash(name.lower())
        assert _http1.same_name(name.upper(), name.lower())
    assert not _http1.same_name(b"a^", b"a~"), "they differ by the bit that letters' case is"
    assert not _http1.same_name(b"a", b"ab")
    assert _http1.field_hash(b"") != 0


def test_refused_trailers_fit_their_place() -> None:
    size = int(re.search(r"uint8_t name\[(\d+)\]", MAP)[1])  # type: ignore[index]
    assert max(map(len, _http1.NO_TRAILERS)) <= size
    assert len(_http1.NO_TRAILERS) < 32
    for name in _http1.NO_TRAILERS:
        used, _ = _http1.ChunkedReader().feed(b"0\r\n" + name.title() + b": x\r\n\r\n")
        assert used == -_http1.BAD["TRAILER"], name


def test_field_count_may_not_pass_the_structure() -> None:
    lines = b"".join(b"A%d: b\r\n" % i for i in range(255))
    whole = _http1.parse_request(HEAD + lines + b"\r\n", fields=10_000)
    assert isinstance(whole, _http1.Request)
    assert len(whole.fields) == 256
    more = _http1.parse_request(HEAD + lines + b"B: c\r\n\r\n", fields=10_000)
    assert more == -_http1.BAD["FIELD_COUNT"]


def test_a_name_longer_than_its_number_can_say() -> None:
    data = HEAD + b"x" * 65536 + b": y\r\n\r\n"
    assert _http1.parse_request(data, head=1 << 20) == -_http1.BAD["HEAD_SIZE"]
    shorter = _http1.parse_request(HEAD + b"x" * 65535 + b": y\r\n\r\n", head=1 << 20)
    assert isinstance(shorter, _http1.Request)
    assert len(shorter.fields[1].name) == 65535


def test_a_value_longer_than_64_kib() -> None:
    result = _http1.parse_request(HEAD + b"X: " + b"v" * 100_000 + b"\r\n\r\n", head=1 << 20)
    assert isinstance(result, _http1.Request)
    assert len(result.fields[1].value) == 100_000


def test_first_of_a_repeated_field() -> None:
    result = _http1.parse_request(HEAD + b"Cookie: a\r\nX: b\r\nCOOKIE: c\r\n\r\n")
    assert isinstance(result, _http1.Request)
    assert result.first[_http1.KNOWN["cookie"]] == 2
    assert [line.known for line in result.fields].count(_http1.KNOWN["cookie"]) == 2


def test_a_nominated_field_is_known_as_that_only() -> None:
    result = _http1.parse_request(HEAD + b"User-Agent: b\r\nConnection: user-agent, x\r\nX: c\r\n\r\n")
    assert isinstance(result, _http1.Request)
    assert result.first[_http1.KNOWN["user-agent"]] == 0
    assert result.first[_http1.NOMINATED] == 2
    assert [line.known for line in result.fields] == [_http1.KNOWN["host"], 1, _http1.KNOWN["connection"], 1]


def test_content_of_a_huge_chunk_is_skipped_not_read() -> None:
    """A size near 2^63 leaves its remainder exact: it is counted down, whatever the pieces."""
    reader = _http1.ChunkedReader()
    assert reader.skip(b"7fffffffffffffff\r\n") == 18
    piece = bytes(1 << 16)
    for count in range(1, 65):
        assert reader.skip(piece) == len(piece)
        assert reader.state[1] == (1 << 63) - 1 - count * len(piece)


def test_extensions_are_counted_over_the_whole_body() -> None:
    reader = _http1.ChunkedReader()
    chunk = b"1;" + b"x" * 200 + b"\r\na\r\n"
    allowed = 0
    while reader.skip(chunk) == len(chunk):
        allowed += 1
    assert reader.bad == _http1.BAD["CHUNK"]
    assert allowed == 16384 // 201


@pytest.mark.parametrize(
    ("start", "room", "refused"),
    [(b"1;", 256, "CHUNK"), (b"1;a=", 256, "CHUNK"), (b"0\r\nX:", 8192, "TRAILER")],
)
def test_lines_of_a_chunked_body_are_as_long_as_allowed(start: bytes, room: int, refused: str) -> None:
    """`room` is for the size line, or the trailer section, with its line ends."""
    ends = b"\r\n\r\n" if refused == "TRAILER" else b"\r\n"
    own = len(start.removeprefix(b"0\r\n")) + len(ends)
    fits = _http1.ChunkedReader()
    assert fits.skip(start + b"x" * (room - own) + ends) > 0
    over = _http1.ChunkedReader()
    assert over.skip(start + b"x" * (room - own + 1) + ends) == -_http1.BAD[refused]
