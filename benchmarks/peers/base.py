"""What every peer is: a proxy on a free port of 127.0.0.1 in front of the origin, one worker, on one core."""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks.load import Failed, check
from benchmarks.process import Clock, Cores, Memory, cpu_clock, descendants, free_port, memory, spawn, stop
from benchmarks.scenarios import Row, Setup


class Upstream:
    """Where the origin listens."""

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        self.path = path


class Peer(ABC):
    """One configured proxy. Subclasses write its configuration and say how it is started."""

    name = ""
    patience = 20.0
    """Seconds until it must answer after its start."""

    def __init__(self, setup: Setup, upstream: Upstream, folder: Path, where: Cores) -> None:
        self.setup = setup
        self.upstream = upstream
        self.where = where
        self.port = free_port()
        kind = f"{'unix' if setup.unix else 'tcp'}-{setup.rules}-{'log' if setup.log else 'nolog'}"
        self.folder = folder / f"{self.name}-{kind}-{self.port}"
        self.folder.mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """What is installed; raises :class:`Failed` with what to do when it is not."""

    @abstractmethod
    def command(self) -> list[str]:
        """Write the configuration into ``self.folder``; the command that runs it in the foreground."""

    def start(self, row: Row) -> None:
        """Start, and wait until a request of ``row`` is answered as it should be."""
        self._process = spawn(self.command(), self.where.proxy, self.folder / "log")
        end = time.monotonic() + self.patience
        while True:
            try:
                check(row, self.port, 2.0)
                break
            except Failed as error:
                if self._process.poll() is not None:
                    raise Failed(f"ended at once: {self.said()}") from error
                if time.monotonic() > end:
                    raise Failed(f"{error}: {self.said()}") from error
                time.sleep(0.05)
        self.settle()

    def settle(self) -> None:
        """After the start: what has to be moved or asked for."""
        return

    def stop(self) -> None:
        """End it and all it started."""
        if self._process is not None:
            stop(self._process)
            self._process = None

    def said(self) -> str:
        """The end of what it wrote."""
        lines = (self.folder / "log").read_text(errors="replace").replace(str(self.folder), "").split("\n")
        return " / ".join(line.strip() for line in lines if line.strip())[-300:] or "(it said nothing)"

    @property
    def pid(self) -> int:
        if self._process is None or self._process.poll() is not None:
            raise Failed(f"{self.name} is not running: {self.said()}")
        return self._process.pid

    def worker_pids(self) -> list[int]:
        """Processes that carry requests."""
        return [self.pid, *descendants(self.pid)]

    def agent_pids(self) -> list[int]:
        """Processes beside them, whose cost counts too."""
        return []

    def cpu(self) -> tuple[Clock, Clock]:
        """What has been run: workers, others."""
        return cpu_clock(self.worker_pids()), cpu_clock(self.agent_pids())

    def memory(self) -> tuple[Memory, Memory]:
        """Workers, others."""
        return memory(self.worker_pids()), memory(self.agent_pids())


def output_of(argv: list[str]) -> str:
    """What a program says about its version; empty when it is not there."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()
