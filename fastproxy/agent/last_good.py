"""The last good version on disk: a proxy that starts while nobody answers serves it.

One file for each node and view, replaced whole or not at all::

    magic 8 | format u32 | bytes of the body u64 | SHA-256 of the body 32 | body

Numbers are little-endian. The body is msgpack: node, view, format of the tables, epoch, version, hash,
rows (as the body of a snapshot, see :mod:`fastproxy.wire`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from fastproxy.agent import log
from fastproxy.bodies import pack_body, unpack_rows
from fastproxy.rows import Packed, Rows
from fastproxy.tables import FORMAT

MAGIC = b"fpGOOD\r\n"
FILE_FORMAT = 1
HEAD = struct.Struct("<8sIQ32s")
SCRATCH = ".new"
MAX_BYTES = 512 * 1024 * 1024
INTERVAL = 1.0  # seconds between two writes, at least
SHARE = 20  # and this often the time that the last one took: a slow disk is not kept busy
RETRY_MIN, RETRY_MAX = 2.0, 60.0  # seconds to the next try after one that failed
CLOSE_PATIENCE = 2.0  # a disk that hangs does not keep the proxy from ending
READ_ONLY = "the control plane's version serves all the same, and is kept once the folder can be written"


class Kept(NamedTuple):
    """One version as it was sent."""

    epoch: int
    version: int
    hash: bytes
    rows: Packed


class Damaged(ValueError):
    """This file is not what was written here; says in which way."""


def folder_of(state: str) -> Path:
    """``--state``, or what XDG says of state that should outlive a restart."""
    if state:
        return Path(state)
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path("~/.local/state").expanduser()) / "fastproxy"


class LastGood:
    """``folder``: made when the first version is kept. ``node`` must be fit for a file's name."""

    def __init__(self, folder: Path, node: str, view: str) -> None:
        self.path = folder / f"{node}.{view}.last-good"
        self.version = 0  # what the file holds
        self.error = ""  # why it does not hold the newest
        self._node = node
        self._view = view
        self._wanted: Kept | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<LastGood {self.path}: version {self.version} {self.error or 'well'}>"

    def describe(self) -> dict[str, Any]:
        return {"path": str(self.path), "version": self.version, "error": self.error}

    # --- reading ---

    def load(self) -> tuple[int, int, Rows] | None:
        """Epoch, version and rows; None where there are none. A file that is damaged is said aloud and set
        aside as ``.bad``."""
        self._clear()
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            with open(fd, "rb") as file:
                kept, rows = self._read(file.read(MAX_BYTES + 1))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            log.error(
                f"the last good version cannot be read: {e.strerror}", str(self.path), "started without"
            )
            return None
        except ValueError as e:
            aside = self.path.with_name(self.path.name + ".bad")
            do = f"kept as {aside.name}, started without it"
            try:
                os.replace(self.path, aside)
            except OSError as why:
                do = f"started without it; it cannot be set aside: {why.strerror}"
            log.error(f"the last good version is of no use: {e}", str(self.path), do)
            return None
        self.version = kept.version
        return kept.epoch, kept.version, rows

    def _clear(self) -> None:
        """What a process that was killed left half written."""
        with contextlib.suppress(OSError):
            for left in self.path.parent.glob(f"{self.path.name}.*{SCRATCH}"):
                left.unlink(missing_ok=True)

    def _read(self, data: bytes) -> tuple[Kept, Rows]:
        if len(data) < HEAD.size or len(data) > MAX_BYTES:
            raise Damaged(f"it has {len(data)} bytes")
        magic, file_format, size, digest = HEAD.unpack_from(data)
        if magic != MAGIC:
            raise Damaged("it is another kind of file")
        if file_format != FILE_FORMAT:
            raise Damaged(f"it has format {file_format}, this build reads {FILE_FORMAT}")
        body = memoryview(data)[HEAD.size :]
        if len(body) != size:
            raise Damaged(f"{size} bytes were written and {len(body)} are there")
        if hashlib.sha256(body).digest() != digest:
            raise Damaged("its checksum is wrong")
        return self._unpack(body)

    def _unpack(self, body: memoryview) -> tuple[Kept, Rows]:
        try:
            node, view, tables_format, epoch, version, stated, rows = msgpack.unpackb(body)
            kept = Kept(int(epoch), int(version), stated, unpack_rows(rows))
        except Exception as e:  # msgpack raises what it likes
            raise Damaged(f"its body cannot be unpacked: {e}") from None
        if (node, view) != (self._node, self._view):
            raise Damaged(f"it is of node {node!r} and view {view!r}")
        if tables_format != FORMAT:
            raise Damaged(f"its tables have format {tables_format}, this build reads {FORMAT}")
        held = Rows.of(kept.rows)
        if held.hash != kept.hash:
            raise Damaged("its rows do not give the hash it names")
        return kept, held

    # --- writing ---

    def keep(self, kept: Kept) -> None:
        """Write this when there is time; only the newest of several is written. Never waits."""
        with self._changed:
            self._wanted = kept
            self._changed.notify()
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name="fastproxy-last-good", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what waits, then end; a disk that hangs is not waited for long."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join(CLOSE_PATIENCE)

    def _run(self) -> None:
        pause, retry = 0.0, 0.0
        while True:
            with self._changed:
                if pause:
                    self._changed.wait_for(lambda: self._closing, pause)
                self._changed.wait_for(lambda: self._wanted or self._closing)
                kept, self._wanted = self._wanted, None
                if kept is None:
                    return
            started = time.monotonic()
            if self._try(kept):
                pause, retry = max(INTERVAL, SHARE * (time.monotonic() - started)), 0.0
                continue
            pause = retry = min(RETRY_MAX, retry * 2 or RETRY_MIN)
            with self._changed:
                if self._closing:
                    return
                self._wanted = self._wanted or kept

    def _try(self, kept: Kept) -> bool:
        try:
            write(self.path, encode(self._node, self._view, kept))
        except (OSError, MemoryError, ValueError) as e:
            why = getattr(e, "strerror", "") or f"{type(e).__name__}: {e}"
            if why != self.error:
                log.warning(f"the last good version cannot be written: {why}", str(self.path), READ_ONLY)
            self.error = why
            return False
        if self.error:
            log.info(f"the last good version is written again: {kept.version}", str(self.path))
        self.version, self.error = kept.version, ""
        return True


def encode(node: str, view: str, kept: Kept) -> bytes:
    """The file's bytes."""
    body: bytes = msgpack.packb([node, view, FORMAT, *kept[:3], pack_body(kept.rows)])
    return HEAD.pack(MAGIC, FILE_FORMAT, len(body), hashlib.sha256(body).digest()) + body


def write(path: Path, data: bytes) -> None:
    """Replace the file in one step, durable when this returns. Raises OSError; then the old one is whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, scratch = tempfile.mkstemp(prefix=f"{path.name}.", suffix=SCRATCH, dir=path.parent)  # mode 0600
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
