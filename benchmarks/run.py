"""One run: groups of rows in rounds, each round asking every peer in turn. Writes JSON, then the report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import load, machine, report
from benchmarks.load import Failed
from benchmarks.origin import Origin
from benchmarks.peers import PEERS, Peer, Upstream
from benchmarks.peers.fastproxy import Fastproxy
from benchmarks.process import (
    BUILD,
    ROOT,
    Cores,
    compile_c,
    cores,
    cpu_between,
    settle_on,
    spawn,
    stop,
    wait_ns,
    yield_core,
)
from benchmarks.scenarios import GROUPS, ROWS, Row, Setup

Sample = dict[str, Any]
WARM = 0.3  # seconds of load before the seconds that count
SWAP_EVERY = 1.0  # seconds
LOG_WAIT = 1.5  # seconds in which the agent has written the last lines


class Run:
    """The state of one run; ``results`` is what is written."""

    def __init__(self, folder: Path, where: Cores, seconds: float, rounds: int, console: Console) -> None:
        self.folder = folder
        self.where = where
        self.seconds = seconds
        self.rounds = rounds
        self.console = console
        self.origin = Origin(folder, where.load)
        self.results: dict[str, dict[str, Any]] = {}
        self.rates: dict[str, float] = {}  # of the peers in this group: half of saturation
        self.running: dict[tuple[str, Setup], Peer] = {}

    def peer(self, name: str, row: Row) -> Peer:
        """The peer as this row wants it, started when it is not running yet."""
        key = (name, row.setup)
        if key not in self.running:
            upstream = Upstream(self.origin.port, self.origin.path)
            peer = PEERS[name](row.setup, upstream, self.folder, self.where)
            try:
                peer.start(row)
            except BaseException:
                peer.stop()
                raise
            self.running[key] = peer
        return self.running[key]

    def stop_peers(self) -> None:
        for peer in self.running.values():
            peer.stop()
        self.running.clear()
        self.rates.clear()

    def close(self) -> None:
        self.stop_peers()
        self.origin.stop()

    def group(self, rows: list[Row], peers: list[str]) -> Iterator[str]:
        """Measure the rows of a group; yields a label before each measurement."""
        contestants = [(row, name) for row in rows for name in row.peers if name in peers]
        for row, name in contestants:
            self.results.setdefault(row.name, {})[name] = {"samples": [], "failed": None}
        if rows[0].load == "memory":
            yield from self.memory_group(rows, [n for n in peers if n in rows[0].peers])
            return
        try:
            for turn in range(self.rounds):
                for row, name in contestants:
                    slot = self.results[row.name][name]
                    yield f"{row.name} · {name} · round {turn + 1}"
                    if slot["failed"]:
                        continue
                    with self.noting(slot, row, name):
                        slot["samples"].append(self.measure(self.peer(name, row), row))
        finally:
            self.stop_peers()

    @contextlib.contextmanager
    def noting(self, slot: dict[str, Any], row: Row, name: str) -> Iterator[None]:
        """A failure is written into the row and said aloud; the run goes on."""
        try:
            yield
        except Failed as error:
            slot["failed"] = str(error)
            self.console.print(f"[red]failed[/red] {row.name} · {name}: {error}", highlight=False)

    def measure(self, peer: Peer, row: Row) -> Sample:
        """One measurement: checked, warmed, counted by three parties."""
        load.check(row, peer.port)
        if row.load in ("open", "swaps", "bystander"):
            return self.measure_open(peer, row)
        if row.load != "wrk":  # wrk's shortest run is a second, and the check has opened the path
            load.run(row, peer.port, WARM, self.folder)
        return self.counted(peer, row, 0.0)

    def counted(self, peer: Peer, row: Row, rate: float) -> Sample:
        """Load, with the kernel's account of CPU and the origin's of requests around it."""
        pids = peer.worker_pids()
        logged = self.logged(peer, row)
        waited = wait_ns(pids)
        seen, cpu, began = self.origin.counters(), peer.cpu(), time.monotonic()
        counted = load.run(row, peer.port, self.seconds * row.longer, self.folder, rate)
        cpu_after, elapsed = peer.cpu(), time.monotonic() - began
        waited = wait_ns(pids) - waited
        forwarded = self.origin.counters().since(seen)
        if peer.worker_pids() != pids:
            raise Failed("its workers changed during the measurement")
        if abs(forwarded.requests - counted.requests) > 2 * row.conns + 0.005 * counted.requests:
            raise Failed(f"{counted.requests} answers counted, {forwarded.requests} given by the origin")
        if row.upload and forwarded.uploaded < row.upload * counted.requests:
            raise Failed(
                f"{counted.requests} uploads answered, {forwarded.uploaded} bytes reached the origin"
            )
        worker_ns, agent_ns = (cpu_between(*pair) for pair in zip(cpu, cpu_after, strict=True))
        worker, agent = worker_ns / 1e3 / counted.requests, agent_ns / 1e3 / counted.requests
        sample: Sample = {
            "requests": counted.requests,
            "rps": counted.requests / counted.seconds,
            "cpu_us": worker + agent,
            "worker_us": worker,
            "agent_us": agent,
            "busy": worker_ns / 1e9 / elapsed,
            "waited": waited / 1e9 / elapsed,
            "p50": counted.p50,
            "p99": counted.p99,
            "max": counted.max,
        }
        if row.setup.log:
            time.sleep(LOG_WAIT)
            sample["logged"] = (self.logged(peer, row) - logged) / counted.requests
            if sample["logged"] < 0.99:
                raise Failed(f"only {sample['logged']:.1%} of the requests are in the access log")
        return sample

    def logged(self, peer: Peer, row: Row) -> int:
        """Lines of the access log, where the row has one."""
        return peer.logged() if row.setup.log and isinstance(peer, Fastproxy) else 0

    def measure_open(self, peer: Peer, row: Row) -> Sample:
        """A fixed rate: half of what a closed loop of the same requests reached at first."""
        if peer.name not in self.rates:
            closed = dataclasses.replace(row, load="wrk")
            self.rates[peer.name] = load.run(closed, peer.port, 1, self.folder).requests / 2
        rate = self.rates[peer.name]
        yield_core(peer.agent_pids())  # it shares its core with load and origin, whose delays would count
        with self.beside(peer, row) as swaps:
            sample = self.counted(peer, row, rate)
        sample["rate"] = rate
        if swaps:
            if swaps["failed"]:
                raise Failed(swaps["failed"])
            sample |= {"swaps": swaps["done"], "swap_seconds": swaps["took"]}
        return sample

    def beside(self, peer: Peer, row: Row) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """What goes on while a fixed rate is measured."""
        if row.load == "swaps":
            return self.swapping(peer)
        if row.load == "bystander":
            return self.bystander()
        return contextlib.nullcontext({})

    @contextlib.contextmanager
    def bystander(self) -> Iterator[dict[str, Any]]:
        """A program on the load's core that is as busy as the agent was in the swaps just measured."""
        swapped = self.results["swaps-on"]["fastproxy"]["samples"][-1:]
        if not swapped:
            raise Failed("the row swaps-on has to be measured in the same run")
        share = min(0.95, swapped[0]["agent_us"] * swapped[0]["rate"] / 1e6)
        argv = [sys.executable, "-m", "benchmarks.bystander", str(self.where.load), f"{share:.3f}"]
        process = spawn(argv, self.where.load, self.folder / "bystander.log")
        try:
            yield {}
        finally:
            stop(process)

    @contextlib.contextmanager
    def swapping(self, peer: Peer) -> Iterator[dict[str, Any]]:
        """Another version of the rules once a second, until the end of the block."""
        if not isinstance(peer, Fastproxy):
            raise Failed("only fastproxy is swapped")
        versions = [peer.tables(0), peer.tables(1)]
        told: dict[str, Any] = {"done": 0, "took": [], "failed": ""}
        ended = threading.Event()

        def swap() -> None:
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
            due = time.monotonic()
            while not ended.is_set():
                began = time.monotonic()
                try:
                    peer.swap(versions[told["done"] % 2])
                except Failed as error:
                    told["failed"] = str(error)
                    return
                told["done"] += 1
                told["took"].append(time.monotonic() - began)
                due += SWAP_EVERY
                ended.wait(max(0.0, due - time.monotonic()))

        thread = threading.Thread(target=swap, name="swaps")
        thread.start()
        try:
            yield told
        finally:
            ended.set()
            thread.join()

    def memory_group(self, rows: list[Row], peers: list[str]) -> Iterator[str]:
        """Each round a fresh process: as it is after its start, then with idle connections."""
        for turn in range(self.rounds):
            for name in peers:
                yield f"memory · {name} · round {turn + 1}"
                if any(self.results[row.name][name]["failed"] for row in rows):
                    continue
                slots = {row.name: self.results[row.name][name] for row in rows}
                try:
                    with self.noting(slots[rows[-1].name], rows[-1], name):
                        for row, sample in self.memory_of(self.peer(name, rows[0]), rows):
                            slots[row.name]["samples"].append(sample)
                finally:
                    self.stop_peers()

    def memory_of(self, peer: Peer, rows: list[Row]) -> Iterator[tuple[Row, Sample]]:
        """PSS after each step; what a connection takes is what is not a file's, over the first connection."""
        time.sleep(0.5)  # what is done once after the start
        worker, agent = peer.memory()
        fresh = {"pss": worker.pss + agent.pss, "worker_pss": worker.pss, "agent_pss": agent.pss}
        held: list[load.Idle] = [load.Idle(rows[0], peer.port, 1, self.folder)]
        base = sum(part.user for part in peer.memory())
        open_now = 0
        try:
            for row in rows:
                if not row.conns:
                    yield row, fresh
                    continue
                held.append(load.Idle(row, peer.port, row.conns - open_now, self.folder))
                open_now = row.conns
                time.sleep(0.3)
                worker, agent = peer.memory()
                user = worker.user + agent.user - base
                yield row, {"pss": worker.pss + agent.pss, "per_conn": user / row.conns}
        finally:
            said = [idle.close() for idle in held]
        if any(one.get("closed") or one.get("errors") for one in said):
            raise Failed(f"idle connections did not stay open: {said}")


