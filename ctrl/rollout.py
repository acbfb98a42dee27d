"""A candidate version on its way: who serves it when, and whether it goes on. Decisions only, no I/O, no
clock.

    PREPARING   the proxies of the stage have yet to do what is asked: prepare (``atomic``), or serve
    BAKING      they serve; telemetry is watched for ``bake`` seconds
    COMMITTED   it becomes the head
    ABORTED     all go back by themselves, as heartbeats stop naming it; ``reason`` says why

Without ``atomic`` every stage is PREPARING, then BAKING. With it all proxies prepare first; without stages
that is all there is. A proxy that rejects, or one of the stage that falls silent, aborts in any state.

:class:`ctrl.driver.Driver` feeds it what the fleet says and carries out what it wants.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fastproxy.wire import WHOLE

MIN_REQUESTS = (
    20  # of the proxies that serve the candidate, in a window, before their error rate says anything
)
MAX_STAGES = 20


class Phase(Enum):
    PREPARING = "preparing"
    BAKING = "baking"
    COMMITTED = "committed"
    ABORTED = "aborted"


class Event(Enum):
    TAKEN = "all proxies that were asked have done it"
    NEXT = "this stage is over, another follows"
    LAST = "nothing is left to wait for"
    BAD = "a rejection, silence, a condition, or a person"


STEPS = {
    (Phase.PREPARING, Event.TAKEN): Phase.BAKING,
    (Phase.PREPARING, Event.NEXT): Phase.PREPARING,
    (Phase.PREPARING, Event.LAST): Phase.COMMITTED,
    (Phase.PREPARING, Event.BAD): Phase.ABORTED,
    (Phase.BAKING, Event.NEXT): Phase.PREPARING,
    (Phase.BAKING, Event.LAST): Phase.COMMITTED,
    (Phase.BAKING, Event.BAD): Phase.ABORTED,
}


# --- what was asked for ---


@dataclass(frozen=True, slots=True)
class Stage:
    """``1`` is that many proxies, ``10%`` a part of those present."""

    text: str
    count: int = 0
    percent: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Stage:
        """Raises ValueError."""
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(%?)", text.strip())
        if not found or (not found[2] and "." in found[1]):
            raise ValueError(
                f"stage {text[:40]!r}: write a number of proxies such as 1, or a part such as 10%"
            )
        amount = float(found[1])
        if amount <= 0 or (found[2] and amount > 100):
            raise ValueError(f"stage {text[:40]!r}: more than 0, and at most 100%")
        return cls(text.strip(), 0, amount) if found[2] else cls(text.strip(), int(amount), 0.0)

    @property
    def everybody(self) -> bool:
        return self.percent == 100.0

    def share(self, lots: Sequence[int]) -> int:
        """The bound below which exactly as many of these lots are as this stage has proxies; at least one."""
        if self.everybody:
            return WHOLE
        ordered, present = sorted(lots), len(lots)
        wanted = self.count or -(-int(present * self.percent * 1000) // 100_000)  # rounded up
        if not present:
            return int(WHOLE * self.percent / 100)  # who comes later is drawn
        if wanted >= present:
            return WHOLE
        return ordered[max(wanted, 1) - 1] + 1


@dataclass(frozen=True, slots=True)
class Condition:
    """``error_rate > 2x``, ``error_rate > 5%``, ``rejected > 0``: when it holds the version is aborted."""

    text: str
    what: str
    bound: float
    unit: str = ""  # "x": times the others' rate

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises ValueError."""
        found = re.fullmatch(
            r"\s*(error_rate|rejected)\s*>\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(x|%|)\s*", text
        )
        wanted = f"condition {text[:60]!r}: write 'error_rate > 2x', 'error_rate > 5%' or 'rejected > 0'"
        if not found or (found[1] == "error_rate") != bool(found[3]):
            raise ValueError(wanted)
        return cls(" ".join(text.split()), found[1], float(found[2]), found[3])

    def broken(self, candidate: Traffic, others: Traffic, rejected: int) -> str:
        """Why it holds; empty when it does not, or too little was seen to tell."""
        if self.what == "rejected":
            return f"{rejected} proxies reject it" if rejected > self.bound else ""
        if candidate.requests < MIN_REQUESTS:
            return ""
        told = f"{candidate.rate:.2%} errors of {candidate.requests} requests"
        if self.unit == "%":
            return told if candidate.rate * 100 > self.bound else ""
        # one more error among the others: few requests without any must not make one error an abort
        usual = (others.errors + 1) / (others.requests + 1)
        compared = f"{told}, {others.rate:.2%} of {others.requests} without it"
        return compared if candidate.rate > self.bound * usual else ""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a version is to be rolled out. Times in seconds. timeout: of each stage's taking, and of
    preparing."""

    stages: tuple[Stage, ...] = ()
    atomic: bool = False
    bake: float = 30.0
    timeout: float = 30.0
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def parse(
        cls,
        stages: Sequence[str] = (),
        atomic: bool = False,
        bake: float = 30.0,
        timeout: float = 30.0,
        conditions: Sequence[str] = (),
    ) -> Plan | None:
        """None: neither stages nor atomic, so nothing is to be rolled out. Raises ValueError."""
        if len(stages) > MAX_STAGES or len(conditions) > MAX_STAGES:
            raise ValueError(f"at most {MAX_STAGES} stages and as many conditions")
        if not stages and not atomic:
            if conditions:
                raise ValueError(
                    "a condition needs stages: without them all proxies take the version at once"
                )
            return None
        read = [Stage.parse(text) for text in stages]
        for before, after in zip(read, read[1:], strict=False):
            down = (before.percent, before.count) > (after.percent, after.count)
            if bool(before.percent) == bool(after.percent) and down or before.everybody:
                raise ValueError(f"stage {after.text} is smaller than {before.text} before it")
        if timeout <= 0:
            raise ValueError("timeout: more than 0")
        return cls(tuple(read), atomic, bake, timeout, tuple(Condition.parse(text) for text in conditions))


# --- what is seen ---


@dataclass(frozen=True, slots=True)
class Seen:
    """One proxy that is present. serving: the candidate. requests, errors: since its start, as of its last
    report, which it made while it served ``counted``."""

    node: str
    lot: int
    prepared: bool = False
    serving: bool = False
    rejected: str = ""
    requests: int = 0
    errors: int = 0
    counted: bool = False


@dataclass(slots=True)
class Traffic:
    requests: int = 0
    errors: int = 0

    @property
    def rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    def add(self, now: Seen, since: tuple[int, int]) -> None:
        """What came since then; of a proxy that was started anew meanwhile, all."""
        anew = now.requests < since[0]
        self.requests += now.requests - (0 if anew else since[0])
        self.errors += max(now.errors - (0 if anew else since[1]), 0)


@dataclass(slots=True)
class Window:
    """Requests and errors of those that serve the candidate and of the others, since a stage began.

    Of a proxy that serves it, only what came after its first report that says so: those before are the old
    version's. When no others are left they are compared with themselves before.
    """

    since: dict[str, tuple[int, int]] = field(default_factory=dict)
    theirs: dict[str, tuple[int, int]] = field(default_factory=dict)
    candidate: Traffic = field(default_factory=Traffic)
    others: Traffic = field(default_factory=Traffic)

    def observe(self, proxies: Sequence[Seen]) -> None:
        candidate, others, before = Traffic(), Traffic(), Traffic()
        for proxy in proxies:
            counts = (proxy.requests, proxy.errors)
            if proxy.serving:
                if proxy.counted:
                    candidate.add(proxy, self.since.setdefault(proxy.node, counts))
                    before.requests += self.since[proxy.node][0]
                    before.errors += self.since[proxy.node][1]
            else:
                others.add(proxy, self.theirs.setdefault(proxy.node, counts))
        alone = not any(not proxy.serving for proxy in proxies)
        self.candidate, self.others = candidate, before if alone else others

    def to_dict(self) -> dict[str, Any]:
        return {
            "requests": self.candidate.requests,
            "errorRate": round(self.candidate.rate, 6),
            "othersRequests": self.others.requests,
            "othersErrorRate": round(self.others.rate, 6),
        }


# --- the decision ---


class Rollout:
    """See the module. :meth:`decide` is called with all present proxies, often enough; then ``share`` and
    ``phase`` are what is wanted. ``now``: monotonic seconds."""

    def __init__(self, version: int, plan: Plan, now: float, proxies: Sequence[Seen]) -> None:
        self.version = version
        self.plan = plan
        self.phase = Phase.PREPARING
        self.stage = -1  # everywhere: prepare
        self.share = 0
        self.reason = ""
        self.window = Window()
        self.serving = 0
        self.prepared = 0
        self.rejected = 0
        self.expected: frozenset[str] = frozenset()
        self._until = 0.0
        self._begin(-1 if plan.atomic else 0, now, proxies)

    def __repr__(self) -> str:
        stage = self.stage_text or "prepare"
        return f"<Rollout {self.version}: {self.phase.value}, stage {stage} {self.reason}>"

    @property
    def over(self) -> bool:
        return self.phase in (Phase.COMMITTED, Phase.ABORTED)

    @property
    def stage_text(self) -> str:
        return self.plan.stages[self.stage].text if self.stage >= 0 else ""

    def decide(self, proxies: Sequence[Seen], now: float) -> Phase:
        """Look at everybody and go on, or not."""
        if self.over:
            return self.phase
        self.serving = sum(p.serving for p in proxies)
        self.prepared = sum(p.prepared or p.serving for p in proxies)
        self.rejected = sum(bool(p.rejected) for p in proxies)
        self.window.observe(proxies)
        wrong = self._wrong(proxies)
        if wrong:
            return self.abort(wrong)
        missing = self._missing(proxies)
        if self.phase is Phase.PREPARING:
            if not missing:
                self._taken(now, proxies)
            elif now >= self._until:
                did = "not prepared it" if self.stage < 0 else "not served it"
                return self.abort(f"{_names(missing)} {did} within {self.plan.timeout:g} s")
        elif missing:
            return self.abort(f"{_names(missing)} no longer served it")
        elif now >= self._until:
            self._finish_stage(now, proxies)
        return self.phase

    def abort(self, reason: str) -> Phase:
        """A person's decision, or ours."""
        if self._step(Event.BAD):
            self.reason = reason
        return self.phase

    def _step(self, event: Event) -> bool:
        """One step of the table; a pair that is not in it changes nothing."""
        after = STEPS.get((self.phase, event))
        self.phase = after or self.phase
        return after is not None

    def _begin(self, stage: int, now: float, proxies: Sequence[Seen]) -> None:
        self.stage = stage
        self._until = now + self.plan.timeout
        self.window = Window()
        self.window.observe(proxies)
        if stage >= 0:
            share = self.plan.stages[stage].share([p.lot for p in proxies])
            self.share = max(self.share, share)
            self.expected = frozenset(p.node for p in proxies if p.lot < self.share)
        else:
            self.expected = frozenset(p.node for p in proxies)

    def _wrong(self, proxies: Sequence[Seen]) -> str:
        for proxy in proxies:
            if proxy.rejected:
                return f"proxy {proxy.node} rejects it: {proxy.rejected}"
        gone = self.expected - {p.node for p in proxies}
        if gone:
            return f"{_names(sorted(gone))} fallen silent"
        for condition in self.plan.conditions:
            told = condition.broken(self.window.candidate, self.window.others, self.rejected)
            if told:
                return f"{condition.text}: {told}"
        return ""

    def _missing(self, proxies: Sequence[Seen]) -> list[str]:
        """Who is present and has yet to do its part; of preparing that is everybody, also who came later."""
        if self.stage < 0:
            return [p.node for p in proxies if not (p.prepared or p.serving)]
        return [p.node for p in proxies if p.node in self.expected and not p.serving]

    def _taken(self, now: float, proxies: Sequence[Seen]) -> None:
        if self.stage >= 0:
            self._step(Event.TAKEN)
            self._until = now + self.plan.bake
            if self.plan.bake <= 0:
                self._finish_stage(now, proxies)
        else:
            self._finish_stage(now, proxies)

    def _finish_stage(self, now: float, proxies: Sequence[Seen]) -> None:
        if self.stage + 1 < len(self.plan.stages):
            self._step(Event.NEXT)
            self._begin(self.stage + 1, now, proxies)
        else:
            self._step(Event.LAST)

    def to_dict(self) -> dict[str, Any]:
        """As GET /v1/rollout shows it."""
        observed = {"serving": self.serving, "prepared": self.prepared, "rejected": self.rejected}
        return {
            "version": self.version,
            "state": self.phase.value,
            "stage": self.stage + 1,
            "stages": [stage.text for stage in self.plan.stages],
            "atomic": self.plan.atomic,
            "share": self.share / WHOLE,
            "reason": self.reason,
            "observed": {**observed, "expected": len(self.expected), **self.window.to_dict()},
        }


def _names(nodes: Sequence[str]) -> str:
    some = ", ".join(nodes[:5]) + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")
    return f"proxy {some} has" if len(nodes) == 1 else f"proxies {some} have"
