"""YAML text to plain values and the line of each, from parser events: hostile input is bounded here.

Unlike YAML 1.1, and nearer to what people mean: only ``true`` and ``false`` are booleans, a number with a
leading zero, an underscore or a colon is a string, duplicate keys and language tags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from yaml import YAMLError
from yaml.cyaml import CParser  # type: ignore[attr-defined]
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from fastproxy.resources.problem import PathPart, printable

MAX_DEPTH = 64
MAX_NODES = (
    2_000_000  # after aliases are expanded: what a billion laughs would grow to; 64 characters are one
)

Marks = dict[PathPart, tuple[int, Any]]  # key -> (line, marks of the value or None)

_WORDS: dict[str, Any] = {"": None, "~": None}
_WORDS |= dict.fromkeys(("null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True)
_WORDS |= dict.fromkeys(("false", "False", "FALSE"), False)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,31})\Z")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z")
_ODD_BREAK = re.compile(
    r"\r(?!\n)|[\x85\u2028\u2029]"
)  # YAML 1.1 breaks lines at these, 1.2 and editors do not
_TAG = "tag:yaml.org,2002:"


class Fault(Exception):
    """Text that is not a document. ``line`` is 0-based within the text, ``first`` that of what it repeats."""

    def __init__(self, line: int, message: str, first: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.first = first


def _plain(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in "0123456789+-.":
        if _INT.match(text):
            return int(text)
        if _FLOAT.match(text):
            return float(text)
    return text


def _scalar(event: Any) -> Any:
    tag = event.tag
    if tag is None:
        return _plain(event.value) if event.implicit[0] else event.value
    if tag in ("!", _TAG + "str"):
        return event.value
    if tag in (_TAG + "int", _TAG + "bool", _TAG + "float", _TAG + "null"):
        return _plain(event.value)
    raise Fault(event.start_mark.line, f"tag {printable(tag)} is not allowed")


def _merge(into: dict[str, Any], marks: Marks, line: int) -> None:
    """YAML's ``<<``: keys of the named mappings, where the mapping itself has none."""
    sources = into.pop("<<")
    _, source_marks = marks.pop("<<")
    pairs = [(sources, source_marks)]
    if isinstance(sources, list):
        pairs = [(s, source_marks[i][1]) for i, s in enumerate(sources)]
    for source, lines in pairs:
        if not isinstance(source, dict):
            raise Fault(line, "<< needs a mapping or a list of mappings")
        for key, value in source.items():
            if key not in into:
                into[key] = value
                marks[key] = lines[key]


def parse(text: str) -> tuple[Any, Marks]:
    """The one document in ``text`` and the 0-based line of every key and item.

    Raises Fault. Time and memory are linear in the text, times MAX_NODES at most for aliases.
    """
    odd = _ODD_BREAK.search(text)
    if odd:
        line = text.count("\n", 0, odd.start())
        raise Fault(
            line, f"U+{ord(odd.group()):04X} ends a line for some parsers only: escape it in double quotes"
        )
    try:
        return _parse(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).split("\n")[0]
        context = getattr(error, "context", None)
        line = mark.line if mark is not None else text.count("\n", 0, getattr(error, "position", 0) or 0)
        # at the end of the text the parser may stand a line below it
        raise Fault(
            min(line, text.count("\n")), f"not YAML: {what}{f', {context}' if context else ''}"
        ) from None


def _parse(text: str) -> tuple[Any, Marks]:
    next_event: Callable[[], Any] = CParser(text).get_event
    root: list[Any] = []
    root_marks: Marks = {}
    # the container being filled, its marks, the key that waits for its value, that key's line, and its anchor
    into: Any = root
    marks: Marks = root_marks
    key: str | None = None
    key_line = 0
    anchor: str | None = None
    start = 0
    stack: list[tuple[Any, Marks, str | None, int, str | None, int]] = []
    anchors: dict[str, tuple[Any, Marks | None, int]] = {}
    nodes = 0
    while (event := next_event()) is not None:
        kind = type(event)
        below: Marks | None = None
        if kind is ScalarEvent:
            if key is None and type(into) is dict:
                key, key_line = event.value, event.start_mark.line
                if event.tag not in (None, "!", _TAG + "str"):
                    raise Fault(key_line, f"tag {printable(event.tag)} is not allowed on a key")
                if key in into:
                    raise Fault(key_line, f"{printable(key)} is given twice", marks[key][0])
                if event.anchor is not None:
                    anchors[event.anchor] = (key, None, 1 + (len(key) >> 6))
                continue
            size = 1 + (len(event.value) >> 6)
            nodes += size
            value = _scalar(event)
            line = event.start_mark.line
            if event.anchor is not None:
                anchors[event.anchor] = (value, None, size)
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            line = event.start_mark.line
            if key is None and type(into) is dict:
                raise Fault(line, "a key must be a word, not a mapping or list")
            if event.tag not in (None, "!", _TAG + "map", _TAG + "seq"):
                raise Fault(line, f"tag {printable(event.tag)} is not allowed")
            if len(stack) >= MAX_DEPTH:
                raise Fault(line, f"nested deeper than {MAX_DEPTH} levels")
            stack.append((into, marks, key, key_line if key is not None else line, anchor, start))
            nodes += 1
            into = {} if kind is MappingStartEvent else []
            marks, key, anchor, start = {}, None, event.anchor, nodes
            if anchor is not None:
                anchors.pop(anchor, None)
            continue
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            if type(into) is dict and "<<" in into:
                _merge(into, marks, event.start_mark.line)
            value, below = into, marks
            if anchor is not None:
                anchors[anchor] = (value, below, nodes - start + 1)
            into, marks, key, line, anchor, start = stack.pop()
            key_line = line
        elif kind is AliasEvent:
            line = event.start_mark.line
            if key is None and type(into) is dict:
                raise Fault(line, "a key must be a word, not an alias")
            if event.anchor not in anchors:
                raise Fault(line, f"alias *{printable(event.anchor)} names no finished anchor")
            value, below, size = anchors[event.anchor]
            nodes += size
        elif kind is DocumentStartEvent:
            if root:
                raise Fault(event.start_mark.line, "a second document; part documents by a line ---")
            continue
        else:
            continue
        if nodes > MAX_NODES:
            raise Fault(line, f"more than {MAX_NODES} values after aliases are expanded")
        if key is not None:
            into[key] = value
            marks[key] = (key_line, below)
            key = None
        else:
            marks[len(into)] = (line, below)
            into.append(value)
    if not root:
        return None, {}
    return root[0], root_marks[0][1] or {}


def line_of(marks: Marks, path: tuple[PathPart, ...]) -> int:
    """0-based line of the value at ``path``, or of the nearest thing above it that exists."""
    line = 0
    here: Marks | None = marks
    for part in path:
        if not here or part not in here:
            break
        line, here = here[part]
    return line
