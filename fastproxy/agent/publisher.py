"""Makes tables a plan and gives it to all workers: sockets opened, compiled, checked, sealed, swapped."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import hashlib
import mmap
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import msgpack

from fastproxy import _plan
from fastproxy._balance import Live
from fastproxy.agent import log
from fastproxy.agent.dns import Resolver, names_of
from fastproxy.agent.listeners import Listeners
from fastproxy.agent.supervisor import Outcome, Supervisor
from fastproxy.plan import compile_plan
from fastproxy.settings import Settings
from fastproxy.slots import Slots
from fastproxy.tables import Tables

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
RESOLVE_PATIENCE = 1.0  # a plan waits so long for the first answers to new names
NICE = 10  # compiling never competes with traffic


class Names(Protocol):
    """Who must know what the numbers in a plan's records mean: telemetry."""

    def names(
        self,
        version: int,
        routes: dict[int, str],
        clusters: dict[int, str],
        endpoints: dict[int, str],
        listeners: dict[int, str],
    ) -> None: ...


@dataclass(slots=True)
class Published:
    """One version. ``fd`` is the sealed block, ``hash`` of the tables, times in seconds."""

    version: int
    tables: Tables
    fd: int
    size: int
    hash: str
    compile_seconds: float
    at: float
    resolved: dict[str, list[str]] = field(default_factory=dict)
    outcome: Outcome | None = None

    def view(self) -> _plan.PlanView:
        """The sealed block, mapped for as long as the answer lives."""
        return _plan.PlanView(mmap.mmap(self.fd, self.size, prot=mmap.PROT_READ))


class Publisher:
    """One publication at a time; the caller serialises. Versions count up by one from 1."""

    def __init__(
        self,
        settings: Settings,
        supervisor: Supervisor,
        listeners: Listeners,
        resolver: Resolver,
        names: Names,
        live: Live,
    ) -> None:
        self._supervisor = supervisor
        self._resolver = resolver
        self._names = names
        self._live = live
        self._slots = Slots(settings.max_clusters, settings.max_endpoints)
        self._compiler = ThreadPoolExecutor(1, "fastproxy-compile", _lower_priority)
        self.listeners = listeners
        self.epoch = time.time_ns() // 1_000_000
        self.current: Published | None = None

    def __repr__(self) -> str:
        return f"<Publisher: version {self.current.version if self.current else 0}, {self._slots!r}>"

    def is_current(self, tables: Tables) -> bool:
        """Publishing these would change nothing."""
        now = self.current
        return now is not None and now.tables == tables and now.resolved == self._resolver.resolved

    async def publish(self, tables: Tables) -> Published:
        """Raises ValueError where the tables cannot become a plan; the old plan then goes on."""
        loop = asyncio.get_running_loop()
        before = self.current
        await self._resolver.follow(names_of(tables), RESOLVE_PATIENCE)
        self._release_slots()
        version = before.version + 1 if before else 1
        resolved = self._resolver.resolved
        try:
            published = await loop.run_in_executor(self._compiler, self._compile, tables, version, resolved)
        except ValueError:
            if before:
                await self._resolver.follow(names_of(before.tables), 0)
            raise
        leaving = self.listeners.leaving(tables["listeners"])
        moved = [name for name in leaving if name in tables["listeners"]]
        self._close(moved)
        opened = self.listeners.add(tables["listeners"])
        published.outcome = await self._supervisor.publish(version, published.fd)
        for name, sock in opened.items():
            self._supervisor.listen(name, sock)
        gone = [name for name in leaving if name not in moved]
        self._close(gone)
        for name in gone:
            log.warning(f"listener {name} is closed", do="the resources do not name it any more")
        self.current = published
        if before:
            os.close(before.fd)
        self.report_listeners()
        return published

    def retry_listeners(self) -> None:
        """Try again to open what could not be opened, say because its port was in use."""
        if self.current and self.listeners.errors:
            for name, sock in self.listeners.add(self.current.tables["listeners"]).items():
                log.info(f"listener {name} is open now")
                self._supervisor.listen(name, sock)

    def report_listeners(self) -> None:
        for name, e in self.listeners.errors.items():
            log.error(f"listener {name}: {e.what}", do=e.do)

    def close(self) -> None:
        self._compiler.shutdown()
        if self.current:
            os.close(self.current.fd)
            self.current = None

    def _close(self, names: Iterable[str]) -> None:
        for name in names:
            self._supervisor.unlisten(name)
            self.listeners.close(name)

    def _compile(self, tables: Tables, version: int, resolved: dict[str, list[str]]) -> Published:
        """In a thread, so that the admin API answers meanwhile."""
        started = time.monotonic()
        gc.disable()  # all of it is alive: walking it again and again would double the time
        try:
            compiled = compile_plan(tables, self._slots, epoch=self.epoch, version=version, resolved=resolved)
        finally:
            gc.enable()
        _plan.PlanView(compiled.plan).check()
        self._names.names(
            version,
            {number: route.name for number, route in enumerate(compiled.routes)},
            {slot: cluster.name for slot, cluster in compiled.clusters.items()},
            {slot: endpoint.name for slot, endpoint in compiled.endpoints.items()},
            dict(enumerate(compiled.listeners)),
        )
        return Published(
            version,
            tables,
            seal(compiled.plan),
            len(compiled.plan),
            hashlib.sha256(msgpack.packb(tables)).hexdigest(),
            time.monotonic() - started,
            time.time(),
            resolved,
        )

    def _release_slots(self) -> None:
        """Give back the slots of what no plan has any more and nothing counts in."""
        workers = self._supervisor.workers
        if any(self._live.gauges(w.index)["plans"] > 1 for w in workers):
            return
        clusters, endpoints = self._slots.clusters.retired(), self._slots.endpoints.retired()
        idle = [n for n, slot in clusters.items() if not self._live.cluster(slot)["active"]]
        gone = []
        for name, slot in endpoints.items():
            count = self._live.endpoint(slot)
            if not count["active"] and not count["connections"]:
                self._live.set_health(slot, 0)
                gone.append(name)
        self._slots.release(idle, gone)


def _lower_priority() -> None:
    """Of this thread alone (Linux: each thread has its own nice value)."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def seal(block: bytes | bytearray | memoryview) -> int:
    """The block in a memfd that nobody can change any more."""
    fd = os.memfd_create("fastproxy-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as f:
            f.write(block)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
