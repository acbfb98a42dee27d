"""The subscriber's sockets: they carry messages to :class:`fastproxy.sync.Sync`, and its actions out.

For every publisher there is a SUB socket and, once it has announced its ports, a DEALER for the snapshot lane
and one for the answer lane. What is to be applied goes to the :class:`Applier`, batch after batch, in order;
while it works, messages go on being read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from fastproxy.rows import Rows
from fastproxy.sockets import Readable, check_address, lane_address, loopback, make_context, open_socket
from fastproxy.sync import Action, Apply, Done, Drop, Flip, Prepare, Say, Send, Settle, Sync, Tell
from fastproxy.wire import (
    MAX_BODY,
    PROTOCOL,
    Announce,
    Answer,
    Answers,
    Ask,
    Attributes,
    Heartbeat,
    Refused,
    Report,
    Snapshot,
    Update,
    WireError,
    clean,
    decode,
    encode,
    probe_topic,
    view_topic,
)

if TYPE_CHECKING:
    from fastproxy.keys import Curve

GONE = 15.0  # seconds without a word until a connection that stands is made anew
PROBE_AGAIN = 5.0  # seconds without a word until a publisher is asked anew who it is, or connected to anew
MAX_SPREAD = 30.0  # seconds that answers wait at most
MAX_ANSWERED = 100  # answers that wait; a report says what older ones would
WAITING = 32  # updates that wait to be read; more wait at the publisher, and then they are a gap
MAX_REFUSAL = 64 * 1024  # bytes: all that comes on the answer lane
QUEUE = 1000  # actions that wait for the applier; more are made one
LINES, LINES_A_SECOND = 20.0, 1.0  # of the log: at once, and from then on
ON_PROBE = (Announce,)
ON_PUBLISH = (Heartbeat, Update)
ON_SNAPSHOT = (Heartbeat, Update, Snapshot, Refused)
ON_ANSWER = (Refused,)
_WATCHED = (
    zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
)
_REFUSALS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "refused: this node's key is not on the allow list",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "refused: its key is another than the one in our key file, "
    "or it cannot ask its allow list",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "refused: one side uses CURVE keys and the other does not, "
    "or it is no publisher at all",
}

ApplierAction = Apply | Prepare | Flip | Settle | Drop
Results = list[tuple[type, Done]]
_APPLIED = (Apply, Prepare, Flip, Settle, Drop)


class Applier(Protocol):
    """Who serves the tables."""

    def carry_out(
        self, actions: Sequence[ApplierAction], rows: Rows
    ) -> Results | Coroutine[Any, Any, Results]:
        """Do these, in order; the same in fewer steps will do. How each went, beside the type of the action.
        What takes longer is awaited, and what comes meanwhile waits for it.

        ``rows`` are those of the last action that concerns them, and change as soon as this returns: what a
        coroutine needs of them is to be read before it is made. An exception means that all of them failed.
        """
        ...

    def report(self) -> dict[str, Any]:
        """Fields of :class:`fastproxy.wire.Report` that only it knows, and ``trouble``: what does not serve
        though the version does."""
        ...


class Link:
    """See the module. Raises ValueError for an address that cannot be, or that needs keys."""

    def __init__(
        self,
        node: str,
        attributes: Attributes,
        addresses: Sequence[str],
        applier: Applier,
        *,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        curve: Curve | None = None,
        rng: random.Random | None = None,
        release: str = "",
        say: Callable[[Say], None] | None = None,
    ) -> None:
        if not addresses:
            raise ValueError("no address of a publisher")
        for address in map(check_address, addresses):
            if curve is None and not loopback(address):
                raise ValueError(f"{address} is not on this machine: a key file is needed to connect there")
        try:
            decode(encode(Ask(node=node, attributes=attributes, id=0)))
        except (WireError, UnicodeEncodeError) as e:
            raise ValueError(f"this name or these labels cannot be told to a publisher: {e}") from None
        self.sync = Sync(node, attributes, addresses, time.monotonic(), rng)
        self.clock_offset_ms = 0  # the publisher's clock minus ours, from heartbeats
        self.release = release
        self._applier = applier
        self._curve = curve
        self._say = say or (lambda _: None)
        self._lines, self._lines_at = LINES, time.monotonic()
        self._random = rng or random.Random()
        self._own_context = context is None
        self._context = context
        self._ends: list[_End] = []
        self._waiting: list[ApplierAction] = []
        self._applying = False
        self._answering: asyncio.Handle | None = None
        self._awaited: asyncio.Future[tuple[list[ApplierAction], int, Coroutine[Any, Any, Results]]]
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # of the timer; uvloop's does not tell when it is about to ring
        self._loop: asyncio.AbstractEventLoop

    def restore(self, epoch: int, version: int, rows: Rows) -> None:
        """Begin with what was kept from before; to be called before :meth:`run`."""
        self._do(self.sync.restore(epoch, version, rows))

    async def run(self) -> None:
        """Until it is cancelled, or fails: then every socket is closed, and it may be run again."""
        self._loop = asyncio.get_running_loop()
        self._awaited = self._loop.create_future()
        self._applying = False
        self._context = self._context or make_context()
        try:
            self._ends = []
            for i, peer in enumerate(self.sync.peers):
                self._ends.append(_End(self, i, peer.address))
            self._tick()
            while True:
                batch, epoch, results = await self._awaited
                self._awaited = self._loop.create_future()
                try:
                    done = await results
                except Exception as e:
                    done = self._failed(batch, e)
                self._applied(epoch, done)
        finally:
            if self._awaited.done() and not self._awaited.cancelled():
                self._awaited.result()[2].close()  # it was never begun
            for handle in (self._timer, self._answering):
                if handle:
                    handle.cancel()
            for end in self._ends:
                end.close()
            if self._own_context:
                self._context.destroy(linger=0)
                self._context = None

    def _apply(self) -> None:
        """What waits, unless something is being applied: it comes behind it."""
        if self._waiting and not self._applying and not self._awaited.cancelled():
            batch, self._waiting = self._waiting, []
            # all rows anew, and they are those of today: nothing before and behind it matters
            whole = any(isinstance(action, Apply) and action.changes is None for action in batch)
            if len(batch) > QUEUE or (whole and len(batch) > 1):
                batch = [action for action in self.sync.anew() if isinstance(action, _APPLIED)]
            if not batch:
                return
            self._applying = True
            epoch = self.sync.epoch  # of all of them: only such an Apply brings another
            try:
                results = self._applier.carry_out(batch, self.sync.rows)
            except Exception as e:
                results = self._failed(batch, e)
            if isinstance(results, list):
                # answers wait until who else is due in this turn has its tables
                self._answering = self._loop.call_soon(self._applied, epoch, results)
            else:
                self._awaited.set_result((batch, epoch, results))

    def _failed(self, batch: Sequence[ApplierAction], e: Exception) -> Results:
        """Whatever it is, traffic goes on with what serves now."""
        why = f"{type(e).__name__}: {e}"
        self._tell_log(Say(f"version {batch[-1].version} could not be applied: {why}"))
        return [(type(a), Done(a.version, getattr(a, "hash", b""), error=why)) for a in batch]

    def _applied(self, epoch: int, results: Results) -> None:
        self._applying = False
        try:
            for kind, done in results:
                done.epoch = epoch
                self._do(self.sync.on_prepared(done) if kind is Prepare else self.sync.on_applied(done))
        finally:
            self._apply()

    # --- actions ---

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._ends[action.peer].send(action.message)
            elif isinstance(action, Tell):
                for end in self._ends if action.peer < 0 else [self._ends[action.peer]]:
                    end.report_soon()
            elif isinstance(action, Say):
                self._tell_log(action)
            else:
                if len(self._waiting) <= QUEUE:  # more are not needed to know that they are too many
                    self._waiting.append(action)

    def _heard(self, peer: int, frames: Sequence[bytes], allowed: Sequence[type[Any]]) -> None:
        now = self._loop.time()
        try:
            message = decode(frames, allowed)
        except WireError as e:
            self._do(self.sync.on_garbage(peer, str(e), now, answer=ON_SNAPSHOT is allowed))
            return
        end = self._ends[peer]
        if isinstance(message, Announce):
            if message.protocol == PROTOCOL:
                end.announced(message)
        elif isinstance(message, Heartbeat):
            if message.now_ms:
                self.clock_offset_ms = message.now_ms - time.time_ns() // 1_000_000
            end.report_every(message.report_ms)
            end.spread = min(message.spread_ms / 1000, MAX_SPREAD)
        self._do(self.sync.on_message(peer, message, now))
        self._apply()
        if not (isinstance(message, Update) and self.sync.calm):
            self._plan(now)

    def _plan(self, now: float) -> None:
        """See that there is a tick in time."""
        due = self.sync.next_tick(now)
        if self._timer is None or due < self._due - 0.001:
            if self._timer:
                self._timer.cancel()
            self._due = due
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._do(self.sync.tick(now))
        for end, peer in zip(self._ends, self.sync.peers, strict=True):
            end.tick(now, peer.heard)
        self._apply()
        self._plan(now)

    def _tell_log(self, say: Say) -> None:
        """Not more than so many lines, whatever publishers do."""
        now = time.monotonic()
        self._lines = min(LINES, self._lines + LINES_A_SECOND * (now - self._lines_at))
        self._lines_at = now
        if self._lines >= 1:
            self._lines -= 1
            self._say(say)

    def _report(self) -> list[bytes]:
        sync = self.sync
        try:
            known = self._applier.report()
        except Exception as e:  # a report without it is better than none
            known = {}
            self._tell_log(Say(f"the report lacks what workers know: {type(e).__name__}: {e}"))
        trouble = known.pop("trouble", "")
        return encode(
            Report(
                node=sync.node,
                attributes=sync.attributes,
                state=sync.state.value,
                epoch=sync.epoch,
                version=sync.version,
                hash=sync.hash,
                serving=sync.serving if sync.serving_epoch == sync.epoch else 0,
                error=clean(sync.trouble() or trouble),
                release=self.release,
                **known,
            )
        )


class _End:
    """Our sockets to one publisher."""

    def __init__(self, link: Link, peer: int, address: str) -> None:
        assert link._context is not None
        self.link = link
        self.peer = peer
        self.address = address
        self.probed = link._loop.time()
        self.ports = (0, 0)
        self.asks: Readable | None = None
        self.answers: Readable | None = None
        self.report_ms = 0
        self.spread = 0.0  # seconds over which the answers of all proxies are spread
        self.answered: list[Answer] = []  # not sent yet
        self.answerer: asyncio.TimerHandle | None = None
        self.reporter: asyncio.TimerHandle | asyncio.Handle | None = None
        self.report_at = 0.0  # of the loop's clock
        self.well = False  # the connection stands
        self.stood = float("-inf")  # since then
        self.refused = False  # the publisher's choice, or ours: not tried again for a while
        self.fresh = True  # it is another than the one that the lanes were made for
        self.nonce = b""
        self.monitor: Readable | None = None
        subscriber = self.open(zmq.SUB, WAITING, MAX_BODY)
        self.publish = Readable(link._loop, subscriber, self.on_publish)
        try:
            monitor = subscriber.get_monitor_socket(_WATCHED)
            self.monitor = Readable(link._loop, monitor, self.on_event)
            subscriber.setsockopt(zmq.SUBSCRIBE, view_topic(link.sync.attributes.view))
            subscriber.connect(address)
        except BaseException:  # out of descriptors, say
            self.close()
            raise

    def open(self, kind: int, queue: int, most: int) -> zmq.Socket[bytes]:
        assert self.link._context is not None
        return open_socket(self.link._context, kind, curve=self.link._curve, max_message=most, queue=queue)

    def close(self) -> None:
        for timer in (self.reporter, self.answerer):
            if timer:
                timer.cancel()
        with contextlib.suppress(zmq.ZMQError):
            self.publish.socket.disable_monitor()
        for readable in (self.monitor, self.publish, self.asks, self.answers):
            if readable:
                readable.close()

    # --- in ---

    def on_publish(self, frames: list[bytes]) -> None:
        probe = self.nonce and frames[0] == probe_topic(self.nonce)  # one announcement for each
        self.link._heard(self.peer, frames[1:], ON_PROBE if probe else ON_PUBLISH)

    def on_snapshot(self, frames: list[bytes]) -> None:
        self.link._heard(self.peer, frames, ON_SNAPSHOT)

    def on_answer(self, frames: list[bytes]) -> None:
        self.link._heard(self.peer, frames, ON_ANSWER)

    def on_event(self, frames: list[bytes]) -> None:
        event = zmq.Event(parse_monitor_message(frames)["event"])
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.well = self.fresh = True
            self.stood = self.link._loop.time()
            self.probe()
            return
        if self.refused:
            return  # the rest of a story that was told
        why = _REFUSALS.get(event, "")
        if why:
            if self.link._curve is None:
                why = _REFUSALS[zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL]
            self.refused = True
            self.probed = self.link._loop.time()
            self.disconnect()  # ZeroMQ would try ten times a second
        elif event == zmq.EVENT_DISCONNECTED:
            why = "has closed the connection" if self.well else ""
            self.well = False
        elif event == zmq.EVENT_CLOSED:
            why = "cannot be reached"
        if why:
            self.link._do(self.link.sync.on_unreachable(self.peer, why))

    def announced(self, message: Announce) -> None:
        """Its ports may be others than before: it was started anew."""
        ports = (message.snapshot_port, message.answer_port)
        if self.fresh or ports != self.ports:
            for lane in (self.asks, self.answers):
                if lane:
                    lane.close()
            self.asks = self.answers = None
            self.asks = self.dealer(ports[0], 8, MAX_BODY, self.on_snapshot)
            self.answers = self.dealer(ports[1], 256, MAX_REFUSAL, self.on_answer)
            self.fresh, self.ports = False, ports
        self.forget_probe()
        self.report_every(message.report_ms)

    def dealer(self, port: int, queue: int, most: int, on_frames: Callable[[list[bytes]], None]) -> Readable:
        lane = Readable(self.link._loop, self.open(zmq.DEALER, queue, most), on_frames)
        lane.socket.connect(lane_address(self.address, port))
        lane.look_again()
        return lane

    # --- out ---

    def probe(self) -> None:
        """Ask who it is: it announces itself to whom it sees subscribe here.

        Each connection has a probe of its own, made when it stands: ZeroMQ repeats the subscriptions of one
        that was lost in the order of their bytes, a new one comes behind them.
        """
        self.forget_probe()
        self.nonce = os.urandom(16)
        self.publish.socket.setsockopt(zmq.SUBSCRIBE, probe_topic(self.nonce))
        self.probed = self.link._loop.time()
        self.publish.look_again()

    def forget_probe(self) -> None:
        if self.nonce:
            self.publish.socket.setsockopt(zmq.UNSUBSCRIBE, probe_topic(self.nonce))
            self.publish.look_again()
        self.nonce = b""

    def send(self, message: Ask | Answers) -> None:
        """What finds its queue full is dropped: asks are repeated, and reports say what answers said."""
        if isinstance(message, Ask):
            if self.asks:
                self.asks.send(encode(message))
            return
        self.answered += message.answers
        del self.answered[:-MAX_ANSWERED]
        if not self.spread:
            self.answer()
        elif self.answerer is None:  # else all would answer in one moment, while the publisher still sends
            wait = self.spread * (1 + self.link._random.random()) / 2
            self.answerer = self.link._loop.call_later(wait, self.answer)

    def answer(self) -> None:
        self.answerer = None
        answers, self.answered = self.answered, []
        if self.answers and answers:
            self.answers.send(encode(Answers(answers=answers)))

    def report_every(self, milliseconds: int) -> None:
        if milliseconds and milliseconds != self.report_ms:
            self.report_ms = milliseconds
            # never later than it was to come: in a fleet that changes all the time, so does this
            left = self.report_at - self.link._loop.time() if self.reporter else float("inf")
            self.report_in(min(left, self.interval(anew=True)))

    def report_soon(self) -> None:
        """Once for all that happens in this turn."""
        if self.reporter:
            self.reporter.cancel()
        self.report_at = self.link._loop.time()
        self.reporter = self.link._loop.call_soon(self.report, True)

    def report_in(self, seconds: float) -> None:
        if self.reporter:
            self.reporter.cancel()
        self.report_at = self.link._loop.time() + seconds
        self.reporter = self.link._loop.call_at(self.report_at, self.report)

    def report(self, anew: bool = False) -> None:
        self.reporter = None
        if self.answers:
            self.answers.send(self.link._report())
            candidate = self.link.sync.candidate
            if candidate and candidate.answer:  # that may have been lost, and a rollout waits for it
                self.answers.send(encode(Answers(answers=[candidate.answer])))
            self.report_in(self.interval(anew))

    def interval(self, anew: bool = False) -> float:
        """Seconds to the next report. ``anew``: what made us begin made all others begin in the same moment,
        so the first one comes somewhere in the interval."""
        drawn = self.link._random.random()
        return max(self.report_ms, 100) / 1000 * (0.1 + 0.9 * drawn if anew else 0.9 + 0.2 * drawn)

    def tick(self, now: float, heard: float) -> None:
        """Ask again who it is; where a connection seems to stand and brings nothing, make another: the
        machine at its end may be gone without a word."""
        laneless = self.well and not self.answers  # it has spoken, and we were out of descriptors
        if now - (self.probed if laneless else max(heard, self.probed)) > PROBE_AGAIN:
            if self.well and now - max(heard, self.stood) < GONE:
                self.probe()
            else:
                self.connect_again()

    def connect_again(self) -> None:
        """ZeroMQ tries again by itself where nobody answers, but never where it was refused or did not
        understand: yet a key may be allowed later, and another program may listen there by then."""
        self.probed = self.link._loop.time()
        self.disconnect()
        self.refused = False
        self.publish.socket.connect(self.address)
        self.publish.look_again()

    def disconnect(self) -> None:
        with contextlib.suppress(zmq.ZMQError):  # when ZeroMQ gave up, there is nothing to disconnect
            self.publish.socket.disconnect(self.address)
