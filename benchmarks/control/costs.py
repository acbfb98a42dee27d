"""What one update costs each thread that touches it: the constants of the model, read from the kernel."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.control.crowd import Crowd
from benchmarks.control.plane import Plane, routes, services
from benchmarks.control.scenarios import EACH, SERVICES, SETTLE, SMALL, crowd_of
from benchmarks.process import cpu_between, cpu_clock
from ctrl.fleet import Fleet
from ctrl.model import Contents, Resource
from ctrl.views import Views
from fastproxy.oneline import add_mesh
from fastproxy.plan import compile_plan
from fastproxy.rows import Rows
from fastproxy.slots import Slots
from fastproxy.tables import Tables
from fastproxy.wire import SERVING, Answer, Answers, decode, encode

IO_THREAD = "ZMQbg/IO"


def threads_ns(pid: int) -> tuple[int, int]:
    """Nanoseconds run by ZeroMQ's I/O threads and by the main thread."""
    io = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().startswith(IO_THREAD):
            io += int((task / "schedstat").read_text().split()[0])
    return io, int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])


def batched_seconds(count: int = 500, times: int = 20) -> float:
    """The loop's CPU for one of many answers in a message of a relay."""
    answers = [Answer(f"proxy-{i}", 1, 2, bytes(32), SERVING, 900) for i in range(count)]
    frames = encode(Answers(answers=answers))
    fleet = Fleet()
    began = time.thread_time()
    for _ in range(times):
        message = decode(frames)
        assert isinstance(message, Answers)
        fleet.on_answers(message.answers)
    return (time.thread_time() - began) / times / count


def costs(folder: Path, count: int, changes: int) -> Iterator[tuple[str, Any]]:
    """Per update and subscriber, seconds of CPU: see :class:`benchmarks.control.model.Costs`."""
    plane = Plane(folder)
    try:
        yield "costs · joining", None
        version = plane.apply([*services(SMALL, 1), *routes(SMALL, EACH)])["version"]
        with crowd_of(plane, count, folder, version) as crowd:
            yield "costs · quiet", None
            quiet = _spent(plane, crowd, lambda: time.sleep(changes * 0.5))
            yield "costs · changes", None

            def change() -> None:
                for turn in range(1, changes + 1):
                    began = time.monotonic()
                    now = plane.apply(list(routes(1, EACH, turn)))["version"]
                    crowd.live(now, SETTLE)
                    time.sleep(max(0.0, 0.5 - (time.monotonic() - began)))

            busy = _spent(plane, crowd, change)
        per = changes * count * 1e9
        send, answer, verify = (max(0.0, (b - q) / per) for b, q in zip(busy, quiet, strict=True))
        result = {"send": send, "answer": answer, "verify": verify, "relay": verify}
        yield "", {"row": "costs", **result, "batched": batched_seconds()}
    finally:
        plane.stop()


def _spent(plane: Plane, crowd: Crowd, work: Any) -> tuple[float, float, float]:
    """Nanoseconds that I/O thread, loop and subscribers ran during ``work``."""
    pids = [child.process.pid for child in crowd.children]
    io, loop = threads_ns(plane.pid)
    theirs = cpu_clock(pids)
    work()
    io_after, loop_after = threads_ns(plane.pid)
    return io_after - io, loop_after - loop, float(cpu_between(theirs, cpu_clock(pids)))


def large_tables() -> Tables:
    """Ten thousand routes of one host, each with a path and a header of its own, as a proxy unpacks them."""
    http = [
        {
            "match": [{"uri": {"prefix": f"/svc{r:05d}/"}, "headers": {"x-tenant": {"exact": f"t-{r:05d}"}}}],
            "route": [{"destination": {"host": f"svc-{r % SMALL:05d}"}}],
        }
        for r in range(SERVICES * EACH)
    ]
    (virtual,) = routes(1, 1)
    virtual["spec"]["http"] = http
    contents = Contents(1)
    for i, document in enumerate([*services(SMALL, EACH), virtual]):
        identity = (document["kind"], "default", document["metadata"]["name"])
        contents.resources[identity] = Resource(*identity, json.dumps(document), created=(1, i), version=1)
    made = Views().make(contents, None)
    assert not made.problems
    tables = Rows.pack(made.tables).unpack()
    add_mesh(tables, "127.0.0.1:9000")
    return tables


def compiling(rounds: int) -> Iterator[tuple[str, Any]]:
    """CPU seconds in which a proxy's agent makes a plan of 10,000 routes of one host."""
    yield "compile · 10,000 routes", None
    tables = large_tables()
    took = []
    for number in range(rounds):
        gc.disable()  # as the agent does
        began = time.thread_time()
        compiled = compile_plan(tables, Slots(), epoch=1, version=number + 1)
        took.append(time.thread_time() - began)
        gc.enable()
    assert len(compiled.routes) >= SERVICES * EACH
    yield "", {"row": "compile", "seconds": took, "median": median(took), "routes": len(compiled.routes)}
