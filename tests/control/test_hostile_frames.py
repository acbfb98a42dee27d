"""The publisher survives any client, the proxy any publisher: whatever comes, the good are served in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
import pytest
import zmq
import zstandard

from ctrl.publisher import Publisher
from fastproxy.rows import Changes, Rows
from fastproxy.sockets import Readable
from fastproxy.sync import State
from fastproxy.wire import Announce, Attributes, Heartbeat, Report, Snapshot, Update, encode, view_topic
from tests.control.hostile import HASH, encoded, mutations, noise, raw, resident
from tests.control.wired import LOOPBACK, Fixed, Node, nodes, published, socket_of, tables, until

MIB = 1024 * 1024
GROWTH = 200 * MIB
IN_TIME = 5.0  # seconds
GOOD = 4

Ports = tuple[int, int, int]  # publish, snapshot, answer


# --- against the publisher ---


def frames_of_all_types(ports: Ports, rng: random.Random) -> None:
    for port, kind in zip(ports, ("SUB", "DEALER", "DEALER"), strict=True):
        with raw(port, kind) as connection:
            for frames in encoded():
                for wrong in mutations(rng, frames):
                    connection.insist(wrong)


def replayed_and_reordered(ports: Ports, rng: random.Random) -> None:
    """In the name of a good node."""
    messages = [message for node in ("good-0", "good-1") for message in encoded(node)] * 40
    rng.shuffle(messages)
    for port in ports[1:]:
        with raw(port, "DEALER") as connection:
            connection.send(*messages)


def thousands_of_random_messages(ports: Ports, rng: random.Random) -> None:
    for port, kind in zip(ports, ("SUB", "DEALER", "DEALER"), strict=True):
        with raw(port, kind) as connection:
            connection.send(*noise(rng, 4000))
        with raw(port, kind) as connection:
            for message in noise(rng, 500):
                connection.insist([b"\1" + message[0]])


def subscriptions_to_random_topics(ports: Ports, rng: random.Random) -> None:
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for make in (
            lambda: rng.randbytes(900),
            lambda: b"p/" + rng.randbytes(16),
            lambda: b"v/" + rng.randbytes(8).hex().encode(),
        ):
            with raw(ports[0], "SUB") as connection:
                for _ in range(20):
                    if not connection.send(*([b"\1" + make()] for _ in range(100))):
                        break


def connections_without_end(ports: Ports, rng: random.Random) -> None:
    """Half open, silent, and gone in the middle."""
    with contextlib.ExitStack() as stack:
        for i in range(120):
            for port, kind in zip(ports, ("SUB", "DEALER", "DEALER"), strict=True):
                connection = stack.enter_context(raw(port, kind if i % 2 else ""))
                if i % 3 == 0:
                    connection.raw(b"\xff\0\0")


def bytes_of_something_else(ports: Ports, rng: random.Random) -> None:
    for port in ports:
        for data in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + rng.randbytes(500),
            b"\xff" * 100_000,
            b"\0" * 100_000,
            rng.randbytes(100_000),
            b"\xff" + b"\0" * 8 + b"\x7f\x03\0CURVE",
        ):
            with raw(port) as connection:
                connection.raw(data)
        with raw(port, "DEALER") as connection:
            connection.raw(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff" + b"x" * 100_000)  # a frame of 2**63 bytes
        with raw(port, "DEALER") as connection:
            connection.raw(b"\x01\x01x" * 20_000)  # a message that never ends


def large_messages_without_end(ports: Ports, rng: random.Random) -> None:
    """Of a size that is still taken, faster than they can be read."""
    labels = {f"label-{i}": "x" * 4000 for i in range(200)}
    for port in ports[1:]:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(raw(port, "DEALER")) for _ in range(8)]
            for i in range(160):
                attributes = Attributes.of("default", {**labels, "i": str(i)}, False)
                report = encode(Report(node=f"mallory-{i}", attributes=attributes, state="LIVE"))
                connections[i % 8].send(report)


ATTACKS: list[Callable[[Ports, random.Random], None]] = [
    frames_of_all_types,
    replayed_and_reordered,
    thousands_of_random_messages,
    subscriptions_to_random_topics,
    connections_without_end,
    bytes_of_something_else,
    large_messages_without_end,
]


HEARD = {frames_of_all_types: 150, thousands_of_random_messages: 2000, subscriptions_to_random_topics: 50}


def ports_of(publisher: Publisher) -> Ports:
    addresses = (publisher.address, publisher.snapshot_address, publisher.answer_address)
    first, second, third = (int(address.rpartition(":")[2]) for address in addresses)
    return first, second, third


@contextlib.asynccontextmanager
async def nothing_raised(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """No exception went to the loop or to the log meanwhile."""
    raised: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: raised.append(repr(context)))
    yield
    assert raised == []
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_publisher_survives(
    attack: Callable[[Ports, random.Random], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        source = Fixed(routes=200)
        async with nothing_raised(caplog), published(source) as publisher:
            good = [Node(f"good-{i}", [publisher.address]) for i in range(GOOD)]
            async with nodes(*good):
                await until(lambda: all(node.served.version == 1 for node in good))
                before = resident()
                working = asyncio.create_task(
                    asyncio.to_thread(attack, ports_of(publisher), random.Random(7))
                )
                while not working.done():  # what is changed meanwhile arrives as well
                    source.version += 1
                    await publisher.advance()
                    await until(lambda: all(n.served.version == source.version for n in good), IN_TIME)
                    await asyncio.sleep(0.05)
                await working
                if attack in HEARD:
                    assert publisher.down.garbage >= HEARD[attack], "it was heard, and it was nothing"
                source.version += 1
                await publisher.advance()
                await until(lambda: all(n.served.version == source.version for n in good), IN_TIME)
                late = Node("late", [publisher.address])
                async with nodes(late):
                    await until(lambda: late.served.version == source.version, IN_TIME)
                assert resident() - before < GROWTH
                assert all(node.state is State.LIVE for node in good)

    asyncio.run(run())


# --- against the proxy ---


Replies = Callable[[list[bytes]], list[list[bytes]]]


class Evil:
    """A publisher that says what it is told to, on the lanes that it announces, to whoever listens."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        loop = asyncio.get_running_loop()
        kinds = (zmq.XPUB, zmq.ROUTER, zmq.ROUTER)
        self.sockets = [self.context.socket(kind) for kind in kinds]
        self.ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in self.sockets]
        self.sockets[0].setsockopt(zmq.XPUB_VERBOSE, 1)
        hash = Rows.pack(tables(1, 200)).hash  # at first it is as good as any
        self.replies: Replies = lambda ask: [head(hash=hash, id=msgpack.unpackb(ask[0])["id"])]
        self.asked = 0
        self.others = True  # there is a good publisher beside it
        self.heard = [
            Readable(loop, self.sockets[0], self._on_subscription),
            Readable(loop, self.sockets[1], self._on_ask),
            Readable(loop, self.sockets[2], lambda _: None),
        ]

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.ports[0]}"

    def announce(self, **changed: Any) -> list[bytes]:
        fields = {"snapshot_port": self.ports[1], "answer_port": self.ports[2]}
        known = Announce(server="evil", heartbeat_ms=100, report_ms=1000, **fields)
        return (
            encode(known)
            if not changed
            else [msgpack.packb({**msgpack.unpackb(encode(known)[0]), **changed})]
        )

    def say(self, *frames: bytes) -> None:
        self.heard[0].send([view_topic(Attributes().view), *frames])

    def _on_subscription(self, frames: list[bytes]) -> None:
        if frames[0][:3] == b"\1p/":
            self.heard[0].send([frames[0][1:], *self.announce()])

    def _on_ask(self, frames: list[bytes]) -> None:
        self.asked += 1
        for message in self.replies(frames[1:]):
            self.heard[1].send([frames[0], *message])

    def close(self) -> None:
        for readable in self.heard:
            readable.close()
        self.context.term()


