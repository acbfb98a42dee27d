"""A relay: a hop of the tree that takes one publisher to more proxies than it could serve itself.

Upwards it is a subscriber, one :class:`fastproxy.link.Link` per view that its own proxies ask for; downwards
it is what the publisher is, with the same sockets and the same feed. It compiles nothing and decides nothing.

It publishes again what its link has checked; it is no XPUB/XSUB pair that passes bytes on unseen. So an
update that is no true step is never forwarded; its rows, journal and snapshot are always those that its
proxies were told of, and a proxy that missed something is answered here, not by the publisher; a gap on the
way is healed once, by the relay, and its proxies get one step over it. The price is one unpack, hash and pack
of the rows that changed. What a heartbeat brings is passed on at once; between them the relay beats itself,
in its own time, but only while somebody is there above: else its proxies see that nobody is.

Answers of its proxies go up together, a few milliseconds' worth at a time; reports too, of each proxy the
newest. Both carry the relays they came through in ``via``, the topmost first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import zmq

from ctrl.downstream import Downstream, View
from ctrl.feed import Feed
from ctrl.fleet import weight, weight_of_breakers
from fastproxy.link import ApplierAction, Link
from fastproxy.rows import Changes, Rows
from fastproxy.sockets import Readable, lane_address, open_socket
from fastproxy.sync import Action, Apply, Done, Drop, Prepare, Say, Settle, State, Sync
from fastproxy.wire import (
    MAX_REPORT,
    Announce,
    Answer,
    Answers,
    Attributes,
    Heartbeat,
    Message,
    Refused,
    Report,
    Update,
    WireError,
    decode,
    encode,
)

if TYPE_CHECKING:
    from ctrl.zap import Authority
    from fastproxy.keys import Curve

BEATS = 50  # heartbeats between two looks at the loop
GATHER = 0.005  # seconds that answers wait for others
TOGETHER = 500  # answers in one message
NEWEST = 200_000  # proxies whose reports wait
MEMORY = 512 * 1024 * 1024  # bytes of their reports
LATE = 20_000  # answers that wait while nobody is there above; reports say the same
FIRST = 3.0  # seconds that a new view waits for its rows, before its proxies are told that there are none
AGAIN = 5.0  # seconds until a link that failed is run again
FORGET = 600.0  # seconds after which a view is dropped that nobody asks or reports about
MOST_VIEWS = 1024  # each has sockets of its own upwards

_log = logging.getLogger("fastproxyctl")


class Relay:
    """See the module. ``upstream``: publish addresses of the publishers or relays above. ``name``: how it
    calls itself; its key, if there are keys, has this name and the role relay.

    curve: its key file's; ``curve.server`` is the key of those above. authority: the allow list of those
    below, who have this relay's public key as their server's. Raises ValueError as Link and Publisher do.
    """

    def __init__(
        self,
        name: str,
        upstream: Sequence[str],
        *,
        bind: str,
        snapshot_port: int | None = None,
        answer_port: int | None = None,
        heartbeat: float = 1.0,
        curve: Curve | None = None,
        authority: Authority | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        release: str = "",
    ) -> None:
        self.name = name
        self.upstream = list(upstream)
        self.release = release
        self.refusals: list[str] = []  # what those above said last against us, one per address
        self._curve = curve
        self._upward = Upward(self)
        self.down = Downstream(
            self._upward,
            self._make,
            bind=bind,
            snapshot_port=snapshot_port,
            answer_port=answer_port,
            heartbeat=heartbeat,
            report=0.0,
            name=name,
            curve=dataclasses.replace(curve, server=b"") if curve else None,
            authority=authority,
            context=context,
            most_views=MOST_VIEWS,
        )
        self.down.on_gone = self._gone
        # an address that cannot be is an error now, not with the first proxy
        self._link(Attributes(), lambda: None)
        self._links: dict[str, tuple[Link, asyncio.Task[None]]] = {}
        self._told: dict[str, tuple[Any, ...]] = {}  # view -> what its last heartbeat said
        self._beats: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Relay {self.name}: {', '.join(self.upstream)} -> {self.down!r}>"

    @property
    def address(self) -> str:
        """Of the publish socket, with its real port."""
        return self.down.address

    async def open(self) -> None:
        """Bind. Raises OSError."""
        self.down.open()
        self._beats = asyncio.create_task(self._beat())

    async def close(self) -> None:
        """May be called twice."""
        tasks = [task for _, task in self._links.values()]
        tasks += [self._beats] if self._beats else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()
        self._beats = None
        self._upward.close()
        await self.down.close()

    # --- views ---

    def _link(self, attributes: Attributes, told: Callable[[], None]) -> Link:
        link = Link(
            self.name,
            attributes,
            self.upstream,
            _Cache(self.name),
            context=self.down.context,
            curve=self._curve,
            release=self.release,
            say=self._say,
        )
        link.sync = _Tap(self, link.sync, told)
        return link

    async def _make(self, view: View) -> None:
        """The view's link; until it has rows, its proxies wait, but not for long."""
        ready = asyncio.Event()
        link = self._link(view.attributes, ready.set)
        assert isinstance(link.sync, _Tap)
        link.sync.view = view
        task = asyncio.create_task(self._keep_linked(link))
        self._links[view.name] = (link, task)
        try:
            await asyncio.wait_for(ready.wait(), FIRST)
        except TimeoutError:
            if view.feed is None:
                view.feed = Feed(view.attributes)

    async def _keep_linked(self, link: Link) -> None:
        """What fails once (out of descriptors, say) must not leave a view without a link."""
        while True:
            try:
                await link.run()
            except Exception:
                _log.exception(
                    "the link of view %s failed; trying again in %g s", link.sync.attributes.view, AGAIN
                )
            await asyncio.sleep(AGAIN)

    def _gone(self, view: View) -> None:
        self._told.pop(view.name, None)
        _, task = self._links.pop(view.name, (None, None))
        if task:
            task.cancel()

    async def _beat(self) -> None:
        """Heartbeats while somebody is there above, and whatever has to be looked at now and then."""
        pace = 1.0  # seconds between reports
        while True:
            await asyncio.sleep(self.down.heartbeat)
            for place, view in enumerate(list(self.down.views.values())):
                link, _ = self._links.get(view.name, (None, None))
                if link and link.sync.state not in (State.STALE, State.SYNCING):
                    self.down.beat(view)
                if place % BEATS == BEATS - 1:
                    await asyncio.sleep(0)
            self.down.forget(FORGET)
            # an open candidate makes reports come sooner at once, and proxies follow by and by
            pace = max(self.down.report_ms / 1000, 0.95 * pace, 1.0)
            self._upward.forget(3.5 * pace)

    def _say(self, say: Say) -> None:
        _log.log(logging.WARNING if say.error else logging.INFO, "%s", say.text)

    # --- what comes from above ---

    def heard(self, view: View, sync: Sync, message: Message, actions: Sequence[Action]) -> None:
        """``sync`` has taken the message and wants these actions: tell our proxies the same."""
        feed = view.feed
        if isinstance(message, Announce):
            self._upward.connect(sync)
        for action in actions:
            if isinstance(action, Apply):
                feed = view.feed = self._applied(feed or Feed(view.attributes), sync, action)
                self.down.beat(view)
            elif feed is None:
                continue
            elif isinstance(action, Prepare) and sync.candidate:
                assert isinstance(message, Update)
                frames = feed.propose_changes(
                    action.version,
                    action.changes,
                    sync.candidate.total,
                    share=message.share,
                    sent_us=action.sent_us,
                )
                self.down.publish(frames)
            elif isinstance(action, Settle) and feed.candidate:
                feed.settle()
            elif isinstance(action, Drop):
                feed.drop()
        if isinstance(message, Heartbeat):
            if feed is None and not message.version:
                feed = view.feed = Feed(view.attributes)
            if feed and (message.epoch, message.version, message.hash) == (
                (feed.epoch, feed.version, feed.hash) if feed.version else (message.epoch, 0, message.hash)
            ):
                self._passed(view, feed, message)

    def _applied(self, feed: Feed, sync: Sync, action: Apply) -> Feed:
        """The feed at what sync holds now, by one step where its proxies can take one."""
        changes = action.changes
        if feed.epoch != sync.epoch or not feed.version or sync.version <= feed.version:
            feed.reset(sync.epoch, sync.version, _copy(sync.rows))
            return feed
        if changes is None:
            changes = _between(feed.rows, sync.rows)
        self.down.publish(feed.step(sync.version, changes, sync.rows.total, sent_us=action.sent_us))
        return feed

    def _passed(self, view: View, feed: Feed, head: Heartbeat) -> None:
        feed.decided = head.decided
        if feed.candidate and feed.candidate.version == head.candidate:
            feed.stage(head.share)
        self.down.least_report_ms, self.down.least_spread_ms = head.report_ms, head.spread_ms
        offset = head.now_ms - time.time_ns() // 1_000_000
        self.down.now_ms = lambda: time.time_ns() // 1_000_000 + offset
        candidate = feed.candidate
        told = (feed.epoch, feed.version, feed.decided, candidate and (candidate.version, candidate.share))
        pace = (head.report_ms, head.spread_ms)
        if self._told.get(view.name) != (*told, *pace):
            self._told[view.name] = (*told, *pace)
            self.down.beat(view)


