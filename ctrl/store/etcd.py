"""The store of several control planes: etcd v3, as ``etcd://HOST:PORT[,HOST:PORT…][/PREFIX]``.

All writers compare and set one key (see :mod:`ctrl.store.etcd_state`), so any number of control planes may
write. Members are asked one after the other until one answers. Without a majority of members writes fail
within seconds; reads go on from any member that lives, and may then be behind, but never behind what this
process has seen. A write that was sent and not answered is sent again, which does no harm: it compares. What
it became is read back by its id; only when nobody answers that either, Unsure is raised.

The store asks etcd to forget old revisions at every ``compact``, those before the last one, as Kubernetes
does: give it an etcd of its own, or one without a neighbour that needs older revisions.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import httpx

from ctrl.model import Candidate, Change, Compacted, Contents, Draft, Entry, Head, StoreError, Unsure
from ctrl.store import packed, rules
from ctrl.store.etcd_http import PAUSE_SECONDS, Refused, Unreached
from ctrl.store.etcd_keys import Keys, Op
from ctrl.store.etcd_state import INLINE, Base, Log, Open, State, new_id, slices, version_of

WRITE_SECONDS = 5.0  # for one step of a write: an election of etcd fits in
SILENCE = 3.0  # after so long without news a watcher asks whether the link is still there

T = TypeVar("T")
Attempt = Callable[[State, bool], Awaitable[T | None]]


class EtcdStore:
    def __init__(self, url: str) -> None:
        self.url = url
        self._keys = Keys(*_parse(url))
        self._last: State | None = None  # newest seen, so that reads never go back
        self._cache = ("", Contents())  # of the head, by the id of its changes
        self._proposed: tuple[str, tuple[Change, ...]] = ("", ())  # of the candidate, by their id
        self._old_revision = 0  # of etcd, at the compaction before
        self._open = False
        self._closing = asyncio.Event()

    def __repr__(self) -> str:
        return f"<EtcdStore {self._keys!r}, {'open' if self._open else 'not open'}>"

    async def open(self) -> None:
        self._keys.members.open()
        self._open, self._closing = True, asyncio.Event()
        try:
            if await self._find() is None:
                new = State(rules.now_ms())
                await self._keys.transaction({"head": 0}, [self._keys.put("head", new.pack())], WRITE_SECONDS)
            await self._state()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._open = False
        self._closing.set()
        await self._keys.members.close()

    # --- reads ---

    async def head(self) -> Head:
        return (await self._state()).head

    async def contents(self, version: int | None = None) -> Contents:
        for _ in range(3):
            state = await self._state()
            try:
                contents = await self._contents(state, state.version if version is None else version)
                return Contents(contents.version, dict(contents.resources))
            except Refused as error:
                if "compacted" not in str(error):  # meanwhile, by another control plane
                    raise
        raise StoreError("etcd forgets revisions faster than they can be read: try again")

    async def candidate(self) -> Candidate | None:
        state = await self._state()
        return state.open.candidate(await self._draft(state, state.open)) if state.open else None

    async def history(self, limit: int = 50, before: int | None = None) -> list[Entry]:
        last = (before if before is not None else 10**16) - 1
        found = await self._keys.versions("entry", 0, last, limit=max(limit, 0), newest_first=True)
        return [_entry_of(data)[0] for _, data in found]

    async def entry(self, version: int) -> Entry:
        if (data := await self._keys.get(f"entry/{version:016d}")) is None:
            raise rules.missing(version, await self.head())
        return _entry_of(data)[0]

    async def watch(self) -> AsyncIterator[None]:
        closing = self._closing
        state = await self._state()
        last, since = state.revision, state.seen
        yield
        while not closing.is_set():
            try:
                async with self._keys.watch("head", since + 1, SILENCE, closing) as news:
                    async for revision in news:
                        last = since = revision
                        yield
            except httpx.ReadTimeout:
                pass  # silent: the next lines tell whether it is gone
            except httpx.HTTPError:
                await asyncio.sleep(PAUSE_SECONDS)
            if closing.is_set():
                return
            state = await self._state(strong=True)
            since = max(since, state.seen)
            if state.revision != last:
                last = state.revision
                yield

    # --- writes ---

    async def commit(self, expect: int, draft: Draft) -> Entry:
        made = await _Packed.of(expect + 1, draft)

        async def attempt(state: State, tried: bool) -> Entry | None:
            if tried and (entry := await self._written(made.version, made.id)):
                return entry
            version = rules.check_turn(state.head, state.candidate, expect)
            await self._write_pieces(made)
            before = await self._contents(state, state.version)
            entry = rules.entry_of(version, state.epoch, draft, before)
            new = state.settled(version, draft.hash, made.id)
            ops = [self._put_entry(entry, made.id, made.id), self._put_log(made, state)]
            if not await self._replace(state, new, ops):
                return None
            self._cache = (made.id, before.after(version, draft.changes))
            return entry

        return await self._change(attempt)

    async def propose(self, expect: int, draft: Draft, owner: str) -> Candidate:
        made = await _Packed.of(expect + 1, draft)
        candidate = Candidate(expect + 1, draft, 0, owner, rules.now_ms())
        opened = Open.of(made.id, candidate)

        async def attempt(state: State, tried: bool) -> Candidate | None:
            if tried and ((state.open and state.open.id == made.id) or await self._of(made.version, made.id)):
                return candidate
            rules.check_turn(state.head, state.candidate, expect)
            await self._write_pieces(made)
            new = replace(state, open=opened)
            if not await self._replace(state, new, [self._put_log(made, state)]):
                return None
            self._proposed = (made.id, draft.changes)
            return candidate

        return await self._change(attempt)

    async def step(self, version: int, share: int) -> Candidate:
        async def attempt(state: State, tried: bool) -> Candidate | None:
            rules.check_open(state.candidate, version)
            assert state.open is not None
            opened = replace(state.open, share=share, beat_ms=rules.now_ms())
            draft = await self._draft(state, opened)
            done = await self._replace(state, replace(state, open=opened), [])
            return opened.candidate(draft) if done else None

        return await self._change(attempt)

    async def settle(self, version: int) -> Entry:
        by = uuid.uuid4().hex

        async def attempt(state: State, tried: bool) -> Entry | None:
            if tried and (entry := await self._written(version, by)):
                return entry
            rules.check_open(state.candidate, version)
            o = state.open
            assert o is not None
            draft = await self._draft(state, o)
            before = await self._contents(state, state.version)
            entry = rules.entry_of(version, state.epoch, draft, before)
            new = state.settled(version, o.hash, o.id)
            if not await self._replace(state, new, [self._put_entry(entry, o.id, by)]):
                return None
            self._cache = (o.id, before.after(version, draft.changes))
            return entry

        return await self._change(attempt)

    async def void(self, version: int, reason: str) -> Head:
        by = uuid.uuid4().hex

        async def attempt(state: State, tried: bool) -> Head | None:
            if tried and await self._written(version, by):
                return state.head
            rules.check_open(state.candidate, version)
            new, ops = self._voided(state, reason, by)
            return new.head if await self._replace(state, new, ops) else None

        return await self._change(attempt)

    async def new_epoch(self) -> Head:
        epoch = rules.raised((await self._state(strong=True)).epoch)

        async def attempt(state: State, tried: bool) -> Head | None:
            if tried and state.epoch >= epoch:
                return state.head
            new, ops = self._voided(state, "the epoch was raised", "") if state.open else (state, [])
            new = replace(new, epoch=rules.raised(max(epoch - 1, state.epoch)))
            return new.head if await self._replace(state, new, ops) else None

        return await self._change(attempt)

    async def compact(self, keep: int) -> int:
        async def attempt(state: State, tried: bool) -> int | None:
            return await self._forget(state, state.decided - max(keep, 1) + 1)

        gone = await self._change(attempt)
        await self._sweep()
        return gone

    # --- compaction ---

    async def _forget(self, state: State, oldest: int) -> int | None:
        """Make the newest version up to ``oldest`` the base, and delete what is older. None: try again."""
        keys = self._keys
        ranges = [(0, oldest - 1)]
        if state.version < oldest:  # the head's entry stays
            ranges = [(0, state.version - 1), (state.version + 1, oldest - 1)]
        counts = [await keys.count("entry", first, last, state.seen) for first, last in ranges]
        if sum(counts) == 0:
            return 0
        base = await self._new_base(state, min(oldest, state.version))
        ops = [keys.put("head/base", base.pack()), keys.delete_versions("log", 0, base.version)]
        ops += [keys.delete_versions("entry", first, last) for first, last in ranges]
        there = [f"pieces/{base.id}/{0:06d}"] if base.pieces else []  # it was not swept meanwhile
        same = {"head/base": state.base_revision}
        return sum(counts) if await keys.transaction(same, ops, WRITE_SECONDS, there) else None

    async def _new_base(self, state: State, until: int) -> Base:
        logs = await self._keys.versions(
            "log", state.base.version + 1, until, limit=1, newest_first=True, revision=state.seen
        )
        if not logs:
            return state.base
        version, data = logs[0]
        contents = await self._contents(state, version)
        pieces = slices(await asyncio.to_thread(packed.pack_contents, contents))
        id_ = new_id(version, base=True)
        await self._keys.put_pieces(id_, pieces, WRITE_SECONDS)
        return Base(version, id_, Log.unpack(data).id, len(pieces))

    async def _sweep(self) -> None:
        """Delete the pieces that nothing names: of writers that lost or died, and of older bases. Those of
        versions that are decided cannot be named any more; those of a base only by who changes the base."""
        state = await self._state(strong=True)
        for id_ in await self._keys.piece_ids(state.seen):
            base, version = version_of(id_)
            if base:
                named = id_ == state.base.id
            else:
                named = version > state.decided or await self._log_id(state, version) == id_
            if not named:
                delete = [self._keys.delete_pieces(id_)]
                same = {"head/base": state.base_revision} if base else {}
                await self._keys.transaction(same, delete, WRITE_SECONDS)
        if self._old_revision:
            await self._keys.forget_revisions(self._old_revision, WRITE_SECONDS)
        self._old_revision = state.seen

    async def _log_id(self, state: State, version: int) -> str | None:
        data = await self._keys.get(f"log/{version:016d}", state.seen)
        return Log.unpack(data).id if data is not None else None

    # --- parts of reads ---

    async def _find(self, strong: bool = False) -> State | None:
        if not self._open:
            raise StoreError("the store is not open")
        found, seen, certain = await self._keys.head(strong, WRITE_SECONDS)
        if "head" not in found:
            return None
        state = State.unpack(found["head"], found.get("head/base"), seen)
        if self._last and not certain and state.revision < self._last.revision:
            return self._last
        self._last = state
        return state

    async def _state(self, strong: bool = False) -> State:
        state = await self._find(strong)
        if state is None:
            raise StoreError(
                f"the store is gone from etcd (no key {self._keys.prefix}head): restore a backup"
            )
        return state

    async def _contents(self, state: State, version: int) -> Contents:
        """Not to be changed by the caller."""
        if version == 0:
            return Contents()
        if version != state.version:
            data = await self._keys.get(f"entry/{version:016d}", state.seen)
            if data is None:
                raise rules.missing(version, state.head)
            if rules.is_aborted(_entry_of(data)[0]):
                raise rules.never_applied(version)
        chain, known = self._cache
        if version == state.version and chain == state.id:
            return known
        contents = None
        if state.base.version <= known.version <= version:
            contents = await self._replay(state, chain, known, version)
        if contents is None:
            base = state.base
            if base.version > version:
                raise Compacted(f"version {version} is older than the history that is kept")
            known = Contents()
            if base.pieces:
                data = await self._keys.pieces(base.id, base.pieces, state.seen)
                known = await asyncio.to_thread(packed.unpack_contents, base.version, data)
            contents = await self._replay(state, base.chain, known, version)
        if contents is None:
            raise packed.damaged("logs", "they do not follow from each other")
        if version == state.version:
            self._cache = (state.id, contents)
        return contents

    async def _replay(self, state: State, chain: str, known: Contents, version: int) -> Contents | None:
        """What is known, carried on to that version. None: the logs do not follow from it."""
        found = await self._keys.versions("log", known.version + 1, version, revision=state.seen)
        steps = []
        for number, data in found:
            log = Log.unpack(data)
            if log.parent != chain:
                return None
            chain = log.id
            steps.append((number, await self._log_bytes(state, log)))
        if version == state.version and chain != state.id:
            return None
        return await asyncio.to_thread(_fold, known, steps, version)

    async def _log_bytes(self, state: State, log: Log) -> bytes:
        return await self._keys.pieces(log.id, log.pieces, state.seen) if log.pieces else log.data

    async def _draft(self, state: State, o: Open) -> Draft:
        if self._proposed[0] != o.id:
            data = await self._keys.get(f"log/{o.version:016d}", state.seen)
            if data is None:
                raise packed.damaged("candidate", f"no log of version {o.version}")
            data = await self._log_bytes(state, Log.unpack(data))
            self._proposed = (o.id, await asyncio.to_thread(packed.unpack_changes, data))
        return Draft(o.who, o.what, self._proposed[1], o.hash, o.message)

    # --- parts of writes ---

    async def _change(self, attempt: Attempt[T]) -> T:
        """Read, decide, compare and set; again when another came between. tried: an attempt was sent before,
        and may be what came between."""
        tried, end = False, time.monotonic() + 4 * WRITE_SECONDS
        while time.monotonic() < end:
            try:
                result = await attempt(await self._state(strong=True), tried)
            except Unreached as error:
                if tried:
                    raise Unsure(
                        f"{error}; whether the change is there will be seen in the history"
                    ) from error
                raise
            except Refused as error:
                if "compacted" not in str(error):
                    raise
                continue
            if result is not None:
                return result
            tried = True
        raise StoreError("other control planes write all the time: try again")

    async def _replace(self, state: State, new: State, ops: list[Op]) -> bool:
        """Set the head, with these, when nobody else has. False: somebody has. Raises Unsure."""
        ops = [self._keys.put("head", new.pack()), *ops]
        try:
            return await self._keys.transaction({"head": state.revision}, ops, WRITE_SECONDS)
        except Unreached as error:
            if error.sent:
                raise _unsure(error) from error
            raise

    async def _write_pieces(self, made: _Packed) -> None:
        if made.pieces and not made.written:
            await self._keys.put_pieces(made.id, made.pieces, WRITE_SECONDS)
            made.written = True

    def _put_log(self, made: _Packed, state: State) -> Op:
        log = Log(made.id, state.id, len(made.pieces), made.inline)
        return self._keys.put(f"log/{made.version:016d}", log.pack())

    def _put_entry(self, entry: Entry, id_: str, by: str) -> Op:
        """id_: of its changes. by: of who wrote the entry, known to that one only."""
        data = packed.squeeze(packed.pack_entry(entry, id=id_, by=by).encode())
        return self._keys.put(f"entry/{entry.version:016d}", data)

    async def _written(self, version: int, by: str) -> Entry | None:
        data = await self._keys.get(f"entry/{version:016d}", strong=True)
        entry, _, writer = _entry_of(data) if data is not None else (None, "", "")
        return entry if writer == by else None

    async def _of(self, version: int, id_: str) -> bool:
        """Whether that version was made of these changes."""
        data = await self._keys.get(f"entry/{version:016d}", strong=True)
        return data is not None and _entry_of(data)[1] == id_

    def _voided(self, state: State, reason: str, by: str) -> tuple[State, list[Op]]:
        o = state.open
        assert o is not None
        entry = rules.aborted(o.candidate(), state.epoch, reason)
        drop = [self._keys.delete_versions("log", o.version, o.version), self._keys.delete_pieces(o.id)]
        return replace(state, decided=o.version, open=None), [self._put_entry(entry, o.id, by), *drop]


def _unsure(error: Unreached) -> Unsure:
    return Unsure(f"{error}; the change was sent: the history will tell whether it is there")


class _Packed:
    """A draft as it is written. inline: all of it, when it is small; else pieces."""

    def __init__(self, version: int, data: bytes) -> None:
        self.version, self.id = version, new_id(version)
        self.inline = data if len(data) <= INLINE else b""
        self.pieces = [] if self.inline else slices(data)
        self.written = False

    @classmethod
    async def of(cls, version: int, draft: Draft) -> _Packed:
        return cls(version, await asyncio.to_thread(packed.pack_changes, draft.changes))


def _fold(known: Contents, steps: list[tuple[int, bytes]], version: int) -> Contents:
    for number, data in steps:
        known = known.after(number, packed.unpack_changes(data))
    return Contents(version, known.resources)


def _entry_of(data: bytes) -> tuple[Entry, str, str]:
    """(entry, id of its changes, who wrote it)"""
    try:
        text = packed.expand(data)
        more: dict[str, Any] = json.loads(text)
        return packed.unpack_entry(text), str(more["id"]), str(more["by"])
    except (ValueError, KeyError) as error:
        raise packed.damaged("history", error) from error


def _parse(url: str) -> tuple[list[str], str]:
    """(addresses, prefix). Raises ValueError."""
    hosts, _, prefix = url.removeprefix("etcd://").partition("/")
    addresses = hosts.split(",")
    for address in addresses:
        if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}", address):
            raise ValueError(
                f"{url!r}: {address!r} is no HOST:PORT; write etcd://HOST:PORT[,HOST:PORT][/PREFIX]"
            )
    return addresses, f"/{prefix.strip('/') or 'fastproxy'}/"
