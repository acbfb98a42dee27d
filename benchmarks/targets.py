"""The figures the project set itself, as data.

A target is a ratio of two cells, pair by pair within a round, or one cell, against a limit. What was measured
and whether it is reached is computed from results, never written down.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One figure of one row and peer, over all rounds."""

    row: str
    peer: str
    figure: str

    def values(self, results: Results) -> list[float]:
        """One value a round; empty when the row was not measured or failed."""
        slot = results["rows"].get(self.row, {}).get(self.peer)
        if slot is None or slot["failed"]:
            return []
        return [float(sample[self.figure]) for sample in slot["samples"] if self.figure in sample]


@dataclass(frozen=True)
class Target:
    """``cell`` divided by ``by`` (or by nothing) is at most ``limit``, or only shown without one."""

    what: str
    cell: Cell
    limit: float | None
    by: Cell | None = None
    unit: str = "×"
    scale: float = 1.0

    def values(self, results: Results) -> list[float]:
        """One value a round."""
        ours = self.cell.values(results)
        if self.by is None:
            return [value / self.scale for value in ours]
        theirs = self.by.values(results)
        return [a / b for a, b in zip(ours, theirs, strict=False) if b]

    def judge(self, results: Results) -> tuple[str, str, str]:
        """Target, measured (median and spread), reached."""
        sign = self.unit if self.unit == "×" else f" {self.unit}"
        goal = "none" if self.limit is None else f"≤ {self.limit:g}{sign}"
        values = self.values(results)
        if not values:
            return goal, "not measured", "–"
        middle = median(values)
        spread = f" ({min(values):.3g}–{max(values):.3g})" if len(values) > 1 else ""
        return goal, f"{middle:.3g}{sign}{spread}", self.reached(middle)

    def reached(self, measured: float) -> str:
        """yes, no, or a dash where nothing was to be reached."""
        if self.limit is None:
            return "–"
        return "yes" if measured <= self.limit else "no"


def _ours(row: str, figure: str = "cpu_us") -> Cell:
    return Cell(row, "fastproxy", figure)


def _ratio(what: str, row: str, peer: str, limit: float | None) -> Target:
    return Target(f"{what}, of {peer}", _ours(row), limit, Cell(row, peer, "cpu_us"))


SMALL = (("floor", 1.15), ("nginx", 0.85), ("haproxy", 0.85), ("envoy", 0.35))

TARGETS: tuple[Target, ...] = (
    *(_ratio("small GET, 64 connections, CPU", "get", peer, limit) for peer, limit in SMALL),
    *(_ratio("the same with a browser's 20 fields", "get-browser", peer, limit) for peer, limit in SMALL),
    Target("10,000 rules, CPU of its own one rule", _ours("rules-10000"), 1.05, _ours("rules-1")),
    _ratio("1 MiB answers, CPU", "answer-1m", "haproxy", 0.65),
    _ratio("1 MiB answers, CPU", "answer-1m", "haproxy-splice", None),
    _ratio("64 KiB answers, CPU", "answer-64k", "haproxy", 0.75),
    _ratio("64 KiB answers, CPU", "answer-64k", "haproxy-splice", None),
    _ratio("a connection per request, CPU", "connection-per-request", "nginx", 0.9),
    Target(
        "idle kept-alive connection, user memory", _ours("idle-5000", "per_conn"), 0.5, unit="KiB", scale=1024
    ),
    Target("PSS, agent and one worker, fresh", _ours("memory-fresh", "pss"), 45, unit="MB", scale=1e6),
    Target("PSS of the worker, fresh", _ours("memory-fresh", "worker_pss"), 15, unit="MB", scale=1e6),
    Target(
        "p99 while 10,000 rules are swapped, of quiet",
        _ours("swaps-on", "p99"),
        1.1,
        _ours("swaps-off", "p99"),
    ),
    Target(
        "the same, of a bystander as busy as the agent",
        _ours("swaps-on", "p99"),
        None,
        _ours("swaps-bystander", "p99"),
    ),
    Target(
        "access log on, CPU of the worker, of off",
        _ours("access-log-on", "worker_us"),
        1.10,
        _ours("access-log-off", "worker_us"),
    ),
)
