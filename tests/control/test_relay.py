"""Relays, two levels of them: publisher, relay, relay, proxies."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
from pathlib import Path
from typing import Any

import pytest

from ctrl import keys
from ctrl import relay as relays
from ctrl.api_shapes import _relays
from ctrl.relay import TOGETHER, Relay, _parts
from ctrl.zap import Authority
from fastproxy.keys import RELAY, load_key
from fastproxy.link import _End
from fastproxy.rows import Rows
from fastproxy.sockets import make_context
from fastproxy.sync import Prepare, State
from fastproxy.wire import MAX_REPORT, REJECTED, WHOLE, Answer, Answers, Attributes, Report, encode
from tests.control.links import HERE, Board, Crew, left, many, opened, runs, tables, until

EDGE = Attributes.of("edge", {}, True)


async def relay(name: str, *above: str, bind: str = "tcp://127.0.0.1:0", **options: Any) -> Relay:
    options = {"snapshot_port": 0, "answer_port": 0, "heartbeat": 0.2, **options}
    made: Relay = left(Relay(name, above, bind=bind, **options))
    await made.open()
    return made


async def two_levels(board: Board, **options: Any) -> tuple[Any, Relay, Relay]:
    speaker = await opened(board, **options)
    upper = await relay("upper", speaker.address)
    lower = await relay("lower", upper.address)
    return speaker, upper, lower


@runs
async def test_a_change_goes_through_two_levels_and_all_proxies_are_counted() -> None:
    board = Board(many(200))
    speaker, upper, lower = await two_levels(board)
    async with Crew(lower.address) as leaves, Crew(speaker.address) as direct:
        leaves.join(30, "leaf")
        direct.join(3, "direct")
        await until(lambda: leaves.live(1) and direct.live(1), "joined")
        await until(lambda: len(speaker.fleet) == 33, "known above")
        assert {p.via for p in speaker.fleet.proxies()} == {"", "upper/lower"}
        assert sorted(speaker.fleet.relays) == ["lower", "upper"]
        told = [("lower", "upper", 30, "LIVE"), ("upper", "", 30, "LIVE")]
        await until(
            lambda: [(r.node, r.via, r.proxies, r.state) for r in _relays(speaker.fleet)] == told,
            "relays tell how they are",
        )
        for version in range(2, 8):
            board.put(many(200, a=version))
            await speaker.advance()
        await until(lambda: speaker.fleet.progress(1, 7).serving == 33, "served")
        progress = speaker.fleet.progress(1, 7)
        assert (progress.total, progress.laggards, progress.max_us) == (33, [], 700)
        hashes = {link.sync.hash for link in leaves.links + direct.links}
        assert hashes == {Rows.pack(board.now).hash}
        assert {(x.sync.snapshots, x.sync.gaps, x.sync.updates) for x in leaves.links} == {(1, 0, 6)}
        (view,) = lower.down.views.values()
        assert view.feed
        assert view.feed.snapshots == 1
        # thirty proxies joined, and the publisher was asked by a relay and three proxies
        assert speaker.down.asks <= 5


@runs
async def test_the_crowd_that_the_publisher_sees_paces_the_answers_below_relays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A relay does not count its proxies: how long their answers are spread is said from above."""
    monkeypatch.setattr("ctrl.downstream.CROWD", 2)
    monkeypatch.setattr("ctrl.downstream.ANSWERS_A_SECOND", 30)
    speaker, _, lower = await two_levels(Board(tables(a=1)))
    async with Crew(lower.address) as crew:
        crew.join(3)
        await until(lambda: len(speaker.fleet) == 3, "known above")
        assert speaker.down.spread_ms == 100
        await until(lambda: {link._ends[0].spread for link in crew.links} == {0.1}, "all spread them")


