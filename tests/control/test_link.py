"""The link, against a publisher that is a few lines and does what the test says."""

from __future__ import annotations

import asyncio
import os
import random
import socket as system
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq

from fastproxy.keys import new_curve
from fastproxy.link import LINES, QUEUE, ApplierAction, Link
from fastproxy.rows import Changes, Rows
from fastproxy.sockets import (
    Readable,
    bound_port,
    make_context,
    open_socket,
)
from fastproxy.sync import Apply, Done, Prepare, Say, State
from fastproxy.wire import (
    Announce,
    Answers,
    Ask,
    Attributes,
    Heartbeat,
    Message,
    Refused,
    Report,
    Snapshot,
    Update,
    decode,
    encode,
    view_topic,
)

HERE = Attributes()
TOPIC = view_topic(HERE.view)


def run(test: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), 30))


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def rows(version: int) -> Rows:
    return Rows.of({"routes": {"stays": b"\x80", "moves": b"%d" % version}})


def step(version: int, **more: Any) -> Update:
    values: dict[str, Any] = {
        "epoch": 1,
        "version": version,
        "hash": rows(version).hash,
        "prev_version": version - 1,
        "prev_hash": rows(version - 1).hash,
        "changes": Changes({"routes": {"moves": b"%d" % version}}),
    }
    return Update(**(values | more))


class Server:
    """Three bound sockets. ``answer``: what an Ask gets."""

    def __init__(
        self, context: zmq.Context[Any], address: str = "tcp://127.0.0.1:*", curve: Any = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.version = 1
        self.heartbeat_ms = 200
        self.heard: list[Message] = []
        self.probes = 0
        self.answer: Callable[[Ask], list[list[bytes]]] = self.snapshot
        self.ends: list[Readable] = []
        self.identity = b""
        for kind, port, on in (
            (zmq.XPUB, "", self.on_subscription),
            (zmq.ROUTER, ".1", self.on_ask),
            (zmq.ROUTER, ".2", self.on_told),
        ):
            made = open_socket(context, kind, curve=curve)
            if kind == zmq.XPUB:
                made.setsockopt(zmq.XPUB_VERBOSE, 1)
            made.bind(address + (port if address.startswith("ipc") else ""))
            self.ends.append(Readable(loop, made, on))
        ports = [bound_port(end.socket) for end in self.ends]
        self.ports = ports[1:] if ports[0] else [1, 2]
        self.address = f"tcp://127.0.0.1:{ports[0]}" if ports[0] else address
        self.beats = loop.create_task(self.beat())

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_ms / 1000)
            self.publish(self.head())

    def head(self, **more: Any) -> Heartbeat:
        hash = rows(self.version).hash
        values = {"epoch": 1, "version": self.version, "hash": hash, "decided": self.version}
        return Heartbeat(**(values | more))

    def publish(self, message: Message) -> None:
        self.ends[0].send([TOPIC, *encode(message)])

    def move(self) -> None:
        self.version += 1
        self.publish(step(self.version))

    def snapshot(self, ask: Ask) -> list[list[bytes]]:
        if ask.version == self.version:
            return [encode(self.head(id=ask.id))]
        whole = rows(self.version)
        message = Snapshot(epoch=1, version=self.version, hash=whole.hash, id=ask.id, rows=whole.tables)
        return [encode(message)]

    def on_subscription(self, frames: list[bytes]) -> None:
        if frames[0].startswith(b"\1p/"):
            self.probes += 1
            hello = Announce(
                server="test",
                snapshot_port=self.ports[0],
                answer_port=self.ports[1],
                heartbeat_ms=self.heartbeat_ms,
                report_ms=300,
            )
            self.ends[0].send([frames[0][1:], *encode(hello)])

    def on_ask(self, frames: list[bytes]) -> None:
        ask = decode(frames[1:], (Ask,))
        assert isinstance(ask, Ask)
        self.heard.append(ask)
        for answer in self.answer(ask):
            self.ends[1].send([frames[0], *answer])

    def on_told(self, frames: list[bytes]) -> None:
        self.identity = frames[0]
        self.heard.append(decode(frames[1:], (Answers, Report)))

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.heard if isinstance(message, kind)]

    def results(self) -> list[tuple[int, str]]:
        return [(a.version, a.result) for message in self.of(Answers) for a in message.answers]

    def close(self) -> None:
        self.beats.cancel()
        for end in self.ends:
            end.close()


