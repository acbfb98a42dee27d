"""Tables -> plan: the block that every worker maps (``_plan.pxd``), and the names behind its numbers.

A pure function of tables, slots and resolved names: the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgpack

from fastproxy import _plan
from fastproxy.plan.clusters import ClusterName, Clusters, EndpointName
from fastproxy.plan.index import HostIndex
from fastproxy.plan.patterns import Patterns
from fastproxy.plan.routes import Routes
from fastproxy.plan.trie import Sets
from fastproxy.plan.writer import NONE, PlanError, Writer
from fastproxy.slots import Slots
from fastproxy.tables import Route, Tables

__all__ = ["ClusterName", "Compiled", "EndpointName", "PlanError", "RouteName", "compile_plan"]

MESH = "mesh"
MAX_HOST = 255


class RouteName(NamedTuple):
    """What a route id stands for. ``host``: of the virtual host, as in the tables."""

    name: str
    host: str
    listener: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan and the names behind its numbers.

    plan: the block. listeners: names by index. routes: by route id. clusters, endpoints: by live slot.
    unresolved: host names of endpoints that ``resolved`` had no address for; they are not in this plan.
    """

    epoch: int
    version: int
    plan: bytes
    listeners: list[str]
    routes: list[RouteName]
    clusters: dict[int, ClusterName]
    endpoints: dict[int, EndpointName]
    unresolved: list[str]


class _Hosts:
    """Virtual hosts of all listeners. Hosts with equal matches share one index."""

    def __init__(self, out: Writer, tables: Tables, routes: Routes, patterns: Patterns) -> None:
        self._out = out
        self._tables = tables
        self._routes = routes
        self._patterns = patterns
        self._sets = Sets(out)
        self._rows = out.rows["host"]
        self._route_rows = out.rows["route"]
        self._pack = msgpack.Packer().pack
        self._known: dict[bytes, tuple[int, ...]] = {}
        self.names: list[RouteName] = []

    def _index(self, routes: list[Route]) -> tuple[int, ...]:
        key: bytes = self._pack([route["matches"] for route in routes])
        if key not in self._known:
            index = HostIndex(self._out, self._sets, self._patterns).write(routes)
            self._known[key] = (*index[:-1], *index.wild)
        return self._known[key]

    def add(self, listener: str, host: str, name: bytes) -> int:
        """Row of the virtual host ``host`` of a listener, known to the plan as ``name``."""
        key = f"{listener} {host}"
        virtual = self._tables["routes"][key]
        first = len(self._route_rows)
        source = virtual["source"][0] if virtual["source"] else key
        try:
            for number, route in enumerate(virtual["routes"]):
                route_name = route.get("name") or f"{source}#{number}"
                self._routes.write(route, route_name)
                self.names.append(RouteName(route_name, host, listener))
            index = self._index(virtual["routes"])
        except PlanError as wrong:
            raise PlanError(f"{', '.join(virtual['source']) or key}: {wrong}") from None
        self._rows.append((index[0], *self._out.texts[name], first, len(virtual["routes"]), *index[1:]))
        return len(self._rows) - 1


def _slots(named: list[tuple[bytes, int]]) -> list[int]:
    """Open hash table of (name, row): row + 1, or 0."""
    size = 1
    while size < 2 * len(named) + 1:
        size *= 2
    slots = [0] * size
    for name, row in named:
        at = _plan.name_hash(name, fold=True)
        while slots[at & size - 1]:
            at += 1
        slots[at & size - 1] = row + 1
    return slots


def _listener(out: Writer, hosts: _Hosts, tables: Tables, name: str, names: list[str]) -> None:
    exact: list[tuple[bytes, int]] = []
    suffix: list[tuple[bytes, int]] = []
    any_host = NONE
    for host in names:
        raw = host.lower().encode()
        if len(raw) > MAX_HOST:
            raise PlanError(f"host of {len(raw)} bytes; the limit is {MAX_HOST}")
        if host == "*":
            any_host = hosts.add(name, host, b"*")
        elif raw.startswith(b"*"):
            suffix.append((raw[1:], hosts.add(name, host, raw[1:])))
        else:
            exact.append((raw, hosts.add(name, host, raw)))
    exact_slots, suffix_slots = _slots(exact), _slots(suffix)
    lengths = sorted({len(raw) for raw, _ in suffix}, reverse=True)
    out.row(
        "listener",
        *out.texts[name.encode()],
        tables["listeners"][name]["port"],
        int(name == MESH),
        any_host,
        out.numbers(exact_slots),
        len(exact_slots) - 1,
        out.numbers(suffix_slots),
        len(suffix_slots) - 1,
        out.numbers(lengths),
        len(lengths),
    )


def compile_plan(
    tables: Tables,
    slots: Slots,
    *,
    epoch: int,
    version: int,
    resolved: Mapping[str, Sequence[str]] | None = None,
) -> Compiled:
    """Compile one version of the tables.

    slots: live slots so far; changed only when the whole compile succeeds. resolved: addresses of host names
    that endpoints have. PlanError: a row cannot be compiled; SlotsFull: live memory has no room.
    """
    out = Writer()
    clusters = Clusters(tables, resolved or {})
    cluster_slots, endpoint_slots = clusters.slots(slots)
    clusters.write(out, cluster_slots, endpoint_slots)
    patterns = Patterns(out)
    hosts = _Hosts(out, tables, Routes(out, clusters.numbers, patterns), patterns)
    listeners = sorted(tables["listeners"])
    by_listener: dict[str, list[str]] = {name: [] for name in listeners}
    for key in sorted(tables["routes"]):
        listener, _, host = key.rpartition(" ")
        if listener == MESH and listener not in by_listener:
            continue  # its routes wait for a listener
        if listener not in by_listener:
            raise PlanError(f"virtual host {host} is on listener {listener}, which does not exist")
        by_listener[listener].append(host)
    for name in listeners:
        _listener(out, hosts, tables, name, by_listener[name])
    plan = out.finish(epoch, version)
    slots.clusters.commit(cluster_slots)
    slots.endpoints.commit(endpoint_slots)
    return Compiled(
        epoch,
        version,
        plan,
        listeners,
        hosts.names,
        clusters.names,
        clusters.endpoint_names,
        sorted(clusters.unresolved),
    )
