"""Advice: what is no error, and yet surely not meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from fastproxy.resources.breaker import BreakerOrderSpec
from fastproxy.resources.breakers import Targets, orders
from fastproxy.resources.clusters import cluster_key
from fastproxy.resources.documents import Document
from fastproxy.resources.exports import NOWHERE, audience, meet, visible
from fastproxy.resources.problem import PathPart, Problem, nearest
from fastproxy.resources.registry import Registry
from fastproxy.resources.virtual_service import Destination
from fastproxy.tables import Tables

MAX_ADVICE = 100
MAX_NAMES = 500  # looked at for "did you mean"

Told = tuple[tuple[PathPart, ...], str]  # a field and what is odd about it
_BREAKER = "this version does not trip on errors by itself; orders (BreakerOrder) are obeyed"


def advise(documents: Sequence[Document], tables: Tables, namespace: str | None = None) -> list[Problem]:
    """The first MAX_ADVICE of: destinations that are not there, breakers that trip on nothing, orders that
    mean nothing or are overruled.

    ``tables`` and ``namespace``: as :func:`settle` made and was given them. Istio keeps a route to nowhere as
    well and answers 503; its ``analyze`` warns of it.
    """
    seen = [d for d in documents if namespace is None or visible(d, namespace)]
    return list(islice(_Adviser(documents, seen, tables).all(), MAX_ADVICE))


class _Adviser:
    def __init__(self, documents: Sequence[Document], seen: Sequence[Document], tables: Tables) -> None:
        self._documents = documents
        self._seen = seen
        self._tables = tables
        self._registry = Registry(seen, [])
        self._whole: Registry | None = None  # with what is not exported, made when it is asked

    def all(self) -> Iterator[Problem]:
        for document in self._seen:
            if document.row.kind == "VirtualService":
                yield from self._destinations(document)
            elif document.row.kind == "DestinationRule":
                yield from self._policies(document)
        yield from self._orders()

    def _destinations(self, document: Document) -> Iterator[Problem]:
        for i, http in enumerate(document.resource.spec.http):
            for j, given in enumerate(http.route):
                wrong = self._missing(given.destination, document)
                if wrong is not None:
                    path = ("spec", "http", i, "route", j, "destination", *wrong[0])
                    yield document.problem(path, f"{wrong[1]}; requests sent there are answered 503 NC")

    def _policies(self, document: Document) -> Iterator[Problem]:
        spec = document.resource.spec
        if spec.trafficPolicy is not None and spec.trafficPolicy.circuitBreaker is not None:
            yield document.problem(("spec", "trafficPolicy", "circuitBreaker"), _BREAKER)
        for i, subset in enumerate(spec.subsets):
            if subset.trafficPolicy is not None and subset.trafficPolicy.circuitBreaker is not None:
                yield document.problem(("spec", "subsets", i, "trafficPolicy", "circuitBreaker"), _BREAKER)

    def _orders(self) -> Iterator[Problem]:
        given = orders(self._seen)
        if not given:
            return
        targets = Targets(self._registry, self._tables)
        standing: dict[tuple[str, str], Document] = {}
        overruled: dict[int, Document] = {}  # by the place of the earlier
        places = {id(document): place for place, document in enumerate(given)}
        for document in given:
            spec: BreakerOrderSpec = document.resource.spec
            keys = targets.of(document)
            if not keys:
                path, message = self._no_target(spec, document.namespace)
                yield document.problem(("spec", *path), f"{message}; the order does nothing")
            for key in keys:
                other = standing.get((key, spec.endpoint or ""))
                if other is not None:
                    overruled[places[id(other)]] = document
                standing[key, spec.endpoint or ""] = document
        for place, winner in sorted(overruled.items()):
            text = f"{winner.source} is later and counts for what both name"
            yield given[place].problem(("spec", "state"), text)

    def _no_target(self, spec: BreakerOrderSpec, namespace: str) -> Told:
        service = self._registry.lookup(spec.host, namespace)
        if service is None:
            return ("host",), self._no_host(spec.host, namespace)
        if spec.port is not None and service.port(spec.port) is None:
            return ("port",), _no_port(service.host, spec.port, [p.number for p in service.ports])
        return ("subset",), self._no_subset(service.host, service.ports[0].number, spec.subset or "")

    def _missing(self, target: Destination, document: Document) -> Told | None:
        """Which part of a destination names nothing, and in words."""
        service = self._registry.lookup(target.host, document.namespace)
        if service is None:
            return ("host",), self._no_host(target.host, document.namespace)
        if audience(document) != NOWHERE and not meet(service.document, document):
            return ("host",), f"{service.document.source} is not exported to where this is"
        number = target.port.number if target.port is not None else None
        port = service.port(number)
        if port is None:
            numbers = [p.number for p in service.ports]
            return ("port", "number"), _no_port(service.host, number, numbers)
        subset = target.subset or ""
        if cluster_key(service.host, port.number, subset) in self._tables["clusters"]:
            return None
        return ("subset",), self._no_subset(service.host, port.number, subset)

    def _no_host(self, host: str, namespace: str) -> str:
        if len(self._seen) != len(self._documents):
            self._whole = self._whole or Registry(self._documents, [])
            hidden = self._whole.lookup(host, namespace)
            if hidden is not None:
                return f"{hidden.document.source} has the host {host}, and is not exported to here"
        return (
            f"no ServiceEntry has the host {host}{nearest(host, islice(self._registry.services, MAX_NAMES))}"
        )

    def _no_subset(self, host: str, port: int, subset: str) -> str:
        start, end = f"outbound|{port}|", f"|{host}"
        keys = (key for key in self._tables["clusters"] if key.startswith(start) and key.endswith(end))
        hint = nearest(subset, [key.split("|", 3)[2] for key in islice(keys, MAX_NAMES)])
        return f"no DestinationRule gives {host} a subset {subset}{hint}"


def _no_port(host: str, number: int | None, there: list[int]) -> str:
    return f"{host} has no port {number} (it has {', '.join(map(str, there))})"
