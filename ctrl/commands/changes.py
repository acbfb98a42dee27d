"""Commands that make a version: apply, delete, rollback, import; and diff, which says what one would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ctrl import documents, show, waiting
from ctrl.client import Answer, Client
from ctrl.commands import completing
from ctrl.commands.asking import (
    CHANGE,
    FAILED,
    USAGE,
    Failure,
    Message,
    Namespace,
    Show,
    asks,
    milliseconds,
)
from ctrl.kinds import one
from ctrl.show import Output, number, rows, word

Files = Annotated[
    list[str],
    typer.Option(
        "--filename",
        "-f",
        metavar="FILE|DIR|-",
        help="Documents: a file, a folder, or - for standard input; repeated.",
    ),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Also what lies in folders below.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, change nothing.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until every proxy serves it; exit 1 if one does not.")]
Timeout = Annotated[str, typer.Option(metavar="TIME", help="How long to wait for the proxies.")]

_ROLLOUT = "Rollout"
Atomic = Annotated[
    bool,
    typer.Option(
        "--atomic", help="All prepare it, then all serve it; one refusal aborts.", rich_help_panel=_ROLLOUT
    ),
]
Stage = Annotated[
    str,
    typer.Option(
        "--stage", metavar="N,N%,…", help="Proxies that take it, stage by stage.", rich_help_panel=_ROLLOUT
    ),
]
Bake = Annotated[
    str,
    typer.Option(
        metavar="TIME", help="How long each stage is looked at; default: 30s.", rich_help_panel=_ROLLOUT
    ),
]
AbortIf = Annotated[
    list[str],
    typer.Option(
        metavar="CONDITION",
        help="Such as 'error_rate > 2x' (of at least 20 requests in a stage): back to the version before; "
        "repeated.",
        rich_help_panel=_ROLLOUT,
    ),
]


def add(app: typer.Typer) -> None:
    """The commands of this file."""
    asks(app, rich_help_panel=CHANGE)(apply)
    asks(app, rich_help_panel=CHANGE)(delete)
    asks(app, rich_help_panel=CHANGE)(diff)
    asks(app, rich_help_panel=CHANGE)(rollback)
    asks(app, "import", rich_help_panel=CHANGE)(import_)


def apply(
    client: Client,
    filename: Files = [],  # noqa: B006
    recursive: Recursive = False,
    dry_run: DryRun = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show the differences first.")] = False,
    wait: Wait = False,
    timeout: Timeout = "30s",
    strict: Annotated[bool, typer.Option("--strict", help="One bad document: nothing is applied.")] = False,
    atomic: Atomic = False,
    stage: Stage = "",
    bake: Bake = "",
    abort_if: AbortIf = [],  # noqa: B006
    message: Message = "",
    output: Show = Output.TABLE,
) -> None:
    """Apply documents as one version.

    A bad document is left out and told, its last good version stays; the good ones apply. Exit code 0; 1 when
    a proxy did not take it (--wait); 2 when a document was bad.
    """
    files = read(filename, recursive)
    steps = rollout_options(atomic, stage, bake, abort_if, timeout)
    if diff and not dry_run:
        show.differences(rows(client.apply(files, dry_run=True, strict=strict), "diff"))
    answer = client.apply(files, dry_run=dry_run, strict=strict, message=message, **steps)
    if diff and dry_run:
        show.differences(rows(answer, "diff"))
    finish(client, answer, output, wait=wait and not dry_run, timeout=timeout, conditions=abort_if)


def delete(
    client: Client,
    target: Annotated[
        list[str],
        typer.Argument(metavar="KIND/NAME", autocompletion=completing.targets, show_default=False),
    ] = [],  # noqa: B006
    filename: Files = [],  # noqa: B006
    recursive: Recursive = False,
    namespace: Namespace = "default",
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout: Timeout = "30s",
    ignore_not_found: Annotated[
        bool, typer.Option("--ignore-not-found", help="Exit 0 for what was not there.")
    ] = False,
    message: Message = "",
    output: Show = Output.TABLE,
) -> None:
    """Delete documents, by name or by the files that hold them.

    KIND/NAME is also written KIND NAME. All of them are one version."""
    milliseconds("--timeout", timeout)
    wanted = _targets(target, filename, recursive, namespace)
    there = {_row_identity(row) for row in rows(client.resources(), "resources")}
    missing = [one for one in wanted if one not in there]
    wanted = [one for one in wanted if one in there]
    for kind, space, name in missing:
        show.hint(f"{kind} {space}/{name} is not there")
    if wanted:
        answer = client.delete(wanted, dry_run=dry_run, message=message)
        finish(client, answer, output, wait=wait and not dry_run, timeout=timeout)
    elif output in (Output.JSON, Output.YAML):
        show.emit({"changes": []}, output)
    if missing and not ignore_not_found:
        raise typer.Exit(FAILED)


def diff(
    client: Client,
    filename: Files = [],  # noqa: B006
    recursive: Recursive = False,
) -> None:
    """Show what applying these documents would change.

    Exit code 0: nothing, 1: something, 2: it failed."""
    try:
        answer = client.apply(read(filename, recursive), dry_run=True)
    except Exception as e:
        # as kubectl and diff have it: 1 means that there are differences
        if isinstance(e, Failure):
            raise
        _problems(getattr(e, "problems", []))
        raise Failure(str(e), USAGE) from None
    found = rows(answer, "diff")
    show.differences(found)
    if _problems(rows(answer, "problems")):
        raise typer.Exit(USAGE)
    raise typer.Exit(1 if found else 0)


def rollback(
    client: Client,
    version: Annotated[
        int,
        typer.Argument(
            min=0, help="Version whose documents are wanted again.", autocompletion=completing.versions
        ),
    ],
    dry_run: DryRun = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show the differences first.")] = False,
    wait: Wait = False,
    timeout: Timeout = "30s",
    atomic: Atomic = False,
    stage: Stage = "",
    bake: Bake = "",
    abort_if: AbortIf = [],  # noqa: B006
    message: Message = "",
    output: Show = Output.TABLE,
) -> None:
    """Apply the documents of an older version as a new one."""
    steps = rollout_options(atomic, stage, bake, abort_if, timeout)
    if diff and not dry_run:
        show.differences(rows(client.rollback(version, dry_run=True), "diff"))
    answer = client.rollback(version, dry_run=dry_run, message=message, **steps)
    if diff and dry_run:
        show.differences(rows(answer, "diff"))
    finish(client, answer, output, wait=wait and not dry_run, timeout=timeout, conditions=abort_if)


def import_(
    client: Client,
    folder: Annotated[str, typer.Argument(metavar="DIR|FILE", help="As kubectl applies it.")],
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Of documents that name none.")
    ] = "default",
    dry_run: DryRun = False,
    show_documents: Annotated[
        bool, typer.Option("--print", help="Print the documents it makes; ask no server.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = "30s",
    strict: Annotated[bool, typer.Option("--strict", help="One bad document: nothing is applied.")] = False,
    message: Message = "",
    output: Show = Output.TABLE,
) -> None:
    """Apply a folder that was made for kubectl.

    Istio's documents go as they are, a Service with its endpoints becomes a ServiceEntry. All else
    (Deployments, ConfigMaps, …) is counted and left out."""
    from ctrl.imports import Import

    try:
        made = Import(namespace).take(documents.read([folder], recursive=True))
    except documents.DocumentsError as e:
        raise Failure(str(e), USAGE) from None
    for line in made.told():
        show.hint(line)
    if not made.pieces:
        raise Failure(f"{folder}: nothing in it that fastproxy knows", USAGE)
    if show_documents:
        typer.echo(made.print())
        return
    milliseconds("--timeout", timeout)
    said = message or f"import {folder}"
    answer = client.apply(made.files, dry_run=dry_run, strict=strict, message=said)
    finish(client, answer, output, wait=wait and not dry_run, timeout=timeout)


# --- what they share ---


def read(paths: list[str], recursive: bool) -> list[tuple[str, str]]:
    """The files of ``-f``. Raises Failure."""
    if not paths:
        raise Failure("-f FILE|DIR|- says where the documents are", USAGE)
    try:
        return documents.read(paths, recursive)
    except documents.DocumentsError as e:
        raise Failure(str(e), USAGE) from None


def rollout_options(atomic: bool, stage: str, bake: str, abort_if: list[str], timeout: str) -> dict[str, Any]:
    """Those of the API for these flags. Raises Failure for what cannot be meant."""
    milliseconds("--timeout", timeout)
    if bake:
        milliseconds("--bake", bake)
    if (bake or abort_if) and not stage:
        raise Failure(
            f"{'--bake' if bake else '--abort-if'} needs --stage, such as --stage 1,10%,100%", USAGE
        )
    stages = [part.strip() for part in stage.split(",")] if stage else []
    steps = {"atomic": atomic, "stages": stages, "bake": bake, "abort_if": abort_if}
    # the time that the server waits for proxies to prepare
    return {**steps, "timeout": timeout} if atomic or stages else {}


def finish(
    client: Client,
    answer: Answer,
    output: Output,
    *,
    wait: bool,
    timeout: str,
    conditions: Sequence[str] = (),
) -> None:
    """Tell what an answer to a change says, wait when asked to, and end with the exit code."""
    dry = answer.get("dryRun") is True
    version, changed = number(answer, "version"), rows(answer, "changes")
    table = output is Output.TABLE
    bad = _problems(rows(answer, "problems"))
    show.problems(rows(answer, "warnings"), "warning")
    if table:
        show.changes(changed, dry)
        _told(answer, version, changed, dry, waits=wait)
    elif output is Output.NAME:
        for row in changed:
            typer.echo(f"{word(row, 'kind')}/{word(row, 'name')}")
    outcome = None
    if wait:
        seconds = milliseconds("--timeout", timeout) / 1000
        outcome = waiting.wait(client, version, seconds, rollout=answer.get("rollout") is True)
        if table or not outcome.served:
            waiting.tell(outcome, version)
        if unjudged := waiting.unjudged(outcome, conditions):
            show.hint(unjudged)
        answer = {**answer, "progress": outcome.progress, "aborted": outcome.aborted}
    if output in (Output.JSON, Output.YAML):
        show.emit(answer, output)
    if outcome is not None and not outcome.served:
        raise typer.Exit(FAILED)
    if bad:
        raise typer.Exit(USAGE)


def _told(answer: Answer, version: int, changed: list[Answer], dry: bool, waits: bool) -> None:
    if dry:
        show.say(f"{show.count(len(changed), 'document')} would change; version {version} stays")
    elif not changed:
        show.say(f"nothing changed: version {version} holds all of it")
    elif answer.get("rollout") is True:
        hint = "" if waits else f"; follow it: {show.PROGRAM} rollout status --watch"
        show.say(f"version {version} is being rolled out{hint}")
    else:
        show.say(f"version {version}, hash {word(answer, 'hash')[:12]}, {show.count(len(changed), 'change')}")


def _targets(
    target: list[str], filename: list[str], recursive: bool, namespace: str
) -> list[tuple[str, str, str]]:
    if bool(target) == bool(filename):
        raise Failure("say which: KIND NAME, KIND/NAME …, or -f FILE", USAGE)
    if filename:
        try:
            found = [documents.identity(f.value) for f in documents.found(read(filename, recursive))]
        except documents.DocumentsError as e:
            raise Failure(str(e), USAGE) from None
        if not found or not all(kind and name for kind, _, name in found):
            raise Failure("the files hold a document without kind or metadata.name, or none at all", USAGE)
        return list(dict.fromkeys(found))
    try:
        if "/" in target[0]:
            pairs = [one(text) for text in target]
        else:
            pairs = [one(target[0], name) for name in target[1:]]
        if not pairs or not all(name for _, name in pairs):
            raise Failure("a name is wanted: KIND NAME or KIND/NAME", USAGE)
    except ValueError as e:
        raise Failure(str(e), USAGE) from None
    return list(dict.fromkeys((kind, namespace, name) for kind, name in pairs))


def _row_identity(row: Answer) -> tuple[str, str, str]:
    return word(row, "kind"), word(row, "namespace"), word(row, "name")


def _problems(found: list[Answer]) -> int:
    return show.problems(found)
