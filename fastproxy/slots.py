"""Stable numbers for clusters and endpoints in the live memory, carried from plan to plan by name."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class SlotsFull(ValueError):
    """More names than the live memory has slots for."""


class SlotTable:
    """Names of one kind -> slot numbers below ``limit``.

    A name that the newest plan does not have is *retired*: exchanges on older plans may still count in its
    slot, so the number is free only after :meth:`release`. A retired name that comes back gets its old
    slot.
    """

    def __init__(self, limit: int, setting: str) -> None:
        self.limit = limit
        self._setting = setting
        self._slots: dict[str, int] = {}
        self._live: frozenset[str] = frozenset()
        self._free: list[int] = []
        self._next = 0

    def __repr__(self) -> str:
        retired = len(self.retired())
        return f"<SlotTable {self._setting}: {len(self._live)} live, {retired} retired of {self.limit}>"

    def plan(self, names: Iterable[str]) -> dict[str, int]:
        """The slots these names will have; nothing changes until :meth:`commit`. SlotsFull: they do not
        fit."""
        free = list(self._free)
        following = self._next
        out: dict[str, int] = {}
        for name in names:
            if name in out:
                continue
            slot = self._slots.get(name)
            if slot is None:
                if free:
                    slot = heapq.heappop(free)
                elif following < self.limit:
                    slot, following = following, following + 1
                else:
                    retired = len(self.retired())
                    raise SlotsFull(
                        f"more than {self.limit} in use ({retired} of them retired): raise --{self._setting}"
                    )
            out[name] = slot
        return out

    def commit(self, planned: dict[str, int]) -> None:
        """Make the answer of :meth:`plan` the live one; nothing may have changed in between."""
        taken = set(planned.values())
        self._free = [slot for slot in self._free if slot not in taken]
        heapq.heapify(self._free)
        self._next = max([self._next, *(slot + 1 for slot in taken)])
        self._slots.update(planned)
        self._live = frozenset(planned)

    def retired(self) -> dict[str, int]:
        """Names that hold a slot but are not in the newest plan."""
        return {name: slot for name, slot in self._slots.items() if name not in self._live}

    def release(self, names: Iterable[str]) -> None:
        """The slots of these retired names may be used again: no plan with them runs, their counters are
        zero.

        ValueError for a name that is live or unknown.
        """
        for name in names:
            if name in self._live or name not in self._slots:
                raise ValueError(f"slot of {name!r} is not retired")
            heapq.heappush(self._free, self._slots.pop(name))


class Slots:
    """Slots of clusters (by cluster key) and endpoints (by ``<service>|<address>``)."""

    def __init__(self, clusters: int = 16384, endpoints: int = 65536) -> None:
        self.clusters = SlotTable(clusters, "max-clusters")
        self.endpoints = SlotTable(endpoints, "max-endpoints")

    def __repr__(self) -> str:
        return f"<Slots {self.clusters!r} {self.endpoints!r}>"

    def release(self, clusters: Iterable[str], endpoints: Iterable[str]) -> None:
        """See :meth:`SlotTable.release`."""
        self.clusters.release(clusters)
        self.endpoints.release(endpoints)
