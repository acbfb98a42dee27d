"""Chunks to documents: the envelope, the schema, and every error with its file, line and field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fastproxy.resources.breaker import BreakerOrder
from fastproxy.resources.fields import shorten
from fastproxy.resources.model import Model
from fastproxy.resources.problem import PathPart, Problem, field_path, nearest
from fastproxy.resources.source import Chunk, join_surrogates
from fastproxy.resources.traffic import DestinationRule, Gateway, ServiceEntry, WorkloadEntry
from fastproxy.resources.tree import Fault, Marks, line_of, parse
from fastproxy.resources.virtual_service import VirtualService

KINDS: dict[str, type[Model]] = {
    "Gateway": Gateway,
    "ServiceEntry": ServiceEntry,
    "WorkloadEntry": WorkloadEntry,
    "DestinationRule": DestinationRule,
    "VirtualService": VirtualService,
    "BreakerOrder": BreakerOrder,
}
OURS_KINDS = frozenset(("BreakerOrder",))
KINDS_LATER = frozenset(
    (
        *(
            "Sidecar",
            "EnvoyFilter",
            "WorkloadGroup",
            "ProxyConfig",
            "PeerAuthentication",
            "RequestAuthentication",
        ),
        *("AuthorizationPolicy", "Telemetry", "WasmPlugin", "HTTPRoute", "GatewayClass"),
    )
)
ISTIO = ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3")
OURS = "fastproxy/v1"
MAX_PROBLEMS = 100  # of one document
MAX_EXPLAINED = 10 * MAX_PROBLEMS  # looked at, to tell the first ones
LATER = "known but not supported yet"

Identity = tuple[str, str, str]
Told = tuple[tuple[PathPart, ...], str]  # a field and what is wrong with it


class Row(NamedTuple):
    """A good document as it is kept: enough to read it again after its successor turned out bad."""

    kind: str
    namespace: str
    name: str
    file: str
    line: int
    text: str

    @property
    def identity(self) -> Identity:
        return (self.kind, self.namespace, self.name)


@dataclass(slots=True)
class Document:
    """One good document. ``resource`` is its schema model, one of the classes in KINDS.

    marks: None where they were given up for memory. memo: what was made of this document alone, for who makes
    it again; see :mod:`fastproxy.resources.routes`.
    """

    row: Row
    resource: Any
    marks: Marks | None = field(repr=False)
    first_line: int
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def identity(self) -> Identity:
        return self.row.identity

    @property
    def namespace(self) -> str:
        return self.row.namespace

    @property
    def source(self) -> str:
        """``VirtualService default/catalog``"""
        return f"{self.row.kind} {self.row.namespace}/{self.row.name}"

    def lean(self, text: str, line: int) -> Document:
        """This document to be kept for long, as ``text`` that starts on ``line``: without its marks, which
        are half of it. Who asks for a line then has the text parsed again."""
        return Document(self.row._replace(text=text, line=line), self.resource, None, line)

    def problem(self, path: tuple[PathPart, ...], message: str) -> Problem:
        marks = parse(self.row.text)[1] if self.marks is None else self.marks
        line = self.first_line + line_of(marks, path)
        return Problem(self.row.file, line, field_path(path), message, *self.identity)


def read_chunk(chunk: Chunk) -> tuple[list[Document], list[Problem]]:
    """The document of a chunk, or the items of a ``kind: List``; each item stands or falls alone."""
    try:
        value, marks = parse(chunk.text)
    except Fault as fault:
        again = f", first on line {chunk.line + fault.first}" if fault.first is not None else ""
        return [], [Problem(chunk.file, chunk.line + fault.line, "", fault.message + again)]
    if value is None:
        return [], []
    if not isinstance(value, dict):
        line = chunk.line + _first_line(marks)
        return [], [Problem(chunk.file, line, "", f"a document is a mapping, this is {_kind_of(value)}")]
    kind = value.get("kind")
    if not (isinstance(kind, str) and kind.endswith("List") and isinstance(value.get("items"), list)):
        return _read_one(chunk, value, marks, chunk.line, chunk.text, chunk.line)
    documents: list[Document] = []
    problems: list[Problem] = []
    items = marks["items"][1]
    for i, item in enumerate(value["items"]):
        line, below = items[i]
        if not isinstance(item, dict):
            place = chunk.line + line
            problems.append(
                Problem(chunk.file, place, f"items[{i}]", f"must be a mapping, not {_kind_of(item)}")
            )
            continue
        text = join_surrogates(json.dumps(item))
        good, bad = _read_one(chunk, item, below, chunk.line, text, chunk.line + line)
        documents += good
        problems += bad
    return documents, problems


def _read_one(
    chunk: Chunk, value: dict[str, Any], marks: Marks, first: int, text: str, line: int
) -> tuple[list[Document], list[Problem]]:
    metadata = value.get("metadata")
    names: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
    kind, name, namespace = value.get("kind"), names.get("name"), names.get("namespace", "default")
    identity = ("", "", "")
    if isinstance(kind, str) and isinstance(name, str) and isinstance(namespace, str) and kind and name:
        identity = (kind, namespace, name)

    top = _first_line(marks) if marks else line - first

    def at(path: tuple[PathPart, ...], message: str) -> Problem:
        where = first + (line_of(marks, path) if path and path[0] in marks else top)
        return Problem(chunk.file, where, field_path(path), message, *identity)

    wrong = _envelope(value)
    if wrong is not None:
        return [], [at(*wrong)]
    problems = [at(path, "has no value") for path in _nulls(value.get("spec"), ("spec",))]
    resource: Any = None
    model = KINDS[value["kind"]]
    if not problems:
        try:
            resource = model.model_validate(value, context={"ours": value["apiVersion"] == OURS})
        except ValidationError as error:
            details = error.errors(include_url=False)[:MAX_EXPLAINED]
            told = [_explain(model, e, value["apiVersion"] == OURS) for e in details]
            problems = [at(*one) for one in _without_echoes(told)]
    if problems:
        return [], _bounded(problems)
    row = Row(*identity, chunk.file, line, text)
    return [Document(row, resource, marks, first)], []


def _first_line(marks: Marks) -> int:
    return min((line for line, _ in marks.values()), default=0)


def _bounded(problems: list[Problem]) -> list[Problem]:
    problems.sort(key=lambda p: p.line)
    if len(problems) > MAX_PROBLEMS:
        most = len(problems) >= MAX_EXPLAINED
        more = f"{'at least ' if most else ''}{len(problems) - MAX_PROBLEMS}"
        last = problems[MAX_PROBLEMS]
        problems = [
            *problems[:MAX_PROBLEMS],
            last._replace(field="", message=f"and {more} more in this document"),
        ]
    return problems


def _kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a mapping",
    }
    return names[type(value)]


def _envelope(value: dict[str, Any]) -> Told | None:
    """What is wrong with kind, apiVersion or metadata.name, so that no schema can be chosen."""
    for key in ("apiVersion", "kind"):
        if key not in value:
            hint = nearest(key, [k for k in value if isinstance(k, str)])
            return (), f"{key} is missing{hint}"
        if not isinstance(value[key], str):
            return (key,), f"must be a string, not {_kind_of(value[key])}"
    kind, version = value["kind"], value["apiVersion"]
    if kind not in KINDS:
        if kind in KINDS_LATER:
            return ("kind",), f"{kind} is {LATER}"
        return ("kind",), f"unknown kind {shorten(kind)}{nearest(kind, KINDS)}"
    if version not in ISTIO and version != OURS:
        return ("apiVersion",), f"unknown apiVersion {shorten(version)}{nearest(version, (*ISTIO, OURS))}"
    if kind in OURS_KINDS and version != OURS:
        return ("apiVersion",), f"{kind} is a kind of apiVersion {OURS}"
    return None


def _nulls(value: Any, path: tuple[PathPart, ...]) -> Iterator[tuple[PathPart, ...]]:
    """Places without a value: where one was forgotten, a match would turn into "always"."""
    stack = [(value, path)]
    while stack:
        here, at = stack.pop()
        items: Iterable[tuple[PathPart, Any]] = ()
        if type(here) is dict:
            items = here.items()
        elif type(here) is list:
            items = enumerate(here)
        for key, below in items:
            if below is None:
                yield (*at, key)
            elif type(below) is dict or type(below) is list:
                stack.append((below, (*at, key)))


_WORDS = {
    "missing": "is required",
    "string_type": "must be a string, not {kind}",
    "int_type": "must be a whole number, not {kind}",
    "bool_type": "must be true or false, not {kind}",
    "list_type": "must be a list, not {kind}",
    "dict_type": "must be a mapping, not {kind}",
    "model_type": "must be a mapping, not {kind}",
    "model_attributes_type": "must be a mapping, not {kind}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must not be empty",
    "string_too_long": "longer than {max_length} characters",
    "literal_error": "must be {expected}",
}


_HINT = re.compile(r"\Aunknown field \(did you mean (\w+)\?\)\Z")


def _explain(model: type[Model], error: ErrorDetails, ours: bool) -> Told:
    """The path and the sentence for one of pydantic's errors."""
    loc: tuple[PathPart, ...] = tuple(part for part in error["loc"] if part != "[key]")
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "fastproxy":
        return (*loc, *context["path"]), context["text"]
    if kind == "extra_forbidden":
        return loc, _unknown(_model_at(model, loc[:-1]), str(loc[-1]), ours)
    given = error["input"]
    if kind == "string_type" and type(given) in (int, float, bool):
        return loc, f"must be a string, not {_kind_of(given)}: write it in quotes"
    if kind in _WORDS:
        return loc, _WORDS[kind].format(kind=_kind_of(given) if kind.endswith("_type") else "", **context)
    return loc, error["msg"]


