"""Advice: what is no error, and yet surely not meant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from fastproxy.resources.clusters import cluster_key
from fastproxy.resources.documents import Document
from fastproxy.resources.problem import PathPart, Problem, nearest
from fastproxy.resources.registry import Registry
from fastproxy.resources.virtual_service import Destination
from fastproxy.tables import Tables

MAX_ADVICE = 100
MAX_NAMES = 500  # looked at for "did you mean"


def advise(documents: Sequence[Document], tables: Tables) -> list[Problem]:
    """Destinations that are not there, the first MAX_ADVICE. ``tables``: of the same documents.

    Istio keeps such a route as well and answers 503; its ``analyze`` warns of it.
    """
    registry = Registry(documents, [])
    out: list[Problem] = []
    for document in documents:
        if document.row.kind != "VirtualService":
            continue
        for i, http in enumerate(document.resource.spec.http):
            for j, given in enumerate(http.route):
                wrong = _missing(given.destination, document.namespace, registry, tables)
                if wrong is None:
                    continue
                path: tuple[PathPart, ...] = ("spec", "http", i, "route", j, "destination", *wrong[0])
                out.append(document.problem(path, f"{wrong[1]}; requests sent there are answered 503 NC"))
                if len(out) == MAX_ADVICE:
                    return out
    return out


def _missing(
    target: Destination, namespace: str, registry: Registry, tables: Tables
) -> tuple[tuple[str, ...], str] | None:
    """Which part of a destination names nothing, and in words."""
    service = registry.lookup(target.host, namespace)
    if service is None:
        hint = nearest(target.host, islice(registry.services, MAX_NAMES))
        return ("host",), f"no ServiceEntry has the host {target.host}{hint}"
    number = target.port.number if target.port is not None else None
    port = service.port(number)
    if port is None:
        there = ", ".join(str(p.number) for p in service.ports)
        return ("port", "number"), f"{service.host} has no port {number} (it has {there})"
    subset = target.subset or ""
    if cluster_key(service.host, port.number, subset) in tables["clusters"]:
        return None
    start, end = f"outbound|{port.number}|", f"|{service.host}"
    keys = (key for key in tables["clusters"] if key.startswith(start) and key.endswith(end))
    hint = nearest(subset, [key.split("|", 3)[2] for key in islice(keys, MAX_NAMES)])
    return ("subset",), f"no DestinationRule gives {service.host} a subset {subset}{hint}"
