"""The publisher: three bound sockets, one feed per view, and whatever the proxies say to the fleet.

What to publish is asked of a :class:`Source`; :meth:`Publisher.advance` and its like only say that the source
has moved. Every view is brought to where the source stands, each in its own time: one whose tables take long
holds up no other, and heartbeats go on meanwhile with what its proxies were told last.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

import zmq

from ctrl.downstream import Downstream, View
from ctrl.feed import Feed
from ctrl.fleet import Fleet, Proxy
from ctrl.model import Candidate, Head
from fastproxy.rows import Changes
from fastproxy.tables import Tables
from fastproxy.wire import Attributes

if TYPE_CHECKING:
    from ctrl.zap import Authority
    from fastproxy.keys import Curve

AT_ONCE = 4  # views that are made at the same time
MANY_ROWS = 2000  # from here on they are compared in a thread
TRIES = 10  # to make tables of a head that does not move meanwhile
OPEN_REPORT = 1.0  # seconds between reports while a candidate is open: its telemetry decides
FORGET = 600.0  # seconds after which a view is dropped that nobody asks or reports about

_log = logging.getLogger("fastproxyctl")


class Source(Protocol):
    """What is published. Tables are never changed after they were returned."""

    def head(self) -> Head: ...

    def candidate(self) -> Candidate | None: ...

    async def tables(self, attributes: Attributes) -> Tables:
        """Of the head."""
        ...

    async def candidate_tables(self, attributes: Attributes) -> Tables: ...


class Publisher:
    """See the module. ``bind``: the publish address; the snapshot and answer sockets are at the two ports
    above it unless they are named, and everything is at a free port where the port is 0. ``heartbeat`` and
    ``report``: seconds.

    Raises ValueError for an address outside this machine without keys.
    """

    def __init__(
        self,
        source: Source,
        fleet: Fleet,
        *,
        bind: str = "tcp://127.0.0.1:9910",
        snapshot_port: int | None = None,
        answer_port: int | None = None,
        heartbeat: float = 1.0,
        report: float = 5.0,
        name: str = "",
        curve: Curve | None = None,
        authority: Authority | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self.source = source
        self.fleet = fleet
        self.heartbeat = heartbeat
        self.down = Downstream(
            fleet,
            self._make,
            bind=bind,
            snapshot_port=snapshot_port,
            answer_port=answer_port,
            heartbeat=heartbeat,
            report=report,
            name=name,
            curve=curve,
            authority=authority,
            context=context,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._turns = asyncio.Semaphore(AT_ONCE)

    def __repr__(self) -> str:
        return f"<Publisher {self.down!r}>"

    @property
    def address(self) -> str:
        """Of the publish socket, with its real port; all that a proxy needs to know."""
        return self.down.address

    @property
    def snapshot_address(self) -> str:
        return self.down.snapshot_address

    @property
    def answer_address(self) -> str:
        return self.down.answer_address

    async def open(self) -> None:
        """Bind. Raises OSError."""
        self.down.open()
        self.fleet.agrees = self._agrees
        self.fleet.report = self.down.base_report
        self._tasks = [asyncio.create_task(self._beat())]

    async def close(self) -> None:
        """May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self.down.close()

    def _agrees(self, proxy: Proxy) -> bool:
        """What it serves is of our history, as far as we can tell: not of another under the same epoch, as
        after a backup was restored."""
        view = self.down.views.get(proxy.view)
        feed = view.feed if view else None
        if feed is None or proxy.epoch != feed.epoch:
            return True
        if proxy.version == feed.version:
            return proxy.hash in (b"", feed.hash)
        return proxy.version <= (feed.candidate.version if feed.candidate else feed.version)

    # --- the source has moved ---

    async def advance(self) -> float:
        """To the source's head, all views. Unix time of the first send; of now when there was none."""
        return await self._all()

    async def propose(self) -> None:
        """The source has a candidate: every view gets its rows."""
        await self._all()

    def step(self) -> None:
        """The share of the candidate has changed."""
        self._pace()
        candidate = self.source.candidate()
        for view in self.down.views.values():
            feed = view.feed
            if feed and feed.candidate and candidate and feed.candidate.version == candidate.version:
                feed.stage(candidate.share)
                self.down.beat(view)

    async def settle(self) -> None:
        """The candidate has become the head."""
        await self._all()

    async def drop(self) -> None:
        """The candidate was aborted."""
        await self._all()

    # --- inside ---

    def _pace(self) -> None:
        self.down.open_report = OPEN_REPORT if self.source.candidate() else None

    async def _all(self) -> float:
        self._pace()
        sent: list[float] = []
        views = [view for view in self.down.views.values() if view.feed]
        results = await asyncio.gather(*(self._bring(view, sent) for view in views), return_exceptions=True)
        for view, result in zip(views, results, strict=True):
            if isinstance(result, BaseException):
                _log.error("view %s could not be made: %s: %s", view.name, type(result).__name__, result)
        return min(sent, default=time.time())

    async def _bring(self, view: View, sent: list[float]) -> None:
        """One view to where the source stands. What no update has told its proxies, a heartbeat does at once.
        ``sent``: gets the Unix time."""
        async with view.lock, self._turns:
            feed = view.feed
            if feed is None:
                return
            at_us, told = await self._to_head(feed)
            proposed = await self._to_candidate(feed)
            if proposed or (at_us and not told):
                self.down.beat(view)
            elif at_us:
                view.told = time.monotonic()
            if at_us or proposed:
                sent.append((proposed or at_us) / 1e6)

    async def _to_head(self, feed: Feed) -> tuple[int, bool]:
        """Unix microseconds when the feed moved, else 0; and whether an update has said all there is."""
        head, opened = self.source.head(), feed.candidate
        if (head.epoch, head.version) == (feed.epoch, feed.version):
            candidate = self.source.candidate()
            if opened and (candidate is None or candidate.version != opened.version):
                feed.drop(decided=head.decided)
            elif candidate is None and feed.decided != head.decided:
                feed.decided = head.decided
            else:
                return 0, True
            return _now_us(), False
        if opened and (head.epoch, head.version) == (feed.epoch, opened.version):
            feed.settle(decided=head.decided)
            return _now_us(), False
        head, tables = await self._steady(feed.attributes)
        if tables is None:
            return 0, True  # a store that was emptied: proxies keep what they have
        changes = await self._changes(feed, tables)
        at_us = _now_us()
        frames = feed.advance(
            head.version, tables, head.epoch, decided=head.decided, sent_us=at_us, changes=changes
        )
        if frames:
            self.down.publish(frames)
        return at_us, bool(frames) and not opened

    async def _to_candidate(self, feed: Feed) -> int:
        candidate, head = self.source.candidate(), self.source.head()
        if candidate is None or not feed.version or (head.epoch, head.version) != (feed.epoch, feed.version):
            return 0
        if feed.candidate:
            if feed.candidate.share == candidate.share:
                return 0
            feed.stage(candidate.share)
            return _now_us()
        tables = await self.source.candidate_tables(feed.attributes)
        changes = await self._changes(feed, tables)
        latest = self.source.candidate()
        if latest is None or latest.version != candidate.version:
            return 0  # aborted meanwhile; whoever did that brings this view along next
        at_us = _now_us()
        frames = feed.propose(candidate.version, tables, share=latest.share, sent_us=at_us, changes=changes)
        self.down.publish(frames)
        return at_us

    async def _changes(self, feed: Feed, tables: Tables) -> Changes:
        if len(feed.rows) < MANY_ROWS:
            return feed.changes(tables)
        return await asyncio.to_thread(feed.changes, tables)

    async def _make(self, view: View) -> None:
        """The feed of a view that somebody asked about for the first time."""
        async with self._turns:
            head, tables = await self._steady(view.attributes)
            view.feed = await asyncio.to_thread(
                Feed, view.attributes, head.epoch, head.version, tables, head.decided
            )
        await self._bring(view, [])  # the source may have moved, or have a candidate

    async def _steady(self, attributes: Attributes) -> tuple[Head, Tables | None]:
        """Tables and the head that they are of: the source may move while it makes them."""
        for _ in range(TRIES):
            head = self.source.head()
            tables = await self.source.tables(attributes) if head.version else None
            after = self.source.head()
            if (head.epoch, head.version) == (after.epoch, after.version):
                return after, tables
        raise RuntimeError(f"the head moved {TRIES} times while the tables were made")

    async def _beat(self) -> None:
        """Heartbeats, and whatever has to be looked at now and then."""
        while True:
            await asyncio.sleep(self.heartbeat)
            try:
                await self.down.beat_all()
                self.down.forget(FORGET)
                self.fleet.report = self.down.base_report
                self.fleet.expire()
            except Exception:  # a publisher without heartbeats is dead for its proxies
                _log.exception("heartbeat")


def _now_us() -> int:
    return time.time_ns() // 1000