class _Tap(Sync):
    """The link's state machine, and what it decides is heard by the relay at once."""

    view: View | None = None

    def __init__(self, relay: Relay, like: Sync, told: Callable[[], None]) -> None:
        addresses = [peer.address for peer in like.peers]
        super().__init__(like.node, like.attributes, addresses, time.monotonic())
        self._relay = relay
        self._told = told

    def on_message(self, peer: int, message: Message, now: float) -> list[Action]:
        actions = super().on_message(peer, message, now)
        if self.view:
            self._relay.heard(self.view, self, message, actions)
            if self.view.feed:
                self._told()
        return actions


class _Cache:
    """An applier for which holding the rows is serving them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started_ms = time.time_ns() // 1_000_000

    def carry_out(self, actions: Sequence[ApplierAction], rows: Rows) -> list[tuple[type, Done]]:
        return [
            (type(action), Done(action.version, getattr(action, "hash", rows.hash))) for action in actions
        ]

    def report(self) -> dict[str, Any]:
        return {"via": self.name, "started_ms": self.started_ms}


class Upward:
    """What the proxies below say, gathered and passed on to all above."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.passed = 0  # messages, to each of those above
        self._answers: list[Answer] = []
        self._reports: dict[str, Report] = {}
        self._known: dict[str, tuple[float, Report, int]] = {}  # node -> when, its newest, bytes
        self._size = 0  # of all of them
        self._timer: asyncio.TimerHandle | None = None
        self._lanes: dict[int, tuple[int, Readable]] = {}  # place above -> port, socket

    def __len__(self) -> int:
        return 0  # who is above paces the reports of all

    def connect(self, sync: Sync) -> None:
        """To the answer sockets that were announced. Who announces itself may be new, and not know our
        proxies; each view's link hears it for itself."""
        for node, (_, report, _) in self._known.items():
            if report.attributes == sync.attributes:
                self._reports[node] = report
        for place, peer in enumerate(sync.peers):
            port = peer.announce.answer_port if peer.announce else 0
            known = self._lanes.get(place)
            if not port or (known and known[0] == port):
                continue
            if known:
                self._lanes.pop(place)[1].close()
            assert self.relay.down.context
            socket = open_socket(self.relay.down.context, zmq.DEALER, curve=self.relay._curve, queue=10_000)
            lane = Readable(asyncio.get_running_loop(), socket, self._on_frames)
            socket.connect(lane_address(peer.address, port))
            self._lanes[place] = (port, lane)
        self._soon()

    def forget(self, seconds: float) -> None:
        """The reports of proxies that have been silent for so long."""
        old = time.monotonic() - seconds
        for node in [node for node, (heard, _, _) in self._known.items() if heard < old]:
            self._size -= self._known.pop(node)[2]

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        for _, lane in self._lanes.values():
            lane.close()
        self._lanes = {}

    def on_report(self, report: Report, address: str = "") -> None:
        via = f"{self.relay.name}/{report.via}" if report.via else self.relay.name
        before = self._known.get(report.node)
        size, old = weight(report) + weight_of_breakers(report.breakers), before[2] if before else 0
        if self._size + size - old > max(MEMORY, self._size) or (not before and len(self._known) >= NEWEST):
            return
        report = dataclasses.replace(report, via=via[-1000:])
        self._known[report.node] = (time.monotonic(), report, size)
        self._size += size - old
        self._reports[report.node] = report
        self._soon()

    def on_answers(self, answers: Sequence[Answer], address: str = "") -> None:
        self._answers += answers
        if len(self._answers) >= TOGETHER:
            self._pass_on()
        else:
            self._soon()

    def refuse(self, address: str, name: str, reason: str) -> None:
        """Downstream has logged it; the status of those above does not show it."""

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER, self._pass_on)

    def _pass_on(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if not self._lanes:
            del self._answers[:-LATE]
            return  # those above have not announced themselves yet
        answers, self._answers = self._answers, []
        reports, self._reports = self._reports, {}
        # reports first: above, answers count for proxies that are known
        messages = [encode(report) for report in reports.values()]
        messages += [encode(Answers(answers=some)) for some in _parts(answers)]
        for _, lane in self._lanes.values():
            for frames in messages:
                lane.send(frames)
        self.passed += len(messages)

    def _on_frames(self, frames: list[bytes]) -> None:
        try:
            message = decode(frames, (Refused,))
        except WireError as e:
            _log.warning("upstream answers with what is no message: %s", e)
            return
        assert isinstance(message, Refused)
        if message.reason not in self.relay.refusals:
            self.relay.refusals = [*self.relay.refusals[-9:], message.reason]
            _log.warning("upstream refuses what our proxies say: %s", message.reason)


def _parts(answers: Sequence[Answer]) -> Iterator[list[Answer]]:
    """At most TOGETHER, and so few that the message is below MAX_REPORT however long their errors are."""
    part: list[Answer] = []
    size = 0
    for answer in answers:
        one = 100 + 4 * (len(answer.node) + len(answer.error))  # UTF-8 may take four bytes each
        if part and (len(part) == TOGETHER or size + one > MAX_REPORT):
            yield part
            part, size = [], 0
        part.append(answer)
        size += one
    if part:
        yield part


def _copy(rows: Rows) -> Rows:
    """Rows that change on their own; the bytes are shared."""
    out = Rows()
    out.tables = {name: dict(some) for name, some in rows.tables.items()}
    out.total = rows.total
    return out


def _between(old: Rows, new: Rows) -> Changes:
    """What turns one into the other."""
    changes = Changes()
    for name, rows in new.tables.items():
        before = old.tables[name]
        if puts := {key: row for key, row in rows.items() if before.get(key) != row}:
            changes.puts[name] = puts
        if gone := [key for key in before if key not in rows]:
            changes.deletes[name] = gone
    return changes
