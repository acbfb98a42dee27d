"""The agent's side of the spawner: asks it for workers, and starts another when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import Protocol

from fastproxy.agent import log
from fastproxy.agent.channel import Channel
from fastproxy.agent.program import command, environment

FIRST_DELAY = 0.1
LAST_DELAY = 10.0
SETTLED = 1.0  # seconds of life after which a death is not a crash loop


def backoff(deaths: int) -> float:
    """Seconds to wait before the next start, after so many quick deaths in a row: 0, 0.1, 0.2, 0.4 … 10."""
    if deaths <= 1:
        return 0.0
    return float(min(LAST_DELAY, FIRST_DELAY * 2.0 ** min(deaths - 2, 16)))


class Parent(Protocol):
    """Who is told what the spawner says."""

    def on_forked(self, worker: int, pid: int, pidfd: int) -> None: ...
    def on_fork_failed(self, worker: int, reason: str) -> None: ...
    def on_exited(self, pid: int, status: int) -> None: ...
    def on_spawner_again(self) -> None: ...


class SpawnerLink:
    """One spawner at a time. What was asked while there is none the parent asks again (on_spawner_again)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        parent: Parent,
        module: str,
        first: tuple[socket.socket, int] | None = None,
    ) -> None:
        """``first``: the spawner that fork() made, its socket and pid; without one a program is started."""
        self._loop = loop
        self._parent = parent
        self._module = module
        self._deaths = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self.pid = 0
        self._since = 0.0
        self._channel: Channel | None = None
        if first:
            self._adopt(*first)
        else:
            self._start()

    def __repr__(self) -> str:
        return f"<SpawnerLink pid {self.pid}, {self._channel!r}>"

    @property
    def alive(self) -> bool:
        return self._channel is not None and not self._channel.closed

    def fork(self, worker: int, command_socket: socket.socket) -> None:
        """Ask for a worker on that socket; the answer comes to the parent."""
        if self._channel is not None:
            self._channel.send(f"fork {worker}", [command_socket.fileno()])

    def close(self) -> None:
        """Let the spawner end (it sees end of file) and wait for it."""
        self._closing = True
        if self._timer:
            self._timer.cancel()
        if self._channel is not None and not self._channel.closed:
            self._channel.close()
            _end(self.pid)

    def _adopt(self, sock: socket.socket, pid: int) -> None:
        self.pid = pid
        self._since = self._loop.time()
        self._channel = Channel(self._loop, sock, self._on_packet, self._on_end)

    def _on_packet(self, text: str, fds: list[int]) -> None:
        verb, _, rest = text.partition(" ")
        first, _, second = rest.partition(" ")
        if verb == "forked":
            self._parent.on_forked(int(first), int(second), fds[0])
        elif verb == "exited":
            self._parent.on_exited(int(first), int(second))
        elif verb == "failed":
            self._parent.on_fork_failed(int(first), second)

    def _on_end(self) -> None:
        status = _reap(self.pid)
        settled = self._loop.time() - self._since >= SETTLED
        self._deaths = 1 if settled else self._deaths + 1
        delay = backoff(self._deaths)
        log.warning(
            f"spawner {describe(status)}, its workers go on",
            f"pid {self.pid}",
            f"next start in {delay:g} s" if delay else "starting another",
        )
        self._timer = self._loop.call_later(delay, self._start)

    def _start(self) -> None:
        self._timer = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.set_inheritable(theirs.fileno(), True)
        words = command("fastproxy.spawner", str(theirs.fileno()), self._module)
        try:
            pid = os.posix_spawn(words[0], words, environment())
        except OSError as e:
            ours.close()
            self._deaths += 1
            delay = backoff(self._deaths)
            log.error(f"cannot start a spawner: {e.strerror}", do=f"next try in {delay:g} s")
            self._timer = self._loop.call_later(delay, self._start)
            return
        finally:
            theirs.close()
        again = self._channel is not None
        self._adopt(ours, pid)
        if again:
            self._parent.on_spawner_again()


def _end(pid: int, patience: float = 1.0) -> None:
    """Wait for a child that sees end of file now; kill it where it does not act on that."""
    deadline = time.monotonic() + patience
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.001)


def _reap(pid: int) -> int:
    """The wait status of a child that has ended or is about to."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return 0


def describe(status: int) -> str:
    """A wait status in words: ``killed by SIGSEGV``, ``ended with status 1``."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"
