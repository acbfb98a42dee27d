"""A link that runs, and a publisher that is a few lines and does what the test says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
import zmq

from fastproxy.link import ApplierAction, Link
from fastproxy.rows import Rows
from fastproxy.sockets import (
    Readable,
    bound_port,
    make_context,
    open_socket,
)
from fastproxy.sync import Done, Say, State
from fastproxy.wire import (
    Announce,
    Answers,
    Ask,
    Attributes,
    Heartbeat,
    Message,
    Report,
    Snapshot,
    decode,
    encode,
    view_topic,
)
from tests.control.told import rows, step

HERE = Attributes()
TOPIC = view_topic(HERE.view)


def run(test: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), 30))


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.005)


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
    """It does not wait for anything. ``hashes``: of the rows it was given with each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes: list[bytes] = []

    def carry_out(self, actions: Sequence[ApplierAction], rows: Rows) -> list[tuple[type, Done]]:  # type: ignore[override]
        self.batches.append(list(actions))
        self.hashes.append(rows.hash)
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
