"""The control plane's results as Markdown, a chart and a table on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import chart
from benchmarks.control.model import TREES, Costs, simulate
from benchmarks.report import short, table

Results = dict[str, Any]


def spread(values: list[float], scale: float = 1.0) -> str:
    """``median (least–most)``"""
    scaled = [value / scale for value in values]
    if not scaled:
        return ""
    if len(scaled) == 1:
        return short(scaled[0])
    return f"{short(median(scaled))} ({short(min(scaled))}–{short(max(scaled))})"


def targets(results: Results) -> list[tuple[str, str, str, str]]:
    """What, target, measured, reached: computed, never written down."""
    rows = results["rows"]
    out: list[tuple[str, str, str, str]] = []

    def add(what: str, goal: str, measured: str, reached: bool) -> None:
        out.append((what, goal, measured, "yes" if reached else "no"))

    for count, limit in ((10, 10.0), (1000, 100.0)):
        row = rows.get(f"one-route-{count}")
        if row:
            p99 = row["ours"]["p99"]
            what = f"one route, {count:,} subscribers, p99"
            add(what, f"≤ {limit:g} ms", f"{spread(p99)} ms", median(p99) <= limit)
            if count == 1000:
                ratio = [a / b for a, b in zip(p99, row["bare"]["p99"], strict=True)]
                add("the same, of a bare pyzmq fan-out", "≤ 3×", f"{spread(ratio)}×", median(ratio) <= 3)
    if row := rows.get("endpoints"):
        asked, late = row["resyncs"], row["late_seconds"]
        add("10,000 endpoints, 1 % a second: resyncs", "0", f"{asked}", asked == 0)
        add("the same, behind after the run", "steady", f"{late:.2f} s", late < 1)
        ratio = row["wire_bytes"] / row["msgpack_bytes"]
        add("the same, bytes per change, of its msgpack", "≤ 2×", f"{ratio:.2f}×", ratio <= 2)
    if row := rows.get("reconnect"):
        took, rss = row["seconds"], [value / 1e6 for value in row["rss"]]
        add("1,000 reconnect, 10,000 routes: all LIVE", "≤ 5 s", f"{spread(took)} s", median(took) <= 5)
        add("the same, peak RSS of the control plane", "≤ 300 MB", f"{spread(rss)} MB", max(rss) <= 300)
    if row := rows.get("compile"):
        took = row["seconds"]
        add("10,000 routes to a plan in the agent", "≤ 1 s", f"{spread(took)} s CPU", median(took) <= 1)
    if row := rows.get("durability"):
        bad, told = len(row["problems"]), f"{row['acknowledged']:,}"
        what = f"kill -9, {row['rounds']:,} rounds, {told} versions: lost or half there"
        add(what, "0", f"{bad}", bad == 0)
    return out


def _one_route(rows: Results) -> list[str]:
    lines = []
    for name, row in rows.items():
        if name.startswith("one-route-"):
            cells = [f"{int(name.rpartition('-')[2]):,}", f"{row['bytes']:,}"]
            cells += [spread(row["ours"][q]) for q in ("p50", "p99", "max")]
            cells += [spread(row["bare"][q]) for q in ("p50", "p99", "max")]
            lines.append([*cells, *(spread(row["ours"][what]) for what in ("apply", "known", "cpu_us"))])
    if not lines:
        return []
    head = ["subscribers", "bytes", "p50", "p99", "max", "bare p50", "bare p99", "bare max"]
    return [
        "## One route changes",
        "",
        "Milliseconds from the send until subscribers have verified and applied it; beside it the same "
        "bytes through plain pyzmq: a PUB socket, and as many SUB sockets in as many processes, each read by "
        "a zmq.Poller. *apply* is from the HTTP request until all are LIVE, compile and commit included; "
        "*known* until the control plane knows it of all (to 50 ms), whose answers are spread on purpose; "
        "*CPU* is the control plane's, per change and subscriber, being asked for that included. A change is "
        "begun when the one before is known.",
        "",
        *table([*head, "apply, all live", "known", "CPU µs"], lines),
    ]


def _others(rows: Results) -> list[str]:
    lines: list[str] = []
    if row := rows.get("endpoints"):
        lines += [
            "## 10,000 endpoints, 100 move every second",
            "",
            f"{row['seconds']} s, {row['changed']:,} endpoints moved, {row['wire_bytes']:,} bytes "
            f"published to each, "
            f"{row['msgpack_bytes']:,} as plain msgpack. p99 {row['p99_ms']:.1f} ms; the control plane used "
            f"{row['plane_cpu']:.2f} of a core, reading the documents included.",
            "",
        ]
    if row := rows.get("reconnect"):
        lines += [
            "## The control plane is killed and started again",
            "",
            f"10,000 routes, 1,000 subscribers that hold their last good version: all LIVE "
            f"{spread(row['seconds'])} s "
            f"after it was ready, {spread(row['with_start'])} s after the process was started. "
            f"Begun with nothing at all, so that each needs a snapshot, all were "
            f"LIVE after "
            f"{row['cold_seconds']:.1f} s, most of it unpacking and hashing ten million rows on these two "
            f"cores; "
            f"peak RSS of the control plane then {row['cold_rss'] / 1e6:.0f} MB.",
            "",
        ]
    return lines


def _model(rows: Results) -> list[str]:
    if "costs" not in rows:
        return []
    row = rows["costs"]
    names = ("send", "answer", "batched", "relay", "verify")
    costs = Costs(**{name: row[name] for name in names})
    lines = []
    for levels in TREES:
        seen = simulate(levels, costs)
        shape = " × ".join(f"{n:,}" for n in levels)
        times = [f"{value * 1e3:,.0f}" for value in (seen.p50, seen.p99, seen.last, seen.known)]
        lines.append([shape, f"{seen.proxies:,}", *times, f"{seen.beat:.0%}", f"{seen.reports:.0%}"])
    measured = ", ".join(f"{name} {row[name] * 1e6:.1f}" for name in names)
    io_limit, loop_limit = 1 / costs.send, 5 / costs.answer
    return [
        "## 100,000 proxies",
        "",
        f"Simulated (model.py) with costs measured here, µs of CPU per update and subscriber: {measured}. "
        f"Links have "
        "0.2 ms and jitter. On paper: one I/O thread writes to one subscriber after another, so the last "
        "of N waits "
        f"N × send, and heartbeats alone fill it at {io_limit:,.0f} subscribers; the loop is filled by "
        f"reports every "
        f"5 s at {loop_limit:,.0f} proxies that report directly. Before that, a direct publisher is slow "
        f"rather than "
        "broken. Relays divide the writing and hand answers on in batches; what is left at the top is "
        "reading "
        "batches, which more control planes on one store divide again.",
        "",
        *table(
            [
                "tree",
                "proxies",
                "p50 ms",
                "p99 ms",
                "last ms",
                "all known ms",
                "I/O per beat",
                "reports, loop",
            ],
            lines,
        ),
    ]


def render(path: Path) -> None:
    """control.md and control.svg beside control.json."""
    results = json.loads(path.read_text())
    rows, here = results["rows"], results["machine"]
    lines = [
        "# The control plane: benchmark results",
        "",
        f"Written by `make bench`; every figure is computed from `{path.name}`. {results['date'][:10]}, "
        f"commit "
        f"`{results['commit'][:20]}`, {here['processor']}, {here['cores']} cores, Linux {here['kernel']} "
        f"{here['system']}, Python {here['python']}. A real `fastproxyctl serve` on SQLite, and real "
        f"subscribers "
        "(fastproxy/link.py: sockets, checks, rows, answers) without workers, many in two processes; all "
        "share the "
        "two cores. Medians (least–most).",
        "",
        "## Targets",
        "",
        *table(["row", "target", "measured", "reached"], [list(line) for line in targets(results)]),
        *_one_route(rows),
        *_others(rows),
        *_model(rows),
    ]
    if results["failed"]:
        lines += ["## Failed", "", *[f"- {name}: {why}" for name, why in results["failed"].items()], ""]
    path.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")
    series: dict[str, list[tuple[float, float]]] = {}
    for name, row in rows.items():
        if name.startswith("one-route-"):
            count = float(name.rpartition("-")[2])
            series.setdefault("fastproxy", []).append((count, median(row["ours"]["p99"]) * 1e3))
            series.setdefault("plain pyzmq", []).append((count, median(row["bare"]["p99"]) * 1e3))
    if series:
        title = "One route changes: p99 from publishing to applied (µs)"
        path.with_suffix(".svg").write_text(chart.lines(title, "subscribers on one machine", series))


def show(results: Results, console: Console) -> None:
    """The targets on the terminal."""
    out = Table("row", "target", "measured", "reached")
    for what, goal, measured, reached in targets(results):
        out.add_row(what, goal, measured, f"[{'green' if reached == 'yes' else 'red'}]{reached}[/]")
    console.print(out)
