"""The control plane itself: what the store holds, what is published, and the one way to change it.

One writer at a time in this process (``_lock``); of several processes the store lets one win, the others look
again and try anew. Compiling and comparing is done in one worker thread, so that heartbeats go on meanwhile.

    apply, delete, rollback ─► ctrl.trial (in the thread) ─► store.commit | store.propose ─► publisher
    the store's watch       ─► look ─► publisher                         (what other replicas wrote)

When the store cannot be reached, everything that reads goes on from memory, and writing fails with its
reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ctrl import orders
from ctrl.driver import Driver
from ctrl.fleet import Fleet
from ctrl.model import (
    Candidate,
    Change,
    Compacted,
    Conflict,
    Contents,
    Draft,
    Entry,
    Head,
    Identity,
    StoreError,
    verbs,
)
from ctrl.publisher import Publisher
from ctrl.rollout import Plan
from ctrl.trial import Known, Trial, attempt, know, texts
from ctrl.views import Views
from fastproxy.resources.problem import Problem
from fastproxy.tables import Tables
from fastproxy.wire import WHOLE, Attributes

if TYPE_CHECKING:
    from ctrl.store import Store

P = ParamSpec("P")
T = TypeVar("T")

MAX_DOCUMENTS = 100_000  # of one apply
MAX_STORED = 200_000  # of one version
ATTEMPTS = 8  # of a write that others were quicker than
LOOK_EVERY = 5.0  # seconds; the watch tells sooner
COMPACT_EVERY = 60.0
PAUSE_MIN, PAUSE_MAX = 0.2, 10.0  # seconds until a lost store is tried again


class Unfit(ValueError):
    """Nothing was applied: these documents, or this request, cannot be."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


class Busy(Conflict):
    """A version is being rolled out; nothing else is written until it is settled or aborted."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a change is to be made. strict: all of it or nothing. plan: by stages; None: by all at once."""

    who: str = "unknown"
    message: str = ""
    dry_run: bool = False
    strict: bool = False
    plan: Plan | None = None


