"""One worker as the agent sees it: its state, its process and its command socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from enum import Enum

from fastproxy.agent.channel import Channel


class State(Enum):
    IDLE = "idle"  # no process
    FORKING = "forking"
    STARTING = "starting"  # process there, setup sent
    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"


class Event(Enum):
    FORK = "fork"
    FORKED = "forked"
    FAILED = "failed"
    READY = "ready"
    DRAIN = "drain"
    DRAINED = "drained"
    EXITED = "exited"


NEXT: dict[tuple[State, Event], State] = {
    (State.IDLE, Event.FORK): State.FORKING,
    (State.FORKING, Event.FORKED): State.STARTING,
    (State.FORKING, Event.FAILED): State.IDLE,
    (State.STARTING, Event.READY): State.READY,
    (State.STARTING, Event.DRAIN): State.DRAINING,
    (State.STARTING, Event.EXITED): State.IDLE,
    (State.READY, Event.DRAIN): State.DRAINING,
    (State.READY, Event.EXITED): State.IDLE,
    (State.DRAINING, Event.DRAINED): State.DRAINED,
    (State.DRAINING, Event.EXITED): State.IDLE,
    (State.DRAINED, Event.EXITED): State.IDLE,
}

OnAnswer = Callable[["Worker", str, str], None]


class Worker:
    """Slot ``index`` of the supervisor; processes come and go in it.

    ``serving`` is the plan version it last said it serves, 0: none. ``deaths`` counts quick deaths in a row.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, index: int, on_answer: OnAnswer) -> None:
        self._loop = loop
        self._on_answer = on_answer
        self._channel: Channel | None = None
        self.index = index
        self.state = State.IDLE
        self.pid = 0
        self.pidfd = -1
        self.since = 0.0  # loop time of READY
        self.serving = 0
        self.swap_us = 0
        self.rejected: tuple[int, str] | None = None
        self.deaths = 0
        self.starts = 0

    def __repr__(self) -> str:
        return f"<Worker {self.index}: {self.state.value}, pid {self.pid}, serving {self.serving}>"

    def step(self, event: Event) -> bool:
        """Apply an event; False, and nothing changed, where the table has no such pair."""
        state = NEXT.get((self.state, event))
        if state is None:
            return False
        self.state = state
        return True

    @property
    def answering(self) -> bool:
        """It is there and takes plans and listeners."""
        return self.state in (State.STARTING, State.READY)

    def open(self) -> socket.socket:
        """A fresh command socket; the other end, which the caller passes on and closes."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = Channel(self._loop, ours, self._on_packet, lambda: None)
        self.serving = 0
        self.swap_us = 0
        self.rejected = None
        self.starts += 1
        return theirs

    def born(self, pid: int, pidfd: int, on_dead: Callable[[Worker], None]) -> None:
        """It was forked; ``on_dead`` is called when the process is no more."""
        self.pid, self.pidfd = pid, pidfd
        self._loop.add_reader(pidfd, on_dead, self)

    def send(self, text: str, fds: Sequence[int] = ()) -> None:
        if self._channel is not None:
            self._channel.send(text, fds)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal exactly this process, never one that took over its pid."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return

    def bury(self) -> None:
        """Release what the dead process leaves with the agent."""
        if self.pidfd >= 0:
            self._loop.remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self.pid = 0
        self.serving = 0

    def unwatch(self) -> None:
        """The process is known to be dead; only its wait status is awaited."""
        self._loop.remove_reader(self.pidfd)

    def _on_packet(self, text: str, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        verb, _, rest = text.partition(" ")
        self._on_answer(self, verb, rest)
