"""Orders to breakers: the table becomes words in live memory, and lapses by the monotonic clock alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from fastproxy._balance import Live
from fastproxy.agent.orders import Orders

NAME = "outbound|80||catalog"
PLACE = "catalog|127.0.0.1:9001"
WALL = 1_000_000.0  # Unix seconds
SECOND = 1000  # ms


class Clocks:
    """A wall clock that may jump, and a monotonic one that may not."""

    def __init__(self) -> None:
        self.wall, self.monotonic = WALL, 50.0

    def orders(self, live: Live) -> Orders:
        return Orders(live, lambda: self.wall, lambda: self.monotonic)


@pytest.fixture
def live() -> Iterator[Live]:
    fd = os.memfd_create("live")
    os.ftruncate(fd, Live.bytes(2, 8, 8))
    yield Live(fd, create=(2, 8, 8))
    os.close(fd)


def order(state: str, seconds: float, given: float | None = None) -> dict[str, Any]:
    ms = int(seconds * SECOND)
    return {
        "state": state,
        "until": int(WALL * SECOND) + ms,
        "for": ms if given is None else int(given * SECOND),
    }


def word(live: Live, kind: str) -> tuple[str, int]:
    """Order and its end in µs as they lie in memory, of slot 3."""
    clusters = 256  # LiveHeader
    at = clusters + 3 * 64 + 8 if kind == "cluster" else clusters + 8 * 64 + 3 * 16 + 8
    raw = int.from_bytes(os.pread(live.fd, 8, at), "little")
    return ("none", "open", "closed")[raw & 3], raw >> 2


def test_an_order_of_a_cluster_and_of_an_endpoint(live: Live) -> None:
    clocks = Clocks()
    orders = clocks.orders(live)
    rows = {NAME: {"order": order("open", 10), "endpoints": {"127.0.0.1:9001": order("closed", 20)}}}
    orders.apply(rows, {NAME: 3}, {PLACE: 3})
    assert word(live, "cluster") == ("open", 60_000_000)
    assert word(live, "endpoint") == ("closed", 70_000_000)
    assert [row[:3] for row in orders.report()] == [[NAME, "CLOSED", "open"], [PLACE, "CLOSED", "closed"]]
    clocks.monotonic += 10
    assert [row[2] for row in orders.report()] == ["closed"]  # the cluster's has lapsed
    orders.apply({}, {NAME: 3}, {PLACE: 3})
    assert (word(live, "cluster")[0], word(live, "endpoint")[0]) == ("none", "none")
    assert orders.report() == []


def test_a_clock_that_jumps_does_not_move_the_end(live: Live) -> None:
    clocks = Clocks()
    orders = clocks.orders(live)
    rows = {NAME: {"order": order("open", 10)}}
    orders.apply(rows, {NAME: 3}, {})
    clocks.monotonic += 4
    clocks.wall -= 86400  # as if a day were left
    orders.apply(rows, {NAME: 3}, {})
    assert word(live, "cluster") == ("open", 60_000_000)


def test_an_order_never_stands_longer_than_it_was_given_for(live: Live) -> None:
    clocks = Clocks()
    clocks.wall -= 3600  # our clock is an hour behind
    orders = clocks.orders(live)
    orders.apply({NAME: {"order": order("open", 10)}}, {NAME: 3}, {})
    assert word(live, "cluster") == ("open", 60_000_000)
    orders.offset_ms = 3600 * SECOND  # now we know better
    orders.apply({NAME: {"order": order("open", 8, given=10)}}, {NAME: 3}, {})
    assert word(live, "cluster") == ("open", 58_000_000)


def test_what_is_over_is_not_obeyed(live: Live) -> None:
    clocks = Clocks()
    orders = clocks.orders(live)
    orders.apply({NAME: {"order": order("open", -5, given=10)}}, {NAME: 3}, {})
    assert word(live, "cluster") == ("open", 50_000_000)  # until now, which is not after now
    assert orders.report() == []


def test_a_cluster_that_got_another_slot_leaves_no_order_behind(live: Live) -> None:
    clocks = Clocks()
    orders = clocks.orders(live)
    rows = {NAME: {"order": order("open", 10)}}
    orders.apply(rows, {NAME: 3}, {})
    orders.apply(rows, {NAME: 5}, {})
    assert word(live, "cluster")[0] == "none"


@pytest.mark.parametrize("state", [3, 4])
def test_an_order_that_is_none(live: Live, state: int) -> None:
    with pytest.raises(ValueError, match="no order"):
        live.order_cluster(0, state, 1)
    with pytest.raises(IndexError):
        live.order_endpoint(8, 1, 1)


def test_what_came_before_the_clock_of_the_control_plane_ends_by_it_all_the_same(live: Live) -> None:
    """A proxy whose clock is an hour ahead starts: the snapshot with an order comes before the first
    heartbeat. By its own clock the order had lapsed, and the cluster went on getting requests."""
    clocks = Clocks()
    clocks.wall += 3600
    orders = clocks.orders(live)
    orders.apply({NAME: {"order": order("open", 600)}}, {NAME: 3}, {})
    assert word(live, "cluster") == ("open", 50_000_000)  # over as soon as it began
    clocks.monotonic += 2
    clocks.wall += 2
    orders.learn(-3600 * SECOND)
    assert word(live, "cluster") == ("open", (50 + 600) * 1_000_000)
    clocks.wall += 100_000  # a jump after that changes nothing
    orders.apply({NAME: {"order": order("open", 600)}}, {NAME: 3}, {})
    assert word(live, "cluster") == ("open", (50 + 600) * 1_000_000)


def test_of_too_many_rows_those_with_an_order_are_reported(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()
    orders = clocks.orders(live)
    key = "outbound|80||last"
    orders.apply({key: {"order": order("open", 60)}}, {NAME: 1, key: 2}, {})
    monkeypatch.setattr("fastproxy.agent.orders.MAX_REPORTED", 1)
    monkeypatch.setattr(
        orders, "_rows", lambda every: iter([[NAME, "CLOSED", "", 0, 9], [key, "CLOSED", "open", 1, 0]])
    )
    assert orders.report() == [[key, "CLOSED", "open", 1, 0]]


def count_rejected(live: Live, slot: int, count: int) -> None:
    """As worker 0 does: LiveHeader, states of 8 clusters and 8 endpoints, Gauges, ClusterCount.rejected."""
    os.pwrite(live.fd, count.to_bytes(8, "little"), 256 + 8 * 64 + 8 * 16 + 512 + slot * 32 + 24)


def test_what_a_former_cluster_of_the_slot_rejected_is_not_told_of_the_next(live: Live) -> None:
    """Only workers write their counts, so a slot that is used again begins with what was counted before."""
    orders = Clocks().orders(live)
    orders.apply({}, {NAME: 3}, {})
    count_rejected(live, 3, 5)
    assert orders.report() == [[NAME, "CLOSED", "", 0, 5]]
    other = "outbound|80||other"
    orders.apply({}, {other: 3}, {})
    assert orders.report() == []
    count_rejected(live, 3, 7)
    orders.apply({}, {other: 3}, {})  # the next version
    assert orders.report() == [[other, "CLOSED", "", 0, 2]]
    count_rejected(live, 3, 1)  # by the worker after the one that died
    assert orders.report() == [[other, "CLOSED", "", 0, 1]]
    count_rejected(live, 3, 4)
    assert orders.report() == [[other, "CLOSED", "", 0, 4]]