@dataclass(slots=True)
class Outcome:
    """What became of a change. version: of the head when nothing changed, of the candidate when it is rolled
    out. diff: (identity, text before, text after), of a dry run."""

    epoch: int
    version: int
    hash: str
    verbs: tuple[tuple[str, str, str, str], ...] = ()
    diff: list[tuple[Identity, str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    dry_run: bool = False
    rollout: bool = False


@dataclass(slots=True)
class Counts:
    """Since the start, for metrics."""

    applied: int = 0
    conflicts: int = 0
    store_errors: int = 0
    publishes: int = 0
    publish_seconds: float = 0.0
    last_publish_seconds: float = 0.0
    rollouts: dict[str, int] = field(default_factory=lambda: {"committed": 0, "aborted": 0})


class Bell:
    """Rings for all that wait: something may have changed. ``count`` is how often it rang."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def ring(self) -> None:
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seen: int, timeout: float) -> int:
        """Until it has rung after ``seen``, at most ``timeout`` seconds; the count then."""
        if self.count == seen:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._event.wait(), timeout)
        return self.count


class Plane:
    """See the module. It is the publisher's Source. ``lapse``: seconds after which the owner of a candidate
    who does not renew it counts as dead. ``publishing``: passed on to :class:`ctrl.publisher.Publisher`."""

    def __init__(
        self, store: Store, *, name: str = "", keep: int = 1000, lapse: float = 10.0, **publishing: Any
    ) -> None:
        self.store = store
        self.name = name or socket.gethostname()
        self.owner = f"{self.name} {secrets.token_hex(4)}"
        self.keep = keep
        self.lapse = lapse
        self.views = Views()
        self.fleet = Fleet()
        self.publisher = Publisher(self, self.fleet, name=self.name, **publishing)
        self.bell = Bell()
        self.counts = Counts()
        self.trouble = ""  # why the store cannot be reached, empty when it can
        self.driver: Driver | None = None  # of the last rollout that is, or was, ours
        self.followed: Candidate | None = None  # the last candidate that was not ours
        self.closing = asyncio.Event()
        self._head = Head(0)
        self._contents = Contents()
        self._known: Known | None = None
        self._candidate: Candidate | None = None
        self._candidate_contents = Contents()
        self._candidate_trial: Trial | None = None
        self._seen_alive = (0, 0, 0.0)  # the candidate's version and beat, and since when we see this beat
        self._compacted = 0
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "plane")
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Plane {self.name}: version {self._head.epoch}.{self._head.version} of {self.store.url}>"

    # --- life ---

    async def start(self, new_epoch: bool = False) -> None:
        """Open the store, read its head, and publish it. Raises StoreError, or OSError for an address in
        use."""
        await self.store.open()
        try:
            if new_epoch:
                await self.store.new_epoch()
            async with self._lock:
                await self._load()
            await self.publisher.open()
            async with self._lock:
                await self._follow_candidate(await self.store.candidate())
        except BaseException:
            await self.close()
            raise
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._keep_order())]

    async def close(self) -> None:
        """Stop, without waiting for anybody. A rollout of ours is aborted first, when the store takes it."""
        self.closing.set()
        self.bell.ring()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self.driver and not self.driver.ended:
            with contextlib.suppress(StoreError):
                await self.driver.end("the control plane that drove it was stopped")
        await self.publisher.close()
        await self.store.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        head = await self.store.head()
        self._contents = await self._contents_of(head)
        self._head = head
        await self._understand()
        known = self._known
        if known and head.version and known.hash != head.hash:
            self.say(
                f"the tables of version {head.version} are not those that were computed when it was written: "
                "another release wrote it. Replicas of one store run one release; the next change settles it"
            )

    async def _work(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))

    def say(self, text: str) -> None:
        """One line on standard error."""
        print(f"fastproxyctl: {text}", file=sys.stderr, flush=True)

    # --- what the publisher asks (publisher.Source) ---

    def head(self) -> Head:
        return self._head

    def candidate(self) -> Candidate | None:
        return self._candidate

    async def tables(self, attributes: Attributes) -> Tables:
        made = await self._work(self.views.make, self._contents, attributes)
        return made.tables

    async def candidate_tables(self, attributes: Attributes) -> Tables:
        made = await self._work(self.views.make, self._candidate_contents, attributes)
        return made.tables

    # --- what can be read ---

    @property
    def contents(self) -> Contents:
        """Of the head."""
        return self._contents

    @property
    def rollout(self) -> dict[str, Any]:
        """The rollout that goes on, else the last one that this process knows of; as GET /v1/rollout shows
        it."""
        driver, candidate = self.driver, self._candidate or self.followed
        if driver and (candidate is None or driver.version >= candidate.version):
            return driver.to_dict()
        if candidate is None:
            return {"state": "none"}
        told = {"version": candidate.version, "share": candidate.share / WHOLE, "stages": []}
        if candidate is self._candidate:
            told["reason"] = f"driven by {candidate.owner.split(' ')[0]}"
            return told | {"state": "baking" if candidate.share else "preparing"}
        return told | {"state": "committed" if self._head.version >= candidate.version else "aborted"}

    @property
    def problems(self) -> list[Problem]:
        """Of documents of the head that are left out."""
        return self._known.made.problems if self._known else []

    async def history(self, limit: int = 50, before: int | None = None) -> list[Entry]:
        return await self._ask(self.store.history(limit, before))

    async def entry(self, version: int) -> Entry:
        return await self._ask(self.store.entry(version))

    async def contents_at(self, version: int) -> Contents:
        """KeyError: there is no such version; Compacted: it is not kept."""
        if version == self._head.version:
            return self._contents
        if version > self._head.version or version < 1:
            raise KeyError(f"there is no version {version}, the newest is {self._head.version}")
        return await self._ask(self.store.contents(version))

    # --- what changes it ---

    async def apply(self, files: Sequence[tuple[str, bytes]], wish: Wish) -> Outcome:
        """Documents of (file name, text) pairs as one version. Raises Unfit, Conflict, StoreError."""
        resources, problems = await self._work(self.views.check, files)
        if len(resources) > MAX_DOCUMENTS:
            raise Unfit(f"{len(resources)} documents in one apply; at most {MAX_DOCUMENTS}")
        changes = [Change(r.identity, r) for r in resources]
        return await self._change("apply", lambda _: changes, wish, problems)

    async def delete(self, identities: Sequence[Identity], wish: Wish, what: str = "delete") -> Outcome:
        """Unfit: one of them is not there."""

        def choose(contents: Contents) -> list[Change]:
            for kind, namespace, name in identities:
                if (kind, namespace, name) not in contents.resources:
                    raise Unfit(f"there is no {kind} {namespace}/{name}")
            return [Change(i, None) for i in dict.fromkeys(identities)]

        return await self._change(what, choose, wish)

    async def rollback(self, version: int, wish: Wish) -> Outcome:
        """A new version with the contents of an old one. KeyError, Compacted: see :meth:`contents_at`."""
        old = await self.contents_at(version)
        return await self._change(f"rollback {version}", lambda now: now.to(old), wish, whole=True)

    async def order(self, order: orders.Order, wish: Wish) -> Outcome:
        """Open or close breakers until a time. Raises Unfit."""
        name, text = orders.document(order, time.time_ns() // 1_000_000)
        return await self._text(f"breaker {order.state} {name}", f"breaker order {name}", text, wish)

    async def _text(self, what: str, file: str, text: str, wish: Wish) -> Outcome:
        resources, problems = await self._work(self.views.check, [(file, text.encode())])
        if problems:
            raise Unfit(str(problems[0]), problems)
        return await self._change(what, lambda _: [Change(r.identity, r) for r in resources], wish)

    async def _change(
        self,
        what: str,
        choose: Callable[[Contents], Iterable[Change]],
        wish: Wish,
        problems: Sequence[Problem] = (),
        whole: bool = False,
    ) -> Outcome:
        async with self._lock:
            for _ in range(ATTEMPTS):
                known = await self._understand()
                changes = list(choose(known.contents))
                expect = self._head.decided
                trial = await self._work(attempt, self.views, known, expect + 1, changes, whole)
                found = [*problems, *trial.refused]
                _judge(changes, trial, found, wish.strict)
                done = Outcome(self._head.epoch, self._head.version, self._head.hash, problems=found)
                done.warnings = trial.made.warnings
                done.problems += [p for p in trial.made.problems if p not in known.made.problems]
                done.dry_run = wish.dry_run
                done.verbs = verbs(known.contents.resources, trial.changes)
                if wish.dry_run:
                    done.diff = list(texts(known.contents, trial.changes))
                    done.hash = trial.hash
                if wish.dry_run or not trial.changes:
                    return done
                self._want_nothing_open()
                if wish.plan is not None and not self._head.version:
                    raise Unfit(
                        "the first version has none to go back to: apply it without stages and atomic"
                    )
                draft = Draft(wish.who, what, trial.changes, trial.hash, wish.message)
                try:
                    done.version = await self._write(expect, draft, trial, wish.plan)
                except Conflict:
                    self.counts.conflicts += 1
                    await self._look()
                    continue
                done.hash, done.rollout = trial.hash, wish.plan is not None
                return done
        raise Conflict(f"others wrote {ATTEMPTS} times meanwhile; try again")

    async def _write(self, expect: int, draft: Draft, trial: Trial, plan: Plan | None) -> int:
        if plan is not None:
            candidate = await self._ask(self.store.propose(expect, draft, self.owner))
            await self._propose(candidate, trial)
            self.driver = Driver(self, candidate, plan)
            self.driver.start()
            return candidate.version
        entry = await self._ask(self.store.commit(expect, draft))
        self.counts.applied += 1
        await self._install(Head(entry.epoch, entry.version, entry.version, entry.hash), trial)
        return entry.version

    def _want_nothing_open(self) -> None:
        if self._candidate:
            raise Busy(
                f"version {self._candidate.version} is being rolled out: wait for it, or abort it "
                "(DELETE /v1/rollout)"
            )

    # --- the open candidate; the driver calls these ---

    async def step(self, version: int, share: int) -> None:
        """Set the share, renew the beat. Conflict: it is not open any more."""
        async with self._lock:
            before = self._candidate
            self._candidate = await self._ask(self.store.step(version, share))
            if before is None or before.share != share:
                self.publisher.step()
            self.bell.ring()

    async def settle(self, version: int) -> None:
        """The candidate becomes the head. Conflict: it is not open any more."""
        async with self._lock:
            entry = await self._ask(self.store.settle(version))
            self.counts.applied += 1
            await self._settled(Head(entry.epoch, entry.version, entry.version, entry.hash))

    async def void(self, version: int, reason: str) -> None:
        """The candidate is aborted; proxies go back by themselves. Conflict: it is not open any more."""
        async with self._lock:
            head = await self._ask(self.store.void(version, reason))
            await self._dropped(head)

    async def abort(self, reason: str) -> bool:
        """A person's abort, of whosever candidate. False: none is open."""
        candidate = self._candidate
        if not candidate:
            return False
        if self.driver and self.driver.version == candidate.version:
            await self.driver.end(reason)
        else:
            await self.void(candidate.version, reason)
        return True

    # --- what the store holds becomes what is published ---

    async def look(self) -> None:
        """Take what others have written. Raises StoreError."""
        async with self._lock:
            await self._look()

    async def _look(self) -> None:
        head, candidate = await self._ask(self.store.head()), await self._ask(self.store.candidate())
        mine = self._candidate
        if mine and head.version == mine.version and head.epoch == self._head.epoch:
            await self._settled(head)
        elif mine and (candidate is None or candidate.version != mine.version):
            await self._dropped(head)
        if (head.epoch, head.version) != (self._head.epoch, self._head.version):
            contents = await self._contents_of(head)
            self._head, self._contents = head, contents
            await self._publish(self.publisher.advance())
            await self._understand()
        self._head = head
        await self._follow_candidate(candidate)

    async def _follow_candidate(self, candidate: Candidate | None) -> None:
        """Somebody else's candidate, or one of ours from before a restart."""
        mine = self._candidate
        if candidate is None or candidate.version <= self._head.version:
            return
        if mine is None:
            self.followed = candidate
            await self._propose(candidate, None)
        elif mine != candidate:
            self._candidate = self.followed = candidate
            if mine.share != candidate.share:
                self.publisher.step()
            self.bell.ring()

    async def _contents_of(self, head: Head) -> Contents:
        if not head.version:
            return Contents()
        return await self._ask(self.store.contents(head.version))

    async def _propose(self, candidate: Candidate, trial: Trial | None) -> None:
        contents = (
            trial.contents if trial else self._contents.after(candidate.version, candidate.draft.changes)
        )
        self._candidate, self._candidate_contents, self._candidate_trial = candidate, contents, trial
        await self._publish(self.publisher.propose())

    async def _settled(self, head: Head) -> None:
        trial = self._candidate_trial
        self._head, self._contents = head, self._candidate_contents
        if trial and self._known:
            self._learn(trial)
        self._forget()
        await self._publish(self.publisher.settle())
        await self._understand()

    async def _dropped(self, head: Head) -> None:
        """Only what concerns the candidate: a newer head that came with it is taken by who called."""
        same = (head.epoch, head.version) == (self._head.epoch, self._head.version)
        self._head = head if same else Head(*_place(self._head), head.decided, self._head.hash)
        self._forget()
        await self._publish(self.publisher.drop())

    def _forget(self) -> None:
        self._candidate, self._candidate_contents, self._candidate_trial = None, Contents(), None

    async def _install(self, head: Head, trial: Trial) -> None:
        self._head, self._contents = head, trial.contents
        self._learn(trial)
        await self._publish(self.publisher.advance())

    def _learn(self, trial: Trial) -> None:
        assert self._known
        self._known.rows.apply(trial.step, trial.total)
        self._known = Known(trial.contents, trial.made, self._known.rows)

    async def _understand(self) -> Known:
        """What the head compiles to for everybody."""
        if self._known is None or self._known.contents is not self._contents:
            self._known = await self._work(know, self.views, self._contents)
        return self._known

    async def _publish(self, publishing: Awaitable[Any]) -> None:
        began = time.monotonic()
        await publishing
        self.counts.publishes += 1
        self.counts.last_publish_seconds = time.monotonic() - began
        self.counts.publish_seconds += self.counts.last_publish_seconds
        self.bell.ring()

    # --- the store ---

    async def _ask(self, asked: Awaitable[T]) -> T:
        """Whatever is asked of the store: what goes wrong is counted and shown."""
        try:
            answer = await asked
        except StoreError as e:
            if not isinstance(e, (Conflict, Compacted)):
                self._lost(str(e))
            raise
        if self.trouble:
            self.say(f"the store answers again: {self.store.url}")
            self.trouble = ""
        return answer

    def _lost(self, why: str) -> None:
        self.counts.store_errors += 1
        if why != self.trouble:
            self.say(f"the store fails, what is published stays: {why}")
        self.trouble = why

    async def _follow(self) -> None:
        """Look whenever the store says so; when its link is lost, again and again with growing pauses."""
        pause = PAUSE_MIN
        while True:
            stream = self.store.watch()
            try:
                await self.look()
                async for _ in stream:
                    pause = PAUSE_MIN
                    await self.look()
            except StoreError as e:
                self._lost(str(e))
            finally:
                await _end(stream)
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(2 * pause, PAUSE_MAX)

    async def _keep_order(self) -> None:
        """What has to be done from time to time, whether or not anybody writes."""
        turn = 0.0
        while True:
            await asyncio.sleep(min(1.0, self.lapse / 4))
            with contextlib.suppress(StoreError):
                await self._void_what_nobody_drives()
                if time.monotonic() - turn >= LOOK_EVERY:
                    turn = time.monotonic()
                    await self.look()
                    await self._clear_lapsed_orders()
                    await self._compact()

    async def _void_what_nobody_drives(self) -> None:
        candidate = self._candidate
        if candidate is None or (self.driver and self.driver.version == candidate.version):
            return
        version, beat, since = self._seen_alive
        now = time.monotonic()
        if (version, beat) != (candidate.version, candidate.beat_ms):
            self._seen_alive = (candidate.version, candidate.beat_ms, now)
        elif now - since > self.lapse / 2:
            await self.look()  # a beat that the watch did not tell counts too
            if self._candidate == candidate and now - since > self.lapse:
                self.say(f"version {version} is voided: {candidate.owner}, who drove it, does not answer")
                await self.void(version, f"{candidate.owner}, who drove it, does not answer")

    async def _clear_lapsed_orders(self) -> None:
        gone = orders.lapsed(self._contents, time.time_ns() // 1_000_000)
        if gone and self._candidate is None:
            with contextlib.suppress(Unfit, Conflict):  # somebody else was quicker
                await self.delete(gone, Wish(self.name, "their time is over"), "breaker orders lapsed")

    async def _compact(self) -> None:
        if self._head.version - self._compacted > self.keep * 1.1:
            await self._ask(self.store.compact(self.keep))
            self._compacted = self._head.version - self.keep


def _judge(changes: list[Change], trial: Trial, found: list[Problem], strict: bool) -> None:
    if strict and found:
        raise Unfit("strict: nothing was applied, as not all documents are good", found)
    refused = {p.identity for p in trial.refused}
    if found and not any(change.identity not in refused for change in changes):
        raise Unfit("nothing was applied: no document is good", found)
    if len(trial.contents) > MAX_STORED:
        raise Unfit(f"{len(trial.contents)} documents; a store holds at most {MAX_STORED}")


def _place(head: Head) -> tuple[int, int]:
    return head.epoch, head.version


async def _end(stream: AsyncIterator[None]) -> None:
    close = getattr(stream, "aclose", None)
    if close:
        await close()