def head(**more: Any) -> list[bytes]:
    values: dict[str, Any] = {"epoch": 1, "version": 1, "hash": HASH, "decided": 1, **more}
    return encode(Heartbeat(**values))


async def says_all_types_wrong(evil: Evil, rng: random.Random) -> None:
    evil.replies = lambda _: list(mutations(rng, rng.choice(encoded())))[:50]
    for frames in encoded():
        evil.say(*head(version=9, decided=9))  # so that it is asked
        for wrong in mutations(rng, frames):
            evil.say(*wrong)
        await asyncio.sleep(0.01)


async def says_noise(evil: Evil, rng: random.Random) -> None:
    evil.replies = lambda _: list(noise(rng, 20))
    for i, message in enumerate(noise(rng, 3000)):
        evil.say(*(message if i % 100 else head(version=9, decided=9)))
        await asyncio.sleep(0)


async def sends_bombs(evil: Evil, rng: random.Random) -> None:
    """A few kilobytes that unpack to 64 MiB, with a size that is a lie, too much, or true."""
    bomb = zstandard.ZstdCompressor().compress(b"\x81" * (1 << 26))
    more = {"epoch": 1, "prev_version": 1, "prev_hash": HASH, "zstd": True, "format": 1, "version": 2}
    for size in (0, 100, 1 << 20, 1 << 26, 1 << 31, 1 << 62):
        header = msgpack.packb({"t": "update", "hash": HASH, "size": size, **more})
        evil.replies = lambda _, h=header: [[h, bomb]]  # type: ignore[misc]
        evil.say(*head(version=9, decided=9))
        evil.say(header, bomb)
        await asyncio.sleep(0.05)


