"""``rollout status`` and ``rollout abort``: the version that is being taken in stages."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from ctrl import show, waiting
from ctrl.client import Answer, Client
from ctrl.commands.asking import FAILED, LOOK, Show, asks
from ctrl.show import Output, number, word

WATCH_SECONDS = 0.5


def add(app: typer.Typer) -> None:
    """The commands of this file."""
    group = typer.Typer(no_args_is_help=True, help="The version that is being rolled out in stages.")
    asks(group)(status)
    asks(group)(abort)
    app.add_typer(group, name="rollout", rich_help_panel=LOOK)


def status(
    client: Client,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Until it is over; exit 1 if aborted.")
    ] = False,
    output: Show = Output.TABLE,
) -> None:
    """Which stage it is at, who takes part, and what is observed."""
    answer = client.rollout()
    told = ""
    while True:
        over = word(answer, "state") in (waiting.COMMITTED, waiting.ABORTED, waiting.NONE)
        if output in (Output.JSON, Output.YAML):
            if over or not watch:
                show.emit(answer, output)
        elif (line := describe(answer)) != told:
            show.say(line)
            told = line
        if over or not watch:
            break
        time.sleep(WATCH_SECONDS)
        answer = client.rollout()
    if watch and word(answer, "state") == waiting.ABORTED:
        raise typer.Exit(FAILED)


def describe(answer: Answer) -> str:
    """``version 42  baking 10% (stage 2 of 3)  serving 12``"""
    state = word(answer, "state")
    if state in ("", waiting.NONE):
        return "no rollout is going on"
    told = state if state in (waiting.COMMITTED, waiting.ABORTED) else waiting.at_stage(answer)
    parts = [f"version {number(answer, 'version')}", told]
    if answer.get("reason"):
        parts.append(word(answer, "reason"))
    observed = answer.get("observed")
    if isinstance(observed, dict):
        parts += [
            f"{word({'k': k}, 'k')} {_value(v)}"
            for k, v in observed.items()
            if not isinstance(v, (dict, list))
        ]
    return "  ".join(parts)


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else word({"v": value}, "v")


def abort(client: Client, output: Show = Output.TABLE) -> None:
    """Take it back: all proxies serve the version before."""
    answer = client.abort_rollout()
    if output in (Output.JSON, Output.YAML):
        show.emit(answer, output)
    else:
        show.say(describe(answer))
