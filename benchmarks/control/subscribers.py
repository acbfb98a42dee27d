"""``python -m benchmarks.control.subscribers``: many subscribers in one process, and what they saw.

Questions are lines of JSON on standard input, answers lines on standard output: see :meth:`Crowd.answer`.
Every link has its own sockets and its own rows; they share a ZeroMQ context, a thread and a loop.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import uvloop

from fastproxy.link import ApplierAction, Link
from fastproxy.rows import Rows
from fastproxy.sockets import make_context
from fastproxy.sync import Apply, Done, Prepare, State
from fastproxy.wire import Attributes

ATTRIBUTES = Attributes(mesh=True)


class Kept:
    """Who would compile and swap: it notes when the version was verified and handed over."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []  # version, sent, applied: Unix us

    def carry_out(self, actions: Sequence[ApplierAction], rows: Rows) -> list[tuple[type, Done]]:
        now = time.time_ns() // 1000
        out: list[tuple[type, Done]] = []
        for action in actions:
            if isinstance(action, Apply):
                self.seen.append((action.version, action.sent_us, now))
            kind = Prepare if isinstance(action, Prepare) else Apply
            out.append((kind, Done(action.version, getattr(action, "hash", b""))))
        return out

    def report(self) -> dict[str, Any]:
        return {}


class Crowd:
    """All links of this process."""

    def __init__(self) -> None:
        self._context = make_context()
        self.links: list[Link] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._shared: tuple[int, int, Rows] | None = None

    def join(self, address: str, count: int, first: int, kept: bool) -> None:
        """``kept``: they begin with what the first link held, as proxies do that have a last good version."""
        for i in range(first, first + count):
            rng = random.Random(i)
            link = Link(f"proxy-{i}", ATTRIBUTES, [address], Kept(), context=self._context, rng=rng)
            if kept and self._shared:
                link.restore(*self._shared)
            self.links.append(link)
            self._tasks.append(asyncio.get_running_loop().create_task(link.run()))

    async def leave(self) -> None:
        """All but what was shared is forgotten."""
        if self.links and self.links[0].sync.version:
            sync = self.links[0].sync
            self._shared = (sync.epoch, sync.version, sync.rows)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.links.clear()
        self._tasks.clear()
        gc.collect()

    async def answer(self, question: dict[str, Any]) -> Any:
        """``{"do": "join" | "leave" | "state" | "samples" | "live" | "end", …}``"""
        do = question["do"]
        if do == "join":
            self.join(question["address"], question["count"], question["first"], question.get("kept", False))
            return None
        if do == "leave":
            return await self.leave()
        if do == "state":
            return self._state()
        if do == "samples":  # of one version, in us from the send; those that have it
            version = question["version"]
            seen = (s for link in self.links for s in link._applier.seen)  # type: ignore[attr-defined]
            return [applied - sent for v, sent, applied in seen if v == version and sent]
        if do == "live":  # wait until all hold this version; the moment, Unix seconds
            deadline = time.monotonic() + question["seconds"]
            while time.monotonic() < deadline:
                syncs = [link.sync for link in self.links]
                if all(s.state is State.LIVE and s.version >= question["version"] for s in syncs):
                    return time.time()
                await asyncio.sleep(0.005)
            return None
        raise ValueError(f"unknown question {do!r}")

    def _state(self) -> dict[str, Any]:
        syncs = [link.sync for link in self.links]
        return {
            "states": dict(Counter(s.state.value for s in syncs)),
            "versions": {str(v): n for v, n in Counter(s.version for s in syncs).items()},
            "hashes": len({s.hash for s in syncs}),
            "gaps": sum(s.gaps for s in syncs),
            "snapshots": sum(s.snapshots for s in syncs),
            "updates": sum(s.updates for s in syncs),
            "garbage": sum(s.garbage for s in syncs),
        }


async def serve() -> None:
    loop = asyncio.get_running_loop()
    crowd = Crowd()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        answer = await crowd.answer(json.loads(line))
        os.write(1, json.dumps(answer).encode() + b"\n")
    os._exit(0)  # a context with thousands of sockets takes seconds to end, and nobody waits for it


if __name__ == "__main__":
    gc.disable()  # walking the heap of five hundred proxies is a cost that no proxy has
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
