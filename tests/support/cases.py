"""Reader of the Markdown cases under ``tests/cases``: documents that anyone can add to.

A case is a ``##`` heading and two fenced blocks::

    ```request head=100           kind, then options as name=value
    GET / HTTP/1.1                 each line ends with CRLF,
    Host: a\\                       but not one that ends with a backslash

    ```
    ```want
    refused: LINE                  or ``more: yes``, or what the parser must find
    ```

In a block ``\\r \\n \\t \\0 \\xHH \\\\`` are bytes, and ``\\{1000:ab}`` is ``ab`` a thousand times.
A table of a document is read by its column names; a cell is written in backquotes where white space counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "cases"
KINDS = {"request", "response", "chunked"}

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|\{(\d+):([^}]*)\}|(.))", re.DOTALL)
_PLAIN = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}


@dataclass(frozen=True)
class Case:
    """One case: bytes, what they are, and what must come of them."""

    document: str
    title: str
    kind: str
    data: bytes
    options: dict[str, str] = field(hash=False)
    want: dict[str, str] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.document}: {self.title}"


def unescape(text: str) -> bytes:
    """The bytes that a text of a case stands for; characters up to U+00FF are one byte each."""

    def one(found: re.Match[str]) -> str:
        number, times, repeated, plain = found.groups()
        if number:
            return chr(int(number, 16))
        if times:
            return _ESCAPE.sub(one, repeated) * int(times)
        return _PLAIN[plain]

    return _ESCAPE.sub(one, text).encode("latin-1")


def _block(lines: list[str]) -> bytes:
    def line(text: str) -> bytes:
        backslashes = len(text) - len(text.rstrip("\\"))
        return unescape(text[:-1]) if backslashes % 2 else unescape(text) + b"\r\n"

    return b"".join(line(text) for text in lines)


def _pairs(document: str, title: str, lines: list[str]) -> dict[str, str]:
    pairs = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name in pairs:
            raise ValueError(f"{document}: {title}: a line of `want` is `name: value`, once each: {line!r}")
        pairs[name.strip()] = value.strip()
    return pairs


@cache
def read(document: str) -> tuple[Case, ...]:
    """All cases of one document, ``http1/requests.md``. A case that is not whole is an error."""
    cases: list[Case] = []
    title, info, open_block, data = "", "", False, None
    lines: list[str] = []
    for line in (ROOT / document).read_text().splitlines():
        if not open_block:
            if line.startswith("## "):
                if data is not None:
                    raise ValueError(f"{document}: {title}: no `want` block")
                title = line[3:].strip()
            elif line.startswith("```"):
                open_block, info, lines = True, line[3:].strip(), []
            continue
        if line != "```":
            lines.append(line)
            continue
        open_block = False
        if info != "want":
            data, asked = _block(lines), info
            continue
        if data is None or not lines or any(case.title == title for case in cases):
            raise ValueError(f"{document}: {title}: `want` without data or content, or a title used twice")
        kind, *words = asked.split()
        if kind not in KINDS:
            raise ValueError(f"{document}: {title}: no such kind: {kind}")
        options = dict(word.split("=", 1) for word in words)
        cases.append(Case(document, title, kind, data, options, _pairs(document, title, lines)))
        data = None
    if open_block or data is not None:
        raise ValueError(f"{document}: {title}: a block is not closed, or there is no `want`")
    return tuple(cases)


def read_all(folder: str, *kinds: str) -> list[Case]:
    """The cases of these kinds in all documents of a folder."""
    documents = sorted(path.name for path in (ROOT / folder).glob("*.md"))
    return [case for name in documents for case in read(f"{folder}/{name}") if case.kind in kinds]


def table(document: str, *columns: str) -> list[dict[str, str]]:
    """Rows of all tables in a document that have exactly these columns."""
    rows: list[dict[str, str]] = []
    inside = False
    for line in (ROOT / document).read_text().splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        cells = [cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == "`" else cell for cell in cells]
        if tuple(cells) == columns:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            if len(cells) != len(columns):
                raise ValueError(f"{document}: {len(cells)} cells where {len(columns)} belong: {line}")
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows
