"""Rollouts: what is decided from what is seen; then real planes, publishers and links."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl.driver import seen
from ctrl.fleet import Fleet
from ctrl.model import Candidate, Conflict, Draft, StoreError
from ctrl.plane import Busy, Plane, Unfit, Wish
from ctrl.rollout import STEPS, Condition, Event, Phase, Plan, Rollout, Seen, Stage, Traffic
from ctrl.store.memory import MemoryStore
from fastproxy.wire import WHOLE, Attributes, Report, lot
from tests.control.links import until
from tests.control.planes import Proxies, World, put
from tests.support.server import host


def plan(*stages: str, **options: Any) -> Plan:
    made = Plan.parse(stages, **{"bake": 10.0, "timeout": 5.0, **options})
    assert made
    return made


def fleet(count: int, serving: int = 0, **fields: Any) -> list[Seen]:
    """Proxies by their lots; the first ``serving`` of them serve the candidate."""
    lots = [(i + 1) * (WHOLE // (count + 1)) for i in range(count)]
    return [
        Seen(f"p{i}", lot, prepared=True, serving=i < serving, counted=i < serving, **fields)
        for i, lot in enumerate(lots)
    ]


# --- words ---


@pytest.mark.parametrize(
    ("text", "count", "percent"),
    [("1", 1, 0), ("25", 25, 0), ("10%", 0, 10), ("0.5%", 0, 0.5), ("100%", 0, 100)],
)
def test_a_stage_is_a_number_or_a_part(text: str, count: int, percent: float) -> None:
    assert Stage.parse(text) == Stage(text, count, percent)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "101%", "0%", "10 %", "many", "1e3", "１"])
def test_what_is_no_stage(text: str) -> None:
    with pytest.raises(ValueError, match="stage"):
        Stage.parse(text)


@pytest.mark.parametrize(
    "text", ["", "error_rate", "error_rate > 2", "rejected > 5%", "error_rate < 2x", "latency > 5%"]
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="error_rate > 2x"):
        Condition.parse(text)


@pytest.mark.parametrize(
    ("stages", "options", "why"),
    [
        (["10%", "5%"], {}, "smaller"),
        (["5", "1"], {}, "smaller"),
        (["100%", "100%"], {}, "smaller"),
        (["1"] * 30, {}, "at most"),
        ([], {"conditions": ["rejected > 0"]}, "needs stages"),
        (["1"], {"timeout": 0.0}, "timeout"),
    ],
)
def test_plans_that_make_no_sense(stages: list[str], options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Plan.parse(stages, **options)


def test_no_stages_and_not_atomic_is_no_rollout() -> None:
    assert Plan.parse() is None


@given(
    st.lists(st.integers(0, WHOLE - 1), unique=True, max_size=200),
    st.one_of(st.integers(1, 300).map(str), st.integers(1, 100).map(lambda n: f"{n}%")),
)
def test_exactly_so_many_proxies_are_below_the_share(lots: list[int], text: str) -> None:
    stage = Stage.parse(text)
    below = sum(lot < stage.share(lots) for lot in lots)
    wanted = -(-len(lots) * int(stage.percent) // 100) if stage.percent else stage.count
    assert below == min(wanted, len(lots))


# --- conditions ---


@pytest.mark.parametrize(
    ("text", "candidate", "others", "holds"),
    [
        ("error_rate > 5%", (100, 6), (0, 0), True),
        ("error_rate > 5%", (100, 5), (0, 0), False),
        ("error_rate > 5%", (19, 19), (0, 0), False),  # too few to say anything
        ("error_rate > 2x", (1000, 50), (1000, 20), True),
        ("error_rate > 2x", (1000, 40), (1000, 20), False),
        ("error_rate > 2x", (1000, 1), (10, 0), False),  # ten requests without an error say little
        ("error_rate > 2x", (1000, 10), (100_000, 0), True),
    ],
)
def test_error_rates(text: str, candidate: tuple[int, int], others: tuple[int, int], holds: bool) -> None:
    why = Condition.parse(text).broken(Traffic(*candidate), Traffic(*others), 0)
    assert bool(why) is holds


def test_rejections_are_a_condition() -> None:
    assert Condition.parse("rejected > 2").broken(Traffic(), Traffic(), 3) == "3 proxies reject it"
    assert Condition.parse("rejected > 2").broken(Traffic(), Traffic(), 2) == ""


# --- the table ---


def test_every_pair_of_the_table() -> None:
    """A pair that is not in it changes nothing."""
    for phase in Phase:
        for event in Event:
            rollout = Rollout(7, plan("1"), 0.0, fleet(3))
            rollout.phase = phase
            rollout._step(event)
            assert rollout.phase is STEPS.get((phase, event), phase)
    assert not [pair for pair in STEPS if pair[0] in (Phase.COMMITTED, Phase.ABORTED)]


# --- decisions ---


def test_stage_by_stage_to_the_end() -> None:
    rollout = Rollout(7, plan("1", "50%", "100%"), 0.0, fleet(4))
    for stage, serving, begin in ((0, 1, 0.0), (1, 2, 12.0), (2, 4, 24.0)):
        assert (rollout.stage, rollout.phase) == (stage, Phase.PREPARING)
        assert sum(p.lot < rollout.share for p in fleet(4)) == serving
        assert rollout.decide(fleet(4, serving - 1), begin + 1) is Phase.PREPARING
        assert rollout.decide(fleet(4, serving), begin + 2) is Phase.BAKING
        assert rollout.decide(fleet(4, serving), begin + 11.9) is Phase.BAKING
        rollout.decide(fleet(4, serving), begin + 12)
    assert rollout.phase is Phase.COMMITTED
    assert rollout.decide([], 100.0) is Phase.COMMITTED


def test_atomic_commits_when_all_are_prepared_and_serves_nowhere_before() -> None:
    unprepared = [replace(p, prepared=False) for p in fleet(3)]
    rollout = Rollout(7, plan(atomic=True), 0.0, unprepared)
    assert rollout.decide([*fleet(3)[:2], unprepared[2]], 1.0) is Phase.PREPARING
    assert rollout.share == 0
    late = Seen("late", 5)
    assert rollout.decide([*fleet(3), late], 2.0) is Phase.PREPARING, "who came later is waited for as well"
    assert rollout.decide([*fleet(3), replace(late, prepared=True)], 3.0) is Phase.COMMITTED


def test_atomic_then_stages() -> None:
    rollout = Rollout(7, plan("1", atomic=True, bake=0.0), 0.0, fleet(3))
    assert (rollout.stage, rollout.share) == (-1, 0)
    assert rollout.decide(fleet(3), 1.0) is Phase.PREPARING
    assert rollout.stage == 0
    assert rollout.decide(fleet(3, 1), 2.0) is Phase.COMMITTED


@pytest.mark.parametrize("atomic", [False, True])
def test_nobody_there_is_nobody_to_wait_for(atomic: bool) -> None:
    rollout = Rollout(7, plan("50%", atomic=atomic, bake=0.0), 0.0, [])
    for now in range(3):
        rollout.decide([], float(now))
    assert rollout.phase is Phase.COMMITTED


@pytest.mark.parametrize("atomic", [False, True])
def test_a_rejection_anywhere_aborts_and_is_named(atomic: bool) -> None:
    proxies = fleet(3)
    rollout = Rollout(7, plan("1", atomic=atomic), 0.0, proxies)
    proxies[2] = replace(proxies[2], prepared=False, rejected="the port is taken")
    assert rollout.decide(proxies, 1.0) is Phase.ABORTED
    assert rollout.reason == "proxy p2 rejects it: the port is taken"


def test_who_does_not_answer_in_time_is_named() -> None:
    rollout = Rollout(7, plan(atomic=True), 0.0, fleet(1))
    slow = [*fleet(1), *(Seen(f"s{i}", i) for i in range(7))]
    assert rollout.decide(slow, 4.9) is Phase.PREPARING
    assert rollout.decide(slow, 5.0) is Phase.ABORTED
    assert rollout.reason == "proxies s0, s1, s2, s3, s4 and 2 more have not prepared it within 5 s"


def test_a_stage_proxy_that_falls_silent_aborts() -> None:
    rollout = Rollout(7, plan("2"), 0.0, fleet(4))
    assert rollout.decide(fleet(4, 2), 1.0) is Phase.BAKING
    assert rollout.decide(fleet(4, 2)[:3], 2.0) is Phase.BAKING, "p3 is of no stage yet"
    assert rollout.decide(fleet(4, 2)[1:], 3.0) is Phase.ABORTED
    assert rollout.reason == "proxy p0 has fallen silent"


def test_a_stage_proxy_that_goes_back_aborts() -> None:
    rollout = Rollout(7, plan("2"), 0.0, fleet(4))
    rollout.decide(fleet(4, 2), 1.0)
    assert rollout.decide(fleet(4, 1), 2.0) is Phase.ABORTED
    assert rollout.reason == "proxy p1 has no longer served it"


def with_traffic(proxies: Sequence[Seen], **traffic: tuple[int, int]) -> list[Seen]:
    return [replace(p, requests=traffic[p.node][0], errors=traffic[p.node][1]) for p in proxies]


def test_more_errors_than_the_others_abort() -> None:
    rollout = Rollout(
        7, plan("1", conditions=["error_rate > 2x"]), 0.0, with_traffic(fleet(2), p0=(500, 400), p1=(0, 0))
    )
    assert rollout.decide(with_traffic(fleet(2, 1), p0=(1000, 800), p1=(1000, 10)), 1.0) is Phase.BAKING
    # what it counted before it served the candidate is not the candidate's
    assert rollout.decide(with_traffic(fleet(2, 1), p0=(1100, 801), p1=(1100, 11)), 2.0) is Phase.BAKING
    assert rollout.decide(with_traffic(fleet(2, 1), p0=(1200, 810), p1=(1200, 12)), 3.0) is Phase.ABORTED
    assert rollout.reason.startswith("error_rate > 2x: 5.00% errors of 200 requests")
    assert rollout.to_dict()["observed"]["requests"] == 200


def test_when_all_serve_it_they_are_compared_with_themselves_before() -> None:
    rollout = Rollout(
        7, plan("100%", conditions=["error_rate > 2x"]), 0.0, with_traffic(fleet(1), p0=(1000, 10))
    )
    assert rollout.decide(with_traffic(fleet(1, 1), p0=(1000, 10)), 1.0) is Phase.BAKING
    assert rollout.decide(with_traffic(fleet(1, 1), p0=(1100, 12)), 2.0) is Phase.BAKING
    assert rollout.decide(with_traffic(fleet(1, 1), p0=(1200, 30)), 3.0) is Phase.ABORTED


def test_counts_that_start_anew_are_a_new_process() -> None:
    rollout = Rollout(7, plan("1", conditions=["error_rate > 5%"]), 0.0, fleet(2))
    rollout.decide(with_traffic(fleet(2, 1), p0=(1000, 0), p1=(0, 0)), 1.0)
    assert rollout.decide(with_traffic(fleet(2, 1), p0=(30, 3), p1=(0, 0)), 2.0) is Phase.ABORTED


@given(st.integers(0, 2**32), st.booleans())
def test_whatever_is_seen_the_share_never_shrinks_and_an_end_is_an_end(seed: int, atomic: bool) -> None:
    rng = random.Random(seed)
    rollout = Rollout(7, plan("1", "3", "50%", "100%", atomic=atomic, bake=1.0), 0.0, fleet(6))
    share, now = 0, 0.0
    while not rollout.over:
        now += rng.random() * 2
        proxies = [
            replace(p, serving=p.lot < rollout.share and rng.random() < 0.98, prepared=rng.random() < 0.9)
            for p in fleet(6)
            if rng.random() < 0.999
        ]
        rollout.decide(proxies, now)
        assert rollout.share >= share
        share = rollout.share
        assert now < 100
    assert bool(rollout.reason) is (rollout.phase is Phase.ABORTED)


# --- the real thing ---


async def rolled(crew: Proxies, plane: Plane, *stages: str, **options: Any) -> int:
    """The second version, on its way; the first is served by all."""
    await put(plane, "one")
    await until(lambda: crew.serve(1), "all serve version 1")
    await until(lambda: len(plane.fleet) == len(crew.links), "all have reported")
    wish = Wish(plan=plan(*stages, **{"bake": 0.2, **options}))
    done = await plane.apply([("a", host("two").encode())], wish)
    assert done.rollout and done.version == 2
    return done.version


def test_stages_reach_all_and_become_the_head() -> None:
    async def main() -> None:
        async with World(4) as (plane, crew):
            await rolled(crew, plane, "1", "50%", "100%", bake=0.3)
            epoch = plane.head().epoch
            ordered = sorted(
                crew.appliers, key=lambda a: lot(crew.links[crew.appliers.index(a)].sync.node, epoch, 2)
            )
            await until(lambda: ordered[0].serves == 2, "the first stage serves")
            assert [a.serves for a in ordered] == [2, 1, 1, 1]
            assert plane.head().version == 1
            with pytest.raises(Busy, match="being rolled out"):
                await put(plane, "three")
            await until(lambda: [a.serves for a in ordered[:2]] == [2, 2], "the second stage serves")
            assert [a.serves for a in ordered[2:]] == [1, 1]
            await until(lambda: crew.serve(2), "all serve it")
            await until(lambda: plane.head().version == 2, "it is the head")
            assert plane.rollout["state"] == "committed"
            assert {r.name for r in plane.contents} == {"one", "two"}
            assert (await plane.entry(2)).hash == plane.head().hash
            await put(plane, "three")
            await until(lambda: crew.serve(3), "the next version comes as always")

    asyncio.run(main())


def test_atomic_names_who_rejects_and_nobody_serves_it() -> None:
    async def main() -> None:
        async with World(3) as (plane, crew):
            crew.appliers[1].refuses[2] = "the port is taken"
            await rolled(crew, plane, atomic=True)
            await until(lambda: plane.driver and plane.driver.ended, "it is over")
            assert plane.rollout["state"] == "aborted"
            assert plane.rollout["reason"] == "proxy node-1 rejects it: the port is taken"
            assert (plane.head().version, plane.head().decided) == (1, 2)
            assert crew.serving() == [1, 1, 1]
            assert not any(applier.flips(2) for applier in crew.appliers)
            assert (await plane.history())[0].what.startswith("aborted")
            done = await put(plane, "two")
            assert done.version == 3, "the number of an aborted version is never used again"
            await until(lambda: crew.serve(3), "all serve the next")

    asyncio.run(main())


def test_atomic_goes_to_all_at_once() -> None:
    async def main() -> None:
        async with World(3) as (plane, crew):
            await rolled(crew, plane, atomic=True)
            await until(lambda: plane.head().version == 2 and crew.serve(2), "it is the head and served")
            assert plane.counts.rollouts == {"committed": 1, "aborted": 0}

    asyncio.run(main())


def test_errors_of_the_first_stage_bring_all_back() -> None:
    async def main() -> None:
        async with World(3) as (plane, crew):
            for applier in crew.appliers:
                applier.extra["requests"] = 1000
            await rolled(crew, plane, "1", bake=60.0, conditions=["error_rate > 10%"])
            await until(lambda: any(a.serves == 2 for a in crew.appliers), "one serves it")
            bad = next(a for a in crew.appliers if a.serves == 2)
            await until(lambda: plane.rollout["state"] == "baking", "it bakes")
            assert plane.driver
            await until(lambda: plane.driver.rollout.window.since, "a report of it has come")  # type: ignore[union-attr]
            bad.extra |= {"requests": 2000, "errors": 500}
            await until(lambda: plane.rollout["state"] == "aborted", "it is aborted")
            assert plane.rollout["reason"].startswith("error_rate > 10%: 50.00% errors of 1000 requests")
            await until(lambda: crew.serve(1), "all serve the version before")

    asyncio.run(main())


def test_a_person_aborts() -> None:
    async def main() -> None:
        async with World(2) as (plane, crew):
            assert not await plane.abort("nothing is there to abort")
            await rolled(crew, plane, "1", bake=60.0)
            await until(lambda: sorted(crew.serving()) == [1, 2], "one serves it")
            assert await plane.abort("aborted by eve")
            await until(lambda: crew.serve(1), "all are back")
            assert plane.rollout["reason"] == "aborted by eve"
            assert plane.candidate() is None

    asyncio.run(main())


def test_another_control_plane_follows_and_voids_what_nobody_drives() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with World(2, store) as (plane, crew), World(0, store, name="two", lapse=0.6) as (other, _):
            await rolled(crew, plane, "1", bake=60.0)
            await until(lambda: (now := other.candidate()) and now.share, "the other follows")
            assert other.rollout["state"] == "baking"
            assert plane.driver
            await plane.driver.close()  # as if its process had ended
            await until(lambda: other.candidate() is None, "the other voids it")
            assert other.rollout["state"] == "aborted"
            await until(lambda: crew.serve(1), "all serve the version before")
            assert "does not answer" in (await other.entry(2)).message

    asyncio.run(main())


def test_a_candidate_from_before_a_restart_is_voided() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with World(1, store, lapse=0.4) as (plane, crew):
            await put(plane, "one")
            draft = Draft("eve", "apply", (), plane.head().hash)
            await store.propose(1, draft, "one of before")
            await until(plane.candidate, "it is seen")
            await until(lambda: plane.head().decided == 2, "it is voided")
            done = await put(plane, "two")
            assert done.version == 3

    asyncio.run(main())


class Failing(MemoryStore):
    """A store whose writes can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = ""

    async def step(self, version: int, share: int) -> Candidate:
        if self.broken:
            raise StoreError(self.broken)
        return await super().step(version, share)

    async def void(self, version: int, reason: str) -> Any:
        if self.broken:
            raise StoreError(self.broken)
        return await super().void(version, reason)


