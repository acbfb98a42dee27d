"""Rows and their hash: what it says, what it does not, and that changes are all or nothing."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastproxy.rows import (
    Changes,
    Rows,
    RowsError,
    changes_between,
    digest,
    merged,
    pack_row,
    patched,
    unpack_row,
)
from fastproxy.tables import NAMES, Tables, empty

CONTENTS = st.dictionaries(
    st.sampled_from(NAMES),
    st.dictionaries(st.text(max_size=6), st.integers(0, 5), max_size=6),
    max_size=3,
)


def tables_of(contents: dict[str, dict[str, int]]) -> Tables:
    out: Any = empty()
    for name, rows in contents.items():
        if name == "endpoints":  # a list in the tables, a row for each of its items
            rows = {f"{key.encode().hex()}|80": endpoints(count + 1) for key, count in rows.items()}
        out[name] = dict(rows)
    return out  # type: ignore[no-any-return]


def endpoints(count: int) -> Any:
    return [{"address": f"10.0.0.{i}", "port": 80, "weight": count % 3} for i in range(count)]


def test_hash_by_the_document() -> None:
    """The worked example of docs/control-protocol.md, computed as it is told there."""
    total = 0
    for table, key, row in ((b"clusters", b"a", b"\x80"), (b"routes", "mesh ü".encode(), b"\x90")):
        name = table + b"\0" + str(len(key)).encode() + b"\0" + key
        total += int.from_bytes(hashlib.shake_128(name + row).digest(128), "little")
    wanted = hashlib.sha256((total % (1 << 1024)).to_bytes(128, "little")).hexdigest()
    rows = Rows.of({"clusters": {"a": b"\x80"}, "routes": {"mesh ü": b"\x90"}})
    assert rows.hash.hex() == wanted == "0f59bf4e9147bb4b2665c1d2ea8537c014f00edc4d7e2143b03a7a2133e55d97"


def test_hash_of_nothing() -> None:
    assert Rows().hash == hashlib.sha256(bytes(128)).digest() == digest(0)


@settings(max_examples=200)
@given(CONTENTS, CONTENTS, CONTENTS)
def test_every_way_to_the_same_rows_gives_the_same_hash(a: Any, b: Any, c: Any) -> None:
    rows = Rows.pack(tables_of(a))
    for contents in (b, c):
        changes = changes_between(rows, tables_of(contents))
        total = rows.total_after(changes)
        rows.apply(changes)
        assert rows.total == total
    straight = Rows.pack(tables_of(c))
    assert rows.tables == straight.tables
    assert rows.hash == straight.hash
    assert rows.unpack() == tables_of(c)


@settings(max_examples=200)
@given(CONTENTS, CONTENTS)
def test_equal_hash_means_equal_rows(a: Any, b: Any) -> None:
    one, other = Rows.pack(tables_of(a)), Rows.pack(tables_of(b))
    assert (one.hash == other.hash) == (one.tables == other.tables)


def test_what_is_shifted_between_table_key_and_row_is_another_hash() -> None:
    pairs = [
        ({"routes": {"ab": b"c"}}, {"routes": {"a": b"bc"}}),
        ({"routes": {"a": b"x"}}, {"clusters": {"a": b"x"}}),
        ({"routes": {"a": b"x", "b": b"y"}}, {"routes": {"a": b"y", "b": b"x"}}),
        ({"routes": {"a": b""}}, {}),
    ]
    for one, other in pairs:
        assert Rows.of(one).hash != Rows.of(other).hash


@settings(max_examples=200)
@given(CONTENTS, CONTENTS)
def test_patched_tables_are_the_rows(a: Any, b: Any) -> None:
    before, after = tables_of(a), tables_of(b)
    changes = changes_between(Rows.pack(before), after)
    assert patched(before, changes) == after
    assert before == tables_of(a), "what was there before is left alone"


def test_one_merged_step_leads_where_many_lead() -> None:
    first = Rows.of({"routes": {"stays": b"1", "goes": b"1", "changes": b"1"}})
    rows = Rows.of(first.tables)
    touched: dict[tuple[str, str], bool] = {}
    for changes in (
        Changes({"routes": {"changes": b"2", "comes and goes": b"1"}}, {"routes": ["goes"]}),
        Changes({"routes": {"comes": b"1"}}, {"routes": ["comes and goes"]}),
    ):
        for table, key in changes.keys():  # noqa: SIM118
            touched.setdefault((table, key), key in rows.tables[table])
        rows.apply(changes)
    step = merged(rows, touched)
    assert step == Changes({"routes": {"changes": b"2", "comes": b"1"}}, {"routes": ["goes"]})
    first.apply(step)
    assert first.hash == rows.hash


REFUSED = {
    "delete of what is not there": Changes({}, {"routes": ["none"]}),
    "put and delete of one key": Changes({"routes": {"a": b"2"}}, {"routes": ["a"]}),
    "the same delete twice": Changes({}, {"routes": ["a", "a"]}),
    "unknown table": Changes({"secrets": {"a": b"1"}}),
    "delete in an unknown table": Changes({}, {"secrets": ["a"]}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_changes_that_do_not_fit_change_nothing(name: str) -> None:
    rows = Rows.of({"routes": {"a": b"1", "b": b"2"}})
    before, total = {table: dict(some) for table, some in rows.tables.items()}, rows.total
    with pytest.raises(RowsError):
        rows.apply(REFUSED[name])
    assert (rows.tables, rows.total) == (before, total)


def test_a_row_that_is_no_msgpack_is_named() -> None:
    with pytest.raises(ValueError, match=r"routes\[mesh a\] is not msgpack"):
        unpack_row("routes", "mesh a", b"\xc1")
    with pytest.raises(ValueError, match=r"routes\[mesh a\] is not msgpack"):
        unpack_row("routes", "mesh a", b"\xdd\xff\xff\xff\xff" * 200)
    with pytest.raises(ValueError, match=r"clusters\[a\] is not msgpack"):
        Rows.of({"clusters": {"a": b"\x92\x01"}}).unpack()


def test_rows_are_packed_as_they_are_ordered() -> None:
    assert pack_row({"b": 1, "a": 2}) == msgpack.packb({"b": 1, "a": 2}) != pack_row({"a": 2, "b": 1})


def test_changes_count_and_list_what_they_touch() -> None:
    changes = Changes({"routes": {"a": b"1"}, "clusters": {}}, {"routes": ["b", "c"]})
    assert len(changes) == 3
    assert list(changes.keys()) == [("routes", "a"), ("routes", "b"), ("routes", "c")]
    assert changes
    assert not Changes({"clusters": {}}, {"routes": []})
