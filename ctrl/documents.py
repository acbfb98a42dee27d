"""Documents as they lie on the author's side: files, folders, standard input; whose they are, no more.

What they mean the server decides: it alone reads them by the schema, and says file and line of what is wrong.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fastproxy.resources.source import MAX_FILE, MAX_FILES, MAX_TOTAL, SUFFIXES, names, read_texts
from fastproxy.resources.tree import Fault, parse

STDIN = "-"


class DocumentsError(ValueError):
    """These files cannot be read; says which and why."""


class Found(NamedTuple):
    """One document of a file, or one item of a List: its value and where it starts."""

    file: str
    line: int
    text: str
    value: dict[str, Any]
    item: int = -1  # its place in a List


def read(paths: Sequence[str], recursive: bool = False) -> list[tuple[str, str]]:
    """(name, text) of every file, in order; the files of a folder sorted by name. Raises DocumentsError.

    One file that cannot be read fails all: half of what was meant is not meant.
    """
    files: list[str] = []
    for path in paths:
        try:
            found = [path] if path == STDIN else (below(path) if recursive else names(path))
        except OSError as e:
            raise DocumentsError(f"{path}: {e.strerror or e}") from None
        if not found:
            more = "" if recursive else "; -R also looks in the folders below"
            raise DocumentsError(f"{path}: no {', '.join(SUFFIXES)} file in this folder{more}")
        files += (file for file in found if file not in files)
    if len(files) > MAX_FILES:
        raise DocumentsError(f"more than {MAX_FILES} files")
    texts, total = [], 0
    for file in files:
        data = _read(file)
        total += len(data)
        if total > MAX_TOTAL:
            raise DocumentsError(f"{file}: more than {MAX_TOTAL >> 20} MiB in all")
        try:
            texts.append(("standard input" if file == STDIN else file, data.decode("utf-8-sig")))
        except UnicodeDecodeError as e:
            raise DocumentsError(f"{file}:{data.count(10, 0, e.start) + 1}: not UTF-8") from None
    return texts


def below(path: str) -> list[str]:
    """Files of a folder and of the folders in it, hidden ones left out."""
    if not os.path.isdir(path):
        return [path]
    found: list[str] = []

    def fail(error: OSError) -> None:
        raise DocumentsError(f"{error.filename}: {error.strerror}")

    for folder, folders, here in os.walk(path, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        wanted = (name for name in sorted(here) if name.endswith(SUFFIXES) and not name.startswith("."))
        found += (os.path.join(folder, name) for name in wanted)
        if len(found) > MAX_FILES:
            break
    return found


def about(file: str) -> tuple[int, int, int] | None:
    """(inode, size, time of change in ns): what differs when the file was written anew."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(file: str) -> bytes:
    try:
        if file == STDIN:
            data = sys.stdin.buffer.read(MAX_FILE + 1)
        else:
            # O_NONBLOCK: opening a FIFO must not wait for its writer; what <(…) gives is one, and may be read
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(descriptor, "rb") as f:
                kind = os.fstat(descriptor).st_mode
                if not stat.S_ISREG(kind) and not stat.S_ISFIFO(kind):
                    raise DocumentsError(f"{file}: not a regular file")
                os.set_blocking(descriptor, True)
                data = f.read(MAX_FILE + 1)
    except OSError as e:
        raise DocumentsError(f"{file}: {e.strerror or e}") from None
    if len(data) > MAX_FILE:
        raise DocumentsError(f"{file}: larger than {MAX_FILE >> 20} MiB")
    return data


def found(files: Iterable[tuple[str, str]]) -> Iterator[Found]:
    """Every document of these files, the items of a List one by one. A syntax error: DocumentsError."""
    chunks, problems = read_texts((name, text.encode()) for name, text in files)
    if problems:
        raise DocumentsError(str(problems[0]))
    for chunk in chunks:
        try:
            value, marks = parse(chunk.text)
        except Fault as fault:
            raise DocumentsError(f"{chunk.file}:{chunk.line + fault.line}: {fault.message}") from None
        if value is None:
            continue
        if not isinstance(value, dict):
            raise DocumentsError(f"{chunk.file}:{chunk.line}: a document is a mapping")
        kind, items = value.get("kind"), value.get("items")
        if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list):
            lines = marks["items"][1]
            for i, item in enumerate(items):
                if isinstance(item, dict):
                    yield Found(chunk.file, chunk.line + lines[i][0], chunk.text, item, i)
        else:
            yield Found(chunk.file, chunk.line, chunk.text, value)


def identity(value: dict[str, Any]) -> tuple[str, str, str]:
    """(kind, namespace, name) of a document; empty words where it does not say."""
    metadata = value.get("metadata")
    given = metadata if isinstance(metadata, dict) else {}
    words = (value.get("kind"), given.get("namespace", "default"), given.get("name"))
    kind, namespace, name = (word if isinstance(word, str) else "" for word in words)
    return kind, namespace, name