def test_reports_that_wait_for_those_above_have_a_budget_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "MEMORY", 50_000)

    async def main() -> None:
        up = Relay("r", ["tcp://127.0.0.1:1"], bind="tcp://127.0.0.1:0")._upward
        for i in range(100):
            rows = [["b" * 1000, "open", "", 0, 1]] * (i % 20)
            up.on_report(Report(node=f"p{i}", attributes=HERE, state="LIVE", breakers=rows, error="e" * 900))
        assert 2 < len(up._known) < 20
        assert up._size <= 50_000
        first = Report(node="p1", attributes=HERE, state="GAP")
        up.on_report(first)
        assert up._known["p1"][1].state == "GAP"  # who says no more than before is heard
        up.forget(-1)
        assert (up._size, up._known) == (0, {})
        up.close()

    asyncio.run(main())


@runs
async def test_each_view_has_its_own_way_up() -> None:
    speaker, upper, lower = await two_levels(Board(tables(a=1)))
    async with Crew(lower.address) as here, Crew(lower.address) as edge:
        here.join(2)
        edge.join(2, "edge", EDGE)
        await until(lambda: here.live(1) and edge.live(1), "joined")
        assert set(upper.down.views) == set(speaker.down.views) == {HERE.view, EDGE.view}


@runs
async def test_a_candidate_is_staged_and_settled_through_relays() -> None:
    board = Board(tables(a=1))
    speaker, _, lower = await two_levels(board)
    async with Crew(lower.address) as crew:
        crew.join(20)
        await until(lambda: crew.live(1) and len(speaker.fleet) == 20, "joined")
        board.propose(tables(a=2))
        await speaker.propose()
        await until(lambda: speaker.fleet.progress(1, 2).prepared == 20, "prepared")
        assert crew.serve(1)
        board.share(WHOLE // 2)
        speaker.step()
        await until(lambda: 0 < speaker.fleet.progress(1, 2).serving < 20, "the first stage")
        crew.join()
        await until(lambda: speaker.fleet.progress(1, 2).prepared == 21, "one that comes late")
        board.put(board.next_tables)
        await speaker.settle()
        await until(lambda: crew.live(2) and crew.serve(2), "settled")
        assert {x.sync.snapshots for x in crew.links} == {1}
        assert {sum(isinstance(a, Prepare) for a in x.actions) for x in crew.appliers} == {1}


@runs
async def test_an_abort_goes_through_relays_with_the_reason_above() -> None:
    board = Board(tables(a=1))
    speaker, _, lower = await two_levels(board)
    async with Crew(lower.address) as crew:
        crew.join(3)
        await until(lambda: crew.live(1) and len(speaker.fleet) == 3, "joined")
        crew.appliers[2].refuses[2] = "no cluster"
        board.propose(tables(a=2))
        await speaker.propose()
        await until(lambda: speaker.fleet.progress(1, 2).rejected == [("node-2", "no cluster")], "rejected")
        board.abort()
        await speaker.drop()
        await until(lambda: all(x.sync.candidate is None for x in crew.links), "dropped")
        board.put(tables(a=3))
        await speaker.advance()
        await until(lambda: crew.live(3), "the next version")
        assert {x.sync.gaps for x in crew.links} == {0}


@runs
async def test_the_middle_relay_is_killed_and_comes_back() -> None:
    board = Board(many(300))
    speaker, upper, lower = await two_levels(board)
    async with Crew(lower.address) as crew:
        crew.join(10)
        await until(lambda: crew.live(1) and len(speaker.fleet) == 10, "joined")
        address = upper.address
        await upper.close()
        await until(lambda: all(x.sync.state is State.STALE for x in crew.links), "missed by the proxies")
        assert crew.serve(1)
        for version in range(2, 5):
            board.put(many(300, a=version))
            await speaker.advance()
        await relay("upper", speaker.address, bind=address)
        await until(lambda: crew.live(4), "healed")
        await until(lambda: speaker.fleet.progress(1, 4).serving == 10, "and known above")
        # the lower relay had a gap, its proxies one step over it
        assert {(x.sync.snapshots, x.sync.updates) for x in crew.links} == {(1, 1)}
        assert {x.sync.hash for x in crew.links} == {Rows.pack(board.now).hash}


@runs
async def test_a_relay_that_starts_anew_sends_no_snapshot_to_who_is_at_the_head() -> None:
    board = Board(many(300))
    speaker, _, lower = await two_levels(board)
    async with Crew(lower.address) as crew:
        crew.join(10)
        await until(lambda: crew.live(1), "joined")
        address, above = lower.address, lower.upstream
        await lower.close()
        await until(lambda: all(x.sync.state is State.STALE for x in crew.links), "missed")
        again = await relay("lower", *above, bind=address)
        await until(lambda: crew.live(1), "back")
        (view,) = again.down.views.values()
        assert view.feed
        assert view.feed.snapshots == 0
        assert {x.sync.snapshots for x in crew.links} == {1}


@runs
async def test_a_publisher_that_starts_anew_knows_all_proxies_at_once() -> None:
    board = Board(tables(a=1))
    speaker = await opened(board, report=60.0)
    upper = await relay("upper", speaker.address)
    async with Crew(upper.address) as crew:
        crew.join(10)
        await until(lambda: crew.live(1) and len(speaker.fleet) == 10, "joined")
        address = speaker.address
        await speaker.close()
        board.put(tables(a=2))
        speaker = await opened(board, address, report=60.0)
        await until(lambda: crew.live(2), "followed")
        await until(lambda: speaker.fleet.progress(1, 2).serving == 10, "long before their next reports")


@runs
async def test_without_anybody_above_proxies_are_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "FIRST", 0.3)
    upper = await relay("upper", "tcp://127.0.0.1:9")
    async with Crew(upper.address) as crew:
        crew.join()
        await until(lambda: "no configuration yet" in crew.links[0].sync.peers[0].trouble, "told")
        assert crew.links[0].sync.state is State.SYNCING


