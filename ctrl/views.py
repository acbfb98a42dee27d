"""Views: which tables a proxy gets. Contents and a proxy's attributes in, tables out; no I/O.

A view holds what its proxies can use and nothing else: documents that are exported to their namespace,
Gateways that their labels select, the VirtualServices of these and, where there is a mesh listener, of the
mesh; and of clusters, endpoints and breakers those that the routes left over name. ``ALL`` is everything.
"""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from ctrl.model import Contents, Identity, Resource
from fastproxy.resources.advice import advise
from fastproxy.resources.compile import bound_to, settle
from fastproxy.resources.documents import Document, read_chunk
from fastproxy.resources.exports import audience
from fastproxy.resources.load import load_both
from fastproxy.resources.problem import Problem
from fastproxy.resources.registry import selects
from fastproxy.resources.routes import MESH
from fastproxy.resources.source import Chunk
from fastproxy.tables import Tables
from fastproxy.wire import Attributes

ALL = None  # the attributes of the view that holds everything; its hash goes into the history
KEPT = 3  # contents whose documents and tables are remembered: head, candidate, and one that is tried

Text = tuple[Identity, str, str, int]  # who it is, text, file, line: all that reading depends on
Read = tuple[Document | None, list[Problem]]
_KEEP = re.compile(r"[|>][0-9]?\+")  # a scalar that keeps the empty lines behind it


@dataclass(slots=True)
class Made:
    """Tables of one view. Many share them: they must not be changed.

    problems: of the documents that were left out, with the reasons. warnings, of ALL only: what is no error
    and yet surely not meant.
    """

    tables: Tables
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class _Result:
    """What came of a selection. It holds the documents, since it is found by their ids."""

    documents: list[Document]
    tables: Tables
    problems: list[Problem]
    warnings: list[Problem]
    turn: int


class _Opened:
    """Contents with their documents read, in the order of creation."""

    def __init__(self, contents: Contents, texts: list[Text], read: Iterable[Read]) -> None:
        self.contents = contents
        self.texts = texts
        self.documents: list[Document] = []
        self.problems: list[Problem] = []
        self._public: list[tuple[int, Document]] = []  # with their places in the order
        self._private: dict[str, list[tuple[int, Document]]] = {}  # by namespace that sees them
        self._chosen: dict[Any, list[Document]] = {}
        for place, (document, problems) in enumerate(read):
            self.problems += problems
            if document is None:
                continue
            self.documents.append(document)
            names = audience(document)
            if names is None:
                self._public.append((place, document))
            for name in sorted(names or ()):
                self._private.setdefault(name, []).append((place, document))
        self._gateways = [d for d in self.documents if d.row.kind == "Gateway"]

    def chosen(self, attributes: Attributes) -> list[Document]:
        """The documents of a view; the same list for all that choose alike."""
        labels = dict(attributes.labels)
        opened = [d for d in self._gateways if not labels or selects(d.resource.spec.selector, labels)]
        namespace = attributes.namespace if attributes.namespace in self._private else ""
        key = (namespace, tuple(map(id, opened)), attributes.mesh)
        if key not in self._chosen:
            places = {f"{d.namespace}/{d.row.name}" for d in opened} | ({MESH} if attributes.mesh else set())
            taken = set(key[1])
            seen = sorted(self._public + self._private.get(namespace, []), key=lambda pair: pair[0])
            self._chosen[key] = [d for _, d in seen if _is_for(d, places, taken)]
        return self._chosen[key]


