"""Each case once more, with llhttp and h11 as second opinions.

Where they judge otherwise than we do, ``tests/cases/http1/differences.md`` has a row with the reason. A
difference that is not listed fails, and so does a row that no longer differs.
"""

from __future__ import annotations

import pytest

from fastproxy import _http1
from tests.support import cases, second_opinion
from tests.support.second_opinion import MORE, REFUSE, TAKE, Opinion

CASES = cases.read_all("http1", "request", "response", "chunked")
COLUMNS = ("case", "ours", "llhttp", "h11", "why")
LISTED = {row["case"]: row for row in cases.table("http1/differences.md", *COLUMNS)}


def ours(case: cases.Case) -> Opinion:
    if case.kind == "chunked":
        reader = _http1.ChunkedReader()
        used, content = reader.feed(case.data)
        return Opinion(REFUSE if used < 0 else TAKE if reader.done else MORE, content=content)
    options = {name: int(value) for name, value in case.options.items()}
    result = (_http1.parse_request if case.kind == "request" else _http1.parse_response)(case.data, **options)  # type: ignore[operator]
    if isinstance(result, int):
        return Opinion(REFUSE if result else MORE)
    start = result.method if isinstance(result, _http1.Request) else str(result.status).encode()
    return Opinion(TAKE, start, [(line.name.lower(), line.value) for line in result.fields])


def opinions(case: cases.Case) -> tuple[Opinion, Opinion, Opinion]:
    to = b"HEAD" if "to_head" in case.options else b"CONNECT" if "to_connect" in case.options else b"GET"
    return (
        ours(case),
        second_opinion.llhttp(case.kind, case.data),
        second_opinion.h11_(case.kind, case.data, to),
    )


def differs(case: cases.Case) -> bool:
    return len({opinion.verdict for opinion in opinions(case)}) > 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_verdict(case: cases.Case) -> None:
    mine, llhttp, h11 = opinions(case)
    name = f"{case.document.removeprefix('http1/').removesuffix('.md')}: {case.title}"
    row = LISTED.get(name)
    verdicts = (mine.verdict, llhttp.verdict, h11.verdict)
    if row is None:
        assert len(set(verdicts)) == 1, f"not in differences.md: | {name} | {' | '.join(verdicts)} |"
    else:
        assert len(set(verdicts)) > 1, f"differs no longer, take it out of differences.md: {name}"
        assert (row["ours"], row["llhttp"], row["h11"]) == verdicts
        assert row["why"], "a difference has a reason"


def alike(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Fields without the case of codings, which h11 lowers."""
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in fields]


@pytest.mark.parametrize("case", [case for case in CASES if ours(case).verdict == TAKE], ids=str)
def test_what_was_read(case: cases.Case) -> None:
    """Who takes a message reads the same method or status, fields and content from it."""
    mine, *others = opinions(case)
    for other in others:
        if other.verdict == TAKE:
            assert (other.start, alike(other.fields)) == (mine.start, alike(mine.fields))
            assert other.content == mine.content


def test_rows_name_cases() -> None:
    names = {f"{c.document.removeprefix('http1/').removesuffix('.md')}: {c.title}" for c in CASES}
    assert set(LISTED) <= names, "no such case"
    assert any(not differs(case) for case in CASES)
