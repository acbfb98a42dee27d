"""A subscriber's state machine that is told things, and the small versions that it is told of."""

from __future__ import annotations

import random
from typing import Any

from fastproxy.rows import Changes, Rows
from fastproxy.sync import Done, Say, Send, Sync
from fastproxy.wire import Announce, Answer, Answers, Ask, Attributes, Heartbeat, Snapshot, Update

HELLO = Announce(server="s", snapshot_port=1, answer_port=2, heartbeat_ms=1000, report_ms=5000)


def rows(version: int) -> Rows:
    """The rows of a version: one of them changes each time."""
    return Rows.of({"routes": {"stays": b"\x80", "moves": b"%d" % version}})


def step(version: int, **more: Any) -> Update:
    values = {
        "epoch": 1,
        "version": version,
        "hash": rows(version).hash,
        "prev_version": version - 1,
        "prev_hash": rows(version - 1).hash,
        "changes": Changes({"routes": {"moves": b"%d" % version}}),
    }
    return Update(**(values | more))


def head(version: int, **more: Any) -> Heartbeat:
    values = {"epoch": 1, "version": version, "hash": rows(version).hash, "decided": version}
    return Heartbeat(**(values | more))


def snapshot(version: int, id: int, epoch: int = 1) -> Snapshot:
    whole = rows(version)
    return Snapshot(epoch=epoch, version=version, hash=whole.hash, id=id, rows=whole.tables)


class Rig:
    """A Sync that is told things; ``log`` has what it decided."""

    def __init__(self, publishers: int = 1, start: int = 5) -> None:
        self.now = 100.0
        addresses = [f"tcp://p{i}" for i in range(publishers)]
        self.sync = Sync("node", Attributes(), addresses, self.now, random.Random(1))
        self.log: list[Any] = []
        if start:
            for peer in range(publishers):
                self.hear(HELLO, peer)
                ask = self.ask
                self.hear(snapshot(start, ask.id) if not self.sync.version else head(start, id=ask.id), peer)
            self.did(start)
            self.log.clear()

    def keep(self, actions: list[Any]) -> list[Any]:
        self.log += actions
        return actions

    def hear(self, message: Any, peer: int = 0) -> list[Any]:
        return self.keep(self.sync.on_message(peer, message, self.now))

    def wait(self, seconds: float) -> list[Any]:
        self.now += seconds
        return self.keep(self.sync.tick(self.now))

    def beat(self, message: Heartbeat, count: float, peer: int = 0) -> None:
        """So many seconds of heartbeats."""
        for _ in range(int(count)):
            self.wait(1.0)
            self.hear(message, peer)

    def did(self, version: int, error: str = "", **more: Any) -> list[Any]:
        return self.keep(self.sync.on_applied(Done(version, rows(version).hash, error, **more)))

    def prepared(self, version: int, error: str = "") -> list[Any]:
        return self.keep(self.sync.on_prepared(Done(version, rows(version).hash, error)))

    def propose(self, version: int, share: int = 0) -> list[Any]:
        return self.hear(step(version, candidate=True, share=share))

    def of(self, kind: type) -> list[Any]:
        return [action for action in self.log if isinstance(action, kind)]

    @property
    def asks(self) -> list[tuple[int, Ask]]:
        return [(a.peer, a.message) for a in self.of(Send) if isinstance(a.message, Ask)]

    @property
    def ask(self) -> Ask:
        return self.asks[-1][1]

    @property
    def answers(self) -> list[Answer]:
        return [a.message.answers[0] for a in self.of(Send) if isinstance(a.message, Answers)]

    @property
    def said(self) -> str:
        return "\n".join(action.text for action in self.of(Say))

    def holds(self, version: int, epoch: int = 1) -> None:
        sync = self.sync
        assert (sync.epoch, sync.version) == (epoch, version)
        assert sync.hash == sync.rows.hash == rows(version).hash
