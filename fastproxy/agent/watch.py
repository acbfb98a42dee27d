"""Notices that a file or folder has changed, by looking: rename, edit in place, and the symlinks of a mounted
ConfigMap all show in stat(2), and so do network file systems, where inotify is silent."""

from __future__ import annotations

import asyncio
import os
import time

INTERVAL = 0.25
SETTLE = 0.05  # an editor that writes in place gets this long to finish
SETTLE_MOST = 1.0
MAX_FILES = 10_000
SUFFIXES = (".yaml", ".yml", ".json")

Print = tuple[tuple[str, int, int, int, int], ...]


def fingerprint(path: str) -> Print:
    """What identifies the contents that lie at ``path`` now; equal as long as nothing was written."""
    files = [path]
    try:
        if os.path.isdir(path):
            names = [n for n in os.listdir(path) if n.endswith(SUFFIXES) and not n.startswith(".")]
            files += [os.path.join(path, n) for n in sorted(names)[:MAX_FILES]]
    except OSError:
        files = [path]
    return tuple(_print(file) for file in files)


def _print(file: str) -> tuple[str, int, int, int, int]:
    try:
        s = os.stat(file)
    except OSError as e:
        return (file, -1, e.errno or 0, 0, 0)
    return (file, s.st_dev, s.st_ino, s.st_mtime_ns, s.st_size)


class Watch:
    """``seen`` is the fingerprint of what was last read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen = fingerprint(path)

    def mark(self) -> None:
        """What lies there now is about to be read."""
        self.seen = fingerprint(self.path)

    async def changed(self) -> None:
        """Return when something else lies there than was read, and writing has paused."""
        while True:
            started = time.monotonic()
            now = fingerprint(self.path)
            cost = time.monotonic() - started
            if now != self.seen:
                break
            await asyncio.sleep(max(INTERVAL, 50 * cost))
        waited = 0.0
        while waited < SETTLE_MOST:
            await asyncio.sleep(SETTLE)
            waited += SETTLE
            before, now = now, fingerprint(self.path)
            if before == now:
                return
