"""Resolves the host names of endpoints (clusters with resolution DNS) again and again, as their TTL says."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fastproxy.agent import log
from fastproxy.tables import Tables

if TYPE_CHECKING:
    import aiodns

TTL_MIN = 5.0
TTL_MAX = 300.0
RETRY = 5.0  # after a failure, doubled up to TTL_MAX
CONCURRENT = 32
TIMEOUT = 5.0
MAX_ADDRESSES = 1024


class ResolveError(Exception):
    """The name has no address now."""


class Lookup(Protocol):
    async def __call__(self, host: str) -> tuple[list[str], float]:
        """Addresses and seconds that they may be kept. Raises ResolveError."""


@dataclass(slots=True)
class Name:
    """One host name. ``addresses`` are the last good ones."""

    addresses: tuple[str, ...] = ()
    error: str = ""
    failures: int = 0
    task: asyncio.Task[None] | None = field(default=None, repr=False)


def names_of(tables: Tables) -> set[str]:
    """The host names that stand as endpoints of clusters with resolution DNS."""
    keys = {c["endpoints"] for c in tables["clusters"].values() if c["resolution"] == "DNS"}
    found = {e["address"] for key in keys for e in tables["endpoints"].get(key, [])}
    return {a for a in found if not a.startswith("unix:") and not is_ip(a)}


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Resolver:
    """``on_change()`` is called when a name resolves to other addresses than before."""

    def __init__(self, on_change: Callable[[], None], lookup: Lookup | None = None) -> None:
        self._on_change = on_change
        self._lookup = lookup
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._quiet = False
        self.names: dict[str, Name] = {}

    def __repr__(self) -> str:
        failed = sum(1 for n in self.names.values() if n.error)
        return f"<Resolver: {len(self.names)} names, {failed} failing>"

    @property
    def resolved(self) -> dict[str, list[str]]:
        """Host name -> addresses, sorted; a name that never resolved has none."""
        return {host: list(name.addresses) for host, name in self.names.items()}

    async def follow(self, hosts: Iterable[str], patience: float) -> None:
        """Resolve these from now on, no others; wait ``patience`` seconds for first answers to new ones."""
        wanted = set(hosts)
        for gone in set(self.names) - wanted:
            self._stop(self.names.pop(gone))
        first: list[asyncio.Future[None]] = []
        loop = asyncio.get_running_loop()
        for host in sorted(wanted - set(self.names)):
            answered: asyncio.Future[None] = loop.create_future()
            name = self.names[host] = Name()
            name.task = loop.create_task(self._keep(host, name, answered))
            first.append(answered)
        if first:
            self._quiet = True  # the caller reads `resolved` itself
            try:
                await asyncio.wait(first, timeout=patience)
            finally:
                self._quiet = False

    async def close(self) -> None:
        tasks = [n.task for n in self.names.values() if n.task]
        for name in self.names.values():
            self._stop(name)
        self.names.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stop(self, name: Name) -> None:
        if name.task:
            name.task.cancel()

    async def _keep(self, host: str, name: Name, answered: asyncio.Future[None]) -> None:
        while True:
            wait = await self._once(host, name)
            if not answered.done():
                answered.set_result(None)
            await asyncio.sleep(wait * random.uniform(0.9, 1.1))

    async def _once(self, host: str, name: Name) -> float:
        """Resolve once; seconds until the next time. A failure keeps the last good addresses."""
        if self._lookup is None:
            self._lookup = AresLookup()
        try:
            async with self._slots:
                found, ttl = await asyncio.wait_for(self._lookup(host), TIMEOUT)
        except (ResolveError, TimeoutError) as e:
            reason = str(e) or f"no answer in {TIMEOUT:g} s"
            if reason != name.error:
                kept = (
                    f"keeping {len(name.addresses)} known addresses"
                    if name.addresses
                    else "no address is known"
                )
                log.warning(f"{host} does not resolve: {reason}", do=kept)
            name.error = reason
            name.failures += 1
            return float(min(TTL_MAX, RETRY * 2.0 ** min(name.failures - 1, 8)))
        if name.error:
            log.info(f"{host} resolves again")
        name.error, name.failures = "", 0
        addresses = tuple(sorted(set(found))[:MAX_ADDRESSES])
        if addresses != name.addresses:
            name.addresses = addresses
            if not self._quiet:
                self._on_change()
        return min(TTL_MAX, max(TTL_MIN, ttl))


class AresLookup:
    """/etc/hosts and the name servers of resolv.conf, through c-ares; both A and AAAA."""

    def __init__(self) -> None:
        import aiodns

        self._resolver: aiodns.DNSResolver = aiodns.DNSResolver(timeout=2.0, tries=2)

    async def __call__(self, host: str) -> tuple[list[str], float]:
        import socket

        import aiodns

        try:
            answer = await self._resolver.getaddrinfo(host, socket.AF_UNSPEC, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as e:
            raise ResolveError(str(e.args[1] if len(e.args) > 1 else e)) from None
        found, ttl = [], TTL_MAX
        for node in answer.nodes:
            raw = node.addr[0]
            found.append(raw.decode() if isinstance(raw, bytes) else raw)
            ttl = min(ttl, float(node.ttl))
        if not found:
            raise ResolveError("no address")
        return found, ttl
