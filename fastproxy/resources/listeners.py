"""Gateways to listeners: which addresses are opened, and which hosts answer there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fastproxy.resources.documents import Document
from fastproxy.resources.registry import selects
from fastproxy.tables import Listener


@dataclass(slots=True)
class Entry:
    """One host of one Gateway server. ``namespace``: of the VirtualServices it takes, ``*`` for any."""

    gateway: str
    namespace: str
    host: str


@dataclass(slots=True)
class Opening:
    """One listener; servers, also of several Gateways, that share ``bind:port`` are one."""

    key: str
    row: Listener
    document: Document
    number: int  # the server's port, as match.port means it
    entries: list[Entry] = field(default_factory=list)


def address_key(address: str, port: int) -> str:
    """``0.0.0.0:9000``, ``[::]:9000``, ``unix:///path``"""
    if address.startswith("unix:"):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def openings(documents: Iterable[Document], labels: Mapping[str, str]) -> dict[str, Opening]:
    """The listeners of the Gateways that select a proxy with these labels; one without labels takes all."""
    out: dict[str, Opening] = {}
    for document in documents:
        if document.row.kind != "Gateway":
            continue
        spec = document.resource.spec
        if labels and not selects(spec.selector, labels):
            continue
        for server in spec.servers:
            unix = server.bind.startswith("unix:")
            port = 0 if unix else server.port.number
            key = address_key(server.bind, port)
            row: Listener = {"address": server.bind, "port": port, "protocol": "HTTP"}
            opening = out.setdefault(key, Opening(key, row, document, server.port.number))
            for text in server.hosts:
                space, _, host = text.rpartition("/")
                namespace = document.namespace if space == "." else space or "*"
                opening.entries.append(Entry(f"{document.namespace}/{document.row.name}", namespace, host))
    return out


def covers(wide: str, host: str) -> bool:
    """Every name that ``host`` stands for is one that ``wide`` stands for."""
    if wide in ("*", host):
        return True
    return wide.startswith("*.") and host != "*" and host.removeprefix("*").endswith(wide[1:])


def intersect(one: str, other: str) -> str | None:
    """The hosts both stand for: the narrower of the two, None when they have none in common."""
    if covers(one, other):
        return other
    return one if covers(other, one) else None
