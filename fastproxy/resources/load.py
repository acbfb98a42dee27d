"""A path or texts to documents; and what of the last good ones stays where something went bad."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastproxy.resources.documents import Document, Identity, Row, read_chunk
from fastproxy.resources.problem import Problem
from fastproxy.resources.source import Chunk, read_path, read_texts

NOTHING = "no document: empty, or nothing but comments"


class Loaded(NamedTuple):
    """The good documents in order of file and line, and what was wrong with the others."""

    documents: list[Document]
    problems: list[Problem]


def load(path: str) -> Loaded:
    """All documents of a file, or of the files of a folder sorted by name. Never raises for what it reads.

    No document at all is a problem: a file that was cut to nothing must not close all listeners.
    """
    return _something(path, _read(*read_path(path)))


def load_texts(texts: Iterable[tuple[str, bytes]]) -> Loaded:
    """The same for (name, bytes) pairs; the name stands for the file in problems."""
    return _read(*read_texts(texts))


def load_both(path: str, texts: Iterable[tuple[str, bytes]]) -> Loaded:
    """Files of a path, "" for none, and texts after them."""
    texts = list(texts)
    chunks, problems = read_path(path) if path else ([], [])
    more, bad = read_texts(texts)
    loaded = _read(chunks + more, problems + bad)
    where = path or ", ".join(name for name, _ in texts)
    return _something(where, loaded) if where else loaded


def _something(where: str, loaded: Loaded) -> Loaded:
    if loaded.documents or loaded.problems:
        return loaded
    return Loaded([], [Problem(where, 0, "", NOTHING)])


def _read(chunks: list[Chunk], problems: list[Problem]) -> Loaded:
    documents: list[Document] = []
    first: dict[Identity, Document] = {}
    problems = list(problems)
    for chunk in chunks:
        good, bad = read_chunk(chunk)
        problems += bad
        for document in good:
            other = first.setdefault(document.identity, document)
            if other is document:
                documents.append(document)
            else:
                # no identity: the first keeps its place, and nothing of this file may be taken for deleted
                field = ("metadata", "name")
                place = f"{other.row.file}:{other.problem(field, '').line}"
                told = document.problem(field, f"{document.source} is defined twice, first at {place}")
                problems.append(told._replace(kind="", namespace="", name=""))
    return Loaded(documents, problems)


def reread(row: Row) -> Document | None:
    """A kept document again; None where this program's rules no longer take it."""
    documents, _ = read_chunk(Chunk(row.file, row.line, row.text))
    if len(documents) != 1 or documents[0].identity != row.identity:
        return None
    return documents[0]


def merge_last_good(new: Loaded, previous: Iterable[Row]) -> Loaded:
    """``new`` with the last good version of each document that became bad; what is gone stays gone.

    A problem that names its document brings back that one. A problem that can not (a syntax error, an
    unreadable file) brings back every document that its file, or folder, had and that is now missing.
    """
    present = {d.identity for d in new.documents}
    named = {p.identity for p in new.problems if p.name}
    blind = {p.file for p in new.problems if not p.name}
    folders = tuple(f.rstrip("/") + "/" for f in blind)
    documents = list(new.documents)
    for row in previous:
        if row.identity in present:
            continue
        if row.identity in named or row.file in blind or row.file.startswith(folders):
            document = reread(row)
            if document is not None:
                documents.append(document)
                present.add(row.identity)
    documents.sort(key=lambda d: (d.row.file, d.row.line))
    return Loaded(documents, new.problems)
