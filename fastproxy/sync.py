"""The subscriber's half of the control protocol, without sockets, clocks or tables: ``(state, message) →
actions``.

It holds the rows of the newest version it trusts (the base), perhaps those of a candidate that is being
rolled
out, and what it knows of every publisher. It never compiles: it says what to serve, and is told how that went.

A version is taken only from the version it was made from, with the hash checked before and after; a lost
message shows as a gap, by the next update or by a heartbeat, and is asked for. A lower epoch, or a lower
version of the same epoch, is never taken: docs/control-protocol.md has the rules and their reasons.

Who drives it passes ``now`` (monotonic seconds) to everything and carries out the actions in their order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from fastproxy.rows import Changes, Rows, RowsError, digest
from fastproxy.wire import (
    PREPARED,
    PROTOCOL,
    REJECTED,
    SERVING,
    Announce,
    Answer,
    Answers,
    Ask,
    Attributes,
    Heartbeat,
    Message,
    Refused,
    Snapshot,
    Update,
    lot,
)

PATIENCE = 5.0  # seconds from the start until nobody's answer is called silence
BEATS = 3.5  # heartbeats that may be missing before a publisher counts as silent
ASK_TIMEOUT = 10.0  # seconds; a snapshot of many rows over a slow link takes some
RETRY_MIN, RETRY_MAX = 0.5, 15.0  # seconds between two asks that failed, with jitter


class State(Enum):
    """What a proxy can say of its configuration. It serves the last good one in all of them."""

    SYNCING = "SYNCING"  # since the start no publisher has confirmed what we hold
    LIVE = "LIVE"  # we hold and serve the head
    GAP = "GAP"  # something is missing, it has been asked for
    STALE = "STALE"  # no publisher speaks, or all that speak are older than what we hold
    REJECTED = "REJECTED"  # we hold the head and cannot serve it; an older version goes on


class Event(Enum):
    CURRENT = "a publisher's head is what we hold"
    BEHIND = "a publisher's head is newer"
    SILENT = "no publisher that is up to date speaks"
    UNFIT = "the version we hold cannot be served"
    TAKEN = "the version we hold serves"


NEXT = {
    (State.SYNCING, Event.CURRENT): State.LIVE,
    (State.SYNCING, Event.SILENT): State.STALE,
    (State.LIVE, Event.BEHIND): State.GAP,
    (State.LIVE, Event.SILENT): State.STALE,
    (State.LIVE, Event.UNFIT): State.REJECTED,
    (State.GAP, Event.CURRENT): State.LIVE,
    (State.GAP, Event.SILENT): State.STALE,
    (State.STALE, Event.CURRENT): State.LIVE,
    (State.STALE, Event.BEHIND): State.GAP,
    (State.REJECTED, Event.BEHIND): State.GAP,
    (State.REJECTED, Event.SILENT): State.STALE,
    (State.REJECTED, Event.TAKEN): State.LIVE,
}


# --- actions ---


@dataclass(frozen=True, slots=True)
class Apply:
    """Serve this version from now on. ``changes``: from the base before; None: all of :attr:`Sync.rows`
    anew."""

    version: int
    hash: bytes
    changes: Changes | None
    sent_us: int = 0


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make the candidate ready, base and ``changes``, and hold it without serving it."""

    version: int
    hash: bytes
    changes: Changes
    sent_us: int = 0


@dataclass(frozen=True, slots=True)
class Flip:
    """Serve the candidate that is held; the base stays what it is."""

    version: int