@runs
async def test_two_publishers_above() -> None:
    board = Board(tables(a=1))
    one, two = await opened(board), await opened(board)
    upper = await relay("upper", one.address, two.address)
    async with Crew(upper.address) as crew:
        crew.join(5)
        await until(lambda: crew.live(1), "joined")
        await until(lambda: len(one.fleet) == len(two.fleet) == 5, "known to both")
        await one.close()
        board.put(tables(a=2))
        await two.advance()
        await until(lambda: two.fleet.progress(1, 2).serving == 5, "served by the other")


@runs
async def test_a_view_that_nobody_wants_any_more_has_no_link() -> None:
    speaker = await opened(Board(tables(a=1)))
    upper = await relay("upper", speaker.address)
    async with Crew(upper.address) as crew:
        crew.join()
        await until(lambda: crew.live(1), "joined")
        _, task = upper._links[HERE.view]
        upper.down.forget(-1)
        await until(task.cancelled, "its link ends")
        await until(lambda: HERE.view in upper._links, "the next report brings it back")
        assert upper._links[HERE.view][1] is not task
        await until(lambda: crew.live(1), "and it goes on")


@runs
async def test_proxies_see_that_nobody_is_there_above() -> None:
    """The publisher's heartbeats are far apart, the relay's are not; who is silent above is silent below."""
    speaker = await opened(Board(tables(a=1)), heartbeat=0.6)
    upper = await relay("upper", speaker.address, heartbeat=0.1)
    async with Crew(upper.address) as crew:
        crew.join()
        await until(lambda: crew.live(1), "joined")
        states = set()
        for _ in range(30):
            await asyncio.sleep(0.05)
            states.add(crew.links[0].sync.state)
        assert states == {State.LIVE}
        await speaker.close()
        await until(lambda: crew.links[0].sync.state is State.STALE, "seen")


@runs
async def test_what_a_hop_costs() -> None:
    """Not a benchmark: an update waits for nothing on its way, no timer and no heartbeat."""
    board = Board(many(500))
    speaker, _, lower = await two_levels(board, heartbeat=5.0)
    context = make_context()
    async with Crew(speaker.address, lower.address, context=context) as crew:
        del crew.addresses[0]
        crew.join()
        await until(lambda: crew.live(1), "joined")
        took = []
        for version in range(2, 42):
            began = asyncio.get_running_loop().time()
            board.put(many(500, a=version))
            await speaker.advance()
            while crew.links[0].sync.version != version:
                await asyncio.sleep(0)
            took.append(asyncio.get_running_loop().time() - began)
        assert statistics.median(took) < 0.1
    context.term()


