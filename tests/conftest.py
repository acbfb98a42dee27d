"""For all tests: nothing a run started outlives it."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# In the environment of everything that a test starts, so that orphans are found as well.
MARK = "TEST_RUN_MARK"
GRACE_SECONDS = 5.0


def started_by(mark: str) -> dict[int, str]:
    """Living processes, other than this one, that carry the mark: pid -> command line."""
    found = {}
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                found[int(entry.name)] = command.strip()
        except OSError:
            continue  # ended meanwhile, or not ours to read
    return found


def listening() -> set[str]:
    """Inodes of the TCP sockets that this process listens on."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                inodes.add(f"socket:[{words[9]}]")
    own = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            own.add(os.readlink(descriptor))
        except OSError:
            continue  # the descriptor of this very listing
    return inodes & own


@pytest.fixture(scope="session", autouse=True)
def _nothing_outlives_the_run() -> Iterator[None]:
    """The last to be torn down: no process started by a test lives, no socket of a test still listens.

    Session wide, since proxies and upstreams are shared by many tests. A worker whose agent was killed on
    purpose ends by itself, so there is a grace.
    """
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    before = listening()
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := started_by(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    del os.environ[MARK]
    assert not left, f"processes outlived the tests: {left}"
    open_still = listening() - before
    assert not open_still, f"{len(open_still)} sockets of the test process still listen"
