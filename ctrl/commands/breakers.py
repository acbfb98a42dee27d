"""``breaker``: orders that force breakers open or closed for a time, and how all breakers are."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.text import Text

from ctrl import show
from ctrl.client import Answer, Client
from ctrl.commands import completing
from ctrl.commands.asking import CHANGE, USAGE, Failure, Show, asks, milliseconds
from ctrl.commands.changes import finish
from ctrl.show import Column, Output, number, rows, word

Host = Annotated[
    str,
    typer.Argument(
        metavar="HOST", help="The service, as a destination names it.", autocompletion=completing.hosts
    ),
]
For = Annotated[
    str, typer.Option("--for", metavar="TIME", help="How long it holds: 10m, 1h30m.", show_default=False)
]
Subset = Annotated[str, typer.Option(metavar="NAME", help="Only this subset.")]
Port = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=65535, help="Only this port of the service.", show_default=False),
]
Endpoint = Annotated[str, typer.Option(metavar="ADDRESS:PORT", help="Only this endpoint.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why, for status and history.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until every proxy obeys it.")]
Timeout = Annotated[str, typer.Option(metavar="TIME", help="How long to wait for the proxies.")]


def add(app: typer.Typer) -> None:
    """The commands of this file."""
    group = typer.Typer(
        no_args_is_help=True, help="Orders to circuit breakers, with an expiry, and their state."
    )
    asks(group, "open")(open_)
    asks(group)(close)
    asks(group, "closed", hidden=True)(close)
    asks(group)(clear)
    asks(group, "list")(list_)
    app.add_typer(group, name="breaker", rich_help_panel=CHANGE)


def open_(
    client: Client,
    host: Host,
    for_: For = "",
    subset: Subset = "",
    port: Port = 0,
    endpoint: Endpoint = "",
    reason: Reason = "",
    wait: Wait = False,
    timeout: Timeout = "30s",
    output: Show = Output.TABLE,
) -> None:
    """Force it open: requests are answered 503 UO and nothing is sent upstream, until the time is over."""
    _order(client, "open", host, for_, subset, port, endpoint, reason, wait, timeout, output)


def close(
    client: Client,
    host: Host,
    for_: For = "",
    subset: Subset = "",
    port: Port = 0,
    endpoint: Endpoint = "",
    reason: Reason = "",
    wait: Wait = False,
    timeout: Timeout = "30s",
    output: Show = Output.TABLE,
) -> None:
    """Force it closed: requests are admitted whatever its own judgement, until the time is over."""
    _order(client, "closed", host, for_, subset, port, endpoint, reason, wait, timeout, output)


def _order(
    client: Client,
    state: str,
    host: str,
    duration: str,
    subset: str,
    port: int,
    endpoint: str,
    reason: str,
    wait: bool,
    timeout: str,
    output: Output,
) -> None:
    if not duration:
        raise Failure("--for says how long the order holds, such as --for 10m", USAGE)
    if not milliseconds("--for", duration):
        raise Failure("--for: more than 0 is wanted", USAGE)
    milliseconds("--timeout", timeout)
    answer = client.order(
        host=host,
        subset=subset,
        port=port or None,
        endpoint=endpoint,
        state=state,
        for_=duration,
        reason=reason,
    )
    finish(client, answer, output, wait=wait, timeout=timeout)


def clear(
    client: Client,
    name: Annotated[
        str,
        typer.Argument(
            metavar="HOST|NAME", help="Of the order, or its host.", autocompletion=completing.orders
        ),
    ],
    subset: Subset = "",
    port: Port = 0,
    endpoint: Endpoint = "",
    wait: Wait = False,
    timeout: Timeout = "30s",
    output: Show = Output.TABLE,
) -> None:
    """Take an order back before its time: by its name, or all orders of a host (of its subset, port or
    endpoint where these are given)."""
    milliseconds("--timeout", timeout)
    narrow = {"subset": subset, "port": str(port or ""), "endpoint": endpoint}
    orders = rows(client.breakers(), "orders")
    found = [  # the order for a whole host has the name of the host
        row
        for row in orders
        if (word(row, "name") == name and not any(narrow.values()))
        or (word(row, "host") == name and all(not v or word(row, k) == v for k, v in narrow.items()))
    ]
    if not found:
        raise Failure(f"no order of that name or host: {show.PROGRAM} breaker list")
    answers = [client.clear_order(word(row, "name")) for row in found]
    for answer in answers[:-1]:
        show.changes(rows(answer, "changes"))
    finish(client, answers[-1], output, wait=wait, timeout=timeout)


def list_(client: Client, output: Show = Output.TABLE) -> None:
    """Orders that hold, and the breakers of all proxies."""
    answer = client.breakers()
    if output in (Output.JSON, Output.YAML):
        show.emit(answer, output)
        return
    orders, clusters = rows(answer, "orders"), rows(answer, "clusters")
    if output is Output.NAME:
        for row in orders:
            typer.echo(word(row, "name"))
        return
    if not orders and not clusters:
        show.hint("no order, and no proxy reports a breaker")
    if orders:
        show.table(
            (
                Column("ORDER"),
                Column("STATE"),
                Column("HOST"),
                Column("SUBSET", rank=4),
                Column("PORT", rank=5, right=True),
                Column("ENDPOINT", rank=3),
                Column("LEFT", right=True),
                Column("REASON", rank=2, fold=True),
            ),
            [_order_row(row) for row in orders],
        )
    if clusters:
        if orders:
            show.say("")
        show.table(
            (
                Column("CLUSTER", fold=True),
                Column("OPEN", right=True),
                Column("CLOSED", right=True),
                Column("HALF OPEN", rank=2, right=True),
                Column("ORDERED", rank=1, right=True),
                Column("REJECTED", right=True),
            ),
            [
                [
                    word(row, "cluster"),
                    *(number(row, k) for k in ("open", "closed", "halfOpen", "ordered", "rejected")),
                ]
                for row in clusters
            ],
        )


def _order_row(row: Answer) -> list[show.Cell]:
    state = word(row, "state")
    return [
        word(row, "name"),
        Text(state, "red" if state == "open" else "green"),
        word(row, "host"),
        word(row, "subset") or "–",
        number(row, "port") or "–",
        word(row, "endpoint") or "–",
        _left(row),
        word(row, "reason") or "–",
    ]


def _left(row: Answer) -> str:
    """The time an order still has, of ``untilMs`` or an RFC 3339 ``until``."""
    until = number(row, "untilMs") or number(row, "until")
    if not until:
        from datetime import datetime

        try:
            until = int(datetime.fromisoformat(word(row, "until")).timestamp() * 1000)
        except ValueError:
            return "–"
    seconds = max(until - time.time_ns() // 1_000_000, 0) // 1000
    if not seconds:
        return "over"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