def _without_echoes(told: list[Told]) -> list[Told]:
    """A required field that is only misspelt is one error, not two."""
    guessed = {(path[:-1], hint[0]) for path, message in told if (hint := _HINT.findall(message))}
    return [
        (path, message)
        for path, message in told
        if message != _WORDS["missing"] or (path[:-1], path[-1]) not in guessed
    ]


def _unknown(model: type[Model] | None, name: str, ours: bool) -> str:
    if model is None:
        return "unknown field"
    if name in model.later or (ours and name in model.ours_later):
        return LATER
    if name in model.ours_later:
        return f"is a field of apiVersion {OURS}, and there {LATER}"
    names = [known.alias or field for field, known in model.model_fields.items()]
    return "unknown field" + nearest(name, [*names, *model.later])


def _model_at(model: type[Model], path: tuple[PathPart, ...]) -> type[Model] | None:
    """The schema class that describes the value at ``path``."""
    here: Any = model
    for part in path:
        if isinstance(here, type) and issubclass(here, Model):
            known = here.model_fields.get(str(part))
            if known is None:
                return None
            here = known.annotation
        else:
            here = get_args(here)[-1]
        here = _strip(here)
    return here if isinstance(here, type) and issubclass(here, Model) else None


def _strip(annotation: Any) -> Any:
    """``Annotated[X, …]`` and ``X | None`` as ``X``."""
    while True:
        arguments = get_args(annotation)
        if hasattr(annotation, "__metadata__"):
            annotation = arguments[0]
        elif type(None) in arguments and get_origin(annotation) not in (list, dict):
            annotation = next(a for a in arguments if a is not type(None))
        else:
            return annotation
