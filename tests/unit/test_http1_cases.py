"""Every case of ``tests/cases/http1`` is fed four ways, to both twins of each byte search.

Whole, byte by byte, with trailing bytes, and ending at an unreadable page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastproxy import _http1
from tests.support import cases
from tests.support.guard import Guard

HEADS = cases.read_all("http1", "request", "response")
BODIES = cases.read_all("http1", "chunked")
PATHS = cases.table("http1/paths.md", "path", "slashes", "merge", "becomes", "why")
TRAILING = b"\0\xff GET /next HTTP/1.1\r\n\r\n"

Parse = Callable[[Any], Any]


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard(1 << 16)


def parser_of(case: cases.Case, portable: bool) -> Parse:
    options = {name: int(value) for name, value in case.options.items()}
    parse: Callable[..., Any] = _http1.parse_request if case.kind == "request" else _http1.parse_response
    return lambda data: parse(data, portable=portable, **options)


def check_head(case: cases.Case, result: Any) -> None:
    """Compare what the parser said with the case's ``want``."""
    if "more" in case.want:
        assert result == 0
        return
    if "refused" in case.want:
        assert result == -_http1.BAD[case.want["refused"]]
        return
    assert not isinstance(result, int), f"refused: {result}"
    for name, text in case.want.items():
        wanted = cases.unescape(text)
        found: object
        if name == "count":
            found, expected = len(result.fields), int(text)
        elif name == "nominated":
            names = [line.name for line in result.fields if line.known == _http1.NOMINATED]
            found, expected = b" ".join(names), wanted
        elif name.startswith("field "):
            lines = [line for line in result.fields if line.name.lower() == cases.unescape(name[6:])]
            found, expected = lines[0].value, wanted
        elif name == "flags":
            found, expected = sorted(result.flags), [] if text == "-" else text.split()
        else:
            found = getattr(result, name)
            if text == "-" and found is not None:
                pytest.fail(f"{name}: {found!r} where nothing was wanted")
            if found is None:
                expected = None if text == "-" else text
            elif isinstance(found, bool):
                expected = {"yes": True, "no": False}[text]
            else:
                expected = type(found)(text) if isinstance(found, (int, str)) else wanted
        assert found == expected, name


def test_there_are_enough_cases() -> None:
    assert len(HEADS) + len(BODIES) + len(PATHS) >= 150
    assert {case.document for case in HEADS + BODIES} == {
        f"http1/{name}.md" for name in ("chunked", "hosts", "requests", "responses", "smuggling")
    }


@pytest.mark.parametrize("portable", [False, True], ids=["wide", "portable"])
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_head(case: cases.Case, portable: bool, guard: Guard) -> None:
    parse = parser_of(case, portable)
    whole = parse(case.data)
    check_head(case, whole)

    assert parse(guard.place(case.data)) == whole
    if whole != 0:
        assert parse(case.data + TRAILING) == whole

    # byte by byte: nothing is said before its time, and a fault is the same one whenever it is seen
    for size in range(len(case.data) + 1):
        part = parse(guard.place(case.data[:size]))
        if part != 0:
            assert part == whole, f"after {size} bytes"
            assert isinstance(whole, int) or size == whole.length
            break
    else:
        assert whole == 0


@pytest.mark.parametrize("case", BODIES, ids=str)
def test_body(case: cases.Case, guard: Guard) -> None:
    reader = _http1.ChunkedReader()
    used, content = reader.feed(case.data)
    refused = case.want.get("refused")
    if refused:
        assert used == -_http1.BAD[refused] == -reader.bad
        assert reader.skip(b"0\r\n\r\n") == used, "it stays refused"
    else:
        assert content == cases.unescape(case.want["content"])
        assert reader.done == {"yes": True, "no": False}[case.want["done"]]
        assert len(case.data) - used == int(case.want.get("rest", "0"))

    same = _http1.ChunkedReader()
    assert same.feed(guard.place(case.data)) == (used, content)
    assert _http1.ChunkedReader().skip(guard.place(case.data)) == used
    if refused or reader.done:
        assert _http1.ChunkedReader().feed(case.data + TRAILING) == (used, content)

    slow, fast = _http1.ChunkedReader(), _http1.ChunkedReader()
    parts, total = [], 0
    for size in range(len(case.data)):
        one = guard.place(case.data[size : size + 1])
        step, part = slow.feed(one)
        assert fast.skip(one) == step
        assert fast.state == slow.state
        parts.append(part)
        if step <= 0:
            total = step if step < 0 else total
            break
        total += step
    assert (total, b"".join(parts)) == (used, content)
    assert slow.state == reader.state


@pytest.mark.parametrize("row", PATHS, ids=lambda row: f"{row['path']} {row['slashes']} {row['merge']}")
def test_path(row: dict[str, str], guard: Guard) -> None:
    path = row["path"].encode()
    merge = {"yes": True, "no": False}[row["merge"]]
    result = _http1.normalise_path(guard.place(path), slashes=row["slashes"], merge=merge)  # type: ignore[arg-type]
    plain = row["becomes"] == "plain"
    assert _http1.is_plain_path(guard.place(path)) == plain
    assert _http1.is_plain_path(guard.place(path), portable=True) == plain
    if row["becomes"] == "refused":
        assert result == -_http1.BAD["PATH"]
    else:
        assert result == (path if plain else row["becomes"].encode())
