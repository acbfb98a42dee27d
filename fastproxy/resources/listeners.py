"""Gateways to listeners: which addresses are opened, and which hosts answer there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fastproxy.resources.documents import Document
from fastproxy.resources.hosts import covering, covers
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
    gateways: set[str]  # that open it, as ns/name
    number: int  # the server's port, as match.port means it
    entries: dict[str, list[Entry]] = field(default_factory=dict)  # by host

    def answering(self, host: str) -> Iterator[Entry]:
        """The entries that have a name in common with ``host``: wider, the same, or narrower."""
        for wide in covering(host):
            yield from self.entries.get(wide, ())
        if host.startswith("*"):
            for narrow, entries in self.entries.items():
                if narrow != host and covers(host, narrow):
                    yield from entries


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
            opening = out.setdefault(key, Opening(key, row, document, set(), server.port.number))
            name = f"{document.namespace}/{document.row.name}"
            opening.gateways.add(name)
            for text in server.hosts:
                space, _, host = text.rpartition("/")
                namespace = document.namespace if space == "." else space or "*"
                entry = Entry(name, namespace, host)
                opening.entries.setdefault(host, []).append(entry)
    return out