class Applier:
    """``free``: it works while this is set."""

    def __init__(self) -> None:
        self.batches: list[list[ApplierAction]] = []
        self.fails: Exception | None = None
        self.free = asyncio.Event()
        self.free.set()

    async def carry_out(self, actions: Sequence[ApplierAction], rows: Rows) -> list[tuple[type, Done]]:
        self.batches.append(list(actions))
        await self.free.wait()
        if self.fails:
            raise self.fails
        return [(type(a), Done(a.version, getattr(a, "hash", b""))) for a in actions]

    def report(self) -> dict[str, Any]:
        return {"requests": 7, "admin": "127.0.0.1:1"}


class AtOnce(Applier):
    """It does not wait for anything."""

    def carry_out(self, actions: Sequence[ApplierAction], rows: Rows) -> list[tuple[type, Done]]:  # type: ignore[override]
        self.batches.append(list(actions))
        if self.fails:
            raise self.fails
        return [(type(a), Done(a.version, getattr(a, "hash", b""))) for a in actions]


class Life:
    """A link that runs."""

    def __init__(
        self,
        context: zmq.Context[Any],
        addresses: list[str],
        curve: Any = None,
        applier: Applier | None = None,
    ) -> None:
        self.said: list[Say] = []
        self.applier = applier or Applier()
        self.link = Link(
            "node", HERE, addresses, self.applier, context=context, curve=curve, rng=random.Random(1),
            release="9.9", say=self.said.append,
        )  # fmt: skip
        self.sync = self.link.sync
        self.task = asyncio.create_task(self.link.run())

    async def close(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task

    @property
    def text(self) -> str:
        return "\n".join(say.text for say in self.said)

    def live(self, version: int) -> bool:
        return self.sync.state is State.LIVE and self.sync.serving == version


@asynccontextmanager
async def pair(
    address: str = "tcp://127.0.0.1:*", applier: Applier | None = None
) -> AsyncIterator[tuple[Server, Life]]:
    context = make_context()
    server = Server(context, address)
    life = Life(context, [server.address], applier=applier)
    try:
        yield server, life
    finally:
        await life.close()
        server.close()
        context.term()  # it hangs where a socket is open still


def test_outside_this_machine_needs_keys() -> None:
    with pytest.raises(ValueError, match="tcp://10.0.0.1:9910 is not on this machine: a key file is needed"):
        Link("node", HERE, ["tcp://10.0.0.1:9910"], None)  # type: ignore[arg-type]
    Link("node", HERE, ["tcp://10.0.0.1:9910"], None, curve=new_curve(b"x" * 40))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no address"):
        Link("node", HERE, [], None)  # type: ignore[arg-type]


def test_a_name_that_no_publisher_would_take_is_refused_here() -> None:
    for node, attributes in (
        ("a\x1bb", HERE),
        ("a" * 5000, HERE),
        ("node", Attributes.of("default", {"k": "\x00"}, False)),
        ("node", Attributes.of("default", {f"{i}": "x" * 4000 for i in range(100)}, False)),
    ):
        with pytest.raises(ValueError, match="cannot be told to a publisher"):
            Link(node, attributes, ["tcp://127.0.0.1:1"], None)  # type: ignore[arg-type]


# --- the link ---


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_from_nothing_to_live_and_on(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with pair(f"ipc://{tmp_path}/p" if kind == "ipc" else "tcp://127.0.0.1:*") as (server, life):
            await until(lambda: life.live(1))
            server.move()
            server.move()
            await until(lambda: life.live(3))
            await until(lambda: (3, "serving") in server.results())
            await until(lambda: any(report.serving == 3 for report in server.of(Report)))
            report = server.of(Report)[-1]
            assert (report.node, report.release, report.requests, report.state) == ("node", "9.9", 7, "LIVE")
            assert (report.version, report.hash) == (3, rows(3).hash)
            assert life.sync.snapshots == 1
            assert life.sync.gaps == 0

    run(test)


def test_the_clock_of_the_publisher() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            server.publish(server.head(now_ms=time.time_ns() // 1_000_000 + 3_600_000))
            await until(lambda: life.link.clock_offset_ms)
            assert abs(life.link.clock_offset_ms - 3_600_000) < 2000

    run(test)


def test_an_applier_that_is_done_at_once() -> None:
    async def test() -> None:
        applier = AtOnce()
        async with pair(applier=applier) as (server, life):
            await until(lambda: life.live(1))
            for _ in range(20):
                server.move()
            await until(lambda: life.live(21))
            applied = [action.version for batch in applier.batches for action in batch]
            assert applied == list(range(1, 22)), "each once, in their order"
            applier.fails = ValueError("not this one")
            server.move()
            await until(lambda: life.sync.state is State.REJECTED)
            await until(lambda: (22, "rejected") in server.results())
            assert "version 22 could not be applied: ValueError: not this one" in life.text
            applier.fails = None
            server.move()
            await until(lambda: life.live(23))

    run(test)


def test_what_was_not_begun_when_the_link_ends_is_never_begun() -> None:
    async def test() -> None:
        async with pair() as (_, life):
            await until(lambda: life.live(1))
            life.applier.batches.clear()
            life.link._waiting.append(Apply(1, life.sync.hash, None))
            life.link._apply()
            life.task.cancel()
        assert life.applier.batches == []

    run(test)


def test_a_thousand_that_began_together_do_not_report_together() -> None:
    async def test() -> None:
        async with pair() as (_, life):
            await until(lambda: life.live(1))
            end = life.link._ends[0]
            first = sorted(end.interval(anew=True) for _ in range(1000))
            later = sorted(end.interval() for _ in range(1000))
            whole = end.report_ms / 1000
            assert first[0] < 0.15 * whole < 0.95 * whole < first[-1] <= whole
            assert 0.9 * whole <= later[0] < later[-1] <= 1.1 * whole

    run(test)


def test_an_interval_that_changes_all_the_time_puts_no_report_off() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            end = life.link._ends[0]
            end.report_every(60_000)
            due = end.report_at
            for milliseconds in range(60_001, 60_100):
                end.report_every(milliseconds)
                assert end.report_at <= due
                due = end.report_at
            end.report_every(200)
            before = len(server.of(Report))
            await until(lambda: len(server.of(Report)) > before)

    run(test)


def test_garbage_on_every_lane_is_counted_and_harmless() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            await until(lambda: server.identity)
            noise = random.Random(4)
            publish, snapshots, answers = server.ends
            asked: list[bytes] = []
            snapshots._on_frames = lambda frames: asked.append(frames[0])
            server.version += 1
            server.publish(server.head())
            await until(lambda: asked)
            for _ in range(50):
                junk = [noise.randbytes(noise.randrange(60)) for _ in range(noise.randrange(4))]
                publish.send([TOPIC, *junk])
                snapshots.send([asked[0], *junk, b""])
                answers.send([server.identity, *junk, b""])
            await until(lambda: life.sync.garbage >= 150)
            snapshots._on_frames = server.on_ask
            await until(lambda: life.live(2))
            assert len(life.said) <= LINES + 10, "the log is not flooded"

    run(test)


def test_a_publisher_comes_back_elsewhere_and_is_asked_again() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            port = bound_port(server.ends[0].socket)
            server.close()
            await until(lambda: life.sync.state is State.STALE)
            await until(lambda: "has closed the connection" in life.text)
            context = make_context()
            again = Server(context, "tcp://127.0.0.1:*")
            again.ends[0].socket.bind(f"tcp://127.0.0.1:{port}")
            again.version = 5
            await until(lambda: life.live(5))
            assert again.ports != server.ports
            again.close()
            context.term()

    run(test)


def test_nobody_there_is_said() -> None:
    async def test() -> None:
        context = make_context()
        with system.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            life = Life(context, [f"tcp://127.0.0.1:{nobody.getsockname()[1]}"])
            await until(lambda: "cannot be reached" in life.text)
            await life.close()
        context.term()

    run(test)


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [("wrong key", "keys", "its key is another"), ("", "keys", "uses CURVE"), ("keys", "", "uses CURVE")],
)
def test_a_refused_connection_is_said(ours: str, theirs: str, why: str) -> None:
    async def test() -> None:
        context = make_context()
        key = new_curve()
        server = Server(context, curve=key if theirs else None)
        mine = {"keys": new_curve(key.public), "wrong key": new_curve(new_curve().public), "": None}[ours]
        life = Life(context, [server.address], mine)
        await until(lambda: why in life.text)
        assert life.sync.version == 0
        await life.close()
        server.close()
        context.term()

    run(test)


def test_keys_that_fit() -> None:
    async def test() -> None:
        context = make_context()
        key = new_curve()
        server = Server(context, curve=key)
        life = Life(context, [server.address], new_curve(key.public))
        await until(lambda: life.live(1))
        await life.close()
        server.close()
        context.term()

    run(test)


def test_what_comes_while_the_applier_works_goes_to_it_in_one_batch() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            life.applier.free.clear()
            server.move()
            await until(lambda: len(life.applier.batches) == 2)
            for _ in range(5):
                server.move()
            await until(lambda: life.sync.version == 7)
            life.applier.free.set()
            await until(lambda: life.live(7))
            assert [a.version for a in life.applier.batches[2]] == [3, 4, 5, 6, 7]

    run(test)


def test_more_than_can_wait_becomes_one_action() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            life.applier.free.clear()
            server.move()
            await until(lambda: len(life.applier.batches) == 2)
            for at in range(QUEUE + 50):
                server.move()
                if at % 20 == 0:
                    await asyncio.sleep(0)
            await until(lambda: life.sync.version == server.version)
            server.publish(step(server.version + 1, candidate=True))
            await until(lambda: life.sync.candidate)
            life.applier.free.set()
            await until(lambda: life.live(server.version))
            assert [type(action) for action in life.applier.batches[2]] == [Apply, Prepare]
            assert life.applier.batches[2][0].changes is None  # type: ignore[union-attr]

    run(test)


def test_an_applier_that_raises_rejects_the_version() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            life.applier.fails = RuntimeError("no memory")
            server.move()
            await until(lambda: (2, "rejected") in server.results())
            assert life.sync.state is State.REJECTED
            await until(lambda: any("no memory" in report.error for report in server.of(Report)))
            life.applier.fails = None
            server.move()
            await until(lambda: life.live(3))

    run(test)


def test_the_answer_about_a_candidate_is_repeated_with_reports() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            server.publish(step(2, candidate=True))
            await until(lambda: server.results().count((2, "prepared")) >= 3)

    run(test)


def test_a_refusal_on_the_answer_lane_is_said() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: server.identity)
            server.ends[2].send([server.identity, *encode(Refused(reason="the key was revoked"))])
            await until(lambda: "refuses: the key was revoked" in life.text)

    run(test)


def test_a_lost_announce_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("fastproxy.link.PROBE_AGAIN", 0.5)
        context = make_context()
        server = Server(context)
        server.ends[0]._on_frames = lambda frames: None
        life = Life(context, [server.address])
        await until(lambda: life.link._ends and life.link._ends[0].well)
        server.ends[0]._on_frames = server.on_subscription
        await until(lambda: life.live(1))
        await life.close()
        server.close()
        context.term()

    run(test)


def test_no_descriptor_is_left() -> None:
    async def test() -> None:
        async with pair() as (_, life):
            await until(lambda: life.live(1))

    run(test)
    before = len(os.listdir("/proc/self/fd"))
    run(test)
    assert len(os.listdir("/proc/self/fd")) <= before
