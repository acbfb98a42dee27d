"""A worker: uvloop and the core, nothing else.

The agent speaks to it over one Unix socket (SOCK_SEQPACKET), one command a packet, words parted by spaces,
descriptors as SCM_RIGHTS. ``setup`` is the first, the others come in any order.

=====================================  ===========  =====================================================
command                                descriptors  meaning
=====================================  ===========  =====================================================
``setup <worker> <json of Settings>``  live, ring   map the shared memory; what does not change while running
``plan <version>``                     plan memfd   map, check and swap to it between two events
``listen <name>``                      socket       accept from it; name is the listener's key in the tables
``unlisten <name>``                    –            stop accepting; its connections go on
``drain``                              –            stop accepting, finish, say ``drained``
``quit``                               –            end at once
=====================================  ===========  =====================================================

It answers ``ready``, ``serving <version> <swap µs>``, ``rejected <version> <reason>``, ``drained``.
End of file on the socket means that the agent is gone: the worker drains by itself and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from typing import Any

import uvloop

from fastproxy import errors
from fastproxy._core import Core

AGENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Worker:
    """The agent's commands, carried out on one :class:`Core`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, agent: socket.socket) -> None:
        self._loop = loop
        self._agent = agent
        self._core: Core | None = None
        self._draining = False
        self._orphan = False

    def on_command(self) -> None:
        """Take all commands that wait. Edge-triggered in the core, level-triggered here."""
        while True:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._agent, 65536, 4, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._loop.remove_reader(self._agent)
                self._orphan = True
                self.drain()  # the agent is gone; what runs may finish
                return
            verb, _, rest = data.decode().partition(" ")
            self._carry_out(verb, rest, fds)

    def _carry_out(self, verb: str, rest: str, fds: list[int]) -> None:
        core = self._core
        if verb == "setup":
            worker, _, settings = rest.partition(" ")
            self._setup(int(worker), json.loads(settings), *fds)
        elif verb == "quit":
            self._loop.stop()
        elif core is None:
            raise RuntimeError(f"{verb} before setup")
        elif verb == "plan":
            try:
                version, us = core.plan(fds[0])
                self._say(f"serving {version} {us}")
            except ValueError as e:
                self._say(f"rejected {rest} {e}")
            os.close(fds[0])
        elif verb == "listen":
            core.listen(rest.encode(), fds[0])
        elif verb == "unlisten":
            core.unlisten(rest.encode())
        elif verb == "drain":
            self.drain()
        else:
            raise RuntimeError(f"unknown command {verb!r}")

    def _setup(self, index: int, settings: dict[str, Any], live: int, journal: int) -> None:
        self._core = Core(index, settings, errors.core_rows(), live, journal, self._agent.fileno())
        os.close(live)
        os.close(journal)
        self._loop.add_reader(self._core.fd, self._core.tick)
        self._say("ready")

    def drain(self) -> None:
        """Stop accepting, and say so when the last connection is gone. Without an agent, end then."""
        if self._core is None:
            self._loop.stop()
        elif not self._draining:
            self._draining = True
            self._core.drain()
            self._when_drained()
        elif self._orphan:
            self._when_drained()

    def _when_drained(self) -> None:
        assert self._core is not None
        if self._core.connections():
            self._loop.call_later(0.02, self._when_drained)
        elif self._orphan:
            self._loop.stop()
        else:
            self._say("drained")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # gone, or so slow that it will ask again: either way not our loss
            self._agent.send(text.encode())


def main(fd: int) -> None:
    """Run a worker on the command socket ``fd`` until the agent says quit, or is gone and all is finished."""
    for number in AGENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the agent decides, also when Ctrl-C goes to the whole group
    agent = socket.socket(fileno=fd)
    agent.setblocking(False)
    loop = uvloop.new_event_loop()
    worker = Worker(loop, agent)
    loop.add_reader(agent, worker.on_command)
    worker.on_command()
    try:
        loop.run_forever()
    finally:
        loop.close()
