"""What a subscriber knows besides its rows: of every publisher, of a candidate, of the ask that is open."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fastproxy.rows import Changes
from fastproxy.wire import Announce, Answer

BEATS = 3.5  # heartbeats that may be missing before a publisher counts as silent
BEAT_MIN, BEAT_MAX = 0.05, 60.0  # seconds; what a publisher may announce
RETRY_MIN, RETRY_MAX = 0.5, 15.0  # seconds between two asks of one publisher that failed, with jitter


@dataclass(slots=True)
class Peer:
    """One publisher. trouble: why it is of no use now. met: it has answered an ask since it announced itself,
    so it knows our view. older: since when it has been behind us. candidate: the open one that it
    names."""

    address: str
    announce: Announce | None = None
    heard: float = float("-inf")
    epoch: int = 0
    version: int = 0
    hash: bytes = b""
    trouble: str = ""
    met: bool = False
    older: float | None = None
    candidate: int = 0
    failures: int = 0
    wait: float = float("-inf")  # not to be asked before

    def __repr__(self) -> str:
        return f"<Peer {self.address}: version {self.epoch}.{self.version} {self.trouble or 'well'}>"

    @property
    def beat(self) -> float:
        """Seconds between its heartbeats."""
        return min(max(self.announce.heartbeat_ms / 1000, BEAT_MIN), BEAT_MAX) if self.announce else 1.0

    def fail(self, now: float, rng: random.Random) -> None:
        """It is not asked again for a while."""
        self.failures = min(self.failures + 1, 16)
        wait = min(RETRY_MAX, RETRY_MIN * 2.0 ** (self.failures - 1))
        self.wait = now + wait * (0.5 + rng.random() / 2)

    def speaks(self, now: float) -> bool:
        return self.announce is not None and now - self.heard <= BEATS * self.beat


@dataclass(slots=True)
class Candidate:
    """A version above the base that is being rolled out. flipped: it serves here, or will when it is
    prepared. confirmed: when a publisher named it last. answer: what we said about it last."""

    version: int
    hash: bytes
    changes: Changes
    total: int
    confirmed: float
    prepared: bool = False
    flipped: bool = False
    rejected: bool = False
    answer: Answer | None = None


@dataclass(slots=True)
class Question:
    """The one ask that is open. sent: None while its jitter runs."""

    peer: int
    id: int
    due: float
    whole: bool = False  # all rows, not a range
    sent: float | None = None
