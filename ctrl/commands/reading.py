"""Commands that only look: get, status, history, show, verify, watch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from rich.text import Text

from ctrl import show
from ctrl.client import Answer, Client
from ctrl.commands import completing, refused
from ctrl.commands.asking import FAILED, LOOK, USAGE, Failure, Show, asks
from ctrl.durations import age, clock, spell
from ctrl.kinds import one
from ctrl.show import Column, Output, names, number, rows, word

MOST_LOST = 20  # that are named
HASH_DIGITS = 12  # enough to see that two differ


def add(app: typer.Typer) -> None:
    """The commands of this file."""
    asks(app, rich_help_panel=LOOK)(get)
    asks(app, rich_help_panel=LOOK)(status)
    asks(app, rich_help_panel=LOOK)(history)
    asks(app, "show", rich_help_panel=LOOK)(show_)
    asks(app, rich_help_panel=LOOK)(verify)
    asks(app, rich_help_panel=LOOK)(watch)


def get(
    client: Client,
    what: Annotated[
        str, typer.Argument(metavar="[KIND[/NAME]]", autocompletion=completing.targets, show_default=False)
    ] = "",
    name: completing.Name = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace; default: `default`.")
    ] = "",
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")
    ] = False,
    output: Show = Output.TABLE,
) -> None:
    """List documents, or show one.

    With -o yaml as they were applied, comments and all; -o json and -o yaml can be applied again."""
    try:
        kind, name = one(what, name) if what else ("", "")
    except ValueError as e:
        raise Failure(str(e), USAGE) from None
    if all_namespaces and namespace:
        raise Failure("--namespace and --all-namespaces exclude each other", USAGE)
    space = "" if all_namespaces else namespace or "default"
    answer = client.resources(kind, space, name)
    found = rows(answer, "resources")
    if output in (Output.JSON, Output.YAML):
        documents(found, output, alone=bool(name) and len(found) == 1)
    elif output is Output.NAME:
        for row in found:
            typer.echo(f"{word(row, 'kind')}/{word(row, 'name')}")
    elif found:
        resources(found, spaces=not space)
    if not found:
        where = f" in namespace {space}" if space else ""
        more = "; -A looks in all namespaces" if space else ""
        if name:
            raise Failure(f"no {kind} {name}{where}{more}")
        if output is Output.TABLE:
            show.hint(f"no {kind or 'document'}{where}{more}")


def resources(found: Iterable[Answer], spaces: bool) -> None:
    """The table of documents."""
    columns = [
        Column("KIND"),
        Column("NAME"),
        Column("VERSION", right=True),
        Column("FROM", rank=1, fold=True),
    ]
    table: list[list[show.Cell]] = [
        [
            word(row, "kind"),
            word(row, "name"),
            number(row, "version"),
            show.place(row) if row.get("file") else "–",
        ]
        for row in found
    ]
    if spaces:
        columns.insert(0, Column("NAMESPACE"))
        table = [[word(row, "namespace"), *cells] for row, cells in zip(found, table, strict=True)]
    show.table(columns, table)


def documents(found: list[Answer], output: Output, alone: bool) -> None:
    """Documents themselves: YAML as they were written, JSON as one List (or the one that was asked for)."""
    texts = [text for row in found if isinstance(text := row.get("text"), str)]
    if output is Output.YAML:
        bodies = (text.removeprefix("---").strip("\n") for text in texts)
        typer.echo("\n---\n".join(bodies))
        return
    from fastproxy.resources.tree import Fault, parse

    values = []
    for text in texts:
        try:
            values.append(parse(text)[0])
        except Fault as e:
            raise Failure(f"the server holds a document that is no YAML: {e.message}") from None
    show.emit(values[0] if alone else {"apiVersion": "v1", "kind": "List", "items": values}, output)


def status(
    client: Client,
    output: Show = Output.TABLE,
) -> None:
    """Every proxy: version, hash, lag, last error, address; and every relay.

    Where the terminal is narrow columns are left out; -o json has all."""
    answer = client.status()
    if output in (Output.JSON, Output.YAML):
        show.emit(answer, output)
        return
    proxies = rows(answer, "proxies")
    if output is Output.NAME:
        for row in proxies:
            typer.echo(word(row, "node"))
        return
    head = answer["head"] if isinstance(answer.get("head"), dict) else {}
    show.say(_head(head, proxies))
    if head.get("trouble"):
        show.say(Text(f"the store cannot be reached, nothing can be changed: {word(head, 'trouble')}", "red"))
    show.problems(rows(head, "problems"))
    candidate = answer.get("candidate")
    if isinstance(candidate, dict) and number(candidate, "version"):
        show.say(
            Text(
                f"version {number(candidate, 'version')} is being rolled out: {show.PROGRAM} rollout status",
                "yellow",
            )
        )
    if proxies:
        show.say("")
        shown = show.table(
            (
                Column("PROXY"),
                Column("STATE"),
                Column("VERSION", right=True),
                Column("LAG", right=True),
                Column("HOLDS", rank=4),
                Column("SINCE", rank=2, right=True),
                Column("ADDRESS", rank=3),
                Column("VIA", rank=5),
                Column("NAMESPACE", rank=6),
                Column("RELEASE", rank=8),
                Column("ADMIN", rank=7),
                Column("LAST ERROR", rank=1, fold=True),
            ),
            [_proxy(row) for row in proxies],
        )
        if "HOLDS" in shown:
            show.hint("HOLDS: the hash of what this proxy's namespace and labels select, not that of history")
    relays = rows(answer, "relays")
    if relays:
        show.say("")
        show.table(
            (
                Column("RELAY"),
                Column("STATE"),
                Column("VERSION", right=True),
                Column("PROXIES", right=True),
                Column("ADDRESS", rank=2),
                Column("VIA", rank=3),
                Column("RELEASE", rank=4),
                Column("LAST ERROR", rank=1, fold=True),
            ),
            [_relay(row) for row in relays],
        )
    if found := rows(answer, "refused"):
        show.say("")
        refused.table(found)


def _head(head: Answer, proxies: list[Answer]) -> str:
    version = number(head, "version")
    if not version:
        return f"nothing was applied yet; {show.count(len(proxies), 'proxy')}"
    behind = sum(
        1
        for row in proxies
        if number(row, "lag") or word(row, "state") != "LIVE" or number(row, "version") != version
    )
    told = f"{len(proxies) - behind}/{len(proxies)} proxies serve it" if proxies else "no proxy is connected"
    # not its hash: that is of all rows, and beside it are those of what each proxy needs of them
    return f"version {version}: {told}"


def _proxy(row: Answer) -> list[show.Cell]:
    state, lag = word(row, "state"), number(row, "lag")
    colour = "green" if state == "LIVE" and not lag else "red" if state == "REJECTED" else "yellow"
    return [
        word(row, "node"),
        Text(state, colour),
        number(row, "version"),
        lag,
        word(row, "hash")[:HASH_DIGITS] or "–",
        age(number(row, "sinceMs")),
        word(row, "address") or "–",
        word(row, "via") or "–",
        word(row, "namespace") or "–",
        word(row, "release") or "–",
        word(row, "admin") or "–",
        Text(word(row, "error"), "red") if row.get("error") else "–",
    ]


def _relay(row: Answer) -> list[show.Cell]:
    state = word(row, "state")
    return [
        word(row, "node"),
        Text(state, "green" if state == "LIVE" else "yellow"),
        number(row, "version"),
        number(row, "proxies"),
        word(row, "address") or "–",
        word(row, "via") or "–",
        word(row, "release") or "–",
        Text(word(row, "error"), "red") if row.get("error") else "–",
    ]


def history(
    client: Client,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="How many.")] = 20,
    before: Annotated[int, typer.Option(min=0, help="Only versions below this one.")] = 0,
    output: Show = Output.TABLE,
) -> None:
    """The versions, newest first: who, when, what."""
    entries = rows(client.history(limit, before or None), "entries")
    if output in (Output.JSON, Output.YAML):
        show.emit({"entries": entries}, output)
    elif output is Output.NAME:
        for row in entries:
            typer.echo(number(row, "version"))
    elif not entries:
        show.hint("nothing was applied yet")
    else:
        show.table(
            (
                Column("VERSION", right=True),
                Column("WHEN"),
                Column("WHO", rank=2),
                Column("WHAT", fold=True),
                Column("CHANGES", rank=1, right=True),
                Column("HASH", rank=4),
                Column("MESSAGE", rank=3, fold=True),
            ),
            [
                [
                    number(row, "version"),
                    clock(number(row, "atMs")),
                    word(row, "who"),
                    _what(row),
                    len(_verbs(row)),
                    word(row, "hash")[:HASH_DIGITS] or "–",
                    word(row, "message") or "–",
                ]
                for row in entries
            ],
        )


def _what(row: Answer) -> Text:
    what = word(row, "what")
    return Text(what, "red" if what.startswith("aborted") else "")


def _verbs(row: Answer) -> list[Answer]:
    return rows(row, "changes")


def show_(
    client: Client,
    version: Annotated[int, typer.Argument(min=1, help="As in history.", autocompletion=completing.versions)],
    contents: Annotated[bool, typer.Option("--documents", help="All documents of that version.")] = False,
    output: Show = Output.TABLE,
) -> None:
    """One version: who, when, why, and what it changed."""
    if contents:
        found = rows(client.resources_of(version), "resources")
        if output in (Output.JSON, Output.YAML):
            documents(found, output, alone=False)
        else:
            resources(found, spaces=True)
        return
    row = client.entry(version)
    if output in (Output.JSON, Output.YAML):
        show.emit(row, output)
        return
    lines = (
        ("version", f"{number(row, 'version')} (epoch {number(row, 'epoch')})"),
        ("when", f"{clock(number(row, 'atMs'))}, {age(number(row, 'atMs'))} ago"),
        ("who", word(row, "who")),
        ("what", word(row, "what")),
        ("message", word(row, "message")),
        ("hash", word(row, "hash")),
    )
    for label, text in lines:
        if text:
            show.say(Text.assemble((f"{label:<9}", "bold"), text))
    if _verbs(row):
        show.say("")
        show.changes(_verbs(row))


def verify(
    client: Client,
    output: Show = Output.TABLE,
) -> None:
    """Prove that all proxies hold what the server has.

    By the hashes of what they hold. Exit code 0; 1 when one differs, cannot serve what it holds, or is LOST,
    so that nothing can be proven of it."""
    answer = client.verify()
    equal = answer.get("equal") is True
    # who holds the bytes and cannot serve them is no more what was wanted than who does not hold them
    rejected = [row for row in rows(client.status(), "proxies") if word(row, "state") == "REJECTED"]
    if output in (Output.JSON, Output.YAML):
        show.emit(answer, output)
    else:
        views = rows(answer, "views")
        proxies = [(view, row) for view in views for row in rows(view, "proxies")]
        different = [(view, row) for view, row in proxies if row.get("equal") is not True]
        if different:
            show.table(
                (Column("PROXY"), Column("VERSION", right=True), Column("HOLDS"), Column("SHOULD HOLD")),
                [
                    [
                        word(row, "node"),
                        number(row, "version"),
                        Text(word(row, "hash")[:HASH_DIGITS] or "nothing", "red"),
                        word(view, "hash")[:HASH_DIGITS],
                    ]
                    for view, row in different
                ],
            )
        version = number(answer, "version")
        if equal:
            many = f", in {show.count(len(views), 'view')}" if len(views) > 1 else ""
            said = f"{show.count(len(proxies), 'proxy')} {'hold' if len(proxies) != 1 else 'holds'}"
            show.say(f"equal: {said} version {version}{many}" if proxies else "no proxy is connected")
        elif different:
            show.fail(
                f"{len(different)} of {show.count(len(proxies), 'proxy')} do not serve version {version}"
            )
        lost = names(answer, "lost")
        for name in lost[:MOST_LOST]:
            show.fail(f"{name} is lost: what it serves is not known")
        if len(lost) > MOST_LOST:
            show.fail(f"and {len(lost) - MOST_LOST} more are lost: {show.PROGRAM} status")
        for row in rejected:
            show.fail(f"{word(row, 'node')} holds it and cannot serve it: {word(row, 'error')}")
    if not equal or rejected:
        raise typer.Exit(FAILED)


def watch(
    client: Client,
    output: Annotated[
        Output, typer.Option("--output", "-o", metavar="FORM", help="table, or json: one event in each line.")
    ] = Output.TABLE,
) -> None:
    """Print what happens, as it happens.

    Versions, proxies, rollouts, refusals. Ctrl-C ends it."""
    if output not in (Output.TABLE, Output.JSON):
        raise Failure("watch prints lines: -o table or -o json", USAGE)
    for event in client.watch():
        if output is Output.JSON:
            typer.echo(json.dumps(event, ensure_ascii=False))
        else:
            show.say(Text.assemble((time.strftime("%H:%M:%S "), "dim"), *_event(event)))
    raise Failure("the server has ended the stream; is it being restarted?")


def _event(event: Answer) -> list[Any]:
    kind = word(event, "type")
    known: dict[str, Callable[[Answer], str]] = {
        "version": lambda e: f"{number(e, 'version')}  {word(e, 'what')}  by {word(e, 'who') or 'unknown'}",
        "proxy": _proxy_event,
        "rollout": lambda e: "  ".join(
            part
            for part in (str(number(e, "version")), word(e, "state"), word(e, "share"), word(e, "reason"))
            if part
        ),
        "refused": lambda e: f"{word(e, 'address')} {word(e, 'name')}  {word(e, 'reason')}",
    }
    if kind in known:
        return [(f"{kind:<8} ", "bold"), known[kind](event)]
    rest = {key: value for key, value in event.items() if key != "type"}
    return [(f"{kind:<8} ", "bold"), json.dumps(rest, ensure_ascii=True)]


def _proxy_event(event: Answer) -> str:
    parts = [word(event, "node"), word(event, "state")]
    if number(event, "version"):
        parts.append(f"version {number(event, 'version')}")
    if number(event, "us"):
        parts.append(f"in {spell(number(event, 'us'))}")
    if event.get("error"):
        parts.append(word(event, "error"))
    return "  ".join(part for part in parts if part)
