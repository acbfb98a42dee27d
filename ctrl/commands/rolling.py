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
    """``version 42  baking 10% (stage 2 of 3)  12/12 serving``"""
    state = word(answer, "state")
    if state in ("", waiting.NONE):
        return "no rollout is going on"
    told = state if state in (waiting.COMMITTED, waiting.ABORTED) else waiting.at_stage(answer)
    parts = [f"version {number(answer, 'version')}", told]
    if answer.get("reason"):
        parts.append(word(answer, "reason"))
    observed = answer.get("observed")
    if isinstance(observed, dict) and observed:
        parts += _observed(observed)
    return "  ".join(parts)


def _observed(seen: Answer) -> list[str]:
    """``12/12 serving``, ``340 requests with it, 0.3 % errors; 3800 without it, 0.2 %``"""
    expected = number(seen, "expected")
    parts = [f"{number(seen, 'serving')}/{expected} serving"]
    if number(seen, "rejected"):
        parts.append(f"{number(seen, 'rejected')} rejected it")
    ours, others = number(seen, "requests"), number(seen, "othersRequests")
    if ours:
        parts.append(f"{show.count(ours, 'request')} with it, {_percent(seen.get('errorRate'))} errors")
    if ours and others:
        parts.append(f"{show.count(others, 'request')} without it, {_percent(seen.get('othersErrorRate'))}")
    return parts


def _percent(rate: Any) -> str:
    if not isinstance(rate, (int, float)):
        return "–"
    return f"{round(rate * 100, 2):g} %"


def abort(client: Client, output: Show = Output.TABLE) -> None:
    """Take it back: all proxies serve the version before."""
    answer = client.abort_rollout()
    if output in (Output.JSON, Output.YAML):
        show.emit(answer, output)
    else:
        show.say(describe(answer))
