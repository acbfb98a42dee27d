"""One run of the control plane's rows: writes control.json, control.md and control.svg."""

from __future__ import annotations

import dataclasses
import datetime
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine
from benchmarks.control import costs, report, scenarios
from benchmarks.durability import run as run_durability
from benchmarks.load import Failed
from benchmarks.process import BUILD, ROOT, cores
from benchmarks.report import terminal

Steps = Iterator[tuple[str, Any]]


def _durability(rounds: int) -> Steps:
    yield f"kill -9 · {rounds} rounds", None
    yield "", {"row": "durability", **dataclasses.asdict(run_durability(rounds, seed=int(time.time())))}


def plan(quick: bool) -> dict[str, Callable[[Path], Steps]]:
    """The groups of rows by name."""
    rounds, changes = (1, 3) if quick else (5, 20)
    counts = [10, 200] if quick else [10, 100, 1000, 4000]
    crowd = 200 if quick else 1000
    return {
        "one-route": lambda folder: scenarios.one_route(folder, counts, rounds, changes),
        "endpoints": lambda folder: scenarios.endpoints(folder, crowd, 5 if quick else 30),
        "reconnect": lambda folder: scenarios.reconnect(folder, crowd, rounds),
        "compile": lambda folder: costs.compiling(rounds),
        "costs": lambda folder: costs.costs(folder, crowd, changes),
        "durability": lambda _: _durability(20 if quick else 1000),
    }


def main_command(
    rows: Annotated[str, typer.Option(help="Groups of rows, by comma.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Few of everything: a smoke test.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.")] = None,
) -> None:
    """Measure the control plane: who has a change, when, and at what cost."""
    console = terminal()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    groups = plan(quick)
    wanted = [name for name in rows.split(",") if name] or list(groups)
    for name in wanted:
        if name not in groups:
            raise typer.BadParameter(f"no rows {name!r}; there are {', '.join(groups)}")
    folder = out or (BUILD / "quick" if quick or rows else ROOT / "benchmarks" / "results")
    began = time.monotonic()
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=None)
        for name in wanted:
            with tempfile.TemporaryDirectory(prefix="bench-control-") as temporary:
                try:
                    for label, result in groups[name](Path(temporary)):
                        progress.update(task, description=f"{label:<58}")
                        if result:
                            results[result.pop("row")] = result
                except Failed as error:
                    failed[name] = str(error)
                    console.print(f"[red]failed[/red] {name}: {error}", highlight=False)
    everything = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe(cores()),
        "quick": quick,
        "took_seconds": round(time.monotonic() - began),
        "failed": failed,
        "rows": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "control.json").write_text(json.dumps(everything, indent=1) + "\n")
    report.render(folder / "control.json")
    console.print(f"written: {folder}/control.json, control.md and control.svg", highlight=False)
    report.show(everything, console)
    if failed:
        raise typer.Exit(1)


def main() -> None:
    """The program."""
    typer.run(main_command)
