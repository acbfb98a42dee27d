"""The store of one machine: an SQLite file in WAL mode, written through to the disk at every version.

SQLite runs in one thread of its own, so the loop never waits for a disk. Several processes may use one file:
writers take turns, and a watcher sees the others' versions by a look at the file's counter.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ctrl.model import Candidate, Change, Contents, Draft, Entry, Head, Identity, Resource, StoreError
from ctrl.store import packed, rules
from ctrl.store.bell import Bell
from ctrl.store.sqlite_file import check_there, identity, in_words, open_file, transaction

LOOK_SECONDS = 0.25  # between two looks for versions of other processes
_COLUMNS = "kind, namespace, name, text, file, line, created, place, version"

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


class SqliteStore:
    def __init__(self, url: str) -> None:
        self.url = url
        self.path = Path(url.removeprefix("sqlite:///"))
        if not self.path.name:
            raise ValueError(f"{url!r}: write sqlite:///PATH; PATH names a file")
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[tuple[int, int], ...] = ()  # that was opened
        self._thread: ThreadPoolExecutor | None = None
        self._bell = Bell()

    def __repr__(self) -> str:
        return f"<SqliteStore {self.path}, {'open' if self._connection else 'not open'}>"

    async def open(self) -> None:
        if self._thread is not None:
            return
        self._thread = ThreadPoolExecutor(1, "store")
        try:
            self._connection = await self._in_thread(lambda: open_file(self.path))
            self._file = identity(self.path)
        except BaseException:
            self._thread.shutdown(wait=False)
            self._thread = None
            raise
        self._bell = Bell()

    async def close(self) -> None:
        self._bell.close()
        connection, thread = self._connection, self._thread
        if connection is None or thread is None:
            return
        self._connection = None
        try:
            await self._in_thread(connection.close)
        finally:
            self._thread = None
            thread.shutdown(wait=False)

    # --- reads ---

    async def head(self) -> Head:
        return await self._work(_head)

    async def contents(self, version: int | None = None) -> Contents:
        return await self._read(lambda db: _contents(db, version))

    async def candidate(self) -> Candidate | None:
        return await self._work(_candidate)

    async def history(self, limit: int = 50, before: int | None = None) -> list[Entry]:
        query = "SELECT entry FROM history WHERE version < ? ORDER BY version DESC LIMIT ?"
        bounds = (before if before is not None else 1 << 62, max(limit, 0))
        rows = await self._work(lambda db: db.execute(query, bounds).fetchall())
        return [packed.unpack_entry(text) for (text,) in rows]

    async def entry(self, version: int) -> Entry:
        return await self._read(lambda db: _entry(db, version))

    async def watch(self) -> AsyncIterator[None]:
        bell = self._bell
        with bell.listen() as ear:
            seen = await self._work(_counter)
            while not bell.closed:
                yield
                while not await _heard(ear) and not bell.closed:
                    now = await self._work(_counter)
                    if now != seen:
                        seen = now
                        break

    # --- writes ---

    async def commit(self, expect: int, draft: Draft) -> Entry:
        def work(db: sqlite3.Connection) -> Entry:
            head = _head(db)
            version = rules.check_turn(head, _candidate(db), expect)
            return _make_head(db, head, version, draft)

        return await self._write(work)

    async def propose(self, expect: int, draft: Draft, owner: str) -> Candidate:
        changes = packed.pack_changes(draft.changes)

        def work(db: sqlite3.Connection) -> Candidate:
            version = rules.check_turn(_head(db), _candidate(db), expect)
            candidate = Candidate(version, draft, 0, owner, rules.now_ms())
            words = (draft.who, draft.what, draft.hash, draft.message, changes)
            db.execute(
                "INSERT INTO candidate VALUES (1, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
                (version, *words, owner, candidate.beat_ms),
            )
            return candidate

        return await self._write(work)

    async def step(self, version: int, share: int) -> Candidate:
        def work(db: sqlite3.Connection) -> Candidate:
            candidate = rules.check_open(_candidate(db), version)
            candidate = replace(candidate, share=share, beat_ms=rules.now_ms())
            db.execute("UPDATE candidate SET share = ?, beat_ms = ?", (share, candidate.beat_ms))
            return candidate

        return await self._write(work)

    async def settle(self, version: int) -> Entry:
        def work(db: sqlite3.Connection) -> Entry:
            candidate = rules.check_open(_candidate(db), version)
            db.execute("DELETE FROM candidate")
            return _make_head(db, _head(db), version, candidate.draft)

        return await self._write(work)

    async def void(self, version: int, reason: str) -> Head:
        return await self._write(lambda db: _void(db, version, reason))

    async def compact(self, keep: int) -> int:
        def work(db: sqlite3.Connection) -> int:
            head = _head(db)
            floor = head.decided - max(keep, 1)
            db.execute("DELETE FROM changes WHERE of <= ?", (floor,))
            gone = db.execute(
                "DELETE FROM history WHERE version <= ? AND version != ?", (floor, head.version)
            )
            return gone.rowcount

        return await self._write(work)

    async def new_epoch(self) -> Head:
        def work(db: sqlite3.Connection) -> Head:
            candidate = _candidate(db)
            head = _void(db, candidate.version, "the epoch was raised") if candidate else _head(db)
            return _put_head(db, replace(head, epoch=rules.raised(head.epoch)))

        return await self._write(work)

    # --- the thread ---

    async def _read(self, work: Work[T]) -> T:
        """Several selects that see one moment."""

        def one(db: sqlite3.Connection) -> T:
            with transaction(db, "DEFERRED"):
                return work(db)

        return await self._work(one)

    async def _write(self, work: Work[T]) -> T:
        def one(db: sqlite3.Connection) -> T:
            with transaction(db):
                check_there(self.path, self._file)
                return work(db)

        try:
            return await self._work(one)
        finally:
            self._bell.ring()  # also when cancelled: the thread may have written all the same

    async def _work(self, work: Work[T]) -> T:
        connection = self._connection
        if connection is None:
            raise StoreError(f"{self.path}: the store is not open")
        try:
            return await self._in_thread(lambda: work(connection))
        except sqlite3.Error as error:
            raise in_words(self.path, error) from error
        except UnicodeEncodeError as error:
            raise StoreError(f"{self.path}: this text is no Unicode and cannot be kept ({error})") from error

    async def _in_thread(self, work: Callable[[], T]) -> T:
        assert self._thread is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


async def _heard(ear: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(ear.wait(), LOOK_SECONDS)
    except TimeoutError:
        return False
    ear.clear()
    return True


def _counter(db: sqlite3.Connection) -> int:
    """Differs after another connection has committed."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def _head(db: sqlite3.Connection) -> Head:
    return Head(*db.execute("SELECT epoch, version, decided, hash FROM head").fetchone())


