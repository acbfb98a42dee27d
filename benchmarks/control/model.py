"""What the measured costs say of fleets that no machine here can hold: a simulation of events.

Every publisher and relay is two queues that work one piece at a time: ZeroMQ's I/O thread, which writes a
message to one subscriber after another, and the Python loop, which reads answers. The costs of both are
measured (:class:`Costs`), links have the delay and jitter of a local network, and a subscriber takes as
long as a simulated one took alone. Compiling and swapping is not in it: all proxies do it at the same time.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

BATCH = 0.005  # seconds for which a relay collects answers
LINK = 0.0002  # seconds one way in a local network
JITTER = 0.0002  # mean of what is added to it, exponential


@dataclass(frozen=True)
class Costs:
    """Seconds. send: I/O thread, one update to one subscriber. answer: the loop, one answer that came alone;
    batched: one of many in a message. relay: an update in a relay, before it goes on. verify: in a
    subscriber."""

    send: float
    answer: float
    batched: float
    relay: float
    verify: float


@dataclass
class Outcome:
    """Seconds after publishing. ``beat``: share of a second that the busiest I/O thread needs for one
    heartbeat to all below it; ``reports``: share of the busiest loop that reports each five seconds take."""

    levels: tuple[int, ...]
    proxies: int
    p50: float
    p99: float
    last: float
    known: float  # the publisher has the last answer
    beat: float
    reports: float


@dataclass
class _Node:
    """A publisher or relay: when its two threads are free."""

    level: int
    parent: int
    io_free: float = 0.0
    loop_free: float = 0.0
    batch: int = 0
    flushing: bool = False


@dataclass
class _World:
    costs: Costs
    levels: tuple[int, ...]
    rng: random.Random
    nodes: list[_Node] = field(default_factory=list)
    events: list[tuple[float, int, str, int, int]] = field(default_factory=list)
    count: int = 0
    served: list[float] = field(default_factory=list)
    known: int = 0
    last_known: float = 0.0

    def at(self, time: float, what: str, node: int, n: int = 1) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, what, node, n))

    def hop(self) -> float:
        return LINK + self.rng.expovariate(1 / JITTER)

    def publish(self, now: float, index: int) -> None:
        """An update has come to a node: out to all its children, one after the other."""
        node = self.nodes[index]
        leaves = node.level == len(self.levels) - 1
        free = max(now + (self.costs.relay if node.level else 0.0), node.io_free)
        for _ in range(self.levels[node.level]):
            free += self.costs.send
            if leaves:
                done = free + self.hop() + self.costs.verify
                self.served.append(done)
                self.at(done + self.hop(), "answers", index, 1)
            else:
                self.nodes.append(_Node(node.level + 1, index))
                self.at(free + self.hop(), "update", len(self.nodes) - 1)
        node.io_free = free

    def answers(self, now: float, index: int, n: int) -> None:
        node = self.nodes[index]
        cost = self.costs.answer if n == 1 else self.costs.batched * n
        node.loop_free = max(now, node.loop_free) + cost
        if not node.level:
            self.known += n
            self.last_known = node.loop_free
            return
        node.batch += n
        if not node.flushing:
            node.flushing = True
            self.at(node.loop_free + BATCH, "flush", index)

    def flush(self, now: float, index: int) -> None:
        node = self.nodes[index]
        n, node.batch, node.flushing = node.batch, 0, False
        self.at(now + self.hop(), "answers", node.parent, max(n, 1))


def simulate(levels: Sequence[int], costs: Costs, seed: int = 1) -> Outcome:
    """One update through a tree: ``levels`` are the children of a node, from the publisher down."""
    world = _World(costs, tuple(levels), random.Random(seed))
    world.nodes.append(_Node(0, -1))
    world.publish(0.0, 0)
    while world.events:
        now, _, what, node, n = heapq.heappop(world.events)
        if what == "update":
            world.publish(now, node)
        elif what == "answers":
            world.answers(now, node, n)
        else:
            world.flush(now, node)
    served = sorted(world.served)
    proxies = len(served)
    assert world.known == proxies
    widest = max(levels)
    return Outcome(
        tuple(levels),
        proxies,
        served[proxies // 2],
        served[int(proxies * 0.99)],
        served[-1],
        world.last_known,
        widest * costs.send,
        proxies / 5 * (costs.answer if len(levels) == 1 else costs.batched),
    )


TREES: tuple[tuple[int, ...], ...] = (
    (1_000,),
    (10_000,),
    (100_000,),
    (100, 1_000),
    (317, 316),
    (47, 47, 46),
)
"""What is simulated: one publisher alone, then trees of relays, the last three for 100,000 proxies."""
