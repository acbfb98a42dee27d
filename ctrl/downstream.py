"""What the publisher and a relay have in common: three bound sockets, and a view for every kind of proxy that
ever asked. No peer can make it raise, wait or grow without bound: what is malformed is counted and dropped.

Who subscribes to what is no topic of the protocol is cut off. A subscription to a probe topic is answered
with an Announce; an Ask from the view's feed, and what takes long to pack is packed in a thread, once for all
who wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import zmq

from ctrl.feed import Feed
from ctrl.lanes import (
    MAX_ANSWERS,
    MAX_ASK,
    MAX_SUBSCRIPTION,
    SUBSCRIPTIONS,
    SUBSCRIPTIONS_A_SECOND,
    Lane,
    Pace,
    Peer,
    at_port,
    bind,
    check_bind,
    open_lane,
)
from fastproxy.keys import RELAY
from fastproxy.sockets import make_context
from fastproxy.wire import (
    PROTOCOL,
    VIEW_BYTES,
    Announce,
    Answer,
    Answers,
    Ask,
    Attributes,
    Refused,
    Report,
    WireError,
    decode,
    encode,
)

if TYPE_CHECKING:
    from ctrl.zap import Authority
    from fastproxy.keys import Curve

VIEWS = 4096
ROWS = 5_000_000  # of all views together
WAITING = 200_000  # asks of one view
UPDATES = 256  # messages that wait for a slow subscriber; then it has a gap
SNAPSHOTS = 16  # that wait for one asker
PACKERS = 2  # snapshots that are packed at the same time
NEW_VIEWS, NEW_VIEWS_A_SECOND = 8, 0.1  # of one connection: a proxy is of one
AT_A_TURN = 50  # answers between two looks at the loop
JITTER_EACH, JITTER_MOST = 1, 2000  # ms
JUST_JOINED = 5.0  # seconds
REPORTS_A_SECOND = 2000  # of all proxies: with more of them each reports less often
SKIPPED = 4  # heartbeats in a row, at most, while updates are sent
CROWD = 100  # proxies; more of them answer a version one after the other, not all at once
ANSWERS_A_SECOND = 5_000
LINES_A_MINUTE = 30

_log = logging.getLogger("fastproxyctl")


class Ears(Protocol):
    """Who hears what proxies did: the fleet, or a relay that hands it on."""

    def on_report(self, report: Report, address: str = "") -> None: ...

    def on_answers(self, answers: Sequence[Answer], address: str = "") -> None: ...

    def refuse(self, address: str, name: str, reason: str) -> None: ...

    def __len__(self) -> int:
        """Proxies that report."""
        ...


class View:
    """One kind of proxy. ``lock`` is held by who moves the feed; ``asked``, and ``told`` by an update:
    monotonic seconds."""

    __slots__ = ("attributes", "asked", "feed", "lock", "name", "skipped", "task", "told", "waiting")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        self.name = attributes.view
        self.feed: Feed | None = None
        self.lock = asyncio.Lock()
        self.asked = time.monotonic()
        self.told = 0.0
        self.skipped = 0  # heartbeats, since the last
        self.waiting: dict[bytes, Ask] = {}
        self.task: asyncio.Task[None] | None = None


class Downstream:
    """See the module. ``make`` brings a new view its feed. Raises ValueError for an address outside this
    machine without keys."""

    def __init__(
        self,
        ears: Ears,
        make: Callable[[View], Awaitable[None]],
        *,
        bind: str,
        snapshot_port: int | None,
        answer_port: int | None,
        heartbeat: float,
        report: float,
        name: str,
        curve: Curve | None,
        authority: Authority | None,
        context: zmq.Context[zmq.Socket[bytes]] | None,
        most_views: int = VIEWS,
    ) -> None:
        if (curve is None) != (authority is None):
            raise ValueError("keys and an allow list belong together")
        self._port = check_bind(bind, curve is not None)
        self._bind = bind
        self._ports = [snapshot_port, answer_port]
        self._ears = ears
        self._make = make
        self.heartbeat = heartbeat
        self.report = report
        self.open_report: float | None = None  # seconds; shorter reports for a while
        self.least_report_ms = self.least_spread_ms = 0  # that those above a relay want
        self.on_gone: Callable[[View], None] | None = None  # a view was forgotten
        self.name = name or f"{os.uname().nodename}/{os.getpid()}"
        self.now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
        self.views: dict[str, View] = {}
        self.address = self.snapshot_address = self.answer_address = ""
        self.garbage = 0  # messages that were none
        self.asks = 0
        self._curve = curve
        self._authority = authority
        self._most_views = most_views
        self._own_context = context is None
        self.context = context
        self._lanes: list[Lane] = []
        self._pace = Pace(SUBSCRIPTIONS, SUBSCRIPTIONS_A_SECOND)
        self._new_views = Pace(NEW_VIEWS, NEW_VIEWS_A_SECOND)
        self._joined: deque[float] = deque(maxlen=JITTER_MOST // JITTER_EACH)
        self._packing = asyncio.Semaphore(PACKERS)
        self._lines = float(LINES_A_MINUTE)
        self._lines_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<Downstream {self.address or self._bind}: {len(self.views)} views>"

    # --- life ---

    def open(self) -> None:
        """Bind. Raises OSError; then nothing is bound."""
        loop = asyncio.get_running_loop()
        self.context = self.context or make_context()
        if self._authority:
            self._authority.on_refused = self._authority.on_refused or self._ears.refuse
            self._authority.start(self.context)
        kinds = (
            (zmq.XPUB, MAX_SUBSCRIPTION, UPDATES, 2, self._on_subscription),
            (zmq.ROUTER, MAX_ASK, SNAPSHOTS, 16, self._on_ask),
            (zmq.ROUTER, MAX_ANSWERS, 1000, 4, self._on_told),
        )
        addresses: list[str] = []
        try:
            for kind, most, queue, heard, on_message in kinds:
                socket = open_lane(self.context, kind, self._curve, most=most, queue=queue, heard=heard)
                if kind == zmq.XPUB:
                    # not XPUB_MANUAL: there a peer's message that is no subscription makes libzmq 4.3.5
                    # mistake who sent the next one
                    socket.setsockopt(zmq.XPUB_VERBOSE, 1)
                addresses.append(bind(socket, self._place(addresses)))
                self._lanes.append(Lane(loop, socket, on_message))
                if self._authority:
                    self._authority.protect(socket)
        except OSError:
            self._unbind()
            raise
        self.address, self.snapshot_address, self.answer_address = addresses

    def _place(self, bound: list[str]) -> str:
        """Where the next socket goes."""
        if not bound:
            return at_port(self._bind, self._port)
        port = self._ports[len(bound) - 1]
        if port is None:
            port = self._port + len(bound) if self._port else 0
        return at_port(self._bind, port)

    async def close(self) -> None:
        """May be called twice."""
        tasks = [view.task for view in self.views.values() if view.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.views.clear()
        self._unbind()

    def _unbind(self) -> None:
        for lane in self._lanes:
            if self._authority:
                self._authority.release(lane.socket)
            lane.close()
        self._lanes = []
        if self._authority:
            self._authority.close()
        if self._own_context and self.context:
            self.context.term()
            self.context = None

    # --- out ---

    @property
    def base_report(self) -> float:
        """Seconds between reports of a proxy, as many as there are now."""
        return max(self.report, len(self._ears) / REPORTS_A_SECOND)

    @property
    def report_ms(self) -> int:
        """What heartbeats say."""
        seconds = self.base_report
        if self.open_report is not None:
            seconds = min(seconds, max(self.open_report, len(self._ears) / REPORTS_A_SECOND))
        return max(int(1000 * seconds), self.least_report_ms)

    @property
    def spread_ms(self) -> int:
        """Over which proxies spread their answers to a version: none until there are many."""
        ours = int(1000 * len(self._ears) / ANSWERS_A_SECOND) if len(self._ears) > CROWD else 0
        return max(ours, self.least_spread_ms)

    def publish(self, frames: Sequence[bytes]) -> None:
        """To everybody who subscribed to the topic, the first frame."""
        if self._lanes:
            self._lanes[0].send(frames)

    def beat(self, view: View) -> None:
        """A heartbeat to one view."""
        if view.feed:
            head = view.feed.heartbeat(
                now_ms=self.now_ms(), report_ms=self.report_ms, spread_ms=self.spread_ms
            )
            self.publish([view.feed.topic, *head])

    async def beat_all(self) -> None:
        """Heartbeats; where an update has just told the head, only now and then: their fields may change."""
        now = time.monotonic()
        for place, view in enumerate(list(self.views.values())):
            if now - view.told < self.heartbeat and view.skipped < SKIPPED:
                view.skipped += 1
                continue
            view.skipped = 0
            self.beat(view)
            if place % AT_A_TURN == AT_A_TURN - 1:
                await asyncio.sleep(0)

    def forget(self, seconds: float) -> None:
        """Drop the views that nobody has asked or reported about for so long."""
        old = time.monotonic() - seconds
        gone = [view for view in self.views.values() if view.asked < old and not view.task]
        for view in gone:
            del self.views[view.name]
            if self.on_gone:
                self.on_gone(view)

    # --- in ---

    def _on_subscription(self, peer: Peer, frames: list[bytes]) -> None:
        verb, topic = frames[0][:1], frames[0][1:]
        # a subscription costs memory whether it is one of ours or not: what is wrong ends the connection
        if len(frames) != 1 or verb not in (b"\0", b"\1"):
            self._cut(peer, "sends to the publish socket")
        elif verb == b"\0":
            return
        elif not _is_topic(topic):
            self._cut(peer, f"subscribes to {topic[:40]!r}, which is no topic")
        elif not self._pace.take(peer.descriptor):
            self._cut(peer, "subscribes to one topic after the other")
        elif topic.startswith(b"p/"):
            self.publish([topic, *encode(self._announce())])

    def _cut(self, peer: Peer, why: str) -> None:
        self._on_garbage(peer, why)
        peer.cut(int(self.address.rpartition(":")[2]))

    def _announce(self) -> Announce:
        now = time.monotonic()
        self._joined.append(now)
        while self._joined[0] < now - JUST_JOINED:
            self._joined.popleft()
        return Announce(
            server=self.name,
            snapshot_port=int(self.snapshot_address.rpartition(":")[2]),
            answer_port=int(self.answer_address.rpartition(":")[2]),
            heartbeat_ms=int(self.heartbeat * 1000),
            report_ms=self.report_ms,
            jitter_ms=JITTER_EACH * (len(self._joined) - 1),
        )

    def _on_ask(self, peer: Peer, frames: list[bytes]) -> None:
        identity = frames[0]
        try:
            ask = decode(frames[1:], (Ask,))
        except WireError as e:
            self._on_garbage(peer, str(e))
            return
        assert isinstance(ask, Ask)
        self.asks += 1
        view: View | None = None
        why = self._wrong_name(peer, ask.node)
        if ask.protocol != PROTOCOL:
            why = f"it speaks protocol {ask.protocol}, this control plane {PROTOCOL}: update the older one"
        if not why:
            new = ask.attributes.view not in self.views
            if new and not self._new_views.take(peer.descriptor):
                why = (
                    "it asks with other labels again and again; each set of labels costs a view: wait a while"
                )
            elif (view := self.view(ask.attributes)) is None:
                why = f"there are {len(self.views)} views already, or they have too many rows"
        if view is None:
            self._refuse(1, peer, identity, ask.node, why, ask.id)
            return
        if view.task is None and view.feed and view.feed.work(ask) is None:
            self._answer(view.feed, identity, ask)
            return
        if len(view.waiting) < WAITING:
            view.waiting[identity] = ask
        self._start(view)

    def _on_told(self, peer: Peer, frames: list[bytes]) -> None:
        identity = frames[0]
        try:
            told = decode(frames[1:], (Answers, Report))
        except WireError as e:
            self._on_garbage(peer, str(e))
            return
        if isinstance(told, Report):
            why = self._wrong_name(peer, told.node, relayed=bool(told.via))
            name = told.node
        else:
            assert isinstance(told, Answers)
            names = {answer.node for answer in told.answers}
            why, name = "", ""
            for name in names:
                why = self._wrong_name(peer, name)
                if why:
                    break
        if why:
            self._refuse(2, peer, identity, name, why, 0)
        elif isinstance(told, Report):
            if told.attributes.view in self.views:
                self.view(told.attributes)  # it is still wanted
            self._ears.on_report(told, peer.address)
        else:
            self._ears.on_answers(told.answers, peer.address)

    # --- views ---

    def view(self, attributes: Attributes) -> View | None:
        """The view of these proxies, made when it is new. None: there is no room."""
        name = attributes.view
        view = self.views.get(name)
        if view is None:
            if len(self.views) >= self._most_views:
                self.forget(60)
            rows = sum(len(view.feed.rows) for view in self.views.values() if view.feed)
            if len(self.views) >= self._most_views or rows >= ROWS:
                return None
            view = self.views[name] = View(attributes)
            self._start(view)
        view.asked = time.monotonic()
        return view

    def _start(self, view: View) -> None:
        if view.task is None:
            view.task = asyncio.create_task(self._serve(view))

    async def _serve(self, view: View) -> None:
        """Make the feed if there is none, pack what is asked for, answer all who wait."""
        try:
            if view.feed is None:
                await self._make(view)
            feed = view.feed
            assert feed
            done = 0
            while view.waiting:
                identity, ask = next(iter(view.waiting.items()))
                work = feed.work(ask)
                if work:
                    async with self._packing:
                        await asyncio.to_thread(work)
                # when the head has moved meanwhile, it is packed here: a head that never rests starves nobody
                if view.waiting.get(identity) is ask:  # else it has asked anew meanwhile, or gave up
                    del view.waiting[identity]
                    self._answer(feed, identity, ask)
                done += 1
                if done % AT_A_TURN == 0:
                    await asyncio.sleep(0)
        except Exception as e:  # one view that cannot be made is no reason to stop
            _log.exception("view %s", view.name)
            for identity, ask in view.waiting.items():
                self._send(1, identity, encode(Refused(reason=f"view {view.name}: {e}"[:2000], id=ask.id)))
            view.waiting.clear()
            if view.feed is None:
                self.views.pop(view.name, None)
                if self.on_gone:
                    self.on_gone(view)
        finally:
            view.task = None

    def _answer(self, feed: Feed, identity: bytes, ask: Ask) -> None:
        messages = feed.answer(ask, now_ms=self.now_ms(), report_ms=self.report_ms)
        for frames in messages:
            self._send(1, identity, frames)

    # --- who may, and what is wrong ---

    def _send(self, lane: int, identity: bytes, frames: Sequence[bytes]) -> None:
        if self._lanes:
            self._lanes[lane].send([identity, *frames])

    def _wrong_name(self, peer: Peer, node: str, relayed: bool = False) -> str:
        """Why the key behind this message does not own the node's name; "" when it does."""
        if self._authority is None:
            return ""
        known = self._authority.name_of(peer.key)
        if known is None:
            return "its key was revoked"
        name, role = known
        if role == RELAY:
            return ""
        if relayed:
            return f"the key of {name} is no relay's: it speaks for itself only"
        return "" if name == node else f"the key of {name} does not own the name {node[:100]!r}"

    def _refuse(self, lane: int, peer: Peer, identity: bytes, name: str, why: str, id: int) -> None:
        if self._authority:
            self._authority.refuse(peer.address, name, why)
        else:
            self._ears.refuse(peer.address, name, why)
            self._line(f"refused {name!r} at {peer.address}: {why}")
        self._send(lane, identity, encode(Refused(reason=why, id=id)))

    def _on_garbage(self, peer: Peer, why: str) -> None:
        self.garbage += 1
        self._line(f"{peer.address or 'somebody'} sent what is no message: {why}")

    def _line(self, text: str) -> None:
        now = time.monotonic()
        self._lines = min(LINES_A_MINUTE, self._lines + (now - self._lines_at) * LINES_A_MINUTE / 60)
        self._lines_at = now
        if self._lines >= 1:
            self._lines -= 1
            _log.warning("%s", text)


def _is_topic(topic: bytes) -> bool:
    if topic.startswith(b"p/"):
        return len(topic) == 18
    digits = topic[2:]
    return (
        topic.startswith(b"v/")
        and len(digits) == 2 * VIEW_BYTES
        and all(digit in b"0123456789abcdef" for digit in digits)
    )
