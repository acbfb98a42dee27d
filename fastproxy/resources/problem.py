"""A problem: what is wrong with one document, and where."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

PathPart = str | int


class Problem(NamedTuple):
    """file, line (1-based, 0: the file as a whole), field as ``spec.http[0].match``, the document's identity.

    The identity is empty where the document could not be read far enough to know it.
    """

    file: str
    line: int
    field: str
    message: str
    kind: str = ""
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"

    @property
    def identity(self) -> tuple[str, str, str]:
        return (self.kind, self.namespace, self.name)

    def to_dict(self) -> dict[str, Any]:
        """As it travels in msgpack."""
        return self._asdict()


def printable(text: str, limit: int = 80) -> str:
    """Text of a document as it may stand on a terminal: no controls, not endless."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def field_path(parts: Iterable[PathPart]) -> str:
    """``("spec", "http", 0, "name")`` as ``spec.http[0].name``."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{printable(part)}" if text else printable(part)
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean x?)`` for the nearest known name, empty when none is near."""
    if len(name) > 64:
        return ""
    names = {k.lower(): k for k in known if len(k) <= 64}
    found = get_close_matches(name.lower(), list(names), n=1, cutoff=0.6)
    return f" (did you mean {names[found[0]]}?)" if found else ""
