"""The subscriber against a model of everything that can go wrong around it.

Two publishers read one store, each as late as it likes; two proxies hear both. The network loses, repeats,
delays and reorders what it carries; publishers restart, forget, or come back with an older store; versions
are published, rolled out in stages, settled and aborted; appliers refuse now and then. Whatever happened,
once the network is good again everybody serves the head.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fastproxy.rows import Changes, Packed, Rows, merged
from fastproxy.sync import Apply, Done, Drop, Flip, Prepare, Send, Settle, State, Sync
from fastproxy.wire import (
    WHOLE,
    Announce,
    Ask,
    Attributes,
    Heartbeat,
    Message,
    Refused,
    Snapshot,
    Update,
    decode,
    encode,
)

HERE = Attributes()
KEYS = "abcd"
Contents = dict[str, bytes]
STORE = ["publish", "publish", "propose", "stage", "stage", "settle", "abort", "forget", "epoch"]
FATES = ["well"] * 4 + ["late", "lost one", "lost all", "twice", "backwards", "corrupt", "cut short"]
MISHAPS = ["announce", "garbage", "refused", "cannot apply", "restart", "lower version", "lower epoch"]


def rows_of(contents: Contents) -> Rows:
    return Rows.of({"clusters": contents} if contents else {})


def between(old: Contents, new: Contents) -> Changes:
    touched = {("clusters", key): key in old for key in {*old, *new} if old.get(key) != new.get(key)}
    return merged(rows_of(new), touched)


@dataclass
class Head:
    """What a store says, or said once."""

    epoch: int = 1
    version: int = 0
    contents: Contents = field(default_factory=dict)
    decided: int = 0
    candidate: int = 0
    next: Contents = field(default_factory=dict)
    share: int = 0


class Publisher:
    """A replica. ``head``: what it has read of the store."""

    def __init__(self, head: Head) -> None:
        self.head = replace(head)
        self.past: dict[int, Contents] = {}
        self.met: set[int] = set()

    def heartbeat(self, id: int = 0) -> Heartbeat:
        head = self.head
        return Heartbeat(
            epoch=head.epoch,
            version=head.version,
            hash=rows_of(head.contents).hash,
            decided=head.decided,
            candidate=head.candidate,
            candidate_hash=rows_of(head.next).hash if head.candidate else b"",
            share=head.share,
            id=id,
        )

    def step(self, version: int, id: int = 0) -> Update:
        old = self.past[version]
        return Update(
            epoch=self.head.epoch,
            version=self.head.version,
            hash=rows_of(self.head.contents).hash,
            prev_version=version,
            prev_hash=rows_of(old).hash,
            id=id,
            changes=between(old, self.head.contents),
        )

    def proposal(self) -> Update:
        head = self.head
        return Update(
            epoch=head.epoch,
            version=head.candidate,
            hash=rows_of(head.next).hash,
            prev_version=head.version,
            prev_hash=rows_of(head.contents).hash,
            candidate=True,
            share=head.share,
            changes=between(head.contents, head.next),
        )

    def read(self, store: Head) -> list[Message]:
        """Read the store: what is published for that."""
        before, self.head = self.head, replace(store)
        if before == store:
            return []
        out: list[Message] = []
        if before.epoch != store.epoch or store.version < before.version:
            self.past = {}
        elif store.version != before.version:
            self.past[before.version] = before.contents
            if before.version and before.candidate != store.version:
                out.append(self.step(before.version))
        if store.candidate and (before.candidate, before.version) != (store.candidate, store.version):
            out.append(self.proposal())
        return [*out, self.heartbeat()]

    def answer(self, ask: Ask, proxy: int) -> list[Message]:
        self.met.add(proxy)
        head = self.head
        out: list[Message]
        theirs, ours = (ask.epoch, ask.version), (head.epoch, head.version)
        same = ask.hash == rows_of(head.contents).hash
        if not head.version or theirs > ours or (theirs == ours and same):
            out = [self.heartbeat(ask.id)]
        elif ask.epoch == head.epoch and ask.version in self.past:
            out = [self.step(ask.version, ask.id)]
        else:
            whole = rows_of(head.contents)
            packed: Packed = {"clusters": dict(whole.tables["clusters"])}
            out = [Snapshot(epoch=head.epoch, version=head.version, hash=whole.hash, id=ask.id, rows=packed)]
        if head.candidate and theirs <= ours:
            out.append(self.proposal())
        return out


def corrupted(message: Message) -> Message:
    """It says something untrue about its rows."""
    if isinstance(message, Update):
        return replace(message, changes=Changes({"clusters": {"a": b"corrupt"}}, {}))
    if isinstance(message, Snapshot):
        return replace(message, rows={"clusters": {"a": b"corrupt"}})
    return message


class Applier:
    """Who serves. It follows the actions only, on tables of its own."""

    def __init__(self) -> None:
        self.base = (0, rows_of({}))
        self.held: tuple[int, Rows, bool] | None = None
        self.serving: tuple[int, bytes] = (0, b"")
        self.refuse = 0  # so many of the next works fail

    def carry_out(self, action: Any, rows: Rows) -> tuple[type, Done] | None:
        if isinstance(action, Apply):
            self.held = None
            new = after(rows if action.changes is None else self.base[1], action.changes or Changes())
            if action.changes is not None:
                assert new.hash == action.hash, "the changes do not lead from the base to the version"
            self.base = (action.version, new)
            return Apply, self.serve(action.version, action.hash)
        if isinstance(action, Prepare):
            new = after(self.base[1], action.changes)
            assert new.hash == action.hash, "the candidate was not made of the base"
            fails = self.fails()
            self.held = (action.version, new, not fails)
            return Prepare, Done(action.version, action.hash, fails)
        if isinstance(action, Drop):
            held, self.held = self.held, None
            assert held is None or held[0] == action.version
            if held and self.serving == (held[0], held[1].hash) and self.base[0]:
                return Drop, self.serve(self.base[0], self.base[1].hash)
            return None
        assert self.held and self.held[0] == action.version, f"{action} of what is not held"
        version, new, good = self.held
        if isinstance(action, Settle):
            self.base, self.held = (version, new), None
        else:
            assert good, "served though it could not be prepared"
        if not good:
            return type(action), Done(version, new.hash, "was not prepared")
        return type(action), self.serve(version, new.hash)

    def fails(self) -> str:
        self.refuse -= 1
        return "no room" if self.refuse >= 0 else ""

    def serve(self, version: int, hash: bytes) -> Done:
        fails = self.fails()
        if not fails:
            self.serving = (version, hash)
        return Done(version, hash, fails)


def after(rows: Rows, changes: Changes) -> Rows:
    out = Rows.of(rows.tables)
    out.apply(changes)
    return out


class Proxy:
    """A state machine, its applier, and the wires to each publisher."""

    def __init__(self, name: str, publishers: int, seed: int) -> None:
        self.sync = Sync(name, HERE, [f"p{i}" for i in range(publishers)], 0.0, random.Random(seed))
        self.applier = Applier()
        self.work: list[tuple[int, Any]] = []
        self.asks: list[list[Ask]] = [[] for _ in range(publishers)]
        self.inbox: list[list[Message]] = [[] for _ in range(publishers)]
        self.top = (0, 0)

    def do(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Send):
                assert decode(encode(action.message)) == action.message
                if isinstance(action.message, Ask):
                    self.asks[action.peer].append(action.message)
            elif isinstance(action, Apply | Prepare | Flip | Settle | Drop):
                if isinstance(action, Flip):
                    assert action.version > self.sync.decided, "a candidate that is void would be served"
                self.work.append((self.sync.epoch, action))

    def apply_one(self) -> None:
        epoch, action = self.work.pop(0)
        if isinstance(action, Apply) and action.changes is None:
            # what comes is newer than it says, as the link hands it over; then all of it is
            rows = self.sync.rows
            if rows.hash != action.hash:
                self.work = [(self.sync.epoch, a) for a in self.sync.anew() if isinstance(a, Apply | Prepare)]
                epoch, action = self.work.pop(0)
        done = self.applier.carry_out(action, self.sync.rows)
        if done:
            kind, how = done
            how.epoch = epoch
            self.do(self.sync.on_prepared(how) if kind is Prepare else self.sync.on_applied(how))


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.store = Head()
        self.publishers = [Publisher(self.store), Publisher(self.store)]
        self.proxies = [Proxy("one", 2, 1), Proxy("two", 2, 2)]
        self.existed: set[tuple[int, int, bytes]] = set()

    @initialize(apart=st.booleans())
    def begin(self, apart: bool) -> None:
        """``apart``: nobody has heard of anybody yet."""
        if apart:
            return
        self.publish([1, 1, 1, 0])
        self.recover()

    # --- the store ---

    @rule(what=st.sampled_from(STORE), values=st.lists(st.integers(0, 2), min_size=4, max_size=4))
    def change(self, what: str, values: list[int]) -> None:
        """What cannot be now is the next best thing."""
        store = self.store
        if not store.candidate or not store.version:
            if what == "epoch" and store.version:
                self.new_epoch()
            elif what == "publish" or not store.version:
                self.publish(values)
            else:
                self.propose(values, 1 << 31 if what == "stage" else 0)
        elif what == "stage":
            self.store = replace(store, share=WHOLE if store.share else 1 << 31)
        elif what in ("settle", "publish"):
            self.store = Head(store.epoch, store.candidate, store.next, store.candidate)
        else:  # "forget": the number is not burnt, as by a store that lost its last write
            decided = store.decided if what == "forget" else store.candidate
            self.store = Head(store.epoch, store.version, store.contents, decided)

    def publish(self, values: list[int]) -> None:
        number, contents = self.store.decided + 1, self.changed(values)
        self.store = Head(self.store.epoch, number, contents, number)
        self.remember(number, contents)

    def propose(self, values: list[int], share: int) -> None:
        number, contents = self.store.decided + 1, self.changed(values)
        self.store = replace(self.store, candidate=number, next=contents, share=share)
        self.remember(number, contents)

    def new_epoch(self) -> None:
        number = max(1, self.store.version - 2)
        contents = self.store.contents | {"e": b"%d" % self.store.epoch}
        self.store = Head(self.store.epoch + 1, number, contents, number)
        self.remember(number, contents)

    def changed(self, values: list[int]) -> Contents:
        contents = {key: b"%d" % value for key, value in zip(KEYS, values, strict=True) if value}
        return contents if contents != self.store.contents else {**contents, "z": b"%d" % self.store.decided}

    def remember(self, number: int, contents: Contents) -> None:
        self.existed.add((self.store.epoch, number, rows_of(contents).hash))

    # --- a second or so of all ---

    @rule(
        reads=st.tuples(st.booleans(), st.booleans()),
        fates=st.lists(st.sampled_from(FATES), min_size=4, max_size=4),
        works=st.sampled_from([0, 1, 99]),
        seconds=st.sampled_from([0.1, 1.0, 1.0, 1.0, 5.0]),
        at=st.integers(0, 5),
    )
    def turn(self, reads: tuple[bool, bool], fates: list[str], works: int, seconds: float, at: int) -> None:
        for i, publisher in enumerate(self.publishers):
            if reads[i]:
                self.say(i, publisher.read(self.store))
            self.say(i, [publisher.heartbeat()])
        for p, proxy in enumerate(self.proxies):
            for i in range(2):
                self.carry(proxy, p, i, fates[2 * p + i], at)
            for _ in range(works):
                if proxy.work:
                    proxy.apply_one()
        self.now += seconds
        for proxy in self.proxies:
            proxy.do(proxy.sync.tick(self.now))

    def say(self, i: int, messages: list[Message]) -> None:
        for place, proxy in enumerate(self.proxies):
            if place in self.publishers[i].met:
                proxy.inbox[i] += messages

    def carry(self, proxy: Proxy, p: int, i: int, fate: str, at: int) -> None:
        """All that is on its way between these two meets the same fate."""
        inbox = proxy.inbox[i]
        if fate == "late":
            return
        if fate == "lost one" and inbox:
            inbox.pop(at % len(inbox))
        elif fate == "lost all":
            inbox.clear()
            proxy.asks[i].clear()
        elif fate == "twice":
            inbox += inbox
        elif fate == "backwards":
            inbox.reverse()
        elif fate == "corrupt":
            inbox[:] = [corrupted(message) for message in inbox]
        self.deliver(proxy, i)
        self.serve_asks(proxy, p, i)
        if fate != "cut short":
            self.deliver(proxy, i)

    def deliver(self, proxy: Proxy, i: int) -> None:
        inbox, proxy.inbox[i] = proxy.inbox[i], []
        for message in inbox:
            proxy.do(proxy.sync.on_message(i, message, self.now))

    def serve_asks(self, proxy: Proxy, p: int, i: int) -> None:
        asks, proxy.asks[i] = proxy.asks[i], []
        for ask in asks:
            proxy.inbox[i] += self.publishers[i].answer(ask, p)

    # --- what goes wrong besides ---

    @rule(what=st.sampled_from(MISHAPS), i=st.integers(0, 1), p=st.integers(0, 1))
    def mishap(self, what: str, i: int, p: int) -> None:
        proxy = self.proxies[p]
        if what == "announce":
            self.connect(proxy, i)
        elif what == "garbage":
            proxy.do(proxy.sync.on_garbage(i, "no message", self.now, answer=bool(p)))
        elif what == "refused":
            proxy.inbox[i].append(Refused(reason="no role", id=proxy.sync._questions))
        elif what == "cannot apply":
            proxy.applier.refuse = 1 + i
        else:
            self.restart(i, what)

    def restart(self, i: int, what: str) -> None:
        """It forgets who asked, and may come back with an older store."""
        head = replace(self.store)
        known = self.publishers[i].past.get(head.version - 1)
        there = known and (head.epoch, head.version - 1, rows_of(known).hash) in self.existed
        if what == "lower version" and known and there:
            head = Head(head.epoch, head.version - 1, known, head.version - 1)
        elif what == "lower epoch" and head.epoch > 1:
            number = head.version + 5
            head = Head(head.epoch - 1, number, head.contents, number)
            self.existed.add((head.epoch, number, rows_of(head.contents).hash))
        self.publishers[i] = Publisher(head)
        for proxy in self.proxies:
            proxy.asks[i], proxy.inbox[i] = [], []
            self.connect(proxy, i)

    def connect(self, proxy: Proxy, i: int) -> None:
        hello = Announce(
            server="s", snapshot_port=1, answer_port=2, heartbeat_ms=1000, report_ms=1000, jitter_ms=500
        )
        proxy.do(proxy.sync.on_message(i, hello, self.now))

    # --- what must hold ---

    @invariant()
    def held_is_true(self) -> None:
        for proxy in self.proxies:
            sync = proxy.sync
            assert (sync.epoch, sync.version) >= proxy.top, "what is held has gone back"
            proxy.top = (sync.epoch, sync.version)
            if sync.version:
                assert sync.rows.hash == sync.hash == Rows.of(sync.rows.tables).hash
                assert (sync.epoch, sync.version, sync.hash) in self.existed
            candidate = sync.candidate
            if candidate:
                assert candidate.version > max(sync.version, sync.decided)
                assert (sync.epoch, candidate.version, candidate.hash) in self.existed
            version, hash = proxy.applier.serving
            assert not version or any(e[1:] == (version, hash) for e in self.existed)
            assert sync.next_tick(self.now) >= self.now

    def teardown(self) -> None:
        self.recover()

    def recover(self) -> None:
        """The network is good again, and so is everything else."""
        if not self.store.version:
            self.publish([1, 1, 1, 1])
        for p, proxy in enumerate(self.proxies):
            proxy.applier.refuse = 0
            for i in range(2):
                if not proxy.sync.peers[i].announce or p not in self.publishers[i].met:
                    self.connect(proxy, i)
        for turn in range(160):
            for i, publisher in enumerate(self.publishers):
                self.say(i, publisher.read(self.store))
                self.say(i, [publisher.heartbeat()])
            for p, proxy in enumerate(self.proxies):
                for i in range(2):
                    self.serve_asks(proxy, p, i)
                    self.deliver(proxy, i)
                while proxy.work:
                    proxy.apply_one()
            self.held_is_true()
            if all(self.well(proxy) for proxy in self.proxies):
                break
            self.now += 1.0 if turn < 40 else 3.0
            for proxy in self.proxies:
                proxy.do(proxy.sync.tick(self.now))
        for proxy in self.proxies:
            sync = proxy.sync
            assert self.well(proxy), f"{sync} with {sync.peers} does not find to {self.store}"

    def well(self, proxy: Proxy) -> bool:
        """It is LIVE at the head and serves it, or the candidate where that is its lot; nothing is open."""
        sync, store = proxy.sync, self.store
        head = (store.epoch, store.version, rows_of(store.contents).hash)
        held = sync.candidate
        elsewhere = sync.state is State.REJECTED and held and held.flipped and not held.rejected
        if (sync.epoch, sync.version, sync.hash) != head or not (elsewhere or sync.state is State.LIVE):
            return False
        if (held.version if held else 0) != store.candidate:
            return False
        flipped = bool(held and held.flipped and held.prepared and not held.rejected)
        if held and not held.rejected and not held.prepared:
            return False
        serving = (store.candidate, rows_of(store.next).hash) if flipped else head[1:]
        return proxy.applier.serving == serving and sync.serving == serving[0]


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_long_walks(first: int) -> None:
    """Hypothesis finds the shortest way to a fault, these find the long ways."""
    for seed in range(first, first + 50):
        walk(seed, 120)


def walk(seed: int, steps: int) -> World:
    rng = random.Random(seed)
    world = World()
    world.begin(apart=rng.random() < 0.2)
    for _ in range(steps):
        dice = rng.random()
        if dice < 0.25:
            world.change(rng.choice(STORE), [rng.randrange(3) for _ in KEYS])
        elif dice < 0.3:
            world.mishap(rng.choice(MISHAPS), rng.randrange(2), rng.randrange(2))
        else:
            fates = [rng.choice(FATES) if rng.random() < 0.4 else "well" for _ in range(4)]
            reads = (rng.random() < 0.8, rng.random() < 0.6)
            world.turn(
                reads, fates, rng.choice([0, 1, 99]), rng.choice([0.1, 1.0, 1.0, 3.0]), rng.randrange(6)
            )
        world.held_is_true()
    world.recover()
    return world
