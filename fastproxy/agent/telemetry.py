"""Telemetry: one thread drains the workers' journals to metrics and the access log.

The thread runs compiled code without the GIL, so the agent's loop is never held up by traffic.
"""

from __future__ import annotations

import os
import stat
import threading

from fastproxy import errors
from fastproxy._telemetry import Drain
from fastproxy.agent import metrics

FILE, SOCKET, CAREFUL = 0, 1, 2


def open_log(path: str) -> tuple[int, int]:
    """The access log at ``path`` (``-``: standard output), opened so that writing never waits.

    Descriptor and mode. Raises OSError. A named pipe that nobody reads is an error.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    if path != "-":
        return os.open(path, flags | os.O_CREAT | os.O_NOCTTY, 0o640), FILE
    if stat.S_ISSOCK(os.fstat(1).st_mode):
        return os.dup(1), SOCKET
    try:
        # A file description of our own: not blocking must not come over whoever else has this one.
        return os.open("/proc/self/fd/1", flags | os.O_NOCTTY), FILE
    except OSError:
        return os.dup(1), CAREFUL


class Telemetry:
    """What the agent knows of traffic. All methods may be called from any thread; only ``stop`` waits.

    ``log``: path of the access log, ``-`` for standard output, or ``off``. With it on, the agent sets
    ``log_strings`` in live memory, so that workers put texts in their records. ``limit``: label sets counted
    apart; all beyond it are counted together as ``overflow``.
    """

    def __init__(
        self, node: str = "unknown", log: str = "off", *, live: metrics.Live | None = None, limit: int = 512
    ) -> None:
        self.live = live
        self._node = node
        self._log = log
        self._pids: dict[str, int] = {"agent": os.getpid()}
        self._clusters: dict[int, str] = {}
        self._endpoints: dict[int, str] = {}
        self._attached: set[int] = set()
        self._thread: threading.Thread | None = None
        self._drain = Drain(
            {int(kind): row.flag for kind, row in errors.TABLE.items()},
            {int(kind): kind.name.lower() for kind in errors.Kind},
            limit,
        )
        if log != "off":
            self.reopen()

    def start(self) -> None:
        """Start the thread. It does nothing but drain: 20 wake-ups a second when idle."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain.run, name="fastproxy-journal", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Drain what is left, write the log out, end the thread. Up to a second when the log is stuck."""
        self._drain.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        else:
            self._drain.run()

    def attach(self, worker: int, fd: int) -> None:
        """Drain this worker's ring (``_journal.create``) from now on. The descriptor stays the caller's.

        Raises ValueError or OSError for what is not a ring.
        """
        self._drain.add(worker, fd)
        self._attached.add(worker)

    def detach(self, worker: int) -> None:
        """The worker is dead: its ring is read to the end, then let go. Its counts stay."""
        self._drain.remove(worker)
        self._attached.discard(worker)
        self._pids.pop(f"worker {worker}", None)

    def running(self, worker: int, pid: int) -> None:
        """The process of a worker, for its CPU time and memory. Optional."""
        self._pids[f"worker {worker}"] = pid

    def names(
        self,
        version: int,
        routes: dict[int, str],
        clusters: dict[int, str],
        endpoints: dict[int, str],
        listeners: dict[int, str],
    ) -> None:
        """What numbers in this plan's records mean: Route.id, live slots (clusters, endpoints), listener
        index.

        Call it before any worker gets the plan. Clusters have Envoy's names (``outbound|port|subset|host``).
        Slots are remembered across versions, routes and listeners for the newest eight.
        """
        keep = routes if self._log != "off" else {}
        self._drain.set_names(version, keep, clusters, endpoints, listeners)
        self._clusters, self._endpoints = dict(clusters), dict(endpoints)

    def reopen(self) -> None:
        """Open the access log anew, after it was renamed (rotation). Raises OSError; the old one then
        stays."""
        if self._log != "off":
            self._drain.set_log(*open_log(self._log))

    def totals(self) -> tuple[int, int]:
        """Exchanges that have ended since the start, and those of them with a status of 500 or more."""
        return self._drain.totals()

    def expose(self) -> bytes:
        """All metrics as text (``metrics.CONTENT_TYPE``). Many series take milliseconds: call it from a
        thread."""
        text = metrics.Text()
        overflowed, series = self._drain.series()
        counts = self._drain.counts()
        journals = [metrics.Worker(number, *counts[number]) for number in sorted(counts)]
        metrics.istio(text, series, self._node)
        metrics.of_journals(text, journals, overflowed, self._drain.log_counts())
        live = self.live
        if live is not None:
            workers = sorted(self._attached)
            metrics.of_workers(text, workers, live)
            metrics.of_slots(text, live, self._clusters, self._endpoints)
        metrics.of_processes(text, dict(self._pids))
        return text.bytes()