@runs
async def test_two_levels_with_keys(tmp_path: Path) -> None:
    """The relay's own key is the server's to those below. Each is on the allow list of the one above it."""
    above, below = tmp_path / "above", tmp_path / "below"
    top = keys.init(above)
    hop = load_key(keys.add_node(above, "upper", RELAY))
    keys.init(below)
    leaf = load_key(keys.add_node(below, "leaf-0"))
    speaker = await opened(
        Board(tables(a=1)), curve=top.curve, authority=Authority(above / "allow"), report=0.3
    )
    upper = await relay("upper", speaker.address, curve=hop.curve, authority=Authority(below / "allow"))
    curve = dataclasses.replace(leaf.curve, server=hop.curve.public)
    async with Crew(upper.address, curve=curve) as crew, Crew(upper.address, curve=curve) as other:
        crew.join(1, "leaf")
        other.join(1, "liar")
        await until(lambda: crew.live(1), "joined")
        await until(lambda: [p.node for p in speaker.fleet.proxies()] == ["leaf-0"], "known above")
        await until(lambda: speaker.fleet.progress(1, 1).serving == 1, "served")
        await until(lambda: "does not own" in other.links[0].sync.peers[0].trouble, "told the other")
        assert not upper.refusals


@runs
async def test_who_is_no_relay_does_not_speak_for_others(tmp_path: Path) -> None:
    top = keys.init(tmp_path)
    hop = load_key(keys.add_node(tmp_path, "upper"))  # a node's key, not a relay's
    speaker = await opened(
        Board(tables(a=1)), curve=top.curve, authority=Authority(tmp_path / "allow"), report=0.3
    )
    keys.init(tmp_path / "below")
    leaf = load_key(keys.add_node(tmp_path / "below", "leaf-0"))
    authority = Authority(tmp_path / "below" / "allow")
    upper = await relay("upper", speaker.address, curve=hop.curve, authority=authority)
    async with Crew(upper.address, curve=dataclasses.replace(leaf.curve, server=hop.curve.public)) as crew:
        crew.join(1, "leaf")
        await until(lambda: crew.live(1), "joined")
        await until(lambda: upper.refusals, "refused")
        assert "it speaks for itself only" in upper.refusals[0]
        assert not speaker.fleet.proxies()
        assert any("it speaks for itself only" in refusal.reason for refusal in speaker.fleet.refused)


def test_answers_are_parted_so_that_each_message_is_taken() -> None:
    short = [Answer(f"n{i}", 1, 1, b"\1" * 32, "serving") for i in range(2 * TOGETHER + 1)]
    assert [len(part) for part in _parts(short)] == [TOGETHER, TOGETHER, 1]
    long = [Answer(f"n{i}", 1, 1, b"\1" * 32, REJECTED, error="é" * 2000) for i in range(600)]
    parts = list(_parts(long))
    assert [answer for part in parts for answer in part] == long
    assert max(len(encode(Answers(answers=part))[0]) for part in parts) < MAX_REPORT


def test_addresses_that_cannot_be_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="no address of a publisher"):
        Relay("r", ["127.0.0.1:1"], bind="tcp://127.0.0.1:0")
    with pytest.raises(ValueError, match="a key file is needed"):
        Relay("r", ["tcp://10.0.0.1:1"], bind="tcp://127.0.0.1:0")
    with pytest.raises(ValueError, match="needs keys"):
        Relay("r", ["tcp://127.0.0.1:1"], bind="tcp://0.0.0.0:1")


@runs
async def test_a_link_that_fails_once_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "AGAIN", 0.2)
    board = Board(tables(a=1))
    speaker, _, lower = await two_levels(board)
    real, failed = _End.__init__, 0

    def once(self: Any, link: Any, *more: Any) -> None:
        nonlocal failed
        if link.sync.node == lower.name and not failed:
            failed += 1
            raise OSError(24, "Too many open files")
        real(self, link, *more)

    monkeypatch.setattr(_End, "__init__", once)
    async with Crew(lower.address) as crew:
        crew.join(1)
        await until(lambda: crew.live(1), "live behind a link that was run again")
    assert failed == 1