async def sends_updates_that_fit_nowhere(evil: Evil, rng: random.Random) -> None:
    for i in range(2000):
        update = Update(
            epoch=1,
            version=100 + i,
            hash=rng.randbytes(32),
            prev_version=99 + i,
            prev_hash=rng.randbytes(32),
            changes=Changes({"routes": {f"evil{i}": b"\1" * 3000}}),
        )
        evil.say(*encode(update))
        if i % 20 == 0:
            await asyncio.sleep(0)


async def lies_about_hashes(evil: Evil, rng: random.Random) -> None:
    """Updates that fit, but for their hash; snapshots of other rows than their hash says."""
    rows = Rows.pack(tables(1, 200))
    lie = Snapshot(epoch=1, version=50, hash=HASH, rows={"routes": {"evil": b"\1"}})
    evil.replies = lambda ask: [
        [
            msgpack.packb({**msgpack.unpackb(encode(lie)[0]), "id": msgpack.unpackb(ask[0]).get("id", 0)}),
            encode(lie)[1],
        ]
    ]
    asked = evil.asked
    evil.say(*head(version=50, decided=50))
    await asyncio.sleep(0.2)
    assert evil.asked > asked or evil.others, "it asks for what it lacks, and gets the wrong rows"
    for i in range(100):
        update = Update(
            epoch=1,
            version=2 + i,
            hash=HASH,
            prev_version=1,
            prev_hash=rows.hash,
            changes=Changes({"routes": {"evil": b"\1"}}),
        )
        evil.say(*encode(update))
        evil.say(*head(version=50, hash=HASH))
        await asyncio.sleep(0.01)


async def promises_versions_that_never_come(evil: Evil, rng: random.Random) -> None:
    for epoch, version in ((1, 1 << 62), (1, 3), (1, 2)):
        for _ in range(50):
            evil.say(*head(epoch=epoch, version=version, decided=version, candidate=version + 1, share=1))
            await asyncio.sleep(0.002)


async def announces_ports_elsewhere(evil: Evil, rng: random.Random) -> None:
    for port in (0, 1, 70_000, 1 << 40, evil.ports[0]):
        for _ in range(3):
            evil.say(*evil.announce(snapshot_port=port))
            evil.say(*evil.announce(answer_port=port))
            await asyncio.sleep(0.01)
    for port in range(20_000, 20_200):
        evil.say(*evil.announce(snapshot_port=port, answer_port=port + 1, heartbeat_ms=0, report_ms=0))
        await asyncio.sleep(0)
    for wrong in (0, 1, (1 << 63) - 1):
        evil.say(*evil.announce(heartbeat_ms=wrong, report_ms=wrong, jitter_ms=wrong))
        evil.say(*head(report_ms=wrong, now_ms=wrong))
        await asyncio.sleep(0.02)