class Views:
    """Makes tables of contents, and remembers what it made of them.

    Any thread may call; one is served at a time. Contents must not change once they were given here
    (:meth:`Contents.after` makes new ones).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = 0  # counts contents that were opened
        self._opened: list[_Opened] = []  # the last used first
        self._read: dict[Text, Read] = {}
        self._checked: dict[Text, Read] = {}  # the last check's, which will be made next
        self._results: dict[tuple[tuple[int, ...], bool | None], _Result] = {}

    def __repr__(self) -> str:
        return f"<Views: {len(self._read)} documents, {len(self._results)} results>"

    def make(self, contents: Contents, attributes: Attributes | None = ALL) -> Made:
        """The tables of the proxies with these attributes; None: ALL, all documents for everybody.

        Depends on nothing but the arguments: the same bytes in every process, whatever was asked before.
        Documents are compiled in the order in which they were created. One that does not parse, or does not
        fit those before it, is left out and its reason is in ``problems``; all others stand. Its older
        versions are not in the contents, so nothing else can be done here; who applies one sees the problem
        before. ``problems`` of a view are those of documents that it holds or that nobody can read.
        """
        with self._lock, _no_collection():
            opened = self._open(contents)
            documents = opened.documents if attributes is None else opened.chosen(attributes)
            result = self._result(documents, None if attributes is None else attributes.mesh)
            return Made(result.tables, opened.problems + result.problems, list(result.warnings))

    def check(self, texts: Iterable[tuple[str, bytes]]) -> tuple[list[Resource], list[Problem]]:
        """The good documents of (file name, YAML or JSON) pairs, and what is wrong with the others.

        ``kind: List`` is its items. Of two documents with one identity the first counts, the second is a
        problem. Whether they fit each other and what is there already, :meth:`make` tells.
        """
        with self._lock, _no_collection():
            documents, problems = load_both("", texts)
            resources = []
            self._checked = {}
            for document in documents:
                text, line = _trimmed(document.row.text, document.row.line)
                resources.append(Resource(*document.identity, text, document.row.file, line))
                self._checked[document.identity, text, document.row.file, line] = (
                    document.lean(text, line),
                    [],
                )
            return resources, problems

    def _open(self, contents: Contents) -> _Opened:
        for opened in self._opened:
            if opened.contents is contents:
                self._opened.remove(opened)
                self._opened.insert(0, opened)
                return opened
        resources = sorted(contents, key=lambda r: (r.created, r.identity))
        texts = [(r.identity, r.text, r.file, r.line) for r in resources]
        for text, resource in zip(texts, resources, strict=True):
            if text not in self._read:
                self._read[text] = self._checked.get(text) or _read(resource)
        opened = _Opened(contents, texts, (self._read[text] for text in texts))
        self._opened = [opened, *self._opened[: KEPT - 1]]
        self._turn += 1
        held = {text for some in self._opened for text in some.texts}
        self._read = {text: read for text, read in self._read.items() if text in held}
        self._results = {k: r for k, r in self._results.items() if r.turn > self._turn - KEPT}
        return opened

    def _result(self, documents: list[Document], mesh: bool | None) -> _Result:
        """mesh None: ALL."""
        key = (tuple(map(id, documents)), mesh)
        result = self._results.get(key)
        if result is None:
            tables, kept, wrong = settle(documents, mesh=mesh is not False)
            warnings = advise(kept, tables) if mesh is None else []
            if mesh is not None:
                tables = _needed(tables)
            result = self._results[key] = _Result(documents, tables, wrong, warnings, self._turn)
        result.turn = self._turn
        return result


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the collector of cycles: it would spend half of the time on what is no garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(resource: Resource) -> Read:
    documents, problems = read_chunk(Chunk(resource.file, resource.line, resource.text))
    if len(documents) == 1 and documents[0].identity == resource.identity:
        return documents[0].lean(resource.text, resource.line), []
    told = problems or [Problem(resource.file, resource.line, "", f"the text is no {resource.source}")]
    return None, [Problem(p.file, p.line, p.field, p.message, *resource.identity) for p in told]


def _trimmed(text: str, line: int) -> tuple[str, int]:
    """A document without the marker and the empty lines around it: it is the same wherever in a file it
    stands."""
    if text.startswith("---") and text.partition("\n")[0].strip() == "---":
        text, line = text.partition("\n")[2], line + 1
    while text.partition("\n")[0].isspace() or text.startswith("\n"):
        text, line = text.partition("\n")[2], line + 1
    if text.endswith("\n") and not _KEEP.search(text):
        text = text.rstrip("\r\n") + "\n"
    return text, line


def _is_for(document: Document, places: set[str], taken: set[int]) -> bool:
    """Whether a view with these listeners has a use for a document; ``taken``: its Gateways."""
    if document.row.kind == "Gateway":
        return id(document) in taken
    return document.row.kind != "VirtualService" or not places.isdisjoint(bound_to(document))


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
