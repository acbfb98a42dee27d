"""Where documents come from: files of a path, or texts handed over; in chunks of one document."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from typing import NamedTuple

from fastproxy.resources.problem import Problem

MAX_FILE = 32 * 1024 * 1024
MAX_TOTAL = 64 * 1024 * 1024
MAX_FILES = 10_000
MAX_CHUNKS = 100_000
SUFFIXES = (".yaml", ".yml", ".json")

_PAIR = re.compile(r"(\\+)u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_MARKER = re.compile(r"^(?:---|\.\.\.)(?=[ \t\r\n]|\Z)", re.MULTILINE)


class Chunk(NamedTuple):
    """The text of one document; ``line`` is the 1-based line of the file where it starts."""

    file: str
    line: int
    text: str


def _is_blank(text: str) -> bool:
    """Nothing but a marker, comments and a %YAML directive."""
    for line in text.removeprefix("---").split("\n"):
        word = line.strip()
        if word and not word.startswith("#") and not line.startswith("%YAML"):
            return False
    return True


def split(file: str, text: str) -> list[Chunk]:
    """Document by document, so that a syntax error stays in its own.

    A marker at the start of a line ends a document wherever it stands (YAML 1.2 section 9.1.2).
    """
    chunks: list[Chunk] = []
    line = 1
    starts = [0, *(m.start() for m in _MARKER.finditer(text) if m.start()), len(text)]
    for begin, end in zip(starts, starts[1:], strict=False):
        piece = text[begin:end]
        body = "   " + piece[3:] if piece.startswith("...") else piece
        if not _is_blank(body):
            chunks.append(Chunk(file, line, body))
        line += piece.count("\n")
    return chunks


def join_surrogates(text: str) -> str:
    """JSON's escape for what lies beyond U+FFFF as YAML writes it: one character, not two halves."""
    return _PAIR.sub(_join, text)


def _join(found: re.Match[str]) -> str:
    if len(found[1]) % 2 == 0:
        return found[0]
    high, low = int(found[2], 16), int(found[3], 16)
    return f"{found[1]}U{0x10000 + ((high & 0x3FF) << 10) + (low & 0x3FF):08X}"


def _decode(file: str, data: bytes) -> tuple[list[Chunk], list[Problem]]:
    if len(data) > MAX_FILE:
        return [], [Problem(file, 0, "", f"larger than {MAX_FILE >> 20} MiB")]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return [], [Problem(file, data.count(b"\n", 0, error.start) + 1, "", "not UTF-8")]
    return split(file, join_surrogates(text) if file.endswith(".json") else text), []


def names(path: str) -> list[str]:
    """The files of a path: itself, or what a folder holds (not what its folders hold), sorted by name.

    Raises OSError. Hidden names are left out: Kubernetes mounts a ConfigMap with ``..data`` beside the files.
    """
    if not os.path.isdir(path):
        return [path]
    found = [n for n in os.listdir(path) if n.endswith(SUFFIXES) and not n.startswith(".")]
    return [full for n in sorted(found) if not os.path.isdir(full := os.path.join(path, n))]


def _read_file(file: str) -> bytes:
    # O_NONBLOCK: opening a FIFO must not wait for its writer
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as f:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a regular file")
        return f.read(MAX_FILE + 1)


def read_path(path: str) -> tuple[list[Chunk], list[Problem]]:
    """All chunks of a file or folder; what cannot be read is a problem of that file alone."""
    try:
        files = names(path)
    except OSError as error:
        return [], [Problem(path, 0, "", error.strerror or str(error))]
    if not files:
        return [], [Problem(path, 0, "", f"no {', '.join(SUFFIXES)} file in this folder")]
    texts: list[tuple[str, bytes]] = []
    problems: list[Problem] = []
    for file in files[:MAX_FILES]:
        try:
            texts.append((file, _read_file(file)))
        except OSError as error:
            problems.append(Problem(file, 0, "", error.strerror or str(error)))
    if len(files) > MAX_FILES:
        problems.append(Problem(path, 0, "", f"more than {MAX_FILES} files"))
    chunks, more = read_texts(texts)
    return chunks, problems + more


def read_texts(texts: Iterable[tuple[str, bytes]]) -> tuple[list[Chunk], list[Problem]]:
    """All chunks of (name, bytes) pairs."""
    chunks: list[Chunk] = []
    problems: list[Problem] = []
    total = 0
    for file, data in texts:
        total += len(data)
        if total > MAX_TOTAL:
            problems.append(Problem(file, 0, "", f"more than {MAX_TOTAL >> 20} MiB in all"))
            continue
        good, bad = _decode(file, data)
        chunks += good
        problems += bad
    if len(chunks) > MAX_CHUNKS:
        problems.append(
            Problem(chunks[MAX_CHUNKS].file, chunks[MAX_CHUNKS].line, "", f"more than {MAX_CHUNKS} documents")
        )
        chunks = chunks[:MAX_CHUNKS]
    return chunks, problems
