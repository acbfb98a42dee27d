"""The picture of the fleet: who is there, who serves what, and how long that took."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from dataclasses import replace
from typing import Any

from ctrl import fleet as fleets
from ctrl.fleet import LOST, Fleet
from fastproxy.wire import PREPARED, REJECTED, SERVING, Answer, Attributes, Report
from tests.control.links import HERE

HASH = b"\7" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report(node: str = "a", version: int = 1, **fields: Any) -> Report:
    fields = {"state": "LIVE", "epoch": 1, "version": version, "hash": HASH, "serving": version, **fields}
    return Report(node=node, attributes=HERE, **fields)


def answer(node: str = "a", version: int = 2, result: str = SERVING, epoch: int = 1, **more: Any) -> Answer:
    return Answer(node, epoch, version, HASH, result, **more)


def fleet_of(*nodes: str, most: int = fleets.PROXIES) -> tuple[Fleet, Clock]:
    clock = Clock()
    fleet = Fleet(2.0, clock=clock, most=most)
    for node in nodes:
        fleet.on_report(report(node), "10.0.0.1")
    return fleet, clock


def test_a_proxy_is_what_it_reports() -> None:
    fleet, _ = fleet_of()
    fleet.on_report(
        report("a", 7, requests=5, errors=2, admin="127.0.0.1:9901", release="1", started_ms=9), "10.0.0.9"
    )
    (proxy,) = fleet.proxies()
    assert (proxy.node, proxy.state, proxy.epoch, proxy.version, proxy.held) == ("a", "LIVE", 1, 7, 7)
    assert (proxy.requests, proxy.errors, proxy.admin, proxy.release) == (5, 2, "127.0.0.1:9901", "1")
    assert (proxy.address, proxy.hash, proxy.present) == ("10.0.0.9", HASH, True)
    assert abs(proxy.since_ms - time.time() * 1000) < 60_000


def test_what_serves_is_not_what_is_held() -> None:
    fleet, _ = fleet_of("a")
    fleet.on_report(report("a", 9, serving=7, state="REJECTED", error="no"))
    proxy = fleet.proxies()[0]
    assert (proxy.version, proxy.held, proxy.hash, proxy.error) == (7, 9, b"", "no")


def test_progress_counts_serving_prepared_rejected_and_names_the_rest() -> None:
    fleet, _ = fleet_of("a", "b", "c", "d", "e")
    fleet.on_answers([answer("a", us=100), answer("b", us=300), answer("c", result=PREPARED)])
    fleet.on_answers([answer("d", result=REJECTED, error="no cluster")])
    progress = fleet.progress(1, 2)
    assert (progress.total, progress.serving, progress.prepared) == (5, 2, 3)
    assert progress.rejected == [("d", "no cluster")]
    assert progress.laggards == ["c", "e"]
    assert (progress.p50_us, progress.p99_us, progress.max_us) == (100, 300, 300)
    assert fleet.progress(1, 1).serving == 5  # who serves a later one serves this; d has said no to 2 only
    assert fleet.progress(2, 1).serving == 0


def test_who_is_above_the_head_does_not_serve_it() -> None:
    """It serves a candidate, or comes from a store that is newer than this one."""
    fleet, _ = fleet_of("a", "b")
    fleet.on_report(report("a", 5))
    fleet.on_report(report("b", 7))
    progress = fleet.progress(1, 5, head=5)
    assert (progress.total, progress.serving, progress.laggards) == (2, 1, ["b"])
    assert fleet.progress(1, 7, head=5).serving == 1, "the candidate itself"
    assert fleet.progress(1, 5, head=7).serving == 2, "once it is decided"


def test_who_is_lost_is_named_and_not_counted() -> None:
    fleet, clock = fleet_of("a", "b")
    clock.now += 100
    fleet.on_report(report("b", 2))
    fleet.expire()
    progress = fleet.progress(1, 2)
    assert (progress.total, progress.serving, progress.lost) == (1, 1, ["a"])


def test_a_later_version_counts_and_its_time_does_not() -> None:
    fleet, _ = fleet_of("a")
    fleet.on_answers([answer("a", 3, us=50)])
    assert fleet.progress(1, 2).serving == 1
    assert fleet.progress(1, 2).max_us == 0
    assert fleet.progress(1, 3).max_us == 50


def test_a_report_counts_where_the_answer_was_lost() -> None:
    fleet, _ = fleet_of("a")
    fleet.on_report(report("a", 5))
    assert fleet.progress(1, 5).serving == 1


def test_a_rejected_version_that_serves_later_is_not_rejected_any_more() -> None:
    fleet, _ = fleet_of("a")
    fleet.on_answers([answer("a", result=REJECTED, error="no")])
    assert fleet.progress(1, 2).rejected == [("a", "no")]
    fleet.on_answers([answer("a")])
    assert fleet.progress(1, 2).rejected == []
    assert fleet.progress(1, 2).serving == 1


def test_a_version_that_serves_in_part_is_a_problem() -> None:
    fleet, _ = fleet_of("a", "b")
    fleet.on_answers([answer("a", error="listener 0.0.0.0:80: in use"), answer("b")])
    seen = fleet.progress(1, 2)
    assert (seen.serving, seen.problems) == (2, [("a", "listener 0.0.0.0:80: in use")])
    fleet.on_answers([answer("a")])
    assert fleet.progress(1, 2).problems == []


def test_who_holds_another_history_serves_nothing_of_ours() -> None:
    fleet, _ = fleet_of("a", "b")
    fleet.agrees = lambda proxy: proxy.node == "b"
    fleet.on_answers([answer("a", 9), answer("b")])
    seen = fleet.progress(1, 2)
    assert (seen.serving, seen.laggards) == (1, ["a"])


def test_an_older_epoch_counts_nothing() -> None:
    fleet, _ = fleet_of()
    fleet.on_report(report("a", 1, epoch=2))
    fleet.on_answers([answer("a", 50, epoch=1)])
    assert fleet.proxies()[0].version == 1


def test_answers_of_strangers_are_ignored() -> None:
    fleet, _ = fleet_of()
    fleet.on_answers([answer("a")])
    assert (fleet.proxies(), fleet.ignored) == ([], 1)


def test_a_silent_proxy_is_lost_and_later_forgotten() -> None:
    fleet, clock = fleet_of("a", "b")
    clock.now += 6.9
    fleet.on_answers([answer("b")])
    clock.now += 0.2
    fleet.expire()
    assert [(p.node, p.present) for p in fleet.proxies()] == [("a", False), ("b", True)]
    assert fleet.proxies()[0].state == LOST
    assert len(fleet) == 1
    assert fleet.progress(1, 2).total == 1
    fleet.on_report(report("a"))
    assert len(fleet) == 2
    clock.now += fleets.REMEMBER + 8
    fleet.expire()
    fleet.expire()
    assert fleet.proxies() == []


def test_two_proxies_with_one_name_are_shown() -> None:
    fleet, _ = fleet_of()
    for address in ("10.0.0.1", "10.0.0.2"):
        fleet.on_report(report("a"), address)
    assert fleet.proxies()[0].problem == ""  # it may have moved
    fleet.on_report(report("a"), "10.0.0.1")
    assert "two proxies use this name: at 10.0.0.1 and 10.0.0.2" in fleet.proxies()[0].problem


def test_two_processes_of_one_machine_with_one_name_are_shown() -> None:
    fleet, _ = fleet_of()
    for started in (1, 2, 1):
        fleet.on_report(report("a", started_ms=started), "10.0.0.1")
    assert "two proxies use this name" in fleet.proxies()[0].problem


def test_the_problem_ends_when_one_of_the_two_is_gone() -> None:
    fleet, clock = fleet_of()
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        fleet.on_report(report("a"), address)
    for _ in range(4):
        clock.now += 2
        fleet.on_report(report("a"), "10.0.0.1")
    assert fleet.proxies()[0].problem == ""


def test_a_relay_is_no_proxy() -> None:
    fleet, _ = fleet_of("a")
    fleet.on_report(report("r1", via="r1"))
    fleet.on_report(report("r2", via="r1/r2"))
    fleet.on_report(report("b", via="r1/r2"), "10.0.0.5")
    fleet.on_answers([answer("r1")])
    assert [p.node for p in fleet.proxies()] == ["a", "b"]
    assert sorted(fleet.relays) == ["r1", "r2"]
    assert (fleet.ignored, fleet.progress(1, 1).total) == (0, 2)


def test_names_breakers_and_refusals_are_bounded() -> None:
    fleet, _ = fleet_of(*"abcd", most=3)
    assert (len(fleet), fleet.ignored) == (3, 1)
    row = ["x", "open", "", 0, 1]
    fleet.on_report(report("a", breakers=[row] * 3000))
    assert len(fleet.breakers()["a"]) == 1000
    fleet.on_report(
        report("a", breakers=[row, ["x"], 5, ["x", "y", "z", "0", 1], ["x" * 5000, "", "", 0, 0]])
    )
    assert fleet.breakers()["a"] == [row]
    for i in range(2000):
        fleet.refuse("10.0.0.1", "a", str(i))
    assert len(fleet.refused) == fleets.REFUSALS
    assert fleet.refused[-1].reason == "1999"


def test_what_proxies_say_has_a_budget_of_bytes() -> None:
    """A report may have a megabyte of labels, and names of proxies cost nothing: two hundred thousand were
    bounded, but not what they said."""
    tracemalloc.start()
    try:
        fleet = Fleet(2.0, memory=4_000_000)
        fleet.on_report(report("good", breakers=[["x", "open", "", 0, 1]]))
        before = tracemalloc.get_traced_memory()[0]
        for i in range(100):
            labels = {f"{i}-{j}": "\N{SNOWMAN}" * 2000 for j in range(100)}
            rows = [["b" * 1000, "open", "", 0, 1] for _ in range(1000)]
            attributes = Attributes.of("default", labels, False)
            fleet.on_report(
                replace(report(f"bad-{i}", breakers=rows, error="e" * 4096), attributes=attributes)
            )
            fleet.on_answers([answer(f"bad-{i}", 2, REJECTED, error=f"{i}" + "w" * 4000)])
            del labels, rows, attributes
        assert fleet.ignored > 80
        assert tracemalloc.get_traced_memory()[0] - before < 6_000_000
    finally:
        tracemalloc.stop()
    # who was there goes on; what does not fit is its breakers first
    fleet.on_report(report("good", 2))
    assert fleet.get("good").version == 2  # type: ignore[union-attr]
    fleet = Fleet(2.0, memory=100_000)
    fleet.on_report(report("a", breakers=[["x" * 100, "open", "", 0, 1]] * 1000))
    assert (fleet.ignored, len(fleet), fleet.breakers()) == (0, 1, {})


def test_what_was_done_in_another_epoch_does_not_count_in_this_one() -> None:
    """A store was restored and its epoch raised: version 2 comes a second time. Who had rejected the first
    aborted the rollout of the second, before it had seen it."""
    fleet, _ = fleet_of("a")
    fleet.on_answers([answer("a", 2, REJECTED, error="no"), answer("a", 3, PREPARED)])
    assert fleet.progress(1, 2).rejected == [("a", "no")]
    fleet.on_report(report("a", 1, epoch=2))
    assert fleet.progress(2, 2).rejected == []
    assert fleet.progress(2, 3).prepared == 0
    fleet.on_answers([answer("a", 2, PREPARED, epoch=3)])
    assert (fleet.get("a").version, fleet.progress(3, 1).serving) == (0, 0)  # type: ignore[union-attr]
    assert fleet.progress(3, 2).prepared == 1


def test_who_is_present_is_counted() -> None:
    fleet, clock = fleet_of("a", "b")
    fleet.on_report(report("r", via="r"))
    clock.now += 6
    fleet.on_report(report("b"))
    clock.now += 2
    fleet.expire()
    assert (len(fleet), [p.node for p in fleet.proxies() if p.present]) == (1, ["b"])
    fleet.on_report(report("a", state=LOST))  # a word that is ours
    assert (len(fleet), fleet.get("a").state) == (2, fleets.UNKNOWN)  # type: ignore[union-attr]
    clock.now += fleets.REMEMBER + 100
    fleet.expire()
    fleet.expire()
    assert (len(fleet), fleet.proxies(), fleet._size) == (0, [], 0)


async def _changes() -> None:
    fleet, _ = fleet_of("a")
    seen = fleet.changed
    assert await fleet.wait_change(seen - 1, 60) == seen  # at once
    assert await fleet.wait_change(seen, 0.01) == seen  # nothing came

    waiting = asyncio.create_task(fleet.wait_change(seen, 60))
    await asyncio.sleep(0)
    for version in range(2, 12):
        fleet.on_answers([answer("a", version)])
    assert await waiting == seen + 10  # ten changes, told as one
    again = replace(report("a", 11), requests=99)
    fleet.on_report(again)
    assert fleet.changed == seen + 10  # counters alone are no change
    assert not fleet._watchers


def test_changes_are_waited_for() -> None:
    asyncio.run(_changes())