@dataclass(frozen=True, slots=True)
class Settle:
    """The candidate is the base from now on; serve it, if it does not serve already."""

    version: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget the candidate; where it serves, serve the base again."""

    version: int


@dataclass(frozen=True, slots=True)
class Send:
    """To one publisher: an Ask on the snapshot lane, Answers on the answer lane."""

    peer: int
    message: Ask | Answers


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a report; ``peer`` -1: to all publishers."""

    peer: int = -1


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the log. ``error``: something is wrong, else it is all right again."""

    text: str
    error: bool = True


Action = Apply | Prepare | Flip | Settle | Drop | Send | Tell | Say


# --- what is known ---


@dataclass(slots=True)
class Peer:
    """One publisher. ``trouble``: why it is of no use now."""

    address: str
    announce: Announce | None = None
    heard: float = float("-inf")
    epoch: int = 0
    version: int = 0
    hash: bytes = b""
    trouble: str = ""

    def __repr__(self) -> str:
        return f"<Peer {self.address}: version {self.epoch}.{self.version} {self.trouble or 'well'}>"

    @property
    def beat(self) -> float:
        return (self.announce.heartbeat_ms if self.announce else 1000) / 1000


@dataclass(slots=True)
class Candidate:
    """A version above the base that is being rolled out. ``flipped``: it serves here."""

    version: int
    hash: bytes
    changes: Changes
    total: int
    prepared: bool = False
    flipped: bool = False
    rejected: bool = False


@dataclass(slots=True)
class Question:
    """The one ask that is open. ``sent``: 0 while its jitter runs."""

    peer: int
    id: int
    due: float
    whole: bool = False  # not a range: we do not trust what we hold
    sent: float = 0.0
    deadline: float = float("inf")


@dataclass(slots=True)
class Done:
    """How an action went. Times in microseconds, as in :class:`fastproxy.wire.Answer`."""

    version: int
    hash: bytes
    error: str = ""
    us: int = 0
    compile_us: int = 0
    swap_us: int = 0


class Sync:
    """See the module. ``node``: the proxy's name. ``addresses``: of the publishers, in order."""

    def __init__(
        self,
        node: str,
        attributes: Attributes,
        addresses: Sequence[str],
        now: float,
        rng: random.Random | None = None,
    ) -> None:
        self.node = node
        self.attributes = attributes
        self.peers = [Peer(address) for address in addresses]
        self.state = State.SYNCING
        self.epoch = 0
        self.version = 0
        self.hash = b""
        self.rows = Rows()
        self.candidate: Candidate | None = None
        self.serving = 0  # the version that serves, 0: none
        self.error = (
            ""  # why the newest version does not serve, or what a publisher sent last that was no message
        )
        self.gaps = 0
        self.snapshots = 0
        self.updates = 0
        self.garbage = 0
        self._started = now
        self._random = rng or random.Random()
        self._question: Question | None = None
        self._questions = 0
        self._failures = 0
        self._unfit = 0  # the version that could not be served
        self._sought = 0  # the candidate that was asked for

    def __repr__(self) -> str:
        held = f"{self.epoch}.{self.version} {self.hash.hex()[:8]}" if self.version else "nothing"
        return f"<Sync {self.node} {self.state.value}: holds {held}, serves {self.serving}>"

    # --- what was kept from before ---

    def restore(self, epoch: int, version: int, rows: Rows) -> list[Action]:
        """Begin with the last good version from disk; a publisher has yet to confirm it."""
        self.epoch, self.version, self.rows, self.hash = epoch, version, rows, rows.hash
        return [Apply(version, self.hash, None)]

    # --- what publishers say ---

    def on_message(self, peer: int, message: Message, now: float) -> list[Action]:
        """Any message of any lane. What does not belong to us is counted and dropped."""
        speaker = self.peers[peer]
        speaker.heard = now
        if isinstance(message, Heartbeat):
            return self._on_heartbeat(peer, message, now)
        if isinstance(message, Update):
            return self._on_update(peer, message, now)
        if isinstance(message, Snapshot):
            return self._on_snapshot(peer, message, now)
        if isinstance(message, Announce):
            return self._on_announce(peer, message, now)
        if isinstance(message, Refused):
            return self._on_refused(peer, message, now)
        return self.on_garbage(peer, f"a message of type {message.t} is not for a subscriber", now)

    def on_garbage(self, peer: int, what: str, now: float) -> list[Action]:
        """Bytes that are no message, or a message that cannot be true. An open ask to this peer has
        failed."""
        self.garbage += 1
        self.error = f"{self.peers[peer].address}: {what}"
        actions = self._trouble(peer, what)
        if self._question and self._question.peer == peer and self._question.sent:
            self._ask_failed(now)
        return actions

    def on_unreachable(self, peer: int, why: str) -> list[Action]:
        """The link knows why it has no connection: refused by the key, by the address."""
        return self._trouble(peer, why)

    def _on_announce(self, peer: int, message: Announce, now: float) -> list[Action]:
        speaker = self.peers[peer]
        if message.protocol != PROTOCOL:
            return self._trouble(peer, f"speaks protocol {message.protocol}, this build {PROTOCOL}")
        speaker.announce = message
        actions: list[Action] = [Tell(peer)]
        if self.state is not State.LIVE and not (self._question and self._question.sent):
            self._question = None
            self._ask(peer, now)
        return actions + self.tick(now)

    def _on_heartbeat(self, peer: int, head: Heartbeat, now: float) -> list[Action]:
        speaker = self.peers[peer]
        speaker.epoch, speaker.version, speaker.hash = head.epoch, head.version, head.hash
        if self._question and head.id == self._question.id and self._question.peer == peer:
            self._question = None
            self._failures = 0
        theirs, ours = (head.epoch, head.version), (self.epoch, self.version)
        if theirs < ours or not head.version:
            return self._older(peer)
        candidate = self.candidate
        if theirs > ours:
            theirs_is_it = candidate and (head.version, head.hash) == (candidate.version, candidate.hash)
            if theirs_is_it and head.epoch == self.epoch:
                return self._settle() + self._current(peer)
            return self._behind(peer, now)
        if head.hash != self.hash:
            return self._diverged(peer, now)
        actions: list[Action] = []
        if candidate:
            if head.decided >= candidate.version:
                actions += self._drop()
            elif (head.candidate, head.candidate_hash) == (candidate.version, candidate.hash):
                actions += self._step(head.share)
        elif head.candidate > max(self.version, self._sought):
            self._sought = head.candidate
            self._ask(peer, now)
        return self._current(peer) + actions

    def _on_update(self, peer: int, update: Update, now: float) -> list[Action]:
        if self._question and update.id == self._question.id and self._question.peer == peer:
            self._question = None
            self._failures = 0
        theirs = (update.epoch, update.version)
        if theirs <= (self.epoch, self.version):
            return self._older(peer) if update.epoch < self.epoch else []
        fits = (update.epoch, update.prev_version, update.prev_hash) == (self.epoch, self.version, self.hash)
        if update.candidate:
            return self._on_candidate(peer, update, now) if fits else []
        if not fits or not self.version:
            return self._behind(peer, now)
        candidate = self.candidate
        if candidate and (update.version, update.hash) == (candidate.version, candidate.hash):
            return self._settle() + self._current(peer)
        try:
            total = self.rows.total_after(update.changes)
        except RowsError as e:
            return self._untrue(peer, str(e), now)
        if digest(total) != update.hash:
            return self._untrue(peer, "its rows do not give the hash it names", now)
        actions = self._drop(serve=False)
        self.rows.apply(update.changes, total)
        self.version, self.hash = update.version, update.hash
        self.updates += 1
        if self._question and not self._question.whole:
            self._question = None
        actions.append(Apply(update.version, update.hash, update.changes, update.sent_us))
        speaker = self.peers[peer]
        speaker.epoch, speaker.version, speaker.hash = update.epoch, update.version, update.hash
        return actions + self._current(peer)

    def _on_candidate(self, peer: int, update: Update, now: float) -> list[Action]:
        if self.candidate and self.candidate.version >= update.version:
            return []
        try:
            total = self.rows.total_after(update.changes)
        except RowsError as e:
            return self._untrue(peer, str(e), now)
        if digest(total) != update.hash:
            return self._untrue(peer, "its rows do not give the hash it names", now)
        actions = self._drop()
        self.candidate = Candidate(update.version, update.hash, update.changes, total)
        self._sought = max(self._sought, update.version)
        actions.append(Prepare(update.version, update.hash, update.changes, update.sent_us))
        return actions + self._step(update.share)

    def _on_snapshot(self, peer: int, snapshot: Snapshot, now: float) -> list[Action]:
        question = self._question
        if not question or question.peer != peer or question.id != snapshot.id:
            return []  # late: somebody else was asked meanwhile, or the range has come
        whole, self._question = question.whole, None
        theirs, ours = (snapshot.epoch, snapshot.version), (self.epoch, self.version)
        if theirs < ours or not snapshot.version:
            return self._older(peer)
        if theirs == ours and snapshot.hash == self.hash:
            return self._current(peer)
        if theirs == ours and not whole:
            return self._diverged(peer, now)
        rows = Rows.of(snapshot.rows)
        if rows.hash != snapshot.hash:
            return self._untrue(peer, "the rows of its snapshot do not give the hash it names", now)
        actions = self._drop(serve=False)
        self.epoch, self.version, self.hash, self.rows = *theirs, snapshot.hash, rows
        self.snapshots += 1
        self._failures = 0
        self._sought = 0
        actions.append(Apply(self.version, self.hash, None))
        speaker = self.peers[peer]
        speaker.epoch, speaker.version, speaker.hash = *theirs, snapshot.hash
        return actions + self._current(peer)

    def _on_refused(self, peer: int, message: Refused, now: float) -> list[Action]:
        if self._question and self._question.peer == peer and self._question.sent:
            self._ask_failed(now)
        return self._trouble(peer, f"refuses: {message.reason}")

    # --- how it went ---

    def on_applied(self, done: Done) -> list[Action]:
        """After Apply, Flip, Settle or Drop: ``done.version`` serves now, or does not."""
        if done.error:
            self.error = done.error
            if done.version == self.version:
                self._unfit = done.version
                self._event(Event.UNFIT)
            return [*self._answer(REJECTED, done), Tell()]
        before = self.state
        self.serving = done.version
        if done.version == self.version:
            self._unfit = 0
            self.error = ""
            self._event(Event.TAKEN)
        return [*self._answer(SERVING, done), *([Tell()] if self.state is not before else [])]

    def on_prepared(self, done: Done) -> list[Action]:
        """After Prepare. A candidate that cannot be prepared here is not served here."""
        candidate = self.candidate
        if not candidate or candidate.version != done.version:
            return []
        if done.error:
            candidate.rejected = True
            return self._answer(REJECTED, done)
        candidate.prepared = True
        actions = self._answer(PREPARED, done)
        if candidate.flipped:
            actions.append(Flip(candidate.version))
        return actions

    # --- time ---

    def tick(self, now: float) -> list[Action]:
        """To be called often enough: a few times in a heartbeat."""
        actions: list[Action] = []
        question = self._question
        if question and not question.sent and now >= question.due:
            question.sent, question.deadline = now, now + ASK_TIMEOUT
            whole = question.whole
            ask = Ask(
                node=self.node,
                attributes=self.attributes,
                id=question.id,
                epoch=0 if whole else self.epoch,
                version=0 if whole else self.version,
                hash=b"" if whole else self.hash,
            )
            actions.append(Send(question.peer, ask))
        elif question and now >= question.deadline:
            actions += self._trouble(question.peer, f"has not answered an ask for {ASK_TIMEOUT:g} s")
            self._ask_failed(now)
        patient = self.state is State.SYNCING and now - self._started <= PATIENCE
        if not patient and not any(self._useful(peer, now) for peer in self.peers):
            actions += self._silent(now)
        return actions

    def next_tick(self, now: float) -> float:
        """When :meth:`tick` has something to do, at the latest."""
        times = [now + min(peer.beat for peer in self.peers)] if self.peers else [now + 1.0]
        if self._question:
            times.append(self._question.deadline if self._question.sent else self._question.due)
        return min(times)

    # --- inside ---

    def _event(self, event: Event) -> bool:
        """One step of the table; a pair that is not in it changes nothing."""
        after = NEXT.get((self.state, event), self.state)
        changed, self.state = after is not self.state, after
        return changed

    def _useful(self, peer: Peer, now: float) -> bool:
        return now - peer.heard <= BEATS * peer.beat and (peer.epoch, peer.version) >= (
            self.epoch,
            self.version,
        )

    def _current(self, peer: int) -> list[Action]:
        actions = self._well(peer)
        before = self.state
        self._event(Event.CURRENT)
        if self._unfit and self._unfit == self.version:
            self._event(Event.UNFIT)
        if self.state is not before:
            actions.append(Say(f"version {self.version} is the head", error=False))
            actions.append(Tell())
        return actions

    def _behind(self, peer: int, now: float, whole: bool = False) -> list[Action]:
        actions: list[Action] = []
        if self._event(Event.BEHIND):
            self.gaps += 1
            actions.append(Tell())
        if not self._question:
            self._ask(peer, now, whole)
        return actions + self.tick(now)

    def _silent(self, now: float) -> list[Action]:
        if not self._event(Event.SILENT):
            return []
        why = "; ".join(f"{p.address} {p.trouble or 'is silent'}" for p in self.peers)
        return [Say(f"no publisher is up to date: {why}"), Tell()]

    def _older(self, peer: int) -> list[Action]:
        speaker = self.peers[peer]
        if not speaker.version:
            return self._trouble(peer, "has no configuration yet")
        return self._trouble(
            peer,
            f"is older: epoch {speaker.epoch} version {speaker.version}, we hold epoch {self.epoch} "
            f"version {self.version}; refused",
        )

    def _diverged(self, peer: int, now: float) -> list[Action]:
        """Equal version, other rows: one of the two is wrong. We are, unless another publisher is on our
        side."""
        for other in self.peers:
            same = (other.epoch, other.version, other.hash) == (self.epoch, self.version, self.hash)
            if same and self._useful(other, now):
                what = f"disagrees with {other.address} on version {self.version}; refused"
                return self._trouble(peer, what)
        actions = self._trouble(
            peer, f"has other rows than we for version {self.version}; asked for all of them"
        )
        return actions + self._behind(peer, now, whole=True)

    def _untrue(self, peer: int, what: str, now: float) -> list[Action]:
        """Nothing was taken. All of it is asked for again, as we cannot tell who is wrong."""
        actions = self.on_garbage(peer, what, now)
        return actions + self._behind(peer, now, whole=True)

    def _ask(self, peer: int, now: float, whole: bool = False) -> None:
        """Open a question, its jitter from the publisher, that a thousand proxies do not ask at once."""
        if self._question:
            return
        self._questions += 1
        announce = self.peers[peer].announce
        wait = self._random.random() * (announce.jitter_ms if announce else 0) / 1000
        if self._failures:
            wait += min(RETRY_MAX, RETRY_MIN * 2.0**self._failures) * (0.5 + self._random.random() / 2)
        self._question = Question(peer, self._questions, now + wait, whole or not self.version)

    def _ask_failed(self, now: float) -> None:
        """Somebody else next, if there is somebody."""
        question, self._question = self._question, None
        self._failures = min(self._failures + 1, 16)
        if question:
            order = [(question.peer + 1 + i) % len(self.peers) for i in range(len(self.peers))]
            ready = [i for i in order if self.peers[i].announce]
            self._ask(ready[0] if ready else question.peer, now, question.whole)

    def _step(self, share: int) -> list[Action]:
        candidate = self.candidate
        if not candidate or candidate.flipped or candidate.rejected:
            return []
        if lot(self.node, self.epoch, candidate.version) >= share:
            return []
        candidate.flipped = True
        return [Flip(candidate.version)] if candidate.prepared else []

    def _settle(self) -> list[Action]:
        candidate, self.candidate = self.candidate, None
        assert candidate
        self.rows.apply(candidate.changes, candidate.total)
        self.version, self.hash = candidate.version, candidate.hash
        self.updates += 1
        if self._question and not self._question.whole:
            self._question = None
        return [Settle(candidate.version, candidate.hash)]

    def _drop(self, serve: bool = True) -> list[Action]:
        """``serve``: the base serves again at once; not when a newer base comes in the same breath."""
        candidate, self.candidate = self.candidate, None
        if not candidate:
            return []
        return [Drop(candidate.version)] if serve or not candidate.flipped else []

    def _trouble(self, peer: int, what: str) -> list[Action]:
        speaker = self.peers[peer]
        if speaker.trouble == what:
            return []
        speaker.trouble = what
        return [Say(f"{speaker.address} {what}")]

    def _well(self, peer: int) -> list[Action]:
        speaker = self.peers[peer]
        if not speaker.trouble:
            return []
        speaker.trouble = ""
        return [Say(f"{speaker.address} is all right again", error=False)]

    def _answer(self, result: str, done: Done) -> list[Action]:
        answer = Answer(
            self.node,
            self.epoch,
            done.version,
            done.hash,
            result,
            done.us,
            done.compile_us,
            done.swap_us,
            done.error[:2000],
        )
        message = Answers(answers=[answer])
        return [Send(i, message) for i, peer in enumerate(self.peers) if peer.announce]
