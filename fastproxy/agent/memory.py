"""The shared memory that the agent makes: live, once; a journal ring for each life of a worker."""

from __future__ import annotations

import fcntl
import os
from typing import Protocol

from fastproxy import _journal
from fastproxy._balance import Live
from fastproxy.settings import Settings

FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Rings(Protocol):
    """Who reads the journal: fastproxy.agent.telemetry."""

    def attach(self, worker: int, fd: int) -> None: ...
    def running(self, worker: int, pid: int) -> None: ...
    def detach(self, worker: int) -> None: ...


class SharedMemory:
    """Descriptors and mappings. A dead worker's column is zeroed, and its ring read to the end and replaced:
    what a crashed process left in it is never written to again."""

    def __init__(self, settings: Settings, rings: Rings) -> None:
        workers, clusters, endpoints = settings.worker_count(), settings.max_clusters, settings.max_endpoints
        self._rings = rings
        self._ring_bytes = settings.journal
        self._attached: dict[int, int] = {}
        self.live_fd = os.memfd_create("fastproxy-live", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.live_fd, Live.bytes(workers, clusters, endpoints))
        fcntl.fcntl(self.live_fd, fcntl.F_ADD_SEALS, FIXED)
        self.live = Live(self.live_fd, create=(workers, clusters, endpoints))

    def new_ring(self, worker: int, pid: int) -> int:
        """A ring for that worker, read by telemetry from now on; its descriptor stays ours."""
        self.end_column(worker)
        fd = _journal.create(self._ring_bytes)
        self._attached[worker] = fd
        self._rings.attach(worker, fd)
        self._rings.running(worker, pid)
        return fd

    def end_column(self, worker: int) -> None:
        """That worker is dead: read the rest of its ring, forget what it had in use."""
        fd = self._attached.pop(worker, None)
        if fd is not None:
            self._rings.detach(worker)
            os.close(fd)
            self.live.zero(worker)

    def close(self) -> None:
        for worker in list(self._attached):
            self.end_column(worker)
        os.close(self.live_fd)
