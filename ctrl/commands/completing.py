"""What the shell completes: kinds, and of the server names, hosts and versions; nothing where it does not
answer at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from ctrl.client import ApiError, Client
from ctrl.commands.asking import Failure, Place, connect
from ctrl.kinds import KINDS, SHORT, kind_of
from ctrl.show import number, rows, word

COMPLETE_SECONDS = 1.0  # that a person waits for the shell
VERSIONS = 20


def kinds(incomplete: str) -> list[str]:
    """``VirtualService`` of ``V``; ``virtualservice`` and ``vs`` of ``v``: the shell takes only what begins
    as it was typed."""
    words = list(KINDS)
    if incomplete:
        words += [form for kind in KINDS for form in (kind.lower(), SHORT[kind])]
    return [word for word in words if word.startswith(incomplete)]


def targets(context: typer.Context, incomplete: str) -> list[str]:
    """A kind, or after ``vs/`` the documents of that kind."""
    kind, slash, begin = incomplete.partition("/")
    return [f"{kind}/{name}" for name in _names(context, kind, begin)] if slash else kinds(incomplete)


def names(context: typer.Context, incomplete: str) -> list[str]:
    """The documents of the kind that was typed."""
    return _names(context, str(context.params.get("what", "")), incomplete)


def hosts(context: typer.Context, incomplete: str) -> list[str]:
    """Hosts of all services."""
    from ctrl import documents

    found: list[str] = []
    with _asked(context) as client:
        for row in rows(client.resources("ServiceEntry"), "resources"):
            for document in documents.found([("", str(row.get("text", "")))]):
                spec = document.value.get("spec")
                given = spec.get("hosts") if isinstance(spec, dict) else None
                found += [host for host in given if isinstance(host, str)] if isinstance(given, list) else []
    return sorted({host for host in found if host.startswith(incomplete)})


def versions(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest versions, and what each was."""
    found: list[tuple[str, str]] = []
    with _asked(context) as client:
        for row in rows(client.history(VERSIONS), "entries"):
            found.append((str(number(row, "version")), word(row, "what")))
    return [pair for pair in found if pair[0].startswith(incomplete)]


def orders(context: typer.Context, incomplete: str) -> list[str]:
    """Orders to breakers, by name."""
    found: list[str] = []
    with _asked(context) as client:
        found = [word(row, "name") for row in rows(client.breakers(), "orders")]
    return [name for name in found if name.startswith(incomplete)]


def _names(context: typer.Context, kind: str, begin: str) -> list[str]:
    found: list[str] = []
    with _asked(context) as client:
        space = str(context.params.get("namespace") or "default")
        found = [word(row, "name") for row in rows(client.resources(kind_of(kind), space), "resources")]
    return [name for name in found if name.startswith(begin)]


@contextmanager
def _asked(context: typer.Context) -> Iterator[Client]:
    given: dict[str, Any] = context.params
    place = Place(given.get("api", ""), given.get("token_file", ""))
    with suppress(Failure, ApiError, ValueError), connect(place, COMPLETE_SECONDS) as client:
        yield client


Name = Annotated[str, typer.Argument(metavar="[NAME]", autocompletion=names, show_default=False)]
