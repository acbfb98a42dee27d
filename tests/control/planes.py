"""A real plane and publisher on loopback, and links that do as an agent does but have no workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ctrl.plane import Outcome, Plane, Wish
from ctrl.store import Store
from ctrl.store.memory import MemoryStore
from fastproxy.link import ApplierAction, Link
from fastproxy.rows import Rows
from fastproxy.sync import Apply, Done, Drop, Prepare, Settle
from fastproxy.wire import Attributes
from tests.control.links import Counting, Crew
from tests.support.server import host

MESH = Attributes(mesh=True)


class Serving(Counting):
    """It knows what to serve again when a candidate is dropped. ``hosts``: routes that it serves."""

    def __init__(self) -> None:
        super().__init__()
        self.base = 0
        self.hosts: set[str] = set()

    async def carry_out(self, actions: Sequence[ApplierAction], rows: Rows) -> list[tuple[type, Done]]:
        self.hosts = {key.split()[1] for key in rows.tables["routes"]}
        out: list[tuple[type, Done]] = []
        for action in actions:
            self.actions.append(action)
            error = self.refuses.get(action.version, "")
            serves = action.version
            if isinstance(action, Drop):
                serves, error = self.base, ""
            elif isinstance(action, Apply | Settle) and not error:
                self.base = action.version
            if not error and not isinstance(action, Prepare):
                self.serves = serves
            digest = getattr(action, "hash", rows.hash)
            out.append((type(action), Done(serves, digest, error, 700, 300, 20)))
        return out


class Proxies(Crew):
    """Links that run until it is left. ``appliers`` and ``links`` are in the order of their names."""

    appliers: list[Serving]  # type: ignore[assignment]

    def join(self, count: int = 1, name: str = "node", attributes: Attributes = MESH, **options: Any) -> None:
        for _ in range(count):
            applier = Serving()
            node = f"{name}-{len(self.links)}"
            link = Link(node, attributes, self.addresses, applier, **{**self._options, **options})
            self.links.append(link)
            self.appliers.append(applier)
            self._tasks.append(asyncio.create_task(link.run()))

    def serving(self) -> list[int]:
        return [applier.serves for applier in self.appliers]


class World:
    """A plane on a store, and so many links. What is left is closed, in this order."""

    def __init__(self, count: int = 0, store: Store | None = None, **options: Any) -> None:
        self._count = count
        given: dict[str, Any] = {
            "name": "one",
            "heartbeat": 0.2,
            "report": 0.4,
            "bind": "tcp://127.0.0.1:0",
        } | options
        self.plane = Plane(store or MemoryStore(), **given)
        self.proxies: Proxies

    async def __aenter__(self) -> tuple[Plane, Proxies]:
        await self.plane.start()
        self.proxies = Proxies(self.plane.publisher.address)
        self.proxies.join(self._count)
        return self.plane, self.proxies

    async def __aexit__(self, *_: object) -> None:
        await self.proxies.__aexit__()
        await self.plane.close()


async def put(plane: Plane, *names: str, **wish: Any) -> Outcome:
    """Apply a document for each of these hosts, as one version."""
    return await plane.apply([(f"{name}.yaml", host(name).encode()) for name in names], Wish(**wish))
