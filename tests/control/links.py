"""What the tests of publisher and relay share: a source of a few variables, and real links that count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any

from ctrl.fleet import Fleet
from ctrl.model import Candidate, Draft, Head
from ctrl.publisher import Publisher
from fastproxy.link import ApplierAction, Link
from fastproxy.rows import Rows
from fastproxy.sync import Done, Flip, Prepare, Settle, State
from fastproxy.tables import Tables, empty
from fastproxy.wire import Attributes

HERE = Attributes()


def tables(**breakers: Any) -> Tables:
    """Tables whose rows are these breakers."""
    out = empty()
    out["breakers"] = {name: {"policy": value} for name, value in breakers.items()}
    return out


def many(count: int, **more: Any) -> Tables:
    out = tables(**more)
    rows: dict[str, Any] = {f"outbound|80||service-{i}": {"policy": {"ms": i}} for i in range(count)}
    out["breakers"] |= rows
    return out


class Board:
    """A source: what stands on it is published. ``slow``: views whose tables wait for the event."""

    def __init__(self, start: Tables | None = None, version: int = 1, epoch: int = 1) -> None:
        self.at = Head(epoch, version, version) if start is not None else Head(epoch)
        self.now = start or empty()
        self.next: Candidate | None = None
        self.next_tables = empty()
        self.slow: dict[Attributes, asyncio.Event] = {}
        self.broken: set[Attributes] = set()
        self.made = 0

    def head(self) -> Head:
        return self.at

    def candidate(self) -> Candidate | None:
        return self.next

    async def tables(self, attributes: Attributes) -> Tables:
        self.made += 1
        if attributes in self.broken:
            raise ValueError("these cannot be made")
        if attributes in self.slow:
            await self.slow[attributes].wait()
        return self.now

    async def candidate_tables(self, attributes: Attributes) -> Tables:
        return self.next_tables

    def put(self, new: Tables, version: int = 0, epoch: int = 0) -> None:
        version = version or self.at.decided + 1
        self.at = Head(epoch or self.at.epoch, version, version)
        self.now, self.next = new, None

    def propose(self, new: Tables) -> int:
        self.next = Candidate(self.at.decided + 1, Draft("", "", (), ""))
        self.next_tables = new
        return self.next.version

    def share(self, share: int) -> None:
        assert self.next
        self.next = Candidate(self.next.version, self.next.draft, share)

    def abort(self) -> None:
        assert self.next
        self.at = Head(self.at.epoch, self.at.version, self.next.version)
        self.next = None


class Counting:
    """An applier that serves at once; ``refuses``: versions that it cannot serve, with the reason."""

    def __init__(self) -> None:
        self.actions: list[ApplierAction] = []
        self.serves = 0
        self.refuses: dict[int, str] = {}
        self.started_ms = 1
        self.extra: dict[str, Any] = {}

    async def carry_out(self, actions: Sequence[ApplierAction], rows: Rows) -> list[tuple[type, Done]]:
        out: list[tuple[type, Done]] = []
        for action in actions:
            self.actions.append(action)
            error = self.refuses.get(action.version, "")
            if not error and not isinstance(action, Prepare):
                self.serves = action.version
            digest = getattr(action, "hash", rows.hash)
            out.append((type(action), Done(action.version, digest, error, 700, 300, 20)))
        return out

    def report(self) -> dict[str, Any]:
        return {"started_ms": self.started_ms, "requests": 10, **self.extra}

    def flips(self, version: int) -> bool:
        return any(isinstance(a, (Flip, Settle)) and a.version == version for a in self.actions)


class Crew:
    """Links that run until the crew is left."""

    def __init__(self, *addresses: str, context: Any = None, curve: Any = None) -> None:
        self.addresses = list(addresses)
        self.links: list[Link] = []
        self.appliers: list[Counting] = []
        self._options = {"context": context, "curve": curve}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Crew:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def join(self, count: int = 1, name: str = "node", attributes: Attributes = HERE, **options: Any) -> None:
        for _ in range(count):
            applier = Counting()
            link = Link(
                f"{name}-{len(self.links)}",
                attributes,
                self.addresses,
                applier,
                **{**self._options, **options},
            )
            self.links.append(link)
            self.appliers.append(applier)
            self._tasks.append(asyncio.create_task(link.run()))

    def live(self, version: int, epoch: int = 1) -> bool:
        return all(
            link.sync.state is State.LIVE and (link.sync.epoch, link.sync.version) == (epoch, version)
            for link in self.links
        )

    def serve(self, version: int) -> bool:
        return all(applier.serves == version for applier in self.appliers)


async def until(true: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    """Wait for it; fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        await asyncio.sleep(0.005)


_OPENED: list[Any] = []


def left(what: Any) -> Any:
    """``what`` is closed when the test ends, however it ends."""
    _OPENED.append(what)
    return what


def runs(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    async def bounded(*args: Any, **kwargs: Any) -> None:
        try:
            await asyncio.wait_for(test(*args, **kwargs), 60)
        finally:
            while _OPENED:
                await _OPENED.pop().close()

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(bounded(*args, **kwargs))

    return run


async def opened(source: Board, bind: str = "tcp://127.0.0.1:0", **options: Any) -> Publisher:
    """A publisher that beats fast."""
    options = {"heartbeat": 0.2, "report": 0.5, "snapshot_port": 0, "answer_port": 0, **options}
    publisher = Publisher(source, options.pop("fleet", None) or Fleet(), bind=bind, **options)
    left(publisher)
    await publisher.open()
    return publisher
