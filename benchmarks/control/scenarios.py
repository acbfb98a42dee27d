"""The rows of the control plane. Each yields labels for the progress and fills its part of the results.

Everything runs on the same two cores: the control plane, and two processes with half of the subscribers each.
What a row takes with real proxies, each on a machine of its own, is less.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgpack
import zmq

from benchmarks.control.crowd import Child, Crowd
from benchmarks.control.plane import Plane, routes, services
from benchmarks.control.subscribers import ATTRIBUTES
from benchmarks.load import Failed
from fastproxy.wire import Update, decode, probe_topic, view_topic

REAL, BARE = "benchmarks.control.subscribers", "benchmarks.control.bare"
PROCESSES = 2
SETTLE = 90.0  # seconds in which a crowd has to be LIVE
SERVICES, EACH = 1000, 10  # of the large mesh: 10,000 routes, 10,000 endpoints
SMALL = 100  # services of the small one: 1,000 routes


def quantile(values: list[float], share: float) -> float:
    """The value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Listener:
    """A plain SUB socket that takes the updates of the view, to know their bytes."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, view_topic(ATTRIBUTES.view))
        self._socket.setsockopt(zmq.SUBSCRIBE, probe_topic(b"bench-listener--"))
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)

    def update(self, version: int, seconds: float = 30.0) -> tuple[list[bytes], Update]:
        """The frames of that update, and what they say."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not self._socket.poll(int(left * 1000)):
                break
            topic, *frames = self._socket.recv_multipart()
            if not topic.startswith(b"v/"):
                continue
            message = decode(frames)
            if isinstance(message, Update) and message.version == version:
                return frames, message
        raise Failed(f"the update to version {version} was not published in {seconds} s")

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


@contextlib.contextmanager
def crowd_of(plane: Plane, count: int, folder: Path, version: int) -> Iterator[Crowd]:
    crowd = Crowd(REAL, folder / "crowd.log", min(PROCESSES, count))
    try:
        crowd.join(plane.publish, count)
        crowd.live(version, SETTLE)
        yield crowd
    finally:
        crowd.end()


def one_route(folder: Path, counts: list[int], rounds: int, changes: int) -> Iterator[tuple[str, Any]]:
    """One route changes; milliseconds from the send until subscribers have verified and applied it, beside a
    bare fan-out of the same bytes to as many sockets, one after the other in each round. A change is begun
    when the one before is known to be served by all."""
    plane = Plane(folder)
    listener = Listener(plane.publish)
    turn = 0
    try:
        plane.apply([*services(SMALL, 1), *routes(SMALL, EACH)])
        for count in counts:
            ours: dict[str, list[float]] = {"p50": [], "p99": [], "max": []}
            ours |= {"apply": [], "known": [], "cpu_us": []}
            theirs: dict[str, list[float]] = {"p50": [], "p99": [], "max": []}
            size = 0
            for number in range(rounds):
                yield f"one route · {count} subscribers · round {number + 1}", None
                frames: list[bytes] = []
                version = plane.get("/v1/head")["version"]
                with crowd_of(plane, count, folder, version) as crowd:
                    samples: list[float] = []
                    took: list[float] = []
                    known: list[float] = []
                    before = plane.cpu_ns()
                    for _ in range(changes):
                        turn += 1
                        began = time.time()
                        version = plane.apply(list(routes(1, EACH, turn)))["version"]
                        frames, _ = listener.update(version)
                        took.append((crowd.live(version, SETTLE) - began) * 1e3)
                        known.append((plane.known(version, count, SETTLE) - began) * 1e3)
                        samples += [us / 1e3 for us in crowd.samples(version=version)]
                    cpu = plane.cpu_since(before)
                    states = crowd.ask(do="state")
                    if any(s["gaps"] or s["garbage"] for s in states) or len(samples) != changes * count:
                        raise Failed(f"{len(samples)} of {changes * count} arrived: {states}")
                size = sum(map(len, frames))
                for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
                    ours[name].append(quantile(samples, share))
                ours["apply"].append(median(took))
                ours["known"].append(median(known))
                ours["cpu_us"].append(cpu / 1e3 / changes / count)
                bare = _bare(folder, count, changes, frames)
                for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
                    theirs[name].append(quantile(bare, share))
            yield "", {"row": f"one-route-{count}", "bytes": size, "ours": ours, "bare": theirs}
    finally:
        listener.close()
        plane.stop()


