"""What a control plane does by itself: it follows what others write, and tidies up from time to time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ctrl import orders
from ctrl.model import Conflict, StoreError
from ctrl.wishes import Unfit, Wish

if TYPE_CHECKING:
    from ctrl.plane import Plane

TURN = 1.0  # seconds
LOOK_EVERY = 5.0  # seconds; the watch tells sooner
PAUSE_MIN, PAUSE_MAX = 0.2, 10.0  # seconds until a lost store is tried again


class Follower:
    """Two tasks of one plane: :meth:`follow` and :meth:`keep_order`, both until they are cancelled."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._alive = (0, 0, 0.0)  # the candidate's version and beat, and since when we see this beat
        self._compacted = 0

    async def follow(self) -> None:
        """Look whenever the store says so; when its link is lost, again and again with growing pauses."""
        plane = self._plane
        pause = PAUSE_MIN
        while True:
            stream = plane.store.watch()
            try:
                async for _ in stream:
                    await plane.look()
                    pause = PAUSE_MIN
            except StoreError as e:
                plane.lost(str(e))
            except Exception as e:  # whoever follows nobody any more must not look as if it did
                plane.say(f"following the store failed: {type(e).__name__}: {e}; please report it")
            finally:
                await _end(stream)
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(2 * pause, PAUSE_MAX)

    async def keep_order(self) -> None:
        """What has to be done from time to time, whether or not anybody writes."""
        plane = self._plane
        turn = 0.0
        while True:
            await asyncio.sleep(min(TURN, plane.lapse / 4))
            try:
                await self._void_what_nobody_drives()
                if time.monotonic() - turn >= LOOK_EVERY:
                    turn = time.monotonic()
                    await plane.look()
                    await self._clear_lapsed_orders()
                    await self._compact()
            except StoreError:
                continue  # it was said
            except Exception as e:
                plane.say(f"keeping order failed: {type(e).__name__}: {e}; please report it")

    async def _void_what_nobody_drives(self) -> None:
        """By our own clock: a beat that we have not seen change for long enough, whatever time it names."""
        plane = self._plane
        candidate = plane.candidate()
        if candidate is None or plane.drives(candidate.version):
            return
        version, beat, since = self._alive
        now = time.monotonic()
        if (version, beat) != (candidate.version, candidate.beat_ms):
            self._alive = (candidate.version, candidate.beat_ms, now)
        elif now - since > plane.lapse / 2:
            await plane.look()  # a beat that the watch did not tell counts too
            if plane.candidate() == candidate and now - since > plane.lapse:
                why = f"{candidate.owner}, who drove it, does not answer"
                plane.say(f"version {version} is voided: {why}")
                await plane.void(version, why)

    async def _clear_lapsed_orders(self) -> None:
        plane = self._plane
        gone = orders.lapsed(plane.contents, time.time_ns() // 1_000_000)
        if gone and plane.candidate() is None:
            with contextlib.suppress(Unfit, Conflict):  # somebody else was quicker
                await plane.delete(gone, Wish(plane.name, "their time is over"), "breaker orders lapsed")

    async def _compact(self) -> None:
        plane = self._plane
        version = plane.head().version
        if version - self._compacted > plane.keep * 1.1:
            await plane.ask(plane.store.compact(plane.keep))
            self._compacted = version - plane.keep


async def _end(stream: AsyncIterator[None]) -> None:
    close = getattr(stream, "aclose", None)
    if close:
        await close()
