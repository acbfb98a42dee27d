"""The origin as a process, and its counters."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from benchmarks.process import BUILD, free_port, spawn, stop


class Counters(NamedTuple):
    """What the origin has seen since it started."""

    requests: int
    uploaded: int
    connections: int

    def since(self, before: Counters) -> Counters:
        return Counters(*(now - then for now, then in zip(self, before, strict=True)))


class Origin:
    """``origin.c`` on a core, listening on TCP and on a Unix socket."""

    def __init__(self, folder: Path, core: int) -> None:
        self.port = free_port()
        self.path = str(folder / "origin.sock")
        stats = folder / "origin.stats"
        stats.write_bytes(bytes(4096))
        with open(stats, "r+b") as file:
            self._stats = mmap.mmap(file.fileno(), 4096)
        argv = [str(BUILD / "origin"), str(self.port), self.path, str(stats)]
        self._process = spawn(argv, core, folder / "origin.log")

    def counters(self) -> Counters:
        """Requests, upload bytes and connections so far."""
        return Counters(*struct.unpack_from("=3Q", self._stats))

    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        stop(self._process)