def _bare(folder: Path, count: int, changes: int, frames: list[bytes]) -> list[float]:
    """Milliseconds from a PUB socket to each of ``count`` SUB sockets in as many processes as ours are."""
    source = Child(BARE, folder / "bare.log")
    crowd = Crowd(BARE, folder / "bare.log", min(PROCESSES, count))
    packed = [base64.b64encode(frame).decode() for frame in frames]
    try:
        crowd.join(source.ask(do="bind"), count)
        probes = 0
        deadline = time.monotonic() + 30
        while True:  # PUB says nothing of who has joined
            source.ask(do="send", frames=packed, number=probes)
            time.sleep(0.3)
            if len(crowd.samples(number=probes)) == count:
                break
            if time.monotonic() > deadline:
                raise Failed("the bare subscribers do not come together")
            probes += 1
        out: list[float] = []
        for number in range(probes + 1, probes + 1 + changes):
            sent = source.ask(do="send", frames=packed, number=number)
            seen: list[float] = []
            while len(seen) < count:
                if time.monotonic() > deadline + 60:
                    raise Failed("the bare fan-out lost a message")
                time.sleep(0.02)
                seen = crowd.samples(number=number)
            out += [(at - sent) / 1e3 for at in seen]
        return out
    finally:
        crowd.end()
        source.end()


def endpoints(folder: Path, count: int, seconds: int) -> Iterator[tuple[str, Any]]:
    """10,000 endpoints, one in a hundred moves every second; nobody may have to ask for anything."""
    plane = Plane(folder)
    listener = Listener(plane.publish)
    try:
        yield "endpoints · joining", None
        version = plane.apply(services(SERVICES, EACH))["version"]
        with crowd_of(plane, count, folder, version) as crowd:
            joined = crowd.ask(do="state")
            wire = packed = changed = 0
            lags: list[float] = []
            due = time.monotonic()
            before = plane.cpu_ns()
            for turn in range(1, seconds + 1):
                yield f"endpoints · second {turn}", None
                first = (turn * 100) % SERVICES
                moved = [s for i, s in enumerate(services(SERVICES, EACH, turn)) if first <= i < first + 100]
                version = plane.apply(moved)["version"]
                frames, update = listener.update(version)
                wire += sum(map(len, frames))
                puts = update.changes.puts.get("endpoints", {})
                deletes = update.changes.deletes.get("endpoints", [])
                packed += len(msgpack.packb([puts, deletes]))
                changed += len(puts)
                crowd.live(version, SETTLE)
                lags += [us / 1e3 for us in crowd.samples(version=version)]
                due += 1.0
                time.sleep(max(0.0, due - time.monotonic()))
            late = time.monotonic() - due
            state = crowd.ask(do="state")
            asked = sum(s["snapshots"] + s["gaps"] for s in state) - sum(
                s["snapshots"] + s["gaps"] for s in joined
            )
            yield (
                "",
                {
                    "row": "endpoints",
                    "changed": changed,
                    "wire_bytes": wire,
                    "msgpack_bytes": packed,
                    "resyncs": asked,
                    "late_seconds": max(0.0, late),
                    "p99_ms": quantile(lags, 0.99),
                    "plane_cpu": plane.cpu_since(before) / 1e9 / seconds,
                    "seconds": seconds,
                },
            )
    finally:
        listener.close()
        plane.stop()


def reconnect(folder: Path, count: int, rounds: int) -> Iterator[tuple[str, Any]]:
    """The control plane of 10,000 routes is killed and started again; then all begin with nothing at all."""
    plane = Plane(folder)
    took: list[float] = []
    with_start: list[float] = []
    rss: list[float] = []
    try:
        yield "reconnect · joining", None
        version = plane.apply([*services(SERVICES, 1), *routes(SERVICES, EACH)])["version"]
        crowd = Crowd(REAL, folder / "crowd.log", PROCESSES)
        try:
            crowd.join(plane.publish, PROCESSES)  # one in each process, whose rows the others start with
            crowd.live(version, SETTLE)
            crowd.ask(do="leave")
            crowd.join(plane.publish, count, kept=True)
            crowd.live(version, SETTLE)
            for number in range(rounds):
                yield f"reconnect · round {number + 1}", None
                plane.kill()
                time.sleep(6)  # long enough that everybody has noticed
                began = time.time()
                plane.start()
                ready = time.time()
                last = crowd.live(version, SETTLE)
                took.append(max(0.0, last - ready))
                with_start.append(last - began)
                rss.append(plane.peak_rss())
            state = crowd.ask(do="state")
        finally:
            crowd.end()
        yield "reconnect · cold", None
        plane.kill()
        plane.start()
        began = time.time()
        with crowd_of(plane, count, folder, version):
            cold = time.time() - began
        yield (
            "",
            {
                "row": "reconnect",
                "seconds": took,
                "with_start": with_start,
                "rss": rss,
                "snapshots": sum(s["snapshots"] for s in state),
                "cold_seconds": cold,
                "cold_rss": plane.peak_rss(),
            },
        )
    finally:
        plane.stop()
