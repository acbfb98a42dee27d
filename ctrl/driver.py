"""The owner of a candidate: it asks :mod:`ctrl.rollout` what is to be done, and does it.

What is wanted is compared with what is, again and again, so an action that failed is done at the next turn.
Who owns a candidate renews it in the store; when the renewals stop, another control plane voids it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from ctrl.model import Candidate, Conflict, StoreError
from ctrl.rollout import Phase, Plan, Rollout, Seen
from fastproxy.wire import lot

if TYPE_CHECKING:
    from ctrl.fleet import Fleet
    from ctrl.plane import Plane

TURN = 0.05  # seconds between two looks at the fleet, at the least
LOOK = 0.5  # and at the most
REPORTED = 1.5  # reports after which a proxy's counts are of the candidate


class Driver:
    """One rollout of ours. ``ended``: it is settled, voided, or was taken from us."""

    def __init__(self, plane: Plane, candidate: Candidate, plan: Plan) -> None:
        self.version = candidate.version
        self.ended = False
        self._plane = plane
        self._epoch = plane.head().epoch
        self._share = candidate.share
        self._beat = time.monotonic()
        self._began: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._acting = asyncio.Lock()
        self.rollout = Rollout(self.version, plan, time.monotonic(), self._seen())

    def __repr__(self) -> str:
        return f"<Driver of {self.rollout!r}{' ended' if self.ended else ''}>"

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def to_dict(self) -> dict[str, Any]:
        return self.rollout.to_dict()

    async def end(self, reason: str) -> None:
        """Abort now. Raises StoreError when the store does not take it; it is tried on then."""
        self.rollout.abort(reason)
        await self._carry_out()

    async def close(self) -> None:
        """Drive no more. Whoever shares the store voids the candidate after a while."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _seen(self) -> list[Seen]:
        report = self._plane.publisher.down.report_ms / 1000
        return seen(self._plane.fleet, self._epoch, self.version, self._began, report)

    async def _run(self) -> None:
        fleet = self._plane.fleet
        while not self.ended:
            count = fleet.changed
            self.rollout.decide(self._seen(), time.monotonic())
            try:
                await self._carry_out()
            except Conflict:
                self._lost()
                with contextlib.suppress(StoreError):
                    await self._plane.look()
            except StoreError:
                await asyncio.sleep(LOOK)  # the plane has said it; what is wanted stays wanted
            if not self.ended:
                await asyncio.sleep(TURN)
                await fleet.wait_change(count, LOOK)

    async def _carry_out(self) -> None:
        async with self._acting:
            if not self.ended:
                await self._act()

    async def _act(self) -> None:
        rollout, plane = self.rollout, self._plane
        if rollout.phase is Phase.COMMITTED:
            await plane.settle(self.version)
            self._end("committed", f"version {self.version} is rolled out")
        elif rollout.phase is Phase.ABORTED:
            await plane.void(self.version, rollout.reason)
            self._end("aborted", f"version {self.version} is aborted: {rollout.reason}")
        elif rollout.share != self._share or time.monotonic() - self._beat > plane.lapse / 5:
            await plane.step(self.version, rollout.share)
            self._share, self._beat = rollout.share, time.monotonic()

    def _end(self, how: str, text: str) -> None:
        self.ended = True
        self._plane.counts.rollouts[how] += 1
        self._plane.say(text)
        self._plane.bell.ring()

    def _lost(self) -> None:
        """Somebody else has decided about it."""
        if not self.ended:
            self.ended = True
            self.rollout.abort("another control plane has ended it")


def seen(fleet: Fleet, epoch: int, version: int, began: dict[str, float], report: float) -> list[Seen]:
    """All proxies that are present, as a rollout of that version looks at them. ``began``: since when each
    was seen serving it, kept here from call to call: what a proxy reported before, it may have counted with
    the old one. ``report``: seconds between two reports now; with many proxies they are rare."""
    out = []
    now = time.monotonic()
    for proxy in fleet.proxies():
        if not proxy.present:
            continue
        ours = proxy.epoch == epoch
        serving = ours and proxy.version == version
        since = began.setdefault(proxy.node, now) if serving else now
        out.append(
            Seen(
                proxy.node,
                lot(proxy.node, epoch, version),
                prepared=ours and proxy.prepared == version,
                serving=serving,
                rejected=(proxy.rejected_why or "no reason given")
                if ours and proxy.rejected == version
                else "",
                requests=proxy.requests,
                errors=proxy.errors,
                counted=serving and now - since >= REPORTED * report,
            )
        )
    return out
