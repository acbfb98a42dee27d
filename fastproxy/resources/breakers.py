"""Policies and orders to the table ``breakers``."""

from __future__ import annotations

from collections.abc import Iterable

from fastproxy.resources.breaker import BreakerOrderSpec, CircuitBreaker
from fastproxy.resources.documents import Document
from fastproxy.resources.registry import Registry
from fastproxy.tables import Breaker, BreakerPolicy, Order, Tables


def policy_row(given: CircuitBreaker) -> BreakerPolicy:
    return {
        "rolling_window": given.rollingWindow,
        "request_volume_threshold": given.requestVolumeThreshold,
        "error_threshold_percentage": given.errorThresholdPercentage,
        "slow_call_duration": given.slowCallDuration,
        "slow_call_threshold_percentage": given.slowCallThresholdPercentage,
        "sleep_window": given.sleepWindow,
        "half_open_requests": given.halfOpenRequests,
        "fleet": given.fleet,
    }


def orders(documents: Iterable[Document]) -> list[Document]:
    return [d for d in documents if d.row.kind == "BreakerOrder"]


def order_row(spec: BreakerOrderSpec) -> Order:
    assert spec.until is not None
    row: Order = {"state": spec.state, "until": spec.until, "for": spec.duration}
    if spec.reason:
        row["reason"] = spec.reason
    return row


class Targets:
    """Which clusters an order means."""

    def __init__(self, registry: Registry, tables: Tables) -> None:
        self._registry = registry
        self._keys: dict[str, list[tuple[int, str, str]]] = {}  # of a service: port, subset, cluster key
        for key, row in tables["clusters"].items():
            self._keys.setdefault(row["service"], []).append((row["port"], key.split("|", 3)[2], key))

    def of(self, document: Document) -> list[str]:
        """Cluster keys, sorted; empty: there is no such service, port or subset."""
        spec: BreakerOrderSpec = document.resource.spec
        service = self._registry.lookup(spec.host, document.namespace)
        return sorted(
            key
            for port, subset, key in self._keys.get(service.host if service is not None else "", ())
            if spec.port in (None, port) and spec.subset in (None, subset)
        )


def add_orders(tables: Tables, documents: Iterable[Document], registry: Registry) -> None:
    """Orders in turn: of two for one thing the later stands. One for nothing that is there gives no row."""
    given = orders(documents)
    if not given:
        return
    targets = Targets(registry, tables)
    whole: dict[str, Order] = {}
    single: dict[str, dict[str, Order]] = {}
    for document in given:
        spec: BreakerOrderSpec = document.resource.spec
        for key in targets.of(document):
            if spec.endpoint is None:
                whole[key] = order_row(spec)
            else:
                single.setdefault(key, {})[spec.endpoint] = order_row(spec)
    for key in {*whole, *single}:
        row: Breaker = tables["breakers"].setdefault(key, {})
        if key in whole:
            row["order"] = whole[key]
        if key in single:
            row["endpoints"] = dict(sorted(single[key].items()))
