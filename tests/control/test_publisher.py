"""The publisher over real sockets, its subscribers real links."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from typing import Any

import pytest
import zmq

from ctrl import downstream, publisher
from ctrl.downstream import NEW_VIEWS
from ctrl.feed import Feed
from ctrl.fleet import Fleet
from ctrl.publisher import Publisher
from fastproxy.rows import Rows
from fastproxy.sockets import make_context
from fastproxy.sync import Flip, Prepare, State
from fastproxy.wire import WHOLE, Answer, Answers, Ask, Attributes, Report, decode, encode, lot, view_topic
from tests.control.links import HERE, Board, Crew, many, opened, runs, tables, until

EDGE = Attributes.of("edge", {"tier": "front"}, True)


@runs
async def test_a_proxy_joins_and_follows() -> None:
    board = Board(tables(a=1))
    speaker = await opened(board)
    async with Crew(speaker.address) as crew:
        crew.join()
        await until(lambda: crew.live(1), "joined")
        board.put(tables(a=2, b=1))
        sent = await speaker.advance()
        await until(lambda: crew.live(2) and speaker.fleet.progress(1, 2).serving == 1, "followed")
        sync = crew.links[0].sync
        assert sync.rows.hash == Rows.pack(tables(a=2, b=1)).hash
        assert (sync.snapshots, sync.updates, sync.gaps) == (1, 1, 0)
        (proxy,) = speaker.fleet.proxies()
        assert (proxy.address, proxy.us, proxy.hash) == ("127.0.0.1", 700, sync.hash)
        assert -0.01 < proxy.since_ms / 1000 - sent < 5  # it is in whole milliseconds
    await speaker.close()


@runs
async def test_before_the_first_version_there_are_heartbeats_only() -> None:
    board = Board()
    speaker = await opened(board)
    async with Crew(speaker.address) as crew:
        crew.join()
        await until(lambda: crew.links[0].sync.peers[0].trouble, "told that there is nothing")
        assert "no configuration yet" in crew.links[0].sync.peers[0].trouble
        board.put(tables(a=1), version=1)
        await speaker.advance()
        await until(lambda: crew.live(1), "the first version")
    await speaker.close()


@runs
async def test_views_are_apart_and_a_slow_one_holds_up_no_other() -> None:
    board = Board(tables(a=1))
    speaker = await opened(board)
    async with Crew(speaker.address) as quick, Crew(speaker.address) as slow:
        quick.join(3)
        slow.join(3, "slow", EDGE)
        await until(lambda: quick.live(1) and slow.live(1), "joined")
        assert len(speaker.down.views) == 2
        board.slow[EDGE] = asyncio.Event()
        board.put(tables(a=2))
        advancing = asyncio.create_task(speaker.advance())
        await until(lambda: quick.live(2), "the quick view")
        await asyncio.sleep(4 * speaker.heartbeat)  # more than it takes to call a publisher silent
        assert slow.live(1), "heartbeats of the slow view must go on"
        board.slow[EDGE].set()
        await advancing
        await until(lambda: slow.live(2), "the slow view")
    await speaker.close()


@runs
async def test_a_view_that_cannot_be_made_is_refused_and_the_others_served() -> None:
    board = Board(tables(a=1))
    board.broken.add(EDGE)
    speaker = await opened(board)
    async with Crew(speaker.address) as crew, Crew(speaker.address) as broken:
        crew.join()
        broken.join(1, "broken", EDGE)
        await until(lambda: "cannot be made" in broken.links[0].sync.peers[0].trouble, "refused")
        await until(lambda: crew.live(1), "served")
        board.broken.clear()
        await until(lambda: broken.live(1), "made after all")
    await speaker.close()


@runs
async def test_a_candidate_is_prepared_staged_and_settled() -> None:
    board = Board(tables(a=1))
    speaker = await opened(board)
    async with Crew(speaker.address) as crew:
        crew.join(20)
        await until(lambda: crew.live(1), "joined")
        version = board.propose(tables(a=2))
        await speaker.propose()
        await until(lambda: speaker.fleet.progress(1, version).prepared == 20, "prepared")
        assert crew.serve(1)
        share = WHOLE // 2
        chosen = {f"node-{i}" for i in range(20) if lot(f"node-{i}", 1, version) < share}
        board.share(share)
        speaker.step()
        await until(lambda: speaker.fleet.progress(1, version).serving == len(chosen), "the first stage")
        assert {p.node for p in speaker.fleet.proxies() if p.version == version} == chosen
        crew.join()  # one that comes late gets the candidate too
        await until(lambda: speaker.fleet.progress(1, version).prepared == 21, "the late one prepared")
        board.put(board.next_tables)
        await speaker.settle()
        await until(lambda: crew.live(version) and crew.serve(version), "settled")
        assert [link.sync.snapshots for link in crew.links] == [1] * 21
        prepared = [sum(isinstance(a, Prepare) for a in applier.actions) for applier in crew.appliers]
        assert prepared == [1] * 21
    await speaker.close()


@runs
async def test_an_aborted_candidate_is_dropped_by_all() -> None:
    board = Board(tables(a=1))
    speaker = await opened(board)
    async with Crew(speaker.address) as crew:
        crew.join(3)
        await until(lambda: crew.live(1), "joined")
        crew.appliers[1].refuses[2] = "no cluster"
        board.propose(tables(a=2))
        board.share(WHOLE)
        await speaker.propose()
        await until(lambda: speaker.fleet.progress(1, 2).rejected == [("node-1", "no cluster")], "rejected")
        await until(lambda: any(isinstance(a, Flip) for a in crew.appliers[0].actions), "flipped")
        board.abort()
        await speaker.drop()
        await until(lambda: crew.links[0].sync.candidate is None, "dropped")
        board.put(tables(a=3))
        assert board.at.version == 3
        await speaker.advance()
        await until(lambda: crew.live(3) and crew.serve(3), "the next version")
        assert [link.sync.gaps for link in crew.links] == [0, 0, 0]
    await speaker.close()


@runs
async def test_reports_come_faster_while_a_candidate_is_open() -> None:
    board = Board(tables(a=1))
    speaker = await opened(board, report=60.0)
    async with Crew(speaker.address) as crew:
        crew.join()
        await until(lambda: crew.live(1), "joined")
        assert speaker.down.report_ms == 60_000
        board.propose(tables(a=2))
        await speaker.propose()
        assert speaker.down.report_ms == 1000
        crew.appliers[0].extra = {"errors": 7}
        await until(lambda: speaker.fleet.proxies()[0].errors == 7, "a report")
        board.abort()
        await speaker.drop()
        assert speaker.down.report_ms == 60_000
        assert len(speaker.fleet) == 1
    await speaker.close()


async def _behind(speaker: Publisher, crew: Crew, board: Board, first: Any, second: Any) -> None:
    """Two versions that nobody hears, as the sends are lost; then a heartbeat."""
    keep, speaker.down.publish = speaker.down.publish, lambda frames: None  # type: ignore[method-assign]
    for new in (first, second):
        board.put(new)
        await speaker.advance()
    speaker.down.publish = keep  # type: ignore[method-assign]
    await until(lambda: crew.live(board.at.version), "healed")


@runs
async def test_what_was_lost_is_asked_for_as_a_range() -> None:
    board = Board(many(100))
    speaker = await opened(board)
    async with Crew(speaker.address) as crew:
        crew.join(5)
        await until(lambda: crew.live(1), "joined")
        await _behind(speaker, crew, board, many(100, a=1), many(100, a=2, b=1))
        assert [(x.sync.gaps, x.sync.snapshots, x.sync.updates) for x in crew.links] == [(1, 1, 1)] * 5
        assert crew.links[0].sync.rows.hash == Rows.pack(many(100, a=2, b=1)).hash
    await speaker.close()


@runs
async def test_what_is_not_in_the_journal_comes_as_a_snapshot() -> None:
    board = Board(many(300))
    speaker = await opened(board)
    async with Crew(speaker.address) as crew:
        crew.join(5)
        await until(lambda: crew.live(1), "joined")
        await _behind(speaker, crew, board, many(1), many(300, a=1))
        assert [(x.sync.gaps, x.sync.snapshots, x.sync.updates) for x in crew.links] == [(1, 2, 0)] * 5
        (view,) = speaker.down.views.values()
        assert view.feed
        assert view.feed.snapshots <= 3  # packed once for all, at each head that was asked for
    await speaker.close()


@runs
async def test_a_publisher_that_comes_back_sends_no_snapshot() -> None:
    board = Board(many(100))
    speaker = await opened(board)
    async with Crew(speaker.address) as crew:
        crew.join(10)
        await until(lambda: crew.live(1), "joined")
        address, asked = speaker.address, speaker.down.asks
        await speaker.close()
        await until(lambda: all(x.sync.state is State.STALE for x in crew.links), "missed")
        assert crew.serve(1)
        speaker = await opened(board, address)  # its other ports are others than before
        await until(lambda: crew.live(1) and len(speaker.fleet) == 10, "back")
        assert asked >= 10
        assert [x.sync.snapshots for x in crew.links] == [1] * 10
        assert [view.feed.snapshots for view in speaker.down.views.values() if view.feed] == [0]
        board.put(many(100, a=1))
        await speaker.advance()
        await until(lambda: crew.live(2), "and goes on")
        assert [x.sync.snapshots for x in crew.links] == [1] * 10
    await speaker.close()


@runs
async def test_an_older_publisher_is_refused_and_a_new_epoch_taken() -> None:
    board = Board(tables(a=5), version=5, epoch=2)
    speaker = await opened(board)
    async with Crew(speaker.address) as crew:
        crew.join(2)
        await until(lambda: crew.live(5, 2), "joined")
        address = speaker.address
        await speaker.close()
        restored = Board(tables(a=1), version=9, epoch=1)
        speaker = await opened(restored, address)
        await until(lambda: all("is older" in x.sync.peers[0].trouble for x in crew.links), "refused")
        await until(lambda: all(x.sync.state is State.STALE for x in crew.links), "shown")
        assert [(x.sync.epoch, x.sync.version) for x in crew.links] == [(2, 5)] * 2
        await until(lambda: {p.state for p in speaker.fleet.proxies()} == {"STALE"}, "shown above")
        assert speaker.fleet.progress(1, 9).laggards == ["node-0", "node-1"]
        restored.put(tables(a=1), version=10, epoch=3)
        await speaker.advance()
        await until(lambda: crew.live(10, 3), "a new epoch")
    await speaker.close()


@runs
async def test_garbage_on_every_socket_harms_nobody() -> None:
    board = Board(tables(a=1))
    speaker = await opened(board)
    rng = random.Random(7)
    context = zmq.Context()
    peers = []
    for kind, address in (
        (zmq.XSUB, speaker.address),
        (zmq.DEALER, speaker.snapshot_address),
        (zmq.DEALER, speaker.answer_address),
    ):
        peer = context.socket(kind)
        peer.linger = 0
        peer.connect(address)
        peers.append(peer)
    good = [
        encode(Ask(node="x", attributes=HERE, id=1)),
        encode(Answers(answers=[Answer("x", 1, 1, b"\1" * 32, "serving")])),
        encode(Report(node="x", attributes=HERE, state="LIVE")),
        encode(Ask(node="x", protocol=99, attributes=HERE, id=1)),
    ]
    async with Crew(speaker.address) as crew:
        crew.join(3)
        for turn in range(2, 42):
            for peer in peers:
                for _ in range(10):
                    peer.send_multipart(_mangled(rng, good))
            peers[0].send(b"\1" + rng.randbytes(rng.randrange(40)))
            peers[0].send(b"\1")  # everything, that would be
            board.put(tables(a=turn))
            await speaker.advance()
            await asyncio.sleep(0)
        await until(lambda: crew.live(41), "served on")
        assert speaker.down.garbage > 200
        assert speaker.down._lines < downstream.LINES_A_MINUTE
        raw = socket.create_connection(("127.0.0.1", int(speaker.address.rpartition(":")[2])))
        raw.sendall(rng.randbytes(4096))
        raw.close()
        await until(lambda: any("protocol 99" in r.reason for r in speaker.fleet.refused), "told the old one")
    for peer in peers:
        peer.close()
    context.term()
    await speaker.close()


def _mangled(rng: random.Random, good: list[list[bytes]]) -> list[bytes]:
    """A true message with something wrong in it; or none at all; or a true one."""
    frames = list(rng.choice(good))
    place = rng.randrange(len(frames))
    how = rng.randrange(6)
    if how == 0:
        return [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 12))]
    if how == 1:
        frames[place] = frames[place][: rng.randrange(len(frames[place]))]
    elif how == 2:
        torn = bytearray(frames[place])
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
        frames[place] = bytes(torn)
    elif how == 3:
        frames += [b""] * rng.randrange(1, 4)
    elif how == 4:
        frames[place] += rng.randbytes(20)
    return frames


@runs
async def test_who_subscribes_to_what_is_no_topic_is_cut_off() -> None:
    board = Board(tables(a=1))
    speaker = await opened(board)
    context = zmq.Context()
    topics = (b"", b"v/", b"p/", view_topic(HERE.view))
    nosy = [context.socket(zmq.SUB) for _ in topics]
    ends = [one.get_monitor_socket(zmq.EVENT_DISCONNECTED) for one in nosy]
    for topic, one in zip(topics, nosy, strict=True):
        one.linger = 0
        one.subscribe(topic)
        one.connect(speaker.address)
    async with Crew(speaker.address) as crew:
        crew.join()
        await until(lambda: all(end.poll(0) for end in ends[:-1]), "cut off")
        board.put(tables(a=2))
        await speaker.advance()
        await until(lambda: crew.live(2), "published")
        await until(lambda: nosy[-1].poll(0), "heard by who subscribed to it")
        assert not ends[-1].poll(0)
    for one, end in zip(nosy, ends, strict=True):
        one.disable_monitor()
        end.close()
        one.close()
    context.term()
    await speaker.close()


@runs
async def test_a_slow_subscriber_delays_nobody_and_heals() -> None:
    board = Board(many(50))
    speaker = await opened(board, heartbeat=0.5)
    context = zmq.Context()
    slow = context.socket(zmq.SUB)
    slow.linger = 0
    slow.rcvhwm = 1
    slow.setsockopt(zmq.RCVBUF, 4096)
    slow.subscribe(view_topic(HERE.view))
    slow.connect(speaker.address)
    async with Crew(speaker.address) as crew:
        crew.join(3)
        await until(lambda: crew.live(1) and slow.poll(0), "joined")
        noise = random.Random(1)
        for version in range(2, 602):
            board.put(many(50, a=noise.randbytes(20_000)))
            await speaker.advance()
            if version % 20 == 0:
                await until(lambda version=version: crew.live(version), f"version {version}", 5)  # type: ignore[misc]
        assert [link.sync.snapshots for link in crew.links] == [1, 1, 1]
        # it wakes up: something is missing, which the next heartbeat shows
        heard = []
        while slow.poll(200):
            heard.append(decode(slow.recv_multipart()[1:]))
        versions = [m.version for m in heard if m.t == "update"]  # type: ignore[union-attr]
        assert 0 < len(versions) < 600, "nothing was lost: this test did not test anything"
    slow.close()
    context.term()
    await speaker.close()


@runs
async def test_a_link_that_stops_reading_heals_by_a_range() -> None:
    board = Board(many(100))
    speaker = await opened(board)
    async with Crew(speaker.address) as crew:
        crew.join(2)
        await until(lambda: crew.live(1), "joined")
        publish = crew.links[0]._ends[0].publish
        asyncio.get_running_loop().remove_reader(publish._descriptor)
        publish._closed = True  # deaf
        noise = random.Random(1)
        for _ in range(2000):
            board.put(many(100, a=noise.randbytes(30_000)))  # 60 MB: more than sockets and queues hold
            await speaker.advance()
        await until(lambda: crew.links[1].sync.version == 2001, "the other follows")
        assert crew.links[0].sync.version == 1
        publish._closed = False
        asyncio.get_running_loop().add_reader(publish._descriptor, publish._turn)
        publish.look_again()
        await until(lambda: crew.live(2001), "healed")
        sync = crew.links[0].sync
        assert sync.rows.hash == crew.links[1].sync.rows.hash
        assert sync.snapshots == 1
        assert sync.gaps >= 1
    await speaker.close()


@runs
async def test_two_hundred_links() -> None:
    board = Board(many(1000))
    speaker = await opened(board, heartbeat=1.0)
    context = make_context()
    async with Crew(speaker.address, context=context) as crew:
        crew.join(200)
        await until(lambda: crew.live(1), "joined")
        (view,) = speaker.down.views.values()
        assert view.feed
        assert (view.feed.snapshots, board.made) == (1, 1)
        for version in range(2, 7):
            board.put(many(1000, a=version))
            await speaker.advance()
        await until(lambda: speaker.fleet.progress(1, 6).serving == 200, "served")
        assert {(x.sync.snapshots, x.sync.gaps, x.sync.hash) for x in crew.links} == {(1, 0, view.feed.hash)}
        progress = speaker.fleet.progress(1, 6)
        assert (progress.total, progress.laggards, progress.max_us) == (200, [], 700)
    context.term()
    await speaker.close()


@runs
async def test_who_joins_in_a_crowd_waits_a_random_while() -> None:
    speaker = await opened(Board(tables(a=1)))
    jitters = [speaker.down._announce().jitter_ms for _ in range(3000)]
    assert jitters[:3] == [0, 1, 2]
    assert jitters[-1] == downstream.JITTER_MOST - downstream.JITTER_EACH
    await speaker.close()


@runs
async def test_one_proxy_does_not_make_one_view_after_the_other() -> None:
    """Each is tables, rows and a journal for all that comes: whoever may connect could make the publisher
    compile thousands of them, and every change after that."""
    speaker = await opened(Board(tables(a=1)))
    lane, told = (zmq.Context.instance().socket(zmq.DEALER) for _ in range(2))
    try:
        for socket, address in ((lane, speaker.snapshot_address), (told, speaker.answer_address)):
            socket.linger = 0
            socket.connect(address)
        for i in range(100):
            attributes = Attributes.of("default", {"i": str(i)}, False)
            lane.send_multipart(encode(Ask(node="a", attributes=attributes, id=i)))
            told.send_multipart(encode(Report(node="a", attributes=attributes, state="LIVE")))
        await until(lambda: speaker.down.asks == 100, "all asks are read")
        await until(lambda: speaker.fleet.proxies(), "and reports")
        assert len(speaker.down.views) == NEW_VIEWS
        assert "other labels again and again" in speaker.fleet.refused[-1].reason
        async with Crew(speaker.address) as crew:
            crew.join(3, attributes=Attributes.of("default", {"i": "well"}, False))
            await until(lambda: crew.live(1), "others are served")
        assert len(speaker.down.views) == NEW_VIEWS + 1
    finally:
        lane.close()
        told.close()


@runs
async def test_views_are_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tables(a=1))
    speaker = await opened(board)
    speaker.down._most_views = 2
    context = make_context()
    async with Crew(speaker.address, context=context) as crew:
        for i in range(2):
            crew.join(1, attributes=Attributes.of("n", {"i": str(i)}, False))
        await until(lambda: crew.live(1), "two views")
        crew.join(1, attributes=EDGE)
        await until(lambda: "there are 2 views already" in crew.links[2].sync.peers[0].trouble, "refused")
        monkeypatch.setattr(publisher, "FORGET", -1.0)
        await until(lambda: crew.links[2].sync.state is State.LIVE, "forgotten, so there is room")
    context.term()
    await speaker.close()


def test_an_address_outside_this_machine_needs_keys() -> None:
    for wrong, why in (
        ("tcp://0.0.0.0:9910", "needs keys"),
        ("tcp://10.1.2.3:9910", "needs keys"),
        ("127.0.0.1:9910", "no address"),
        ("tcp://127.0.0.1:x", "no address"),
        ("tcp://127.0.0.1:70000", "no address"),
    ):
        with pytest.raises(ValueError, match=why):
            Publisher(Board(), Fleet(), bind=wrong)


@runs
async def test_the_other_ports_are_the_two_above() -> None:
    for _ in range(20):
        probe = await opened(Board())
        below = f"tcp://127.0.0.1:{int(probe.address.rpartition(':')[2]) + 1000}"
        try:
            speaker = await opened(Board(), below, snapshot_port=None, answer_port=None)
        except OSError:
            continue  # one of the three is taken
        ports = [
            int(at.rpartition(":")[2])
            for at in (speaker.address, speaker.snapshot_address, speaker.answer_address)
        ]
        assert ports == [ports[0], ports[0] + 1, ports[0] + 2]
        return
    raise AssertionError("no three ports in a row are free")


@runs
async def test_a_port_that_is_taken_is_an_error_and_nothing_stays_bound() -> None:
    one = await opened(Board(tables(a=1)))
    taken = int(one.answer_address.rpartition(":")[2])
    two = Publisher(Board(), Fleet(), bind="tcp://127.0.0.1:0", answer_port=taken)
    with pytest.raises(OSError, match=f"cannot bind tcp://127.0.0.1:{taken}: Address already in use"):
        await two.open()
    assert not two.down._lanes
    await one.close()
    await one.close()


@runs
async def test_an_ask_that_comes_while_the_one_before_is_packed_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctrl.feed.LARGE", 0)
    packing, packed = threading.Event(), threading.Event()
    real = Feed.work

    def work(self: Feed, ask: Ask) -> Any:
        made = real(self, ask)

        def slow() -> None:
            packing.set()
            packed.wait(10)
            assert made
            made()

        return slow if made else None

    monkeypatch.setattr(Feed, "work", work)
    speaker = await opened(Board(tables(a=1)))
    context = zmq.Context()
    asker = context.socket(zmq.DEALER)
    asker.linger = 0
    asker.connect(speaker.snapshot_address)
    asker.send_multipart(encode(Ask(node="n", attributes=HERE, id=1)))
    await asyncio.to_thread(packing.wait, 10)
    asker.send_multipart(encode(Ask(node="n", attributes=HERE, id=2)))
    await until(
        lambda: any(ask.id == 2 for v in speaker.down.views.values() for ask in v.waiting.values()), "2"
    )
    packed.set()
    await until(lambda: asker.poll(0), "an answer")
    assert decode(asker.recv_multipart()).id == 2  # type: ignore[union-attr]
    asker.close()
    context.term()
    await speaker.close()
