"""Clusters, their endpoints, and the order in which unequal weights take turns."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import socket
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from fastproxy.plan.writer import PlanError, Writer
from fastproxy.slots import Slots
from fastproxy.tables import Cluster, Endpoint, Tables

LB = {"ROUND_ROBIN": 1, "LEAST_REQUEST": 2, "RANDOM": 3}
MAX_SCHEDULE = 1024
MAX_UNIX_PATH = 107  # sun_path with its end


class Address(NamedTuple):
    """Where an endpoint is: ``raw`` in network byte order, or ``path`` of a Unix socket. ``identity``: a hash
    of ``name``."""

    family: int
    port: int
    raw: bytes
    path: bytes
    name: str
    identity: int


class ClusterName(NamedTuple):
    """What a live cluster slot stands for."""

    name: str
    service: str
    subset: str
    port: int


class EndpointName(NamedTuple):
    """What a live endpoint slot stands for; ``key`` is its name in :class:`fastproxy.slots.Slots`."""

    name: str
    service: str
    key: str


def schedule(weights: Sequence[int]) -> list[int]:
    """Indices in the order to take them: each as often as its weight says, spread evenly; at most 1024,
    unless there are more endpoints. Weight 0 is never taken, unless all are 0 (then all are equal)."""
    if len(weights) < 2 or len(set(weights)) == 1:
        return list(range(len(weights)))
    shrink = math.gcd(*weights)
    parts = [weight // shrink for weight in weights]
    total = sum(parts)
    used = sum(1 for part in parts if part)
    if total > MAX_SCHEDULE:
        room = max(MAX_SCHEDULE, used)
        parts = [max(1, part * room // total) if part else 0 for part in parts]
        while sum(parts) > room:  # the ones that were lifted to 1: take it back from the largest
            parts[parts.index(max(parts))] -= 1
    turns = [((2 * k + 1) / (2 * part), index) for index, part in enumerate(parts) for k in range(part)]
    return [index for _, index in sorted(turns)]


def address(host: str, port: int) -> Address | None:
    """The address of an endpoint, or None when ``host`` is a name that has to be resolved."""
    if host.startswith("unix://"):
        path = host.removeprefix("unix://").encode()
        if not 0 < len(path) <= MAX_UNIX_PATH or b"\0" in path[1:]:
            raise PlanError(f"{host}: a Unix socket's path has 1 to {MAX_UNIX_PATH} bytes")
        return Address(socket.AF_UNIX, 0, bytes(16), path, host, _identity(host))
    text = host.strip("[]")
    try:
        packed = socket.inet_pton(
            socket.AF_INET, text
        )  # only dotted quads, and 25 times as fast as ipaddress
    except (OSError, ValueError):
        try:
            ip = ipaddress.IPv6Address(text)
        except ValueError:
            return None
        name = f"[{ip.compressed}]:{port}"
        return Address(socket.AF_INET6, port, ip.packed, b"", name, _identity(name))
    name = f"{text}:{port}"
    return Address(socket.AF_INET, port, packed.ljust(16, b"\0"), b"", name, _identity(name))


def _identity(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _selected(cluster: Cluster, endpoints: list[Endpoint]) -> list[Endpoint]:
    labels = cluster["labels"].items()
    return [e for e in endpoints if labels <= e["labels"].items()]


class Clusters:
    """Clusters of one plan, in the order of their keys."""

    def __init__(self, tables: Tables, resolved: Mapping[str, Sequence[str]]) -> None:
        self.numbers = {key: number for number, key in enumerate(sorted(tables["clusters"]))}
        self.unresolved: set[str] = set()
        self._tables = tables
        self._resolved = resolved
        self._addresses: dict[tuple[str, int], list[Address]] = {}
        self.members = {key: self._members(key) for key in self.numbers}
        self.names: dict[int, ClusterName] = {}
        self.endpoint_names: dict[int, EndpointName] = {}

    def _members(self, key: str) -> dict[str, tuple[Address, int]]:
        """Address and weight of each endpoint by its slot key; an address listed twice has both weights."""
        cluster = self._tables["clusters"][key]
        service = cluster["service"]
        found: dict[str, tuple[Address, int]] = {}
        endpoints = self._tables["endpoints"].get(cluster["endpoints"], [])
        for endpoint in _selected(cluster, endpoints) if cluster["labels"] else endpoints:
            for where in self._where(endpoint["address"], endpoint["port"]):
                slot_key = f"{service}|{where.name}"
                weight = endpoint["weight"] + (found[slot_key][1] if slot_key in found else 0)
                found[slot_key] = (where, weight)
        return found

    def _where(self, host: str, port: int) -> list[Address]:
        found = self._addresses.get((host, port))
        if found is None:
            one = address(host, port)
            ips = [] if one else self._resolved.get(host, [])
            if not one and not ips:
                self.unresolved.add(host)
            found = [one] if one else [a for ip in ips if (a := address(ip, port))]
            self._addresses[host, port] = found
        return found

    def slots(self, slots: Slots) -> tuple[dict[str, int], dict[str, int]]:
        """Slot numbers of all clusters and endpoints, not yet committed."""
        keys = chain.from_iterable(self.members.values())
        return slots.clusters.plan(self.numbers), slots.endpoints.plan(keys)

    def write(self, out: Writer, cluster_slots: Mapping[str, int], endpoint_slots: Mapping[str, int]) -> None:
        """Rows of clusters, endpoints and schedules."""
        texts = out.texts
        rows, endpoints = out.rows["cluster"], out.rows["endpoint"]
        has_endpoints = out.refers("cluster", 24, "endpoint")
        has_schedule = out.refers("cluster", 32, "table")
        for key in self.numbers:
            cluster = self._tables["clusters"][key]
            members = self.members[key]
            service = cluster["service"]
            if cluster["lb"] not in LB:
                raise PlanError(f"cluster {key}: unknown load balancing {cluster['lb']!r}")
            first = len(endpoints)
            for slot_key, ((family, port, raw, path, name, identity), _) in members.items():
                slot = endpoint_slots[slot_key]
                endpoints.append((slot, family, port, raw, *texts[path], *texts[name.encode()], identity))
                self.endpoint_names[slot] = EndpointName(name, service, slot_key)
            turns = schedule([weight for _, weight in members.values()])
            slot = cluster_slots[key]
            has_endpoints.append(len(rows))
            has_schedule.append(len(rows))
            rows.append(
                (
                    *texts[key.encode()],
                    *texts[service.encode()],
                    slot,
                    LB[cluster["lb"]],
                    first,
                    len(members),
                    out.numbers(turns),
                    len(turns),
                    cluster.get("connect_timeout", 0),
                )
            )
            parts = key.split("|")
            subset = parts[2] if len(parts) == 4 else ""
            self.names[slot] = ClusterName(key, service, subset, cluster["port"])
