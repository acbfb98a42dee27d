"""The subscriber's half of the control protocol, without sockets, clocks or tables: ``(state, message) →
actions``.

It holds the rows of the newest version it trusts (the base), perhaps those of a candidate that is being
rolled out, and what it knows of every publisher. It never compiles: it says what to serve, and is told how
that went.

A version is taken only from the version it was made from, with the hash checked before and after; a lost
message shows as a gap, by the next update or by a heartbeat, and is asked for. A lower epoch, or a lower
version of the same epoch, is never taken: docs/control-protocol.md has the rules and their reasons.

What to ask is never remembered, it follows from what is known: who is ahead of us, who has not answered since
it announced itself, who names a candidate that we lack. So nothing that is lost can be forgotten.

Who drives it passes ``now`` (monotonic seconds) to everything and carries out the actions in their order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from fastproxy.actions import (
    NEXT,
    Action,
    Apply,
    Done,
    Drop,
    Event,
    Flip,
    Prepare,
    Say,
    Send,
    Settle,
    State,
    Tell,
)
from fastproxy.peers import BEATS, Candidate, Peer, Question
from fastproxy.rows import Rows, RowsError, digest
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
    clean,
    lot,
)

__all__ = [
    "NEXT",
    "Action",
    "Apply",
    "Done",
    "Drop",
    "Event",
    "Flip",
    "Prepare",
    "Say",
    "Send",
    "Settle",
    "State",
    "Sync",
    "Tell",
]

PATIENCE = 5.0  # seconds from the start until nobody's answer is called silence
LEASE = 7.0  # heartbeats in which nobody named the candidate, though somebody is up to date: it is void
JITTER_MAX = 60.0  # seconds
ASK_TIMEOUT = 10.0  # seconds; a snapshot of many rows over a slow link takes some
SEEK_AGAIN = 5.0  # seconds between two asks for a candidate
UNFIT_MIN, UNFIT_MAX = 5.0, 300.0  # seconds between two tries to serve what could not be served

_AHEAD, _UNMET, _LACKS = 3, 2, 1  # why somebody is asked, the best reason first


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
        self.decided = 0  # of this epoch: no candidate up to it is open
        self.candidate: Candidate | None = None
        self.serving = 0  # the version that serves, 0: none
        self.serving_epoch = 0
        self.error = ""  # why the newest version does not serve
        self.gaps = 0
        self.snapshots = 0
        self.updates = 0
        self.garbage = 0
        self._started = now
        self._random = rng or random.Random()
        self._question: Question | None = None
        self._questions = 0
        self._whole = False  # what we hold led to rows that cannot be: ask for all of them
        self._sought = (0, 0.0)  # the candidate that was asked for, and when it may be again
        self._unfit = 0  # the version that could not be served
        self._unfits = 0  # how often
        self._again: float | None = None  # when it is tried again

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
        if isinstance(message, Announce):
            return self._on_announce(peer, message, now) + self.tick(now)
        if speaker.announce is None:
            return []  # nobody is listened to before it has said which protocol it speaks
        speaker.heard = now
        if isinstance(message, Heartbeat):
            actions = self._on_heartbeat(peer, message, now)
        elif isinstance(message, Update):
            actions = self._on_update(peer, message, now)
            if self.calm:
                return actions
        elif isinstance(message, Snapshot):
            actions = self._on_snapshot(peer, message, now)
        elif isinstance(message, Refused):
            actions = self._on_refused(peer, message, now)
        else:
            actions = self.on_garbage(peer, f"sent a message of type {message.t}", now)
        return actions + self.tick(now)

    def on_garbage(self, peer: int, what: str, now: float, answer: bool = False) -> list[Action]:
        """Bytes that are no message, or a message that cannot be true. ``answer``: it came on the snapshot
        lane, so an open ask has failed."""
        self.garbage += 1
        question = self._question
        if answer and question and question.peer == peer and question.sent is not None:
            self._question = None
            self.peers[peer].fail(now, self._random)
        return self._trouble(peer, what)

    def on_unreachable(self, peer: int, why: str) -> list[Action]:
        """The link knows why it has no connection: refused by the key, by the address."""
        return self._trouble(peer, why)

    def _on_announce(self, peer: int, message: Announce, now: float) -> list[Action]:
        speaker = self.peers[peer]
        if self._question and self._question.peer == peer:
            self._question = None  # it may be another process than the one that was asked
        if message.protocol != PROTOCOL:
            speaker.announce = None
            return self._trouble(peer, f"speaks protocol {message.protocol}, this build {PROTOCOL}")
        speaker.announce, speaker.heard = message, now
        speaker.met, speaker.failures, speaker.wait = False, 0, now
        return [Tell(peer)]

    def _on_heartbeat(self, peer: int, head: Heartbeat, now: float) -> list[Action]:
        question = self._answered(peer, head.id)
        speaker = self._note(peer, head.epoch, head.version, head.hash)
        theirs, ours = (head.epoch, head.version), (self.epoch, self.version)
        if theirs < ours or not head.version:
            return self._older(peer, now)
        candidate = self.candidate
        if theirs > ours:
            named = candidate and (head.version, head.hash) == (candidate.version, candidate.hash)
            if named and head.epoch == self.epoch:
                return self._settle() + self._current(peer)
            if question:
                self.peers[peer].fail(now, self._random)  # that was no help
            return self._behind()
        if head.hash != self.hash:
            return self._diverged(peer)
        actions = self._current(peer)
        self.decided = max(self.decided, head.decided)
        if not head.id:  # an answer's candidate comes right behind it
            speaker.candidate = head.candidate
        if candidate:
            void = self.decided >= candidate.version
            if (head.candidate, head.candidate_hash) == (candidate.version, candidate.hash):
                candidate.confirmed = now
            else:  # its number was given to another, or nobody remembers it
                void |= head.candidate >= candidate.version
                void |= now - candidate.confirmed > LEASE * speaker.beat
            if void:
                actions += self._drop()
            elif candidate.confirmed == now:
                actions += self._step(head.share)
        return actions

    def _on_update(self, peer: int, update: Update, now: float) -> list[Action]:
        question = self._answered(peer, update.id)
        theirs, ours = (update.epoch, update.version), (self.epoch, self.version)
        if theirs <= ours:
            if update.candidate or theirs < ours:
                return []  # late, or from one that is behind: its heartbeats tell
            self._note(peer, update.epoch, update.version, update.hash)
            return self._current(peer) if update.hash == self.hash else self._diverged(peer)
        fits = (update.epoch, update.prev_version, update.prev_hash) == (self.epoch, self.version, self.hash)
        if update.candidate:
            return self._on_candidate(peer, update, now) if fits and self.version else []
        self._note(peer, update.epoch, update.version, update.hash)
        if not fits or not self.version:
            if question:
                self.peers[peer].fail(now, self._random)
            return self._behind()
        candidate = self.candidate
        if candidate and (update.version, update.hash) == (candidate.version, candidate.hash):
            return self._settle() + self._current(peer)
        total = self._total(update)
        if total is None:
            return self._untrue(peer, f"the rows of its version {update.version} do not give its hash", now)
        actions = self._drop(serve=False)
        self.rows.apply(update.changes, total)
        self._moved(update.version, update.hash)
        self.updates += 1
        actions.append(Apply(update.version, update.hash, update.changes, update.sent_us))
        return actions + self._current(peer)

    def _on_candidate(self, peer: int, update: Update, now: float) -> list[Action]:
        held = self.candidate
        if update.version <= self.decided or (held and held.version > update.version):
            return []
        if held and held.version == update.version:
            if held.hash != update.hash:
                return []  # heartbeats say which of the two is open
            held.confirmed = now
            return self._step(update.share)
        total = self._total(update)
        if total is None:
            self._sought = (update.version, now + SEEK_AGAIN)
            what = f"the rows of its candidate {update.version} do not give its hash"
            return self.on_garbage(peer, what, now)
        actions = self._drop()
        self.candidate = Candidate(update.version, update.hash, update.changes, total, now)
        actions.append(Prepare(update.version, update.hash, update.changes, update.sent_us))
        return actions + self._step(update.share)

    def _on_snapshot(self, peer: int, snapshot: Snapshot, now: float) -> list[Action]:
        question = self._answered(peer, snapshot.id)
        if not question:
            return []  # late: somebody else was asked meanwhile
        self._note(peer, snapshot.epoch, snapshot.version, snapshot.hash)
        theirs, ours = (snapshot.epoch, snapshot.version), (self.epoch, self.version)
        if theirs < ours or not snapshot.version:
            return self._older(peer, now)
        if theirs == ours:
            return self._current(peer) if snapshot.hash == self.hash else self._diverged(peer)
        rows = Rows.of(snapshot.rows)
        if rows.hash != snapshot.hash:
            return self._untrue(peer, "the rows of its snapshot do not give its hash", now)
        actions = self._drop(serve=False)
        if snapshot.epoch != self.epoch:
            self.decided = 0
        self.epoch, self.rows = snapshot.epoch, rows
        self._moved(snapshot.version, snapshot.hash)
        self.snapshots += 1
        actions.append(Apply(self.version, self.hash, None))
        return actions + self._current(peer)

    def _on_refused(self, peer: int, message: Refused, now: float) -> list[Action]:
        if self._answered(peer, message.id):
            self.peers[peer].met = False
            self.peers[peer].fail(now, self._random)
        return self._trouble(peer, f"refuses: {clean(message.reason, 500)}")

    @property
    def calm(self) -> bool:
        """Nothing is open that a tick could bring further: an update that fits was all there is to do."""
        return (
            self.state is State.LIVE and self._question is None and self.candidate is None and not self._unfit
        )

    # --- how it went ---

    def on_applied(self, done: Done) -> list[Action]:
        """After Apply, Flip, Settle or Drop: ``done.version`` serves now, or does not."""
        epoch = done.epoch or self.epoch
        base = (epoch, done.version) == (self.epoch, self.version) and done.hash in (b"", self.hash)
        candidate = self._candidate_of(done)
        if done.error:
            if base:
                self.error = clean(done.error)
                self._unfit, self._unfits, self._again = done.version, self._unfits + 1, None
                self._event(Event.UNFIT)
            elif candidate:
                candidate.rejected = True
            return [*self._answer(REJECTED, done, epoch), Tell()]
        before = self.state
        self.serving, self.serving_epoch = done.version, epoch
        if base:
            self._unfit = self._unfits = 0
            self.error = ""
            self._event(Event.TAKEN)
        return [*self._answer(SERVING, done, epoch), *([Tell()] if self.state is not before else [])]

    def on_prepared(self, done: Done) -> list[Action]:
        """After Prepare. A candidate that cannot be prepared here is not served here."""
        candidate = self._candidate_of(done)
        if not candidate:
            return []
        if done.error:
            candidate.rejected = True
            return self._answer(REJECTED, done, self.epoch)
        candidate.prepared = True
        actions = self._answer(PREPARED, done, self.epoch)
        if candidate.flipped:
            actions.append(Flip(candidate.version))
        return actions

    def anew(self) -> list[Action]:
        """What brings somebody to where we are who knows nothing, in place of all actions before."""
        if not self.version:
            return []
        actions: list[Action] = [Apply(self.version, self.hash, None)]
        candidate = self.candidate
        if candidate:
            candidate.prepared = candidate.rejected = False
            actions.append(Prepare(candidate.version, candidate.hash, candidate.changes))
        return actions

    def trouble(self) -> str:
        """One line for a report: why the newest version does not serve, else what ails the publishers."""
        return self.error or "; ".join(f"{p.address} {p.trouble}" for p in self.peers if p.trouble)

    # --- time ---

    def tick(self, now: float) -> list[Action]:
        """To be called often enough: see :meth:`next_tick`."""
        actions = self._expire(now)
        self._seek(now)
        question = self._question
        if question and question.sent is None and now >= question.due:
            question.sent = now
            held = (0, 0, b"") if question.whole else (self.epoch, self.version, self.hash)
            ask = Ask(
                node=self.node,
                attributes=self.attributes,
                id=question.id,
                epoch=held[0],
                version=held[1],
                hash=held[2],
            )
            actions.append(Send(question.peer, ask))
        patient = self.state is State.SYNCING and now - self._started <= PATIENCE
        if not patient and not any(self._useful(peer, now) for peer in self.peers):
            actions += self._silent(now)
        return actions

    def next_tick(self, now: float) -> float:
        """When :meth:`tick` has something to do, at the latest."""
        due = min((now + min(1.0, peer.beat) for peer in self.peers), default=now + 1.0)
        if self._question and self._question.sent is None:
            due = min(due, self._question.due)
        return max(due, now)

    def _expire(self, now: float) -> list[Action]:
        """What has waited for too long."""
        actions: list[Action] = []
        question = self._question
        if question and question.sent is not None:
            asked = self.peers[question.peer]
            mute = now - max(asked.heard, question.sent) > BEATS * asked.beat
            others = (
                any(self._reason(i, now) == _AHEAD for i in self._others(question.peer)) if mute else False
            )
            if others or now >= question.sent + ASK_TIMEOUT:
                self._question = None
                self.peers[question.peer].fail(now, self._random)
                waited = now - question.sent
                actions += self._trouble(question.peer, f"has not answered an ask for {waited:.0f} s")
        candidate = self.candidate
        serves = candidate and candidate.flipped and not candidate.rejected
        if self._unfit and self._unfit == self.version and not serves:
            if self._again is None:
                self._again = now + min(UNFIT_MAX, UNFIT_MIN * 2.0 ** min(self._unfits - 1, 16))
            elif now >= self._again:
                self._again = float("inf")  # until we hear how it went
                actions += self.anew()
        return actions

    # --- asking ---

    def _seek(self, now: float) -> None:
        """Open a question, if there is something to ask and somebody to ask it."""
        question = self._question
        if question and (question.sent is not None or self._reason(question.peer, now)):
            return
        self._question = None
        reasons = [self._reason(i, now) for i in range(len(self.peers))]
        best = max(reasons, default=0)
        if not best:
            return
        peer = reasons.index(best)
        speaker = self.peers[peer]
        if best == _LACKS:
            self._sought = (speaker.candidate, now + SEEK_AGAIN)
        self._questions += 1
        wait = 0.0
        if speaker.announce and (not speaker.met or speaker.epoch != self.epoch):
            # a thousand others may be about to ask the same
            wait = self._random.random() * min(speaker.announce.jitter_ms / 1000, JITTER_MAX)
        self._question = Question(peer, self._questions, now + wait, self._whole or not self.version)

    def _reason(self, peer: int, now: float) -> int:
        """Why this one should be asked now; 0: it should not."""
        speaker = self.peers[peer]
        if now < speaker.wait or not speaker.speaks(now):
            return 0
        if speaker.version and (speaker.epoch, speaker.version) > (self.epoch, self.version):
            return _AHEAD
        if not speaker.met:
            return _UNMET
        lacks = not self.candidate and speaker.candidate > max(self.version, self.decided)
        waits = self._sought[0] == speaker.candidate and now < self._sought[1]
        return _LACKS if lacks and not waits and speaker.epoch == self.epoch else 0

    def _others(self, peer: int) -> list[int]:
        return [i for i in range(len(self.peers)) if i != peer]

    def _answered(self, peer: int, id: int) -> Question | None:
        """The question that this answers, which is closed."""
        question = self._question
        if not question or question.sent is None or (question.peer, question.id) != (peer, id):
            return None
        self._question = None
        self.peers[peer].met = True
        return question

    # --- inside ---

    def _event(self, event: Event) -> bool:
        """One step of the table; a pair that is not in it changes nothing."""
        after = NEXT.get((self.state, event), self.state)
        changed, self.state = after is not self.state, after
        return changed

    def _note(self, peer: int, epoch: int, version: int, hash: bytes) -> Peer:
        speaker = self.peers[peer]
        speaker.epoch, speaker.version, speaker.hash = epoch, version, hash
        return speaker

    def _useful(self, peer: Peer, now: float) -> bool:
        """It speaks and is not behind us, or is so for a moment only, as a replica may be."""
        if not peer.version or not peer.speaks(now):
            return False
        if (peer.epoch, peer.version) == (self.epoch, self.version):
            return peer.hash == self.hash
        if (peer.epoch, peer.version) > (self.epoch, self.version):
            return True
        return peer.epoch == self.epoch and (peer.older is None or now - peer.older <= BEATS * peer.beat)

    def _current(self, peer: int) -> list[Action]:
        speaker = self.peers[peer]
        speaker.older, speaker.failures = None, 0
        self._whole = False
        actions: list[Action] = []
        if speaker.trouble:
            speaker.trouble = ""
            actions.append(Say(f"{speaker.address} is all right again", error=False))
        before = self.state
        self._event(Event.CURRENT)
        if self._unfit and self._unfit == self.version:
            self._event(Event.UNFIT)
        if self.state is not before:
            actions += [Say(f"version {self.version} is the head", error=False), Tell()]
        return actions

    def _behind(self) -> list[Action]:
        if not self._event(Event.BEHIND):
            return []
        self.gaps += 1
        return [Tell()]

    def _silent(self, now: float) -> list[Action]:
        if not self._event(Event.SILENT):
            return []
        words = [p.trouble or ("is silent" if not p.speaks(now) else "is older") for p in self.peers]
        why = "; ".join(f"{p.address} {word}" for p, word in zip(self.peers, words, strict=True))
        return [Say(f"no publisher is up to date: {why}"), Tell()]

    def _older(self, peer: int, now: float) -> list[Action]:
        speaker = self.peers[peer]
        speaker.older = now if speaker.older is None else speaker.older
        speaker.candidate = 0
        if not speaker.version:
            return self._trouble(peer, "has no configuration yet")
        if speaker.epoch == self.epoch and now - speaker.older <= BEATS * speaker.beat:
            return []
        what = f"is older: epoch {speaker.epoch} version {speaker.version}"
        return self._trouble(peer, f"{what}, we hold epoch {self.epoch} version {self.version}; refused")

    def _diverged(self, peer: int) -> list[Action]:
        """Equal version, other rows. Ours gave their hash when they came, so this is another history under
        the same epoch: a store that was restored from a backup, say. Taking it would hide that."""
        what = f"has other rows than we for version {self.version}; refused"
        return self._trouble(peer, f"{what} (a restored store needs --new-epoch)")

    def _total(self, update: Update) -> int | None:
        """The sum of our rows after this update; None: it does not lead where it says."""
        try:
            total = self.rows.total_after(update.changes)
        except RowsError:
            return None
        return total if digest(total) == update.hash else None

    def _untrue(self, peer: int, what: str, now: float) -> list[Action]:
        """Nothing was taken. All rows are asked for, as we cannot tell who is wrong."""
        self._whole = True
        if self._question and self._question.sent is None:
            self._question = None
        self.peers[peer].fail(now, self._random)
        return self.on_garbage(peer, what, now) + self._behind()

    def _moved(self, version: int, hash: bytes) -> None:
        self.version, self.hash = version, hash
        self.decided = max(self.decided, version)
        self._unfits = 0

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
        self._moved(candidate.version, candidate.hash)
        self.updates += 1
        if candidate.rejected:  # the fleet has decided otherwise: it is a version like any other
            return [Apply(candidate.version, candidate.hash, candidate.changes)]
        return [Settle(candidate.version, candidate.hash)]

    def _drop(self, serve: bool = True) -> list[Action]:
        """serve: the base serves again at once; not when a newer base comes in the same breath."""
        candidate, self.candidate = self.candidate, None
        return [Drop(candidate.version)] if candidate and serve else []

    def _candidate_of(self, done: Done) -> Candidate | None:
        """The candidate, if this is about it."""
        candidate, epoch = self.candidate, done.epoch or self.epoch
        if not candidate or (epoch, done.version) != (self.epoch, candidate.version):
            return None
        return candidate if done.hash in (b"", candidate.hash) else None

    def _trouble(self, peer: int, what: str) -> list[Action]:
        speaker = self.peers[peer]
        if speaker.trouble == what:
            return []
        speaker.trouble = what
        return [Say(f"{speaker.address} {what}")]

    def _answer(self, result: str, done: Done, epoch: int) -> list[Action]:
        candidate = self._candidate_of(done)
        known = candidate.hash if candidate else self.hash if done.version == self.version else b""
        hash = done.hash or known
        if not hash:
            return []
        times = (done.us, done.compile_us, done.swap_us)
        answer = Answer(self.node, epoch, done.version, hash, result, *times, clean(done.error or done.note))
        if candidate:
            candidate.answer = answer
        message = Answers(answers=[answer])
        return [Send(i, message) for i, peer in enumerate(self.peers) if peer.announce]