def chosen(rows: str) -> list[list[Row]]:
    """The groups with the rows asked for (names or beginnings of names, by comma); all without a word."""
    wanted = [word for word in rows.split(",") if word]
    for word in wanted:
        if not any(name.startswith(word) for name in ROWS):
            raise typer.BadParameter(f"no row begins with {word!r}; rows: {', '.join(ROWS)}")

    def takes(row: Row) -> bool:
        return not wanted or row.name in wanted or any(
            row.name.startswith(word) for word in wanted if word not in ROWS
        )  # fmt: skip

    groups = [[row for row in group if takes(row)] for group in GROUPS]
    return [group for group in groups if group]


def installed(peers: str, console: Console) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the peers that are here, and reasons of those that are not (said aloud)."""
    wanted = [name for name in peers.split(",") if name] or list(PEERS)
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in wanted:
        if name not in PEERS:
            raise typer.BadParameter(f"no peer {name!r}; peers: {', '.join(PEERS)}")
        try:
            versions[name] = PEERS[name].version()
        except Failed as error:
            missing[name] = str(error)
            console.print(f"[yellow]skipped[/yellow] all rows of {name}: {error}", highlight=False)
    return versions, missing


def steps(group: list[Row], peers: set[str]) -> int:
    """Measurements of a group in one round."""
    if group[0].load == "memory":
        return len(peers & set(group[0].peers))
    return sum(len(peers & set(row.peers)) for row in group)


def main_command(
    rows: Annotated[str, typer.Option(help="Rows by comma, or beginnings of their names.")] = "",
    peers: Annotated[str, typer.Option(help="Peers by comma.")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="Of one measurement.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="One round of one second: a smoke test.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.")] = None,
) -> None:
    """Measure fastproxy beside its peers and write results.json, README.md and charts."""
    console = report.terminal()
    why = load.available()
    if why:
        console.print(f"[red]nothing can be measured:[/red] {why}")
        raise typer.Exit(1)
    if quick:
        rounds, seconds = 1, 1
    folder = out or (BUILD / "quick" if quick or rows or peers else ROOT / "benchmarks" / "results")
    groups = chosen(rows)
    where = cores()
    settle_on(where.load)
    compile_c()
    versions, missing = installed(peers, console)
    if not where.apart:
        console.print("[yellow]one processor only:[/yellow] load and proxy share it; latencies mean little")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        run = Run(Path(temporary), where, seconds, rounds, console)
        try:
            total = rounds * sum(steps(group, set(versions)) for group in groups)
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=console) as progress:
                task = progress.add_task("starting", total=total)
                for group in groups:
                    for label in run.group(group, list(versions)):
                        progress.update(task, description=f"{label:<58}", advance=1)
        finally:
            run.close()
    results = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe(where),
        "options": {"rounds": rounds, "seconds": seconds, "quick": quick},
        "took_seconds": round(time.monotonic() - began),
        "peers": versions,
        "missing": missing,
        "rows": run.results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    report.render(folder / "results.json")
    console.print(f"written: {folder}/results.json, README.md and charts", highlight=False)
    report.show(results, console)
    if any(slot["failed"] for row in run.results.values() for slot in row.values()):
        console.print("[red]some rows failed; they are marked[/red]")
        raise typer.Exit(1)


def main() -> None:
    """The program."""
    typer.run(main_command)
