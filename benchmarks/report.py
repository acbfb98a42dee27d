"""Results as Markdown, charts and a table on the terminal: ``python -m benchmarks.report results.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from benchmarks import chart
from benchmarks.peers import PEERS
from benchmarks.scenarios import ROWS
from benchmarks.targets import TARGETS, Results

CPU_ROWS = [name for name, row in ROWS.items() if row.load in ("wrk", "closed", "connect")]
OPEN_ROWS = [name for name, row in ROWS.items() if row.load in ("open", "swaps", "bystander")]
MEMORY_ROWS = [name for name, row in ROWS.items() if row.load == "memory"]
BARS = ("get", "get-browser", "connection-per-request", "answer-64k", "answer-1m", "upload-1m")
RULES = (1, 100, 1000, 10000)

Slot = dict[str, Any]


def figure(slot: Slot, name: str, scale: float = 1.0) -> tuple[float, float, float] | None:
    """Median, least and most of one figure over the rounds."""
    values = [sample[name] / scale for sample in slot["samples"] if name in sample]
    if slot["failed"] or not values:
        return None
    return median(values), min(values), max(values)


def short(value: float) -> str:
    """Three digits that say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(slot: Slot | None, name: str, scale: float = 1.0) -> str:
    """``median (least–most)``; why there is none."""
    if slot is None:
        return ""
    if slot["failed"]:
        return "failed"
    found = figure(slot, name, scale)
    if found is None:
        return ""
    centre, least, most = found
    return short(centre) if least == most else f"{short(centre)} ({short(least)}–{short(most)})"


def middle(slot: Slot | None, name: str) -> str:
    """The median alone, where there is no room."""
    return spread(slot, name).partition(" (")[0]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, numbers to the right."""
    out = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return out + [f"| {' | '.join(cells)} |" for cells in rows] + [""]


def peers_of(results: Results, names: list[str]) -> list[str]:
    """The peers that took part in any of these rows."""
    asked = {peer for name in names for peer in results["rows"].get(name, {})}
    return [peer for peer in results["peers"] if peer in asked]


def by_peer(results: Results, names: list[str], cell: Callable[[Slot | None], str]) -> list[str]:
    """Rows down, peers across."""
    rows = results["rows"]
    peers = peers_of(results, names)
    lines = [[ROWS[n].title, *(cell(rows[n].get(p)) for p in peers)] for n in names if n in rows]
    return table(["row", *peers], lines) if lines else []


def worker_lines(results: Results) -> list[str]:
    """fastproxy's own processes apart."""
    lines = []
    for name in CPU_ROWS:
        slot = results["rows"].get(name, {}).get("fastproxy")
        if slot and slot["samples"] and not slot["failed"]:
            figures = ("worker_us", "agent_us", "cpu_us")
            lines.append([ROWS[name].title, *(spread(slot, f) for f in figures)])
    return table(["row", "worker", "agent", "both"], lines) if lines else []


def open_lines(results: Results) -> list[str]:
    """Fixed-rate rows."""
    lines = []
    for name in OPEN_ROWS:
        for peer, slot in results["rows"].get(name, {}).items():
            count = sum(sample.get("swaps", 0) for sample in slot["samples"])
            swaps = str(count) if name == "swaps-on" else ""
            cells = [
                spread(slot, "rate"),
                spread(slot, "p50"),
                spread(slot, "p99"),
                spread(slot, "max"),
                swaps,
            ]
            lines.append([f"{ROWS[name].title}: {peer}", *cells])
    return table(["row", "requests/s", "p50 µs", "p99 µs", "max µs", "swaps"], lines) if lines else []


def target_lines(results: Results) -> list[list[str]]:
    """What, target, measured, reached: computed."""
    return [[target.what, *target.judge(results)] for target in TARGETS]


def failures(results: Results) -> list[str]:
    """Rows that failed and peers that are missing."""
    lines = [f"- {peer}: all rows skipped, {why}" for peer, why in results["missing"].items()]
    for name, slots in results["rows"].items():
        lines += [f"- {name}, {peer}: {s['failed']}" for peer, s in slots.items() if s["failed"]]
    return ["## Failed or skipped", "", *lines, ""] if lines else []


def disturbance(results: Results) -> str:
    """How quiet the machine was, by what the proxies waited for their core."""
    shares = [
        sample["waited"]
        for slots in results["rows"].values()
        for slot in slots.values()
        for sample in slot["samples"]
        if "waited" in sample
    ]
    if not shares:
        return ""
    return (
        f"Other work on the machine kept a proxy waiting for its core {median(shares):.1%} of the time "
        f"(median of all measurements, at most {max(shares):.0%})."
    )


def peer_lines(results: Results) -> list[str]:
    """What each peer is, in its own words; the configuration is where they are."""
    lines = []
    for name in results["peers"]:
        peer = PEERS[name]
        file = peer.__module__.rpartition(".")[2] + ".py"
        lines.append(f"- [{name}](../peers/{file}): {' '.join((peer.__doc__ or '').split())}")
    return [*lines, ""]


