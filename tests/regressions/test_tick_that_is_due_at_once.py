"""A link asked its timer when it would ring. uvloop gives a plain handle, which cannot tell, for a timer that
rings within the same millisecond: a proxy with two publishers ended its first reading with a traceback."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import uvloop

from fastproxy.link import ApplierAction, Link
from fastproxy.rows import Rows
from fastproxy.sync import Done
from fastproxy.wire import Attributes


class Nobody:
    async def carry_out(self, actions: Sequence[ApplierAction], rows: Rows) -> list[tuple[type, Done]]:
        return []

    def report(self) -> dict[str, Any]:
        return {}


def test_a_tick_that_is_due_now_may_be_planned_twice() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        link = Link("a", Attributes(), ["tcp://127.0.0.1:1"], Nobody())
        running = loop.create_task(link.run())
        await asyncio.sleep(0)
        link.sync.next_tick = lambda now: now  # type: ignore[method-assign]
        link._plan(loop.time())
        link._plan(loop.time() - 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    uvloop.run(main())
