"""``edit``: a document through the user's editor and back, as kubectl has it.

A refused text comes back with the reasons on top. Whatever ends it, a text that was typed and not applied
stays in its file, and the last line says where.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ctrl import documents, show
from ctrl.client import Answer, ApiError, Client
from ctrl.commands import completing
from ctrl.commands.asking import (
    CHANGE,
    FAILED,
    USAGE,
    Failure,
    Message,
    Namespace,
    asks,
    milliseconds,
)
from ctrl.commands.changes import Timeout, Wait, finish
from ctrl.kinds import one
from ctrl.show import Output, number, rows, word

HEADER = """\
# Edit the document below the line. An unchanged or empty one applies nothing; when it is refused, this file
# opens again with the reasons.
"""
LINE = "# ---------------------------------------- the document:\n"


def add(app: typer.Typer) -> None:
    """The command of this file."""
    asks(app, rich_help_panel=CHANGE)(edit)


def edit(
    client: Client,
    what: Annotated[str, typer.Argument(metavar="KIND[/NAME]", autocompletion=completing.targets)],
    name: completing.Name = "",
    namespace: Namespace = "default",
    wait: Wait = False,
    timeout: Timeout = "30s",
    message: Message = "",
) -> None:
    """Edit one document in $EDITOR and apply what was saved."""
    milliseconds("--timeout", timeout)
    try:
        kind, name = one(what, name)
    except ValueError as e:
        raise Failure(str(e), USAGE) from None
    if not name:
        raise Failure("a name is wanted: KIND NAME or KIND/NAME", USAGE)
    row = _fetch(client, kind, namespace, name)
    original = word_text(row)
    descriptor, path = tempfile.mkstemp(prefix=f"fastproxy-{kind.lower()}-", suffix=".yaml")
    os.close(descriptor)
    file = Path(path)
    try:
        answer = _rounds(client, row, original, file, message)
    except BaseException as e:
        if _typed(file, original):
            show.hint(f"what you wrote is kept in {file}; apply it with {show.PROGRAM} apply -f {file}")
        else:
            file.unlink(missing_ok=True)
        if isinstance(e, ApiError):
            raise Failure(str(e)) from None
        raise
    file.unlink(missing_ok=True)
    if answer is not None:
        finish(client, answer, Output.TABLE, wait=wait, timeout=timeout)


def _rounds(client: Client, row: Answer, original: str, file: Path, message: str) -> Answer | None:
    """Editor, apply, and again with the reasons, until it is applied or given up. None: nothing to apply."""
    text, told, reasons = original, "", ""
    while True:
        file.write_text(HEADER + told + LINE + text)
        _editor(file)
        before, text = text, without_header(file.read_text())
        if not text.strip() or text.strip() == original.strip():
            show.say("edit cancelled: nothing was changed")
            return None
        if told and text == before:
            for reason in reasons.splitlines():
                show.hint(reason)
            raise Failure("edit cancelled: it was refused and not changed since")
        reasons = _wrong_document(row, text)
        if not reasons:
            reasons = _changed_meanwhile(client, row)
            if reasons:
                raise Failure(reasons)
            try:
                # strict: of one document, what cannot be taken is to be edited again, not left out
                return client.apply([(f"edit {show.identity(row)}", text)], strict=True, message=message)
            except ApiError as e:
                if not e.problems:
                    raise
                reasons = "\n".join(_reason(p) for p in e.problems)
        told = "#\n" + "".join(f"# {line}\n" for line in reasons.splitlines())


def _fetch(client: Client, kind: str, namespace: str, name: str) -> Answer:
    found = rows(client.resources(kind, namespace, name), "resources")
    if not found:
        raise Failure(f"no {kind} {name} in namespace {namespace}")
    return found[0]


def word_text(row: Answer) -> str:
    """The document, ending with a line's end."""
    text = row.get("text")
    return text.strip("\n").removeprefix("---\n") + "\n" if isinstance(text, str) else ""


def without_header(text: str) -> str:
    """The text below the line; all of it when somebody took the line away."""
    head, line, below = text.partition(LINE)
    return below if line and all(row.startswith("#") for row in head.splitlines()) else text


def _reason(problem: Answer) -> str:
    field = f"{word(problem, 'field')}: " if problem.get("field") else ""
    line = f"line {number(problem, 'line')}: " if number(problem, "line") else ""
    return f"refused: {line}{field}{word(problem, 'message')}"


def _wrong_document(row: Answer, text: str) -> str:
    """Why this is not an edit of that document; empty: it is one."""
    try:
        found = list(documents.found([("the document", text)]))
    except documents.DocumentsError as e:
        return f"refused: {e}"
    wanted = tuple(word(row, key) for key in ("kind", "namespace", "name"))
    if len(found) != 1 or documents.identity(found[0].value) != wanted:
        return (
            f"refused: this must stay the one document {show.identity(row)}; "
            f"another is made with {show.PROGRAM} apply"
        )
    return ""


def _changed_meanwhile(client: Client, row: Answer) -> str:
    now = _fetch(client, *(word(row, key) for key in ("kind", "namespace", "name")))
    if number(now, "version") == number(row, "version"):
        return ""
    return f"{show.identity(row)} was changed by version {number(now, 'version')} meanwhile; edit it again"


def _typed(file: Path, original: str) -> bool:
    try:
        text = without_header(file.read_text()).strip()
    except (OSError, ValueError):
        return True
    return bool(text) and text != original.strip()


def _editor(file: Path) -> None:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        words = shlex.split(command)
        done = subprocess.run([*words, str(file)], check=False)
    except (OSError, ValueError) as e:
        raise Failure(f"the editor {command!r} cannot be started ({e}); set EDITOR", USAGE) from None
    if done.returncode:
        raise Failure(f"the editor {command!r} ended with {done.returncode}", FAILED)
    sys.stdout.flush()
