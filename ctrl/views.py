"""Views: which tables a proxy gets. Contents and a proxy's attributes in, tables out; no I/O.

A view holds what its proxies can use and nothing else: documents that are exported to their namespace,
Gateways that their labels select, routes of the mesh only where there is a mesh listener, and of clusters,
endpoints and breakers those that the routes left over name. ``ALL`` is everything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ctrl.model import Contents, Resource
from fastproxy.resources.advice import advise
from fastproxy.resources.compile import settle
from fastproxy.resources.documents import Document, read_chunk
from fastproxy.resources.exports import visible
from fastproxy.resources.load import load_both
from fastproxy.resources.problem import Problem
from fastproxy.resources.registry import selects
from fastproxy.resources.source import Chunk
from fastproxy.tables import Tables
from fastproxy.wire import Attributes

ALL = None  # the attributes of the view that holds everything; its hash goes into the history


@dataclass(slots=True)
class Made:
    """Tables of one view. Many share them: they must not be changed.

    problems: of the documents that were left out, with the reasons. warnings: what is no error and yet surely
    not meant.
    """

    tables: Tables
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


class Views:
    """Makes tables of contents, and remembers what it made of them. One thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[tuple[str, str, int], tuple[Document | None, list[Problem]]] = {}

    def make(self, contents: Contents, attributes: Attributes | None = ALL) -> Made:
        """The tables of the proxies with these attributes; None: ALL, all documents for everybody.

        Depends on nothing but the arguments: the same bytes in every process, whatever was asked before.
        Documents are compiled in the order in which they were created. One that does not parse, or does not
        fit those before it, is left out and its reason is in ``problems``; all others stand. Its older
        versions are not in the contents, so nothing else can be done here; who applies one sees the problem
        before.
        """
        with self._lock:
            documents, problems = self._documents(contents)
            if attributes is None:
                tables, kept, wrong = settle(documents)
                return Made(tables, problems + wrong, advise(kept, tables))
            labels = dict(attributes.labels)
            chosen = [d for d in documents if _selected(d, attributes.namespace, labels)]
            tables, kept, wrong = settle(chosen, mesh=attributes.mesh)
            return Made(_needed(tables), problems + wrong, advise(kept, tables))

    def check(self, texts: Iterable[tuple[str, bytes]]) -> tuple[list[Resource], list[Problem]]:
        """The good documents of (file name, YAML or JSON) pairs, and what is wrong with the others.

        ``kind: List`` is its items. Of two documents with one identity the first counts, the second is a
        problem. Whether they fit each other and what is there already, :meth:`make` tells.
        """
        documents, problems = load_both("", texts)
        return [Resource(*d.identity, d.row.text, d.row.file, d.row.line) for d in documents], problems

    def _documents(self, contents: Contents) -> tuple[list[Document], list[Problem]]:
        documents: list[Document] = []
        problems: list[Problem] = []
        for resource in sorted(contents, key=lambda r: (r.created, r.identity)):
            key = (resource.text, resource.file, resource.line)
            if key not in self._read:
                self._read[key] = _read(resource)
            document, wrong = self._read[key]
            problems += wrong
            if document is not None:
                documents.append(document)
        return documents, problems


def _read(resource: Resource) -> tuple[Document | None, list[Problem]]:
    documents, problems = read_chunk(Chunk(resource.file, resource.line, resource.text))
    if len(documents) == 1 and documents[0].identity == resource.identity:
        return documents[0], []
    told = problems or [Problem(resource.file, resource.line, "", f"the text is no {resource.source}")]
    return None, [Problem(p.file, p.line, p.field, p.message, *resource.identity) for p in told]


def _selected(document: Document, namespace: str, labels: Mapping[str, str]) -> bool:
    if document.row.kind == "Gateway":
        return not labels or selects(document.resource.spec.selector, labels)
    return visible(document, namespace)


def _needed(tables: Tables) -> Tables:
    """Of clusters those that a route names, of endpoints and breakers those of these clusters."""
    named = {
        destination["cluster"]
        for host in tables["routes"].values()
        for route in host["routes"]
        for destination in route.get("destinations", ())
    }
    clusters = {key: row for key, row in tables["clusters"].items() if key in named}
    endpoints = {row["endpoints"] for row in clusters.values()}
    out: dict[str, Any] = dict(tables)
    out["clusters"] = clusters
    out["endpoints"] = {key: rows for key, rows in tables["endpoints"].items() if key in endpoints}
    out["breakers"] = {key: row for key, row in tables["breakers"].items() if key in clusters}
    return cast(Tables, out)
