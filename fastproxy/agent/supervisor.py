"""Keeps N workers running: forks them, gives them memory, plan and sockets, replaces the dead.

What a worker needs after its birth is replayed in the order of the protocol: setup, plan, listeners.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import Protocol

from fastproxy.agent import log
from fastproxy.agent.spawner_link import SETTLED, SpawnerLink, backoff, describe
from fastproxy.agent.workers import Event, State, Worker
from fastproxy.settings import Settings

START_TIMEOUT = 10.0  # from fork to ready; then it is killed
STATUS_WAIT = 0.2  # from the death to the spawner's word on how


class Memory(Protocol):
    """The shared memory that workers get: see fastproxy.agent.memory."""

    live_fd: int

    def new_ring(self, worker: int, pid: int) -> int: ...
    def end_column(self, worker: int) -> None: ...


@dataclass(slots=True)
class Outcome:
    """How a plan was taken. ``swap_us``: a worker's longest swap. ``missing``: workers that did not say."""

    version: int
    seconds: float = 0.0
    swap_us: int = 0
    rejected: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)


class Supervisor:
    """Owns the workers and the link to the spawner; borrows plan and listening sockets to pass them on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        memory: Memory,
        module: str,
        spawner: tuple[socket.socket, int] | None = None,
    ) -> None:
        self._loop = loop
        self._memory = memory
        self._setup = json.dumps({**settings.to_json(), "to": [], "label": {}}, separators=(",", ":"))
        self._plan: tuple[int, int] | None = None  # version, memfd
        self._listeners: dict[str, socket.socket] = {}
        self._changed: asyncio.Future[None] | None = None
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._ending = False
        self.deaths = 0
        self.workers = [Worker(loop, i, self._on_answer) for i in range(settings.worker_count())]
        self.spawner = SpawnerLink(loop, self, module, spawner)

    def __repr__(self) -> str:
        return f"<Supervisor {', '.join(f'{w.index} {w.state.value}' for w in self.workers)}>"

    # --- what the agent asks ---

    def start(self) -> None:
        for worker in self.workers:
            self._fork(worker)

    def serving(self) -> bool:
        """Every worker serves some plan."""
        return all(w.state is State.READY and w.serving for w in self.workers)

    def lags(self, worker: int, version: int) -> bool:
        """That worker lives and serves an older plan."""
        one = self.workers[worker]
        return one.state is not State.IDLE and one.serving != version

    async def publish(self, version: int, fd: int, timeout: float = 10.0) -> Outcome:
        """Give all workers this plan and wait until each serves or rejects it. ``fd`` stays the caller's."""
        started = time.monotonic()
        self._plan = (version, fd)
        for worker in self.workers:
            if worker.answering:
                worker.send(f"plan {version}", [fd])
        deadline = self._loop.time() + timeout
        while self._pending(version) and (left := deadline - self._loop.time()) > 0:
            await self._change(left)
        return Outcome(
            version,
            time.monotonic() - started,  # the loop's own clock stands still while it works
            max((w.swap_us for w in self.workers if w.serving == version), default=0),
            {w.index: w.rejected[1] for w in self.workers if w.rejected and w.rejected[0] == version},
            [w.index for w in self._pending(version)],
        )

    def withdraw(self) -> None:
        """There is no plan: whoever is born waits for one."""
        self._plan = None

    def listen(self, name: str, sock: socket.socket) -> None:
        self._listeners[name] = sock
        for worker in self.workers:
            if worker.answering:
                worker.send(f"listen {name}", [sock.fileno()])

    def unlisten(self, name: str) -> None:
        if self._listeners.pop(name, None) is not None:
            for worker in self.workers:
                if worker.answering:
                    worker.send(f"unlisten {name}")

    async def drain(self, timeout: float) -> list[int]:
        """Drain all workers; those that had not finished when the time was over."""
        self._ending = True
        self._listeners.clear()
        for timer in self._timers.values():
            timer.cancel()
        for worker in self.workers:
            if worker.step(Event.DRAIN):
                worker.send("drain")
        deadline = self._loop.time() + timeout
        while self._draining() and (left := deadline - self._loop.time()) > 0:
            await self._change(left)
        return [w.index for w in self._draining()]

    async def end(self, patience: float = 2.0) -> None:
        """End all workers, by force after ``patience`` seconds, then the spawner."""
        self._ending = True
        for timer in self._timers.values():
            timer.cancel()
        for worker in self.workers:
            worker.send("quit")
        deadline = self._loop.time() + patience
        while self._alive() and (left := deadline - self._loop.time()) > 0:
            await self._change(left)
        for worker in self._alive():
            worker.kill()
        deadline = self._loop.time() + 1.0
        while self._alive() and (left := deadline - self._loop.time()) > 0:
            await self._change(left)
        for worker in self.workers:
            worker.bury()
        self.spawner.close()

    # --- births ---

    def _fork(self, worker: Worker) -> None:
        self._timers.pop(worker.index, None)
        if self._ending or not self.spawner.alive or not worker.step(Event.FORK):
            return
        theirs = worker.open()
        self.spawner.fork(worker.index, theirs)
        theirs.close()
        self._timers[worker.index] = self._loop.call_later(START_TIMEOUT, self._on_slow_start, worker)

    def on_forked(self, worker: int, pid: int, pidfd: int) -> None:
        born = self.workers[worker]
        if not born.step(Event.FORKED):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            return
        born.born(pid, pidfd, self._on_dead)
        if self._ending:
            born.send("quit")
            return
        # Not before: an answer must find the worker in the state that it answers from.
        ring = self._memory.new_ring(worker, pid)
        born.send(f"setup {worker} {self._setup}", [self._memory.live_fd, ring])
        if self._plan:
            born.send(f"plan {self._plan[0]}", [self._plan[1]])
        for name, sock in self._listeners.items():
            born.send(f"listen {name}", [sock.fileno()])

    def on_fork_failed(self, worker: int, reason: str) -> None:
        failed = self.workers[worker]
        failed.step(Event.FAILED)
        self._cancel(failed)
        failed.bury()
        self._memory.end_column(worker)
        self._again(failed, f"worker {worker} cannot be forked: {reason}")

    def on_spawner_again(self) -> None:
        for worker in self.workers:
            if worker.state is State.FORKING:
                self.on_fork_failed(worker.index, "the spawner died")
            elif worker.state is State.IDLE and worker.index not in self._timers:
                self._fork(worker)

    def _on_slow_start(self, worker: Worker) -> None:
        self._timers.pop(worker.index, None)
        if worker.state is State.STARTING:
            log.error(
                f"worker {worker.index} not ready after {START_TIMEOUT:g} s", f"pid {worker.pid}", "killed"
            )
            worker.kill()
        elif worker.state is State.FORKING:
            self.on_fork_failed(worker.index, "the spawner does not answer")

    # --- answers ---

    def _on_answer(self, worker: Worker, verb: str, rest: str) -> None:
        first, _, second = rest.partition(" ")
        if verb == "ready":
            if worker.step(Event.READY):
                self._cancel(worker)
                worker.since = self._loop.time()
        elif verb == "serving":
            worker.serving = int(first)
            worker.swap_us = int(second or 0)
        elif verb == "rejected":
            worker.rejected = (int(first), second)
            log.error(f"worker {worker.index} rejected plan {first}: {second}", f"pid {worker.pid}")
        elif verb == "drained":
            worker.step(Event.DRAINED)
        else:
            log.warning(f"worker {worker.index} said something unknown: {verb}", f"pid {worker.pid}")
        self._wake()

    # --- deaths ---

    def _on_dead(self, worker: Worker) -> None:
        """Its pidfd is readable. The spawner says how it died; without a spawner nobody may."""
        worker.unwatch()
        worker.serving = 0
        if not self.spawner.alive:
            self._bury(worker, _adopted_status(worker.pid))
            return
        self._cancel(worker)
        self._timers[worker.index] = self._loop.call_later(STATUS_WAIT, self._bury, worker, None)

    def on_exited(self, pid: int, status: int) -> None:
        for worker in self.workers:
            if worker.pid == pid:
                self._bury(worker, status)

    def _bury(self, worker: Worker, status: int | None) -> None:
        pid, state = worker.pid, worker.state
        settled = state is not State.STARTING and self._loop.time() - worker.since >= SETTLED
        self._cancel(worker)
        worker.step(Event.EXITED)
        worker.bury()
        self._memory.end_column(worker.index)
        if not self._ending:
            self.deaths += 1
            worker.deaths = 1 if settled else worker.deaths + 1
            how = "died" if status is None else describe(status)
            self._again(worker, f"worker {worker.index} (pid {pid}) {how}")
        self._wake()

    def _again(self, worker: Worker, what: str) -> None:
        if self._ending:
            return
        delay = backoff(worker.deaths)
        if not delay:
            log.error(what, do="starting another")
            self._fork(worker)
            return
        log.error(what, f"{worker.deaths} times in a row", f"it keeps dying: next try in {delay:g} s")
        self._timers[worker.index] = self._loop.call_later(delay, self._fork, worker)

    # --- waiting ---

    def _cancel(self, worker: Worker) -> None:
        timer = self._timers.pop(worker.index, None)
        if timer:
            timer.cancel()

    def _pending(self, version: int) -> list[Worker]:
        """Those that can answer and have not. One that waits to be forked gets the plan at its birth."""
        return [
            w
            for w in self.workers
            if w.state in (State.FORKING, State.STARTING, State.READY)
            and w.serving != version
            and not (w.rejected and w.rejected[0] == version)
        ]

    def _draining(self) -> list[Worker]:
        return [w for w in self.workers if w.state in (State.FORKING, State.DRAINING)]

    def _alive(self) -> list[Worker]:
        return [w for w in self.workers if w.state is not State.IDLE]

    async def _change(self, timeout: float) -> None:
        if self._changed is None:
            self._changed = self._loop.create_future()
        await asyncio.wait([self._changed], timeout=timeout)

    def _wake(self) -> None:
        if self._changed is not None:
            if not self._changed.done():
                self._changed.set_result(None)
            self._changed = None


def _adopted_status(pid: int) -> int | None:
    """The wait status of a worker whose spawner died first; ours only where we are its new parent (pid 1)."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return None
