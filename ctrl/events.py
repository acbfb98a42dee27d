"""What happens, as GET /v1/watch tells it: the picture is compared with the one before, so nothing is queued
and a slow reader costs nothing; of what changed twice meanwhile it sees the last."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from ctrl.model import StoreError

if TYPE_CHECKING:
    from ctrl.plane import Plane

EVERY = 0.1  # seconds between two looks, at the least
BEAT = 15.0  # seconds of quiet after which an empty line shows that the connection lives
MAX_VERSIONS = 100  # told one by one when many came between two looks
TOGETHER = 100  # events that are written at once

Event = dict[str, Any]


class Events:
    """One watcher's memory."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._version = plane.head().version
        self._refused = plane.fleet.refused[-1] if plane.fleet.refused else None
        self._rollout = self._of_rollout()
        self._proxies = plane.fleet.picture()

    async def first(self) -> list[Event]:
        """Where we stand, so that a watcher sees at once that it is connected."""
        return await self._versions(self._version - 1)

    async def news(self) -> list[Event]:
        """What changed since the last call."""
        plane = self._plane
        out: list[Event] = []
        version = plane.head().version
        if version != self._version:
            out += await self._versions(self._version if version > self._version else version - 1)
        rollout = self._of_rollout()
        if rollout != self._rollout:
            self._rollout = rollout
            out.append({"type": "rollout", **rollout})
        proxies = plane.fleet.picture()
        for node, row in proxies.items():
            if self._proxies.get(node) is not row:
                state, epoch, number, error = row
                proxy = plane.fleet.get(node)
                out.append(
                    {
                        "type": "proxy",
                        "node": node,
                        "state": state,
                        "epoch": epoch,
                        "version": number,
                        "error": error,
                        "us": proxy.us if proxy and proxy.timed == number else 0,
                    }
                )
        self._proxies = proxies
        return out + self._refusals()

    async def _versions(self, after: int) -> list[Event]:
        head = self._plane.head()
        self._version = head.version
        if not head.version:
            return []
        try:
            entries = await self._plane.history(MAX_VERSIONS, head.version + 1)
        except StoreError:
            return [{"type": "version", "epoch": head.epoch, "version": head.version, "hash": head.hash}]
        return [
            {
                "type": "version",
                "epoch": entry.epoch,
                "version": entry.version,
                "hash": entry.hash,
                "who": entry.who,
                "what": entry.what,
                "message": entry.message,
                "atMs": entry.at_ms,
            }
            for entry in reversed(entries)
            if entry.version > after
        ]

    def _refusals(self) -> list[Event]:
        new = []
        for refusal in reversed(self._plane.fleet.refused):
            if refusal is self._refused:
                break
            new.append(refusal)
        self._refused = new[0] if new else self._refused
        return [
            {"type": "refused", "atMs": r.at_ms, "address": r.address, "name": r.name, "reason": r.reason}
            for r in reversed(new)
        ]

    def _of_rollout(self) -> Event:
        now = self._plane.rollout
        return {key: now[key] for key in ("version", "state", "stage", "share", "reason") if key in now}


async def stream(plane: Plane) -> AsyncIterator[bytes]:
    """Newline-delimited JSON, until the plane closes. ``plane.watchers`` counts who is there."""
    plane.watchers += 1
    try:
        async with contextlib.aclosing(_lines(plane)) as told:
            async for lines in told:
                yield lines
    finally:
        plane.watchers -= 1


async def _lines(plane: Plane) -> AsyncGenerator[bytes, None]:
    events = Events(plane)
    found = await events.first()
    loop = asyncio.get_running_loop()
    quiet = loop.time()
    while not plane.closing.is_set():
        if found:
            quiet = loop.time()
            for start in range(0, len(found), TOGETHER):
                yield b"".join(
                    json.dumps(event).encode() + b"\n" for event in found[start : start + TOGETHER]
                )
        elif loop.time() - quiet > BEAT:
            quiet = loop.time()
            yield b"\n"
        fleet, bell = plane.fleet.changed, plane.bell.count
        found = await events.news()
        if not found:
            waits = [
                asyncio.ensure_future(plane.fleet.wait_change(fleet, BEAT)),
                asyncio.ensure_future(plane.bell.wait(bell, BEAT)),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
        await asyncio.sleep(EVERY)
