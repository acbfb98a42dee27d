"""The SQLite file of a store: made, checked, opened; its errors in words. Blocking: for one thread only."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from ctrl.model import StoreError
from ctrl.store.rules import FORMAT, now_ms

APPLICATION = 0x66707378  # "fpsx": how a file is known as ours
BUSY_SECONDS = 5.0  # another process may hold the file for so long
MAX_LOG = 64 << 20  # bytes that the write-ahead log keeps on disk after it was copied

# resources: the contents of the head. changes: what was there before each version (text NULL: nothing), from
# which older contents are found by walking back. head and candidate have one row at most.
SCHEMA = """
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, version INTEGER NOT NULL,
    decided INTEGER NOT NULL, hash TEXT NOT NULL);
CREATE TABLE candidate (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, who TEXT NOT NULL,
    what TEXT NOT NULL, hash TEXT NOT NULL, message TEXT NOT NULL, changes BLOB NOT NULL,
    share INTEGER NOT NULL, owner TEXT NOT NULL, beat_ms INTEGER NOT NULL);
CREATE TABLE resources (kind TEXT, namespace TEXT, name TEXT, text TEXT NOT NULL, file TEXT NOT NULL,
    line INTEGER NOT NULL, created INTEGER NOT NULL, place INTEGER NOT NULL, version INTEGER NOT NULL,
    PRIMARY KEY (kind, namespace, name));
CREATE TABLE history (version INTEGER PRIMARY KEY, entry TEXT NOT NULL);
CREATE TABLE changes (of INTEGER, kind TEXT, namespace TEXT, name TEXT, text TEXT, file TEXT, line INTEGER,
    created INTEGER, place INTEGER, version INTEGER, PRIMARY KEY (of, kind, namespace, name)) WITHOUT ROWID;
"""

_WORDS = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space; nothing was changed, reads go on",
    sqlite3.SQLITE_IOERR: "the disk failed: look at the system's log; nothing was changed, reads may go on",
    sqlite3.SQLITE_READONLY: "the file or its folder cannot be written: give this user the right to",
    sqlite3.SQLITE_PERM: "the file cannot be used by this user: give it the right to",
    sqlite3.SQLITE_CANTOPEN: "the file, or those beside it (-wal, -shm), cannot be opened: "
    "this user must be able to write in its folder",
    sqlite3.SQLITE_BUSY: f"another process has held the file for {BUSY_SECONDS:g} s: try again",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore a backup, then start with --new-epoch",
    sqlite3.SQLITE_NOTADB: "this is no SQLite file: name another, or restore a backup",
}


def in_words(path: Path, error: sqlite3.Error) -> StoreError:
    """What happened to the file and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return StoreError(f"{path}: {_WORDS.get(code, 'SQLite failed')} ({error})")


def open_file(path: Path) -> sqlite3.Connection:
    """A checked connection; a file that is not there is made, for this user only. Raises StoreError."""
    try:
        _make(path)
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    except OSError as error:
        raise StoreError(f"{path}: cannot be made: {error.strerror}; its folder must be writable") from error
    except sqlite3.Error as error:
        raise in_words(path, error) from error
    try:
        _check_when_free(path, connection)
        return connection
    except sqlite3.Error as error:
        connection.close()
        raise in_words(path, error) from error
    except BaseException:
        connection.close()
        raise


Identity = tuple[tuple[int, int], ...]


def identity(path: Path) -> Identity:
    """Which files of this machine the store is now: (device, inode) of the file and of its log; (0, 0): none.
    While a connection is open SQLite replaces neither."""
    return tuple(_inode(f"{path}{suffix}") for suffix in ("", "-wal"))


def _inode(name: str) -> tuple[int, int]:
    try:
        status = os.stat(name)
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino


def check_there(path: Path, opened: Identity) -> None:
    """SQLite would go on writing to files that have no name any more, and all of it would be lost. Raises
    StoreError."""
    if identity(path) != opened:
        raise StoreError(
            f"{path}: the file, or its -wal, was deleted, moved or replaced while it was in use: put it "
            "back, or restart to use what is there now; nothing was changed, reads go on"
        )


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """All of it or nothing. IMMEDIATE: the right to write is taken first, so that nobody comes between."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # after some errors (a full disk) SQLite has rolled back by itself
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _make(path: Path) -> None:
    if not path.parent.is_dir():
        hint = "" if path.is_absolute() else f"; for an absolute path write sqlite:////{path}"
        raise StoreError(f"{path}: there is no folder {path.parent}: make it first{hint}")
    if path.exists():
        if not path.is_file():
            raise StoreError(f"{path}: is no file: name one")
        return
    # only when it is new: closing a descriptor of a file drops the locks that others in this process hold
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return  # another process was quicker


def _check_when_free(path: Path, connection: sqlite3.Connection) -> None:
    """While another process makes the file a store, SQLite says at once that it is busy."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return _check(path, connection)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """Refuses what is not ours before anything is written to it."""
    with transaction(connection, "DEFERRED"):  # all of one moment: another process may be making it
        application, form, tables = _look(connection)
    new = (application, form, tables) == (0, 0, 0)
    if not new:
        _check_ours(path, application, form)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise StoreError(f"{path}: this file system cannot do SQLite's WAL: use a local disk")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA journal_size_limit={MAX_LOG}")
    if new:
        _found(connection)
    else:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreError(f"{path}: {_WORDS[sqlite3.SQLITE_CORRUPT]} ({verdict})")
    if connection.execute("SELECT count(*) FROM head").fetchone() != (1,):
        raise StoreError(f"{path}: {_WORDS[sqlite3.SQLITE_CORRUPT]} (it has no head)")


def _check_ours(path: Path, application: int, form: int) -> None:
    if application != APPLICATION:
        raise StoreError(f"{path}: is the SQLite file of another program: name another file")
    if form > FORMAT:
        raise StoreError(
            f"{path}: was written by a newer fastproxyctl (format {form}, this one knows {FORMAT}): upgrade"
        )
    if form < FORMAT:
        raise StoreError(
            f"{path}: format {form} is older than this fastproxyctl reads ({FORMAT}): "
            "get its documents with the release that wrote it and apply them to a new store"
        )


def _look(connection: sqlite3.Connection) -> tuple[int, int, int]:
    questions = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    application, form, tables = (connection.execute(question).fetchone()[0] for question in questions)
    return application, form, tables


def _found(connection: sqlite3.Connection) -> None:
    """A new store, in one transaction: a kill leaves an empty file, which is new again."""
    with transaction(connection):
        if _look(connection)[2]:
            return  # another process was quicker
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute("INSERT INTO head VALUES (1, ?, 0, 0, '')", (now_ms(),))
        connection.execute(f"PRAGMA application_id={APPLICATION}")
        connection.execute(f"PRAGMA user_version={FORMAT}")
