"""The agent: puts its parts together, acts on signals, drains and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastproxy.agent import log
from fastproxy.agent.config import Configuration
from fastproxy.agent.dns import Resolver
from fastproxy.agent.listeners import ListenError, Listeners
from fastproxy.agent.memory import SharedMemory
from fastproxy.agent.orders import Orders
from fastproxy.agent.publisher import Published, Publisher
from fastproxy.agent.source import Source, StartError
from fastproxy.agent.supervisor import Supervisor
from fastproxy.agent.telemetry import Telemetry
from fastproxy.settings import Settings

DONE, FAILED, USAGE = 0, 1, 2


class Agent:
    """One per ``fastproxy run``. ``spawner``: the one forked before this was imported, its socket and pid."""

    def __init__(self, settings: Settings, module: str, spawner: tuple[socket.socket, int]) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        loop.set_default_executor(ThreadPoolExecutor(2, "fastproxy"))  # each thread costs a malloc arena
        self._end: asyncio.Future[int] = loop.create_future()
        self._draining: asyncio.Task[None] | None = None
        self._admin: Any = None
        self._served = False
        self.settings = settings
        self.started = time.monotonic()
        try:
            self.telemetry = Telemetry(settings.node or socket.gethostname(), settings.access_log)
        except OSError as e:
            log.error(
                f"the access log cannot be opened: {e.strerror}",
                f"--access-log {settings.access_log}",
                "name a file in a folder that is there and may be written, - or off",
            )
            raise StartError from None
        self.memory = SharedMemory(settings, self.telemetry)
        self.telemetry.live = self.memory.live
        self.memory.live.set_log_strings(settings.access_log != "off")
        self.supervisor = Supervisor(loop, settings, self.memory, module, spawner)
        self.listeners = Listeners()
        self.resolver = Resolver(self._on_resolved)
        self.orders = Orders(self.memory.live)
        self.publisher = Publisher(
            settings,
            self.supervisor,
            self.listeners,
            self.resolver,
            self.telemetry,
            self.memory.live,
            self.orders,
        )
        self.config: Source = self._new_source()

    def _new_source(self) -> Source:
        if not self.settings.control:
            return Configuration(self.settings, self.publisher)
        from fastproxy.agent.subscriber import Subscriber  # ZeroMQ is only for who needs it

        return Subscriber(self.settings, self.publisher, self.telemetry, self.orders)

    async def run(self) -> int:
        """Serve until told to end; the exit code."""
        self._follow_signals()
        self.telemetry.start()
        self.supervisor.start()
        following: asyncio.Task[None] | None = None
        try:
            code = await self._start()
            if code is not None:
                return code
            following = self._loop.create_task(self.config.run())
            following.add_done_callback(self._on_failure)
            return await self._end
        finally:
            if following:
                following.cancel()
            await self._close()

    async def _start(self) -> int | None:
        """Admin API, first version, listeners. An exit code: it is over already."""
        try:
            if self.settings.admin != "off":
                await self._open_admin()
            starting = self._loop.create_task(self.config.start())
            first: set[asyncio.Future[Any]] = {starting, self._end}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                return self._end.result()
            published = await starting
        except StartError:
            return USAGE
        except ListenError as e:
            log.error(e.what, "--admin", e.do)
            return FAILED
        if self.listeners.errors and not self.listeners.open and not self.settings.control:
            log.error("no listener could be opened", do="see above")
            return FAILED
        if published.outcome and published.outcome.missing:
            log.warning(f"workers {published.outcome.missing} do not serve yet", do="waiting for them")
        self._say_serving(published)
        return None

    async def _open_admin(self) -> None:
        from fastproxy.agent.admin import Admin

        self._admin = Admin(self)
        await self._admin.open(self.settings.admin)

    def _say_serving(self, published: Published) -> None:
        where = ", ".join(
            name if name != "mesh" else self.settings.listen for name in sorted(self.listeners.open)
        )
        workers = len(self.supervisor.workers)
        log.info(
            f"serving {where or 'no listener'} with {workers} worker{'s' * (workers != 1)}",
            f"version {published.version} of {self.config.source}, admin {self.settings.admin}, "
            f"pid {os.getpid()}",
        )

    # --- signals ---

    def _follow_signals(self) -> None:
        for number, act in (
            (signal.SIGTERM, self.drain),
            (signal.SIGINT, lambda: self._finish(DONE)),
            (signal.SIGHUP, self.config.ask_reload),
            (signal.SIGUSR1, self._reopen_log),
        ):
            self._loop.add_signal_handler(number, act)

    def drain(self) -> None:
        """SIGTERM or POST /drain: stop accepting, finish, end. Asked a second time: end at once."""
        if self._draining is None:
            self._draining = self._loop.create_task(self._drain())
        else:
            self._finish(DONE)

    async def _drain(self) -> None:
        if self.publisher.current is None:
            self._finish(DONE)
            return
        log.info("draining", do=f"at most {self.settings.drain_timeout:g} s")
        # The workers first, so that what waits in the accept queues still finds somebody.
        left = self._loop.create_task(self.supervisor.drain(self.settings.drain_timeout))
        await asyncio.sleep(0)
        self.listeners.close_all()
        late = await left
        if late:
            log.warning(
                f"workers {late} had not finished after {self.settings.drain_timeout:g} s", do="ended anyway"
            )
        self._finish(DONE)

    def _finish(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)

    def _reopen_log(self) -> None:
        try:
            self.telemetry.reopen()
        except OSError as e:
            log.error(f"access log: {e.strerror}", self.settings.access_log, "the old one goes on")

    def _on_resolved(self) -> None:
        self.config.on_resolved()

    def _on_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception():
            log.error(f"agent failed: {task.exception()!r}", do="please report it; ending")
            self._finish(FAILED)

    async def _close(self) -> None:
        if self._draining:
            self._draining.cancel()
        if self._admin:
            await self._admin.close()
        self.listeners.close_all()
        await self.config.close()
        await self.resolver.close()
        await self.supervisor.end()
        self.memory.close()
        self.publisher.close()
        await self._loop.run_in_executor(None, self.telemetry.stop)
        with contextlib.suppress(RuntimeError):
            await self._loop.shutdown_default_executor()

    # --- what the admin API tells ---

    def not_ready(self) -> str:
        """Why no traffic should be sent here, or nothing."""
        if self._draining:
            return "draining"
        if self.publisher.current is None:
            return self.config.waits_for()
        if not self._served:
            if not self.supervisor.serving():
                return "workers are starting"
            self._served = True
        if not any(w.serving for w in self.supervisor.workers):
            return "no worker serves"
        if not self.listeners.open:
            return "no listener is open"
        return ""

    def describe_plan(self) -> dict[str, Any]:
        from fastproxy.agent import describe

        return describe.plan(self)

    def describe_clusters(self) -> dict[str, Any]:
        from fastproxy.agent import describe

        return describe.clusters(self)

    def describe_breakers(self) -> dict[str, Any]:
        from fastproxy.agent import describe

        return describe.breakers(self)

    def metrics(self) -> bytes:
        """/metrics; from a thread, as many series take milliseconds."""
        from fastproxy.agent import describe

        return self.telemetry.expose() + describe.metrics(self)

    def explain(self, request: str, headers: list[str], listener: str) -> dict[str, Any]:
        from fastproxy.agent import describe

        return describe.explain(self, request, headers, listener)
