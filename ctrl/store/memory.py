"""The store that is gone with its process: of ``fastproxyctl publish`` and of tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from ctrl.model import Candidate, Contents, Draft, Entry, Head, StoreError
from ctrl.store import rules
from ctrl.store.bell import Bell


class MemoryStore:
    """No method awaits anything: each is one step of the event loop, so writers cannot interleave."""

    def __init__(self) -> None:
        self.url = "memory:"
        self._head: Head | None = None
        self._candidate: Candidate | None = None
        self._contents = Contents()
        self._entries: dict[int, Entry] = {}
        self._undos: dict[int, rules.Undo] = {}
        self._bell = Bell()

    def __repr__(self) -> str:
        return f"<MemoryStore {self._head}, {len(self._contents)} documents>"

    async def open(self) -> None:
        if self._head is None:
            self._head = Head(rules.now_ms())
        self._bell = Bell()

    async def close(self) -> None:
        self._bell.close()

    async def head(self) -> Head:
        return self._opened()

    async def contents(self, version: int | None = None) -> Contents:
        head = self._opened()
        if version is None or version == head.version:
            return Contents(head.version, dict(self._contents.resources))
        if version == 0:
            return Contents()
        if rules.is_aborted(await self.entry(version)):
            raise rules.never_applied(version)
        newer = range(head.version, version, -1)
        return rules.walk_back(self._contents, version, (self._undos.get(number, ()) for number in newer))

    async def commit(self, expect: int, draft: Draft) -> Entry:
        version = rules.check_turn(self._opened(), self._candidate, expect)
        return self._make_head(version, draft)

    async def propose(self, expect: int, draft: Draft, owner: str) -> Candidate:
        version = rules.check_turn(self._opened(), self._candidate, expect)
        self._candidate = Candidate(version, draft, 0, owner, rules.now_ms())
        self._bell.ring()
        return self._candidate

    async def candidate(self) -> Candidate | None:
        self._opened()
        return self._candidate

    async def step(self, version: int, share: int) -> Candidate:
        self._opened()
        candidate = rules.check_open(self._candidate, version)
        self._candidate = replace(candidate, share=share, beat_ms=rules.now_ms())
        self._bell.ring()
        return self._candidate

    async def settle(self, version: int) -> Entry:
        self._opened()
        candidate = rules.check_open(self._candidate, version)
        self._candidate = None
        return self._make_head(version, candidate.draft)

    async def void(self, version: int, reason: str) -> Head:
        head = self._opened()
        candidate = rules.check_open(self._candidate, version)
        self._entries[version] = rules.aborted(candidate, head.epoch, reason)
        self._candidate = None
        self._head = replace(head, decided=version)
        self._bell.ring()
        return self._head

    async def history(self, limit: int = 50, before: int | None = None) -> list[Entry]:
        self._opened()
        newest = [v for v in sorted(self._entries, reverse=True) if before is None or v < before]
        return [self._entries[version] for version in newest[:limit]]

    async def entry(self, version: int) -> Entry:
        head = self._opened()
        if version not in self._entries:
            raise rules.missing(version, head)
        return self._entries[version]

    async def watch(self) -> AsyncIterator[None]:
        bell = self._bell
        with bell.listen() as ear:
            while not bell.closed:
                yield
                await ear.wait()
                ear.clear()

    async def compact(self, keep: int) -> int:
        head = self._opened()
        floor = head.decided - max(keep, 1)
        gone = [version for version in self._entries if version <= floor and version != head.version]
        for version in gone:
            del self._entries[version]
            self._undos.pop(version, None)
        return len(gone)

    async def new_epoch(self) -> Head:
        head = self._opened()
        if self._candidate is not None:
            head = await self.void(self._candidate.version, "the epoch was raised")
        self._head = replace(head, epoch=rules.raised(head.epoch))
        self._bell.ring()
        return self._head

    def _opened(self) -> Head:
        if self._head is None:
            raise StoreError("the store is not open")
        return self._head

    def _make_head(self, version: int, draft: Draft) -> Entry:
        head, before = self._opened(), self._contents
        entry = rules.entry_of(version, head.epoch, draft, before)
        self._undos[version] = rules.undo_of(before, draft.changes)
        self._entries[version] = entry
        self._contents = before.after(version, draft.changes)
        self._head = Head(head.epoch, version, version, draft.hash)
        self._bell.ring()
        return entry