async def says_giant_headers(evil: Evil, rng: random.Random) -> None:
    for size in (65_000, 66_000, 2 * MIB, 20 * MIB):
        evil.say(msgpack.packb({"t": "head", "junk": "x" * size}))
        evil.say(os.urandom(size))
        await asyncio.sleep(0.05)


GARBAGE = {
    says_all_types_wrong: 500,
    says_noise: 2500,
    sends_bombs: 6,
    lies_about_hashes: 50,
    says_giant_headers: 4,
}
LIES = [
    says_all_types_wrong,
    says_noise,
    sends_bombs,
    sends_updates_that_fit_nowhere,
    lies_about_hashes,
    promises_versions_that_never_come,
    announces_ports_elsewhere,
    says_giant_headers,
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_the_proxy_survives(
    lie: Callable[[Evil, random.Random], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It listens to a good publisher and to a bad one: it keeps what the good one said and takes the next
    version from it."""

    async def run() -> None:
        source = Fixed(routes=200)
        evil = Evil()
        try:
            async with nothing_raised(caplog), published(source) as publisher:
                node = Node("good", [publisher.address, evil.address])
                async with nodes(node):
                    await until(lambda: node.served.version == 1)
                    await until(lambda: node.link.sync.peers[1].announce)
                    rows, before = node.served.rows, resident()
                    await lie(evil, random.Random(11))
                    await asyncio.sleep(0.2)
                    assert not node.task.done()
                    assert (node.served.version, node.served.rows) == (1, rows)
                    source.version = 2
                    await publisher.advance()
                    await until(lambda: node.served.version == 2, IN_TIME)
                    assert node.served.rows["r0"] == {"host": "h0", "to": 2}
                    assert resident() - before < GROWTH
                    assert node.link.sync.garbage >= GARBAGE.get(lie, 0), "it was heard"
        finally:
            evil.close()

    asyncio.run(run())


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_what_was_kept_serves_on_beside_a_bad_publisher_alone(
    lie: Callable[[Evil, random.Random], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        kept = Rows.pack(tables(1, 200))
        evil = Evil()
        try:
            async with nothing_raised(caplog):
                node = Node("good", [evil.address])
                node.link.restore(1, 1, kept)
                evil.others = False
                async with nodes(node):
                    await until(lambda: node.served.version == 1)
                    await until(lambda: node.state is State.LIVE)
                    before = resident()
                    await lie(evil, random.Random(11))
                    await asyncio.sleep(0.2)
                    assert not node.task.done()
                    assert evil.asked > 1 or lie in (says_giant_headers, announces_ports_elsewhere)
                    assert node.served.version == 1
                    assert node.link.sync.rows.hash == kept.hash
                    assert resident() - before < GROWTH
                    assert node.link.sync.garbage >= GARBAGE.get(lie, 0), "it was heard"
        finally:
            evil.close()

    asyncio.run(run())


def test_who_connects_to_the_wrong_socket_type_is_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        context: zmq.Context[Any] = zmq.Context()
        source = Fixed()
        async with nothing_raised(caplog), published(source, bind=LOOPBACK) as publisher:
            addresses = (publisher.address, publisher.snapshot_address, publisher.answer_address)
            sockets = [
                socket_of(context, kind, address)
                for address in addresses
                for kind in (zmq.REQ, zmq.PULL, zmq.PAIR, zmq.XSUB, zmq.ROUTER)
            ]
            node = Node("good", [publisher.address])
            async with nodes(node):
                await until(lambda: node.served.version == 1, IN_TIME)
            for socket in sockets:
                socket.close()
        context.term()

    asyncio.run(run())