def markdown(results: Results, charts: list[str]) -> str:
    """The whole report."""
    machine, options = results["machine"], results["options"]
    apart = machine["proxy_core"] != machine["load_core"]
    place = (
        f"The proxy is alone on core {machine['proxy_core']}; load generator, origin and fastproxy's agent "
        f"are on core {machine['load_core']}; requests per second are those of the whole chain."
        if apart
        else "There is one core only: load and proxy share it."
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["peers"].items())
    lines = [
        "# Benchmark results",
        "",
        "Written by `make bench`; every figure is computed from `results.json`. "
        f"{results['date'][:10]}, commit `{results['commit'][:19]}`, {machine['processor']}, "
        f"{machine['cores']} cores, Linux {machine['kernel']} {machine['system']}, Python "
        f"{machine['python']}. {place}",
        "",
        f"Medians of {options['rounds']} rounds of {options['seconds']} s (least–most); the peers take turns "
        "within a round. CPU is what the kernel's scheduler accounts to all processes of a proxy, user and "
        "system, per request. One worker each, metrics of fastproxy on, logs off. "
        f"{versions}. {disturbance(results)}",
        "",
        *[f"![{name}]({name}.svg)\n" for name in charts],
        "## Targets",
        "",
        "Ratios are taken pair by pair within a round.",
        "",
        *table(["row", "target", "measured", "reached"], target_lines(results)),
        "## CPU µs per request",
        "",
        *by_peer(results, CPU_ROWS, lambda slot: spread(slot, "cpu_us")),
        "## CPU µs per request, fastproxy's worker and agent",
        "",
        *worker_lines(results),
        "## Requests per second",
        "",
        *by_peer(results, CPU_ROWS, lambda slot: spread(slot, "rps")),
        "## How busy the proxy's core was (1 is all of it)",
        "",
        *by_peer(results, CPU_ROWS, lambda slot: spread(slot, "busy")),
        "## Latency in a closed loop, p99 µs",
        "",
        *by_peer(results, CPU_ROWS, lambda slot: spread(slot, "p99")),
        "## Latency at a fixed rate",
        "",
        "Half of the requests per second that each proxy reached in a closed loop, counted from the time a "
        "request was due. fastproxy's agent shares a core with load and origin; its priority is idle here "
        "so that its work does not delay them and show as the proxy's latency.",
        "",
        *open_lines(results),
        "## Memory: PSS in MB",
        "",
        *by_peer(results, MEMORY_ROWS, lambda slot: spread(slot, "pss", 1e6)),
        "## Memory: user KiB per idle connection",
        "",
        "What is not a file's, over what it was with one connection. (PSS shares the pages of Python itself "
        "among all Python processes that run, this program too.)",
        "",
        *by_peer(results, MEMORY_ROWS[1:], lambda slot: spread(slot, "per_conn", 1024)),
        "## The peers",
        "",
        *peer_lines(results),
        *failures(results),
    ]
    return "\n".join(lines)


def bars_of(results: Results) -> list[chart.Panel]:
    """A panel of bars for each main row that was measured."""
    panels = []
    for name in BARS:
        found = {p: figure(slot, "cpu_us") for p, slot in results["rows"].get(name, {}).items()}
        bars = [(peer, value[0]) for peer, value in found.items() if value is not None]
        if bars:
            panels.append(chart.Panel(ROWS[name].title, bars))
    return panels


def lines_of(results: Results) -> dict[str, list[tuple[float, float]]]:
    """CPU by number of rules, a line for each peer."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for count in RULES:
        for peer, slot in results["rows"].get(f"rules-{count}", {}).items():
            value = figure(slot, "cpu_us")
            if value is not None:
                lines.setdefault(peer, []).append((float(count), value[0]))
    return lines


def render(file: Path) -> None:
    """Write README.md and the charts beside ``results.json``."""
    results = json.loads(file.read_text())
    charts = []
    panels = bars_of(results)
    if panels:
        (file.parent / "cpu.svg").write_text(chart.bars("CPU µs per request (less is better)", panels))
        charts.append("cpu")
    lines = lines_of(results)
    if lines:
        title = "CPU µs per request by number of rules (logarithmic, less is better)"
        (file.parent / "rules.svg").write_text(chart.lines(title, "rules, the last one matches", lines))
        charts.append("rules")
    (file.parent / "README.md").write_text(markdown(results, charts))


def terminal() -> Console:
    """A console that is wide enough when nobody watches."""
    return Console(width=None if sys.stdout.isatty() else 150)


def show(results: Results, console: Console) -> None:
    """The figures that matter, on the terminal."""
    rows = results["rows"]
    names = [name for name in CPU_ROWS if name in rows]
    peers = peers_of(results, names)
    if names:
        heads = [Column(peer.replace("-", "-\n"), no_wrap=True, justify="right") for peer in peers]
        cpu = Table(Column("CPU µs per request", no_wrap=True), *heads, box=None)
        for name in names:
            cpu.add_row(name, *(middle(rows[name].get(peer), "cpu_us") for peer in peers))
        console.print(cpu)
    reached = Table("row", "target", "measured", "reached")
    for line in target_lines(results):
        if line[2] != "not measured":
            reached.add_row(*line)
    if reached.row_count:
        console.print(reached)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.report results.json")
    render(Path(sys.argv[1]))
    show(json.loads(Path(sys.argv[1]).read_text()), terminal())
