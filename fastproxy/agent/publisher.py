"""Makes tables a plan and gives it to all workers: sockets opened, compiled, checked, sealed, swapped."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import gc
import hashlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar

import msgpack

from fastproxy import _plan
from fastproxy._balance import Live
from fastproxy.agent import log
from fastproxy.agent.dns import Resolver, names_of
from fastproxy.agent.listeners import Listeners
from fastproxy.agent.orders import Orders
from fastproxy.agent.supervisor import Outcome, Supervisor
from fastproxy.plan import Compiled, compile_plan
from fastproxy.settings import Settings
from fastproxy.slots import Slots
from fastproxy.tables import Tables

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
RESOLVE_PATIENCE = 1.0  # a plan waits so long for the first answers to new names
NICE = 10  # compiling never competes with traffic


P = ParamSpec("P")
R = TypeVar("R")


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


class PlanRefused(ValueError):
    """Workers did not take the plan; the one before goes on."""


@dataclass(slots=True)
class Published:
    """One version. ``fd`` is the sealed block, ``hash`` of the tables, times in seconds.

    clusters, endpoints: their slots in live memory, by cluster key and by ``service|address``.
    """

    version: int
    tables: Tables
    fd: int
    size: int
    hash: str
    compile_seconds: float
    at: float
    clusters: dict[str, int]
    endpoints: dict[str, int]
    resolved: dict[str, list[str]] = field(default_factory=dict)
    outcome: Outcome | None = None

    def view(self) -> _plan.PlanView:
        """The sealed block, mapped for as long as the answer lives."""
        return _plan.PlanView(mmap.mmap(self.fd, self.size, prot=mmap.PROT_READ))


@dataclass(slots=True)
class Prepared:
    """A plan that is made and does not serve: for :meth:`Publisher.commit`, or :meth:`Publisher.drop`."""

    made: Published
    compiled: Compiled


class Publisher:
    """One call at a time; the caller serialises. Versions count up from 1, by one where none is dropped."""

    def __init__(
        self,
        settings: Settings,
        supervisor: Supervisor,
        listeners: Listeners,
        resolver: Resolver,
        names: Names,
        live: Live,
        orders: Orders,
    ) -> None:
        self._supervisor = supervisor
        self._resolver = resolver
        self._names = names
        self._live = live
        self._orders = orders
        self._slots = Slots(settings.max_clusters, settings.max_endpoints)
        self._compiler = ThreadPoolExecutor(1, "fastproxy-compile", _lower_priority)
        self._prepared: list[Prepared] = []
        self._version = 0  # of the plan that was made last
        self.listeners = listeners
        self.epoch = time.time_ns() // 1_000_000
        self.current: Published | None = None

    def __repr__(self) -> str:
        return f"<Publisher: version {self.current.version if self.current else 0}, {self._slots!r}>"

    def is_current(self, tables: Tables) -> bool:
        """Publishing these would change nothing."""
        now = self.current
        return now is not None and now.tables == tables and now.resolved == self._resolved(tables)

    async def publish(self, tables: Tables) -> Published:
        """Raises ValueError where the tables cannot become a plan, or no worker takes it; the old plan then
        goes on."""
        now = self.current
        if now and self._differ_in_orders_only(now, tables):
            # no plan holds an order: a breaker is tripped at once, however long a compile would take
            self._orders.apply(tables["breakers"], now.clusters, now.endpoints)
            now.tables, now.hash = tables, await self.in_thread(_hash, tables)
            return now
        return await self.commit(await self.prepare(tables))

    async def prepare(self, tables: Tables) -> Prepared:
        """Make the plan and hold it; nothing that serves changes. ValueError: it cannot be made."""
        await self._resolver.follow(names_of(tables) | self._followed(), RESOLVE_PATIENCE)
        self._release_slots()
        version = self._version + 1
        try:
            prepared = await self.in_thread(self._compile, tables, version, self._resolved(tables))
        except BaseException:
            await self._resolver.follow(self._followed(), 0)
            raise
        self._version = version
        self._prepared.append(prepared)
        return prepared

    async def commit(self, prepared: Prepared) -> Published:
        """Serve what was prepared. It is made anew where names resolve to other addresses by now, or another
        plan was published in between. Raises ValueError as :meth:`publish` does."""
        before = self.current
        made, tables = prepared.made, prepared.made.tables
        old = before is not None and made.version < before.version
        if old or made.resolved != self._resolved(tables):
            self.drop(prepared)
            prepared = await self.prepare(tables)
            made = prepared.made
        await self.in_thread(self._tell_names, prepared.compiled)
        self._prepared.remove(prepared)
        try:
            await self._swap(made, before)
        except PlanRefused:
            os.close(made.fd)
            raise
        finally:
            await self._resolver.follow(self._followed(), 0)
        return made

    def drop(self, prepared: Prepared) -> None:
        """Forget what was prepared."""
        self._prepared.remove(prepared)
        os.close(prepared.made.fd)

    async def in_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do this where plans are compiled: one after the other, and never at the cost of traffic."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._compiler, functools.partial(_uncollected, functools.partial(work, *args, **kwargs))
        )

    def retry_listeners(self) -> None:
        """Try again to open what could not be opened, say because its port was in use."""
        if self.current and self.listeners.errors:
            for name, sock in self.listeners.add(self.current.tables["listeners"]).items():
                log.info(f"listener {name} is open now")
                self._supervisor.listen(name, sock)

    def report_listeners(self) -> None:
        for name, e in self.listeners.errors.items():
            log.error(f"listener {name}: {e.what}", do=e.do)

    def trouble(self) -> str:
        """What of the version that serves does not: listeners that could not be opened, and are tried again,
        and workers that have not said that they took it."""
        told = [f"listener {name}: {e.what}" for name, e in self.listeners.errors.items()]
        outcome = self.current.outcome if self.current else None
        if outcome and (late := [i for i in outcome.missing if self._supervisor.lags(i, outcome.version)]):
            told.append(f"workers {', '.join(map(str, late))} have not taken it yet")
        return "; ".join(told)

    def close(self) -> None:
        self._compiler.shutdown()
        for prepared in list(self._prepared):
            self.drop(prepared)
        if self.current:
            os.close(self.current.fd)
            self.current = None

    def _close(self, names: Iterable[str]) -> None:
        for name in names:
            self._supervisor.unlisten(name)
            self.listeners.close(name)

    async def _swap(self, made: Published, before: Published | None) -> None:
        """Sockets, orders, workers; PlanRefused after going back."""
        made.outcome = outcome = await self._give(made)
        if outcome.rejected:
            if before:
                await self._give(before)
            else:
                self._close(list(self.listeners.open))
                self._orders.apply({}, {}, {})
                self._supervisor.withdraw()
            worker, reason = next(iter(outcome.rejected.items()))
            raise PlanRefused(f"worker {worker} rejected the plan: {reason}")
        self.current = made
        if before:
            os.close(before.fd)
        self.report_listeners()

    async def _give(self, plan: Published) -> Outcome:
        table = plan.tables["listeners"]
        leaving = self.listeners.leaving(table)
        moved = [name for name in leaving if name in table]
        self._close(moved)
        opened = self.listeners.add(table)
        self._orders.apply(plan.tables["breakers"], plan.clusters, plan.endpoints)
        outcome = await self._supervisor.publish(plan.version, plan.fd)
        for name, sock in opened.items():
            self._supervisor.listen(name, sock)
        gone = [name for name in leaving if name not in moved]
        self._close(gone)
        for name in gone:
            log.warning(f"listener {name} is closed", do="the resources do not name it any more")
        return outcome

    def _compile(self, tables: Tables, version: int, resolved: dict[str, list[str]]) -> Prepared:
        """In a thread, so that the admin API answers meanwhile."""
        started = time.monotonic()
        compiled = compile_plan(tables, self._slots, epoch=self.epoch, version=version, resolved=resolved)
        _plan.PlanView(compiled.plan).check()
        made = Published(
            version,
            tables,
            seal(compiled.plan),
            len(compiled.plan),
            _hash(tables),
            time.monotonic() - started,
            time.time(),
            {cluster.name: slot for slot, cluster in compiled.clusters.items()},
            {endpoint.key: slot for slot, endpoint in compiled.endpoints.items()},
            resolved,
        )
        return Prepared(made, dataclasses.replace(compiled, plan=b""))

    def _tell_names(self, compiled: Compiled) -> None:
        """Before a worker gets the plan: from then on there may be records of it."""
        self._names.names(
            compiled.version,
            {number: route.name for number, route in enumerate(compiled.routes)},
            {slot: cluster.name for slot, cluster in compiled.clusters.items()},
            {slot: endpoint.name for slot, endpoint in compiled.endpoints.items()},
            dict(enumerate(compiled.listeners)),
        )

    def _known(self) -> list[Published]:
        """Every plan that serves or may."""
        return [*([self.current] if self.current else []), *(p.made for p in self._prepared)]

    def _followed(self) -> set[str]:
        return {host for plan in self._known() for host in plan.resolved}

    def _resolved(self, tables: Tables) -> dict[str, list[str]]:
        known = self._resolver.resolved
        return {host: known.get(host, []) for host in sorted(names_of(tables))}

    def _differ_in_orders_only(self, now: Published, tables: Tables) -> bool:
        def rest(some: Tables) -> dict[str, Any]:
            policies = {key: row["policy"] for key, row in some["breakers"].items() if "policy" in row}
            return {**some, "breakers": policies}

        return rest(now.tables) == rest(tables) and now.resolved == self._resolved(tables)

    def _release_slots(self) -> None:
        """Give back the slots of what no plan has any more and nothing counts in."""
        workers = self._supervisor.workers
        if any(self._live.gauges(w.index)["plans"] > 1 for w in workers):
            return
        clusters, endpoints = self._slots.clusters.retired(), self._slots.endpoints.retired()
        for plan in self._known():  # a plan that was made later and dropped does not retire what serves
            clusters = {name: slot for name, slot in clusters.items() if name not in plan.clusters}
            endpoints = {name: slot for name, slot in endpoints.items() if name not in plan.endpoints}
        idle = [n for n, slot in clusters.items() if not self._live.cluster(slot)["active"]]
        gone = []
        for name, slot in endpoints.items():
            count = self._live.endpoint(slot)
            if not count["active"] and not count["connections"]:
                self._live.set_health(slot, 0)
                gone.append(name)
        self._slots.release(idle, gone)


def _uncollected(work: Callable[[], R]) -> R:
    """All that is made there stays alive: walking it again and again would double the time."""
    gc.disable()
    try:
        return work()
    finally:
        gc.enable()


def _hash(tables: Tables) -> str:
    return hashlib.sha256(msgpack.packb(tables)).hexdigest()


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
