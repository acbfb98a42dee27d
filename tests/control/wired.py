"""A real publisher and real links on loopback, for tests of what happens on the wire.

The tables are made here, and what would be a proxy's workers only keeps what it was told to serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import zmq

from ctrl import keys
from ctrl.fleet import Fleet
from ctrl.model import Candidate, Head
from ctrl.publisher import Publisher
from ctrl.zap import Authority
from fastproxy.keys import Curve, KeyFile, load_key
from fastproxy.link import Link
from fastproxy.rows import Rows
from fastproxy.sync import Apply, Done, Prepare, Say, State
from fastproxy.tables import Tables, empty
from fastproxy.wire import Attributes

LOOPBACK = "tcp://127.0.0.1:0"


def tables(version: int, routes: int = 3) -> Tables:
    """Some rows, one of which differs in every version."""
    made: Any = empty()
    for i in range(routes):
        made["routes"][f"r{i}"] = {"host": f"h{i}", "to": version if i == 0 else 0}
    return made  # type: ignore[no-any-return]


class Fixed:
    """A source that stands where it is told to."""

    def __init__(self, version: int = 1, epoch: int = 1, routes: int = 3) -> None:
        self.version, self.epoch, self.routes = version, epoch, routes

    def head(self) -> Head:
        return Head(self.epoch, self.version, self.version)

    def candidate(self) -> Candidate | None:
        return None

    async def tables(self, attributes: Attributes) -> Tables:
        return tables(self.version, self.routes)

    async def candidate_tables(self, attributes: Attributes) -> Tables:
        raise AssertionError("there is no candidate")


class Served:
    """Does at once what it is told, and remembers it."""

    def __init__(self) -> None:
        self.version = 0
        self.rows: dict[str, Any] = {}
        self.at = 0.0

    async def carry_out(self, actions: Sequence[Any], rows: Rows) -> list[tuple[type, Done]]:
        for action in actions:
            assert not isinstance(action, Prepare)
            if isinstance(action, Apply):
                self.rows = {key: msgpack.unpackb(row) for key, row in rows.tables["routes"].items()}
                self.version, self.at = action.version, time.monotonic()
        return [(type(a), Done(a.version, getattr(a, "hash", b""))) for a in actions]

    def report(self) -> dict[str, Any]:
        return {}


class Node:
    """A link that runs, what it serves and what it said."""

    def __init__(self, name: str, addresses: Sequence[str], **more: Any) -> None:
        self.served = Served()
        self.said: list[str] = []
        self.link = Link(name, Attributes(), addresses, self.served, say=self._hear, **more)
        self.task = asyncio.create_task(self.link.run())

    def _hear(self, say: Say) -> None:
        self.said.append(say.text)

    @property
    def state(self) -> State:
        return self.link.sync.state

    async def close(self) -> None:
        """Also tells whether anything was raised in it."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "") -> None:
    """Return as soon as it holds; AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what or condition}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def published(
    source: Fixed, *, folder: Path | None = None, bind: str = LOOPBACK, heartbeat: float = 0.1
) -> AsyncIterator[Publisher]:
    """A publisher that is open; ``folder``: with the keys of that folder."""
    secured: dict[str, Any] = {}
    if folder:
        secured = {"curve": keys.server_key(folder).curve, "authority": Authority(folder / "allow")}
    publisher = Publisher(source, Fleet(), bind=bind, heartbeat=heartbeat, report=0.5, **secured)
    await publisher.open()
    try:
        yield publisher
    finally:
        await publisher.close()


@contextlib.asynccontextmanager
async def nodes(*made: Node) -> AsyncIterator[None]:
    """Close them in the end."""
    try:
        yield
    finally:
        for node in made:
            await node.close()


def key_of(folder: Path, name: str, role: str = "node") -> KeyFile:
    return load_key(keys.add_node(folder, name, role))


def socket_of(context: zmq.Context[Any], kind: int, address: str, curve: Curve | None = None) -> Any:
    """A socket of somebody who need not keep to anything."""
    socket = context.socket(kind)
    socket.linger = 0
    if curve:
        socket.curve_publickey, socket.curve_secretkey = curve.public, curve.secret
        socket.curve_serverkey = curve.server
    socket.connect(address)
    return socket
