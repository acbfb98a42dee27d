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
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ctrl import orders
from ctrl.driver import Driver
from ctrl.fleet import Fleet
from ctrl.follower import Follower
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
from ctrl.wishes import Busy, Outcome, Unfit, Wish
from fastproxy.resources.problem import Problem
from fastproxy.tables import Tables
from fastproxy.wire import WHOLE, Attributes

if TYPE_CHECKING:
    from ctrl.store import Store

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["Busy", "Outcome", "Plane", "Unfit", "Wish"]

MAX_DOCUMENTS = 100_000  # of one apply
MAX_STORED = 200_000  # of one version
ATTEMPTS = 32  # of a write that others were quicker than; who has just written is quicker next time


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
    who does not renew it counts as dead. ``gather``: seconds after the start in which proxies that were there
    before come back. ``publishing``: passed on to :class:`ctrl.publisher.Publisher`."""

    def __init__(
        self,
        store: Store,
        *,
        name: str = "",
        keep: int = 1000,
        lapse: float = 10.0,
        gather: float = 0.0,
        **publishing: Any,
    ) -> None:
        self.store = store
        self.name = name or socket.gethostname()
        self.owner = f"{self.name} {secrets.token_hex(4)}"
        self.keep = keep
        self.lapse = lapse
        self.gather = gather
        self._gathered = float("-inf")  # when that is over
        self.views = Views()
        self.fleet = Fleet()
        self.publisher = Publisher(self, self.fleet, name=self.name, **publishing)
        self.bell = Bell()
        self.counts = Counts()
        self.trouble = ""  # why the store cannot be reached, empty when it can
        self.driver: Driver | None = None  # of the last rollout that is, or was, ours
        self.followed: Candidate | None = None  # the last candidate that was not ours
        self.closing = asyncio.Event()
        self.watchers = 0  # of GET /v1/watch
        self._head = Head(0)
        self._contents = Contents()
        self._known: Known | None = None
        self._candidate: Candidate | None = None
        self._candidate_contents = Contents()
        self._candidate_trial: Trial | None = None
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
            if self._head.decided:  # else nobody has anything of ours
                self._gathered = time.monotonic() + self.gather
            await self.look()
        except BaseException:
            await self.close()
            raise
        follower = Follower(self)
        self._tasks = [asyncio.create_task(follower.follow()), asyncio.create_task(follower.keep_order())]

    def stop_waiting(self) -> None:
        """Whoever waits for a change is answered now: the end is near."""
        self.closing.set()
        self.bell.ring()

    async def close(self) -> None:
        """Stop, without waiting for anybody. A rollout of ours is aborted first, when the store takes it."""
        self.stop_waiting()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self.driver and not self.driver.ended:
            with contextlib.suppress(StoreError):
                await self.driver.end("the control plane that drove it was stopped")
        if self.driver:
            await self.driver.close()
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
            await self._recompile(known.hash)

    async def _recompile(self, hash: str) -> None:
        """This release makes other tables of the same documents than the one that wrote them. That is a
        change like any other, with a number of its own: proxies refuse other rows under one they hold."""
        head = self._head
        draft = Draft(self.name, "recompile", (), hash, "another release made other tables of them")
        try:
            entry = await self.store.commit(head.decided, draft)
        except StoreError as e:
            self.say(f"version {head.version} was compiled by another release, and is not settled: {e}")
            return
        self._head = Head(entry.epoch, entry.version, entry.version, entry.hash)
        self._contents = await self._contents_of(self._head)
        await self._understand()
        self.say(f"version {head.version} was compiled by another release: it is version {entry.version} now")

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
    def gathering(self) -> float:
        """Seconds for which the fleet is not all there yet, as we have just started: who is not seen may be
        on its way back."""
        return max(self._gathered - time.monotonic(), 0.0)

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
        return await self.ask(self.store.history(limit, before))

    async def entry(self, version: int) -> Entry:
        return await self.ask(self.store.entry(version))

    async def contents_at(self, version: int) -> Contents:
        """KeyError: there is no such version; Compacted: it is not kept."""
        if version == self._head.version:
            return self._contents
        if version > self._head.version or version < 1:
            raise KeyError(f"there is no version {version}, the newest is {self._head.version}")
        return await self.ask(self.store.contents(version))

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
        if wish.plan and not wish.dry_run and self.gathering:  # stages of nobody would be over at once
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), self.gathering)
        errors = self.counts.store_errors
        async with self._lock:
            if self.trouble and self.counts.store_errors != errors:  # those before us have waited for it
                raise StoreError(f"nothing was tried, as the store fails: {self.trouble}")
            for _ in range(ATTEMPTS):
                known = await self._understand()
                changes = list(choose(known.contents))
                expect = self._head.decided
                trial = await self._work(attempt, self.views, known, expect + 1, changes, whole)
                found = [*problems, *trial.refused]
                _judge(changes, trial, found, wish.strict)
                done = Outcome(self._head.epoch, self._head.version, self._head.hash, problems=found)
                done.warnings = trial.made.warnings
                before = set(known.made.problems)
                done.problems += [p for p in trial.made.problems if p not in before]
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
            candidate = await self.ask(self.store.propose(expect, draft, self.owner))
            await self._propose(candidate, trial)
            self.driver = Driver(self, candidate, plan)
            self.driver.start()
            return candidate.version
        entry = await self.ask(self.store.commit(expect, draft))
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
            self._candidate = await self.ask(self.store.step(version, share))
            if before is None or before.share != share:
                self.publisher.step()
            self.bell.ring()

    async def settle(self, version: int) -> None:
        """The candidate becomes the head. Conflict: it is not open any more."""
        async with self._lock:
            entry = await self.ask(self.store.settle(version))
            self.counts.applied += 1
            await self._settled(Head(entry.epoch, entry.version, entry.version, entry.hash))

    async def void(self, version: int, reason: str) -> None:
        """The candidate is aborted; proxies go back by themselves. Conflict: it is not open any more."""
        async with self._lock:
            head = await self.ask(self.store.void(version, reason))
            await self._dropped(head)

    def drives(self, version: int) -> bool:
        """Whether that candidate is ours."""
        return self.driver is not None and self.driver.version == version and not self.driver.ended

    async def abort(self, reason: str) -> bool:
        """A person's abort, of whosever candidate. False: none is open."""
        candidate = self._candidate
        if not candidate:
            return False
        if self.driver and self.drives(candidate.version):
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
        # in this order: a candidate that is gone by then is known by the head that was read after it
        candidate, head = await self.ask(self.store.candidate()), await self.ask(self.store.head())
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
        if candidate is None or candidate.version <= self._head.decided:
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
        return await self.ask(self.store.contents(head.version))

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

    async def ask(self, asked: Awaitable[T]) -> T:
        """Whatever is asked of the store: what goes wrong is counted and shown."""
        try:
            answer = await asked
        except StoreError as e:
            if not isinstance(e, (Conflict, Compacted)):
                self.lost(str(e))
            raise
        if self.trouble:
            self.say(f"the store answers again: {self.store.url}")
            self.trouble = ""
        return answer

    def lost(self, why: str) -> None:
        """The store cannot be reached; said once, though each try may word it differently."""
        self.counts.store_errors += 1
        if not self.trouble:
            self.say(f"the store fails, what is published stays: {why}")
        self.trouble = why


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
