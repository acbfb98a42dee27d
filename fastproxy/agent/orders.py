"""Orders to breakers: from the table ``breakers`` to the words in live memory that the core obeys.

An order names its end by the clock of who gave it, and how long it was given for. Here it becomes a moment
of our monotonic clock, once: a clock that jumps later neither lengthens nor shortens it, and it lapses in the
core also when the control plane and this agent are gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastproxy._balance import ORDERS, Live

MAX_REPORTED = 1000  # rows of a report, as wire.Report says

Place = tuple[str, str]  # cluster key and "", or service and endpoint


@dataclass(slots=True)
class Standing:
    """One order in force. ``until_us``: of CLOCK_MONOTONIC; ``slot``: in live memory."""

    state: str
    until_ms: int
    for_ms: int
    until_us: int
    slot: int = -1


class Orders:
    """All orders of the tables that serve."""

    def __init__(
        self,
        live: Live,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live = live
        self._wall = wall
        self._monotonic = monotonic
        self._standing: dict[Place, Standing] = {}
        self._clusters: dict[str, int] = {}
        self._inherited: dict[str, int] = {}  # rejected by whoever had the cluster's slot before
        self.offset_ms = 0  # the control plane's clock minus ours, as far as it is known

    def __repr__(self) -> str:
        return f"<Orders: {len(self._standing)} standing>"

    def apply(
        self, breakers: Mapping[str, Any], clusters: Mapping[str, int], endpoints: Mapping[str, int]
    ) -> None:
        """Put these in the place of all before. ``clusters`` by key, ``endpoints`` by ``service|address``:
        their slots in the plan that is about to serve. To be called before it does, as a new cluster must not
        serve a request that its order forbids."""
        wanted: dict[Place, Standing] = {}
        for key, row in breakers.items():
            if key in clusters and "order" in row:
                self._want(wanted, (key, ""), row["order"], clusters[key])
            service = key.rpartition("|")[2]
            for endpoint, order in row.get("endpoints", {}).items():
                if (slot := endpoints.get(f"{service}|{endpoint}")) is not None:
                    self._want(wanted, (service, endpoint), order, slot)
        for place, old in self._standing.items():
            if place not in wanted or wanted[place].slot != old.slot:
                self._write(place, old.slot, 0, 0)
        for place, new in wanted.items():
            self._write(place, new.slot, ORDERS.index(new.state), new.until_us)
        self._standing = wanted
        self._inherited = {
            key: self._inherited[key]
            if self._clusters.get(key) == slot
            else self._live.cluster(slot)["rejected"]
            for key, slot in clusters.items()
        }
        self._clusters = dict(clusters)

    def learn(self, offset_ms: int) -> None:
        """What the control plane's clock says, for orders that were there before it was known: a snapshot
        comes before the first heartbeat, and the last good version long before."""
        self.offset_ms = offset_ms
        for place, order in self._standing.items():
            order.until_us = self._end(order.until_ms, order.for_ms)
            self._write(place, order.slot, ORDERS.index(order.state), order.until_us)

    def report(self) -> list[list[Any]]:
        """Rows [name, state, order, until_ms, rejected] of the breakers that are not simply CLOSED, for
        ``wire.Report`` and /breakers; those with an order or another state first. An endpoint's name is
        ``service|address``; rejected is a cluster's."""
        rows = sorted(self._rows(every=False), key=lambda row: row[1] == "CLOSED" and not row[2])
        return rows[:MAX_REPORTED]

    def describe(self) -> list[list[Any]]:
        """The same of all breakers."""
        return list(self._rows(every=True))

    # --- inside ---

    def _want(self, wanted: dict[Place, Standing], place: Place, order: Mapping[str, Any], slot: int) -> None:
        old = self._standing.get(place)
        given = (order["state"], order["until"], order["for"])
        if old and (old.state, old.until_ms, old.for_ms) == given:
            until_us = old.until_us
        else:
            until_us = self._end(order["until"], order["for"])
        wanted[place] = Standing(*given, until_us, slot)

    def _end(self, until_ms: int, for_ms: int) -> int:
        """As a moment of CLOCK_MONOTONIC, in microseconds."""
        left = until_ms - (self._wall() * 1000 + self.offset_ms)
        return int((self._monotonic() * 1000 + min(max(left, 0), for_ms)) * 1000)

    def _write(self, place: Place, slot: int, order: int, until_us: int) -> None:
        write = self._live.order_endpoint if place[1] else self._live.order_cluster
        write(slot, order, until_us)

    def _rows(self, every: bool) -> Iterable[list[Any]]:
        now_us = self._monotonic() * 1e6
        for name, slot in self._clusters.items():
            live = self._live.cluster(slot)
            rejected = live["rejected"] - self._inherited[name]
            if rejected < 0:  # a worker died, and what it had counted went with it
                rejected, self._inherited[name] = live["rejected"], 0
            standing = self._standing.get((name, ""))
            order = standing if standing and standing.until_us > now_us else None
            if every or order or live["breaker"] != "CLOSED" or rejected:
                yield [
                    name,
                    live["breaker"],
                    order.state if order else "",
                    order.until_ms if order else 0,
                    rejected,
                ]
        for (service, endpoint), standing in self._standing.items():
            if endpoint and standing.until_us > now_us:
                yield [f"{service}|{endpoint}", "CLOSED", standing.state, standing.until_ms, 0]