def test_what_the_store_does_not_take_is_tried_on() -> None:
    async def main() -> None:
        store = Failing()
        async with World(2, store) as (plane, crew):
            await rolled(crew, plane, "1", bake=60.0)
            await until(lambda: sorted(crew.serving()) == [1, 2], "one serves it")
            store.broken = "the disk is full"
            with pytest.raises(StoreError, match="disk is full"):
                await plane.abort("aborted by eve")
            assert plane.candidate()
            store.broken = ""
            await until(lambda: plane.candidate() is None, "it is voided once the store takes it")
            await until(lambda: crew.serve(1), "all are back")

    asyncio.run(main())


def test_the_first_version_is_not_rolled_out() -> None:
    async def main() -> None:
        async with World(0) as (plane, _):
            with pytest.raises(Unfit, match="first version"):
                await plane.apply([("a", host("one").encode())], Wish(plan=plan("1")))
            assert plane.head().version == 0

    asyncio.run(main())


def test_a_candidate_that_was_ended_elsewhere_is_given_up() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with World(1, store) as (plane, crew):
            await rolled(crew, plane, "1", bake=60.0)
            await store.void(2, "by somebody else")
            await until(lambda: plane.driver and plane.driver.ended, "the driver gives up")
            assert plane.rollout["reason"] == "another control plane has ended it"
            with pytest.raises(Conflict):
                await plane.void(2, "again")
            await until(lambda: crew.serve(1), "all are back")

    asyncio.run(main())


def test_what_a_proxy_counted_is_the_candidates_only_after_a_report_at_the_pace_of_today() -> None:
    """With ten thousand proxies each reports every five seconds, though a candidate is open: the counts of
    the first five seconds are still those of the version before."""
    known = Fleet(5.0)
    known.on_report(
        Report(node="a", attributes=Attributes(), state="LIVE", epoch=1, version=2, serving=2, requests=9)
    )
    began = {"a": time.monotonic() - 4}
    assert [p.counted for p in seen(known, 1, 2, began, 5.0)] == [False]
    assert [p.counted for p in seen(known, 1, 2, began, 1.0)] == [True]