def _put_head(db: sqlite3.Connection, head: Head) -> Head:
    values = (head.epoch, head.version, head.decided, head.hash)
    db.execute("UPDATE head SET epoch = ?, version = ?, decided = ?, hash = ?", values)
    return head


def _candidate(db: sqlite3.Connection) -> Candidate | None:
    row = db.execute(
        "SELECT version, who, what, hash, message, changes, share, owner, beat_ms FROM candidate"
    ).fetchone()
    if row is None:
        return None
    version, who, what, hash_, message, changes, share, owner, beat_ms = row
    draft = Draft(who, what, packed.unpack_changes(changes), hash_, message)
    return Candidate(version, draft, share, owner, beat_ms)


def _contents(db: sqlite3.Connection, version: int | None) -> Contents:
    head = _head(db)
    if version == 0 and head.version > 0:
        return Contents()
    if version not in (None, head.version) and rules.is_aborted(_entry(db, version or 0)):
        raise rules.never_applied(version or 0)
    rows = db.execute(f"SELECT {_COLUMNS} FROM resources ORDER BY created, place")
    resources = (packed.resource_of(row) for row in rows)
    contents = Contents(head.version, {resource.identity: resource for resource in resources})
    if version is None or version == head.version:
        return contents
    undo = db.execute(f"SELECT {_COLUMNS} FROM changes WHERE of > ? ORDER BY of DESC", (version,))
    return rules.walk_back(contents, version, ((_before(row),) for row in undo))


def _before(row: tuple[Any, ...]) -> tuple[Identity, Resource | None]:
    kind, namespace, name, text, *_ = row
    return (kind, namespace, name), None if text is None else packed.resource_of(row)


def _entry(db: sqlite3.Connection, version: int) -> Entry:
    row = db.execute("SELECT entry FROM history WHERE version = ?", (version,)).fetchone()
    if row is None:
        raise rules.missing(version, _head(db))
    return packed.unpack_entry(row[0])


def _touched(db: sqlite3.Connection, version: int, changes: tuple[Change, ...]) -> Contents:
    """The contents of the head, as far as these changes touch them."""
    query = f"SELECT {_COLUMNS} FROM resources WHERE kind = ? AND namespace = ? AND name = ?"
    rows = (db.execute(query, identity).fetchone() for identity in rules.touched(changes))
    found = (packed.resource_of(row) for row in rows if row is not None)
    return Contents(version, {resource.identity: resource for resource in found})


def _make_head(db: sqlite3.Connection, head: Head, version: int, draft: Draft) -> Entry:
    before = _touched(db, head.version, draft.changes)
    after = before.after(version, draft.changes)
    entry = rules.entry_of(version, head.epoch, draft, before)
    undo = rules.undo_of(before, draft.changes)
    nothing = [None] * 6
    db.executemany(
        f"INSERT INTO changes (of, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ([version, *(packed.row_of(old) if old else [*identity, *nothing])] for identity, old in undo),
    )
    db.executemany(
        "DELETE FROM resources WHERE kind = ? AND namespace = ? AND name = ?",
        (identity for identity, _ in undo if identity not in after.resources),
    )
    db.executemany(
        f"INSERT OR REPLACE INTO resources ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (packed.row_of(resource) for resource in after),
    )
    db.execute("INSERT INTO history VALUES (?, ?)", (version, packed.pack_entry(entry)))
    _put_head(db, Head(head.epoch, version, version, draft.hash))
    return entry


def _void(db: sqlite3.Connection, version: int, reason: str) -> Head:
    candidate = rules.check_open(_candidate(db), version)
    head = _head(db)
    entry = rules.aborted(candidate, head.epoch, reason)
    db.execute("DELETE FROM candidate")
    db.execute("INSERT INTO history VALUES (?, ?)", (version, packed.pack_entry(entry)))
    return _put_head(db, replace(head, decided=version))
