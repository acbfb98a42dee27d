"""The tables come from the control plane: what :class:`fastproxy.link.Link` receives is checked, compiled,
served, answered for and kept on disk."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastproxy import __version__
from fastproxy.agent import log
from fastproxy.agent.last_good import Kept, LastGood, folder_of
from fastproxy.agent.metrics import Text
from fastproxy.agent.orders import Orders
from fastproxy.agent.publisher import Prepared, Published, Publisher
from fastproxy.agent.shape import check_endpoint, check_rows
from fastproxy.agent.source import CONFLICT, FAULTS, Answer, Source, StartError
from fastproxy.agent.telemetry import Telemetry
from fastproxy.keys import Curve, load_client_key
from fastproxy.link import ApplierAction, Link
from fastproxy.oneline import add_mesh
from fastproxy.rows import ENDPOINTS, Changes, Rows, patched, unpack_row
from fastproxy.settings import Settings
from fastproxy.sync import Apply, Done, Drop, Prepare, Say, Settle, State
from fastproxy.tables import Listener, Tables, empty
from fastproxy.wire import Attributes

CLOCK_AGAIN = 1.0  # seconds between two looks for the first word of the publisher's clock
LINK_AGAIN = 5.0  # seconds until a link that failed is made anew


@dataclass(slots=True)
class Version:
    """One version of the control plane. ``behind``: what is not in ``tables`` yet."""

    version: int
    hash: bytes
    tables: Tables = field(default_factory=empty)
    behind: Changes = field(default_factory=Changes)
    held: Prepared | None = None

    def after(self, version: int, hash_: bytes, changes: Changes) -> Version:
        """The version that these changes make of this one."""
        return Version(version, hash_, self.tables, joined(self.behind, changes))


class Subscriber(Source):
    """Implements :class:`fastproxy.link.Applier`. Raises StartError for a key or an address of no use."""

    def __init__(
        self, settings: Settings, publisher: Publisher, telemetry: Telemetry, orders: Orders
    ) -> None:
        super().__init__(settings, publisher)
        self._telemetry = telemetry
        self._orders = orders
        self._started = time.monotonic()
        self._started_ms = time.time_ns() // 1_000_000
        self._mesh: Listener | None = None
        if settings.listen:
            own = empty()
            add_mesh(own, settings.listen)
            self._mesh = own["listeners"]["mesh"]
        self._node = settings.node or socket.gethostname()
        self._attributes = Attributes.of(settings.namespace, settings.label, bool(settings.listen))
        self._last_good: LastGood | None = None
        if settings.state != "off":
            self._last_good = LastGood(folder_of(settings.state), self._node, self._attributes.view)
        self._base = Version(0, b"")
        self._candidate: Version | None = None
        self._serving: Version | None = None
        self._kept: tuple[int, int, bytes] = (0, 0, b"")
        self._first: asyncio.Future[Published] | None = None
        self._linked: asyncio.Task[None] | None = None
        self._curve: Curve | None = None
        self.rejected = 0
        self.source = ", ".join(settings.control)
        try:
            if settings.control_key:
                self._curve = load_client_key(settings.control_key).curve
            self._link = self._new_link()
        except ValueError as e:
            log.error(str(e), "--control")
            raise StartError from None

    def __repr__(self) -> str:
        return f"<Subscriber {self._link.sync!r}>"

    # --- life ---

    async def start(self) -> Published:
        """The last good version, else the first that the control plane sends, however long that takes."""
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        found = self._last_good.load() if self._last_good else None
        if found:
            log.info(f"starting with the last good version, {found[1]}", "until the control plane speaks")
            self._kept = (found[0], found[1], found[2].hash)
            self._link.restore(*found)
        else:
            log.info("waiting for a configuration", self.source)
        self._linked = loop.create_task(self._keep_linked())
        return await self._first

    async def run(self) -> None:
        assert self._linked
        await asyncio.gather(super().run(), self._linked, self._learn_clock())

    async def close(self) -> None:
        if self._linked:
            self._linked.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._linked
        if self._last_good:
            await asyncio.get_running_loop().run_in_executor(None, self._last_good.close)

    def _new_link(self) -> Link:
        return Link(
            self._node,
            self._attributes,
            self._settings.control,
            self,
            curve=self._curve,
            release=__version__,
            say=self._on_say,
        )

    async def _keep_linked(self) -> None:
        """A failure of ours in the link must not end traffic."""
        while True:
            try:
                await self._link.run()
            except Exception as e:
                what = f"the link to the control plane failed: {type(e).__name__}: {e}"
                log.error(what, self.source, f"please report it; trying again in {LINK_AGAIN:g} s")
            await asyncio.sleep(LINK_AGAIN)
            before, offset_ms = self._link.sync, self._link.clock_offset_ms
            self._link = self._new_link()
            self._link.clock_offset_ms = offset_ms
            if before.version:
                self._link.restore(before.epoch, before.version, before.rows)

    async def _learn_clock(self) -> None:
        """Orders that came before the publisher's clock was known end by it all the same."""
        while not self._link.clock_offset_ms:
            await asyncio.sleep(CLOCK_AGAIN)
        self._orders.learn(self._link.clock_offset_ms)

    def _on_say(self, said: Say) -> None:
        goes_on = f"version {self._serving.version} goes on" if self._serving else "nothing serves yet"
        if said.error:
            log.error(said.text, "control plane", goes_on)
        else:
            log.info(said.text, "control plane")

    # --- Applier ---

    def carry_out(
        self, actions: Sequence[ApplierAction], rows: Rows
    ) -> Coroutine[Any, Any, list[tuple[type, Done]]]:
        """See :class:`fastproxy.link.Applier`. Of several versions that are to serve one after the other only
        the last is compiled; where it cannot serve, the ones before it are tried."""
        anew = any(isinstance(a, Apply) and a.changes is None for a in actions)
        copy = self._copied(rows) if anew or self._last_good else None
        return self._carry_out(actions, copy, time.monotonic())

    async def _carry_out(
        self, actions: Sequence[ApplierAction], copy: Kept | None, arrived: float
    ) -> list[tuple[type, Done]]:
        results: list[tuple[type, Done]] = []
        async with self._lock:
            goals: list[tuple[type, Version]] = []
            for at, action in enumerate(actions):
                if isinstance(action, Apply):
                    self._forget()
                    if action.changes is None:
                        assert copy is not None
                        self._base = Version(action.version, action.hash, behind=Changes(copy.rows))
                    else:
                        self._base = self._base.after(action.version, action.hash, action.changes)
                    goals.append((Apply, self._base))
                elif isinstance(action, Prepare):
                    self._forget()
                    made = self._base.after(action.version, action.hash, action.changes)
                    self._candidate = made
                    if not any(isinstance(later, Apply | Drop | Settle) for later in actions[at + 1 :]):
                        results.append((Prepare, await self._prepare(made, arrived)))
                elif self._candidate is None or self._candidate.version != action.version:
                    unknown = Done(action.version, getattr(action, "hash", b""), "it was never prepared here")
                    if not isinstance(action, Drop):
                        results.append((type(action), unknown))
                elif isinstance(action, Drop):
                    goals = [goal for goal in goals if goal[1] is not self._candidate]
                    if self._serving is self._candidate:
                        goals.append((Drop, self._base))
                    self._forget()
                else:
                    goals.append((type(action), self._candidate))
                    if isinstance(action, Settle):
                        self._base, self._candidate = self._candidate, None
            for kind, version in reversed(goals):
                done = await self._serve(version, arrived)
                results.append((kind, done))
                if not done.error:
                    break
            for _, version in goals:
                self._release(version)  # what was prepared, and passed over for what came behind it
        if copy:
            self._keep(copy)
        return results

    def report(self) -> dict[str, Any]:
        requests, errors = self._telemetry.totals()
        return {
            "requests": requests,
            "errors": errors,
            "breakers": self._orders.report(),
            "trouble": self._publisher.trouble(),
            "admin": "" if self._settings.admin == "off" else self._settings.admin,
            "started_ms": self._started_ms,
        }

    # --- versions ---

    async def _serve(self, version: Version, arrived: float) -> Done:
        """All about how it went; what cannot serve leaves what serves alone."""
        done = Done(version.version, version.hash)
        if version is not self._serving:
            try:
                await self._swap(version, done)
            except FAULTS as e:
                self._refuse(done, e)
            else:
                self._serving = version
                if self._first and not self._first.done() and self._publisher.current:
                    self._first.set_result(self._publisher.current)
        if not done.error:
            done.note = self._publisher.trouble()
        done.us = int((time.monotonic() - arrived) * 1e6)
        return done

    async def _swap(self, version: Version, done: Done) -> None:
        tables = await self._decode(version)
        self._orders.offset_ms = self._link.clock_offset_ms
        held, version.held = version.held, None
        before = self._publisher.current
        if self._publisher.is_current(tables):
            if held:
                self._publisher.drop(held)
            return
        if held:
            published = await self._publisher.commit(held)
        else:
            published = await self._publisher.publish(tables)
        if published is before or not published.outcome:
            log.info(f"version {version.version} serves: its breaker orders are in force", "control plane")
            return
        if held is None or published is not held.made:
            done.compile_us = int(published.compile_seconds * 1e6)
        done.swap_us = published.outcome.swap_us
        log.info(
            f"version {version.version} serves: compiled in {published.compile_seconds * 1e3:.0f} ms, "
            f"swapped in {done.swap_us} us",
            "control plane",
        )
        if published.outcome.missing:
            log.warning(f"workers {published.outcome.missing} do not serve it yet", do="waiting for them")

    async def _prepare(self, version: Version, arrived: float) -> Done:
        done = Done(version.version, version.hash)
        try:
            version.held = await self._publisher.prepare(await self._decode(version))
            done.compile_us = int(version.held.made.compile_seconds * 1e6)
            log.info(f"version {version.version} is prepared", "control plane")
        except FAULTS as e:
            self._refuse(done, e)
        done.us = int((time.monotonic() - arrived) * 1e6)
        return done

    def _refuse(self, done: Done, e: BaseException) -> None:
        self.rejected += 1
        done.error = str(e) or type(e).__name__
        now = f"version {self._serving.version} goes on" if self._serving else "nothing serves yet"
        log.error(f"version {done.version} is rejected: {done.error}", "control plane", now)

    def _forget(self) -> None:
        """The candidate; what serves of it goes on serving until something else does."""
        candidate, self._candidate = self._candidate, None
        if candidate:
            self._release(candidate)

    def _release(self, version: Version) -> None:
        held, version.held = version.held, None
        if held:
            self._publisher.drop(held)

    async def _decode(self, version: Version) -> Tables:
        """Its tables, with our own listener. Raises ValueError."""
        if version.behind:
            # also where little has changed: the endpoints of its service may be many
            tables = await self._publisher.in_thread(decoded, version.tables, version.behind)
            version.tables, version.behind = tables, Changes()
        if self._mesh is None:
            return version.tables
        return {**version.tables, "listeners": {**version.tables["listeners"], "mesh": self._mesh}}

    # --- last good ---

    def _copied(self, rows: Rows) -> Kept:
        """As they are now: what is received next changes them."""
        sync = self._link.sync
        tables = {name: dict(some) for name, some in rows.tables.items()}
        return Kept(sync.epoch, sync.version, rows.hash, tables)

    def _keep(self, copy: Kept) -> None:
        """Hand it to the disk, when it is what serves; how often that is written is the disk's affair."""
        base, new = self._base, copy[:3] != self._kept
        if self._last_good and new and self._serving is base and copy[1:3] == (base.version, base.hash):
            self._kept = copy[:3]
            self._last_good.keep(copy)

    # --- what is told ---

    def ask_reload(self) -> None:
        log.info("nothing to read again: the control plane decides what serves", self.source)

    def waits_for(self) -> str:
        return "no configuration yet"

    async def replace(self, text: bytes) -> Answer:
        return await self.replace_tables(text)

    async def replace_tables(self, tables: object) -> Answer:
        error = f"the control plane at {self.source} decides what serves here: use fastproxyctl apply"
        return Answer(error=error, status=CONFLICT)

    def describe(self) -> dict[str, Any]:
        sync, last_good = self._link.sync, self._last_good
        return {
            "control": {
                "state": sync.state.value,
                "epoch": sync.epoch,
                "version": sync.version,
                "hash": sync.hash.hex(),
                "serving": sync.serving,
                "candidate": sync.candidate.version if sync.candidate else 0,
                "publishers": [
                    {"address": p.address, "trouble": p.trouble, "epoch": p.epoch, "version": p.version}
                    for p in sync.peers
                ],
                "error": sync.error,
                "gaps": sync.gaps,
                "snapshots": sync.snapshots,
                "updates": sync.updates,
                "rejected": self.rejected,
                "node": self._node,
                "view": self._attributes.view,
                "last_good": last_good.describe() if last_good else None,
            }
        }

    def metrics(self, text: Text) -> None:
        sync = self._link.sync
        heard = max([self._started, *(peer.heard for peer in sync.peers)])
        states = [(f'state="{s.value}"', int(s is sync.state)) for s in State]
        text.simple("fastproxy_control_state", "gauge", "Of the link to the control plane.", states)
        for name, kind, meaning, value in (
            ("version", "gauge", "Newest version received.", sync.version),
            ("serving", "gauge", "Version of the control plane that serves.", sync.serving),
            ("lag_seconds", "gauge", "Since a publisher was heard last.", time.monotonic() - heard),
            ("gaps_total", "counter", "Times that something was missing.", sync.gaps),
            ("snapshots_total", "counter", "Versions received whole.", sync.snapshots),
            ("updates_total", "counter", "Versions received as changes.", sync.updates),
            ("rejected_total", "counter", "Versions that could not serve here.", self.rejected),
        ):
            text.simple(f"fastproxy_control_{name}", kind, meaning, [("", value)])


def decoded(tables: Tables, changes: Changes) -> Tables:
    """New tables with these changes, and their rows checked. Raises ValueError."""
    for key, row in changes.puts.get(ENDPOINTS, {}).items():  # not all of a service where one has changed
        check_endpoint(key, unpack_row(ENDPOINTS, key, row))
    made = patched(tables, changes)
    places = changes.keys()
    check_rows(made, (place for place in places if place[0] != ENDPOINTS))
    return made


def joined(first: Changes, then: Changes) -> Changes:
    """Both in one step."""
    puts = {table: dict(rows) for table, rows in first.puts.items()}
    deletes = {table: dict.fromkeys(keys) for table, keys in first.deletes.items()}
    for table, rows in then.puts.items():
        puts.setdefault(table, {}).update(rows)
        for key in rows:
            deletes.get(table, {}).pop(key, None)
    for table, keys in then.deletes.items():
        deletes.setdefault(table, {}).update(dict.fromkeys(keys))
        for key in keys:
            puts.get(table, {}).pop(key, None)
    return Changes(puts, {table: list(keys) for table, keys in deletes.items()})
