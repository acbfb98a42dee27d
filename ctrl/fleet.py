"""What the proxies did and how they are: the one picture of the fleet, made of their answers and reports.

Everything here was said by somebody else and is bounded: so many proxies, so many bytes of what they said,
so many refusals. A proxy is present while it has been heard within 3.5 of its reports, and is shown as LOST
for a while after that.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastproxy.sync import State
from fastproxy.wire import PREPARED, REJECTED, SERVING, Answer, Attributes, Report

PROXIES = 200_000
REPORTS = 3.5  # that may be missing before a proxy counts as lost
REMEMBER = 600.0  # seconds that a lost proxy is shown
REFUSALS = 1000
RELAYS = 1000
BREAKERS = 1000  # rows of one proxy
MEMORY = 512 * 1024 * 1024  # bytes of what all proxies said
PROXY = 2000  # bytes of one that says nothing
ROW = 200  # and of a row of breakers, without its name
MAX_NAME = 1024  # characters of a breaker's name, or of a way
MAX_ERROR = 2000
SEATS = 4  # of one name
LAGGARDS = 1000  # names in one Progress
SETTLE, SETTLE_EACH = 0.005, 2e-6  # seconds, and per proxy, in which changes are told as one

Told = tuple[str, int, int, str]  # state, epoch, version that serves, error

LOST = "LOST"
UNKNOWN = "UNKNOWN"  # a state that we have no word for
STATES = {state.value for state in State}


@dataclass(slots=True)
class Seat:
    """Who speaks under a name: address, way and start of its process; and when it did."""

    who: tuple[str, str, int]
    heard: float = 0.0


@dataclass(slots=True)
class Proxy:
    """One proxy. address: where it speaks from, of the relay's when ``via`` names one. version: that it
    serves, with ``hash`` (b"": not known); held: the newest that it holds. us, compile_us, swap_us: of its
    last SERVING answer, for ``timed``. rejected: the version that it cannot serve, noted: that it serves but
    not all of it, for ``rejected_why``. since_ms: Unix time when state or version last changed; heard:
    monotonic seconds. problem: two proxies use this name."""

    node: str
    attributes: Attributes
    address: str = ""
    via: str = ""
    state: str = ""
    epoch: int = 0
    version: int = 0
    hash: bytes = b""
    held: int = 0
    error: str = ""
    since_ms: int = 0
    heard: float = 0.0
    us: int = 0
    compile_us: int = 0
    swap_us: int = 0
    timed: int = 0
    prepared: int = 0
    rejected: int = 0
    noted: int = 0
    rejected_why: str = ""
    requests: int = 0
    errors: int = 0
    breakers: list[Any] = field(default_factory=list)
    admin: str = ""
    release: str = ""
    started_ms: int = 0
    problem: str = ""
    seats: list[Seat] = field(default_factory=list)
    size: int = 0
    view: str = ""  # of its attributes

    def __post_init__(self) -> None:
        self.view = self.attributes.view

    @property
    def present(self) -> bool:
        return self.state != LOST

    def enter(self, epoch: int) -> None:
        """What it did in another epoch says nothing about the versions of this one."""
        if epoch != self.epoch:
            self.epoch, self.version, self.hash, self.held = epoch, 0, b"", 0
            self.timed = self.prepared = self.rejected = self.noted = 0
            self.rejected_why = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Somebody was not let in, or not listened to."""

    at_ms: int
    address: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a version is. total: proxies that are present. problems: what of it does not serve where it
    does, such as a listener. lost: were there and are silent, not counted. Times in microseconds, of those
    that answered for this very version; 0 where none did."""

    version: int
    total: int
    serving: int
    prepared: int
    rejected: list[tuple[str, str]]
    problems: list[tuple[str, str]]
    laggards: list[str]
    lost: list[str]
    p50_us: int
    p99_us: int
    max_us: int


class Fleet:
    """See the module. ``report``: seconds between two reports of a proxy; the publisher sets it.

    ``changed`` counts up with every change; to be used on one loop.
    """

    def __init__(
        self,
        report: float = 5.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        most: int = PROXIES,
        memory: int = MEMORY,
    ) -> None:
        self.report = report
        self.changed = 0
        self.refused: deque[Refusal] = deque(maxlen=REFUSALS)
        self.relays: dict[str, Proxy] = {}
        self.ignored = 0  # answers and reports that found no place
        self.agrees: Callable[[Proxy], bool] = lambda _: True  # it holds a version of our history
        self._clock = clock
        self._most = most
        self._proxies: dict[str, Proxy] = {}
        self._memory = memory
        self._size = 0
        self._present = 0
        self._picture: tuple[int, dict[str, Told]] = (-1, {})
        self._progress: tuple[tuple[int, int, int, int], Progress] | None = None
        self._watchers: set[asyncio.Future[None]] = set()
        self._telling: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Fleet: {len(self._proxies)} proxies, {len(self.relays)} relays>"

    def __len__(self) -> int:
        return self._present

    # --- what is heard ---

    def on_report(self, report: Report, address: str = "") -> None:
        """``address``: of who handed it to us. A relay reports itself with its own name last in
        ``via``."""
        now = self._clock()
        if report.via and report.via.rpartition("/")[2] == report.node:
            self._relay(report, address, now)
            return
        proxy = self._proxies.get(report.node)
        new = proxy or Proxy(report.node, report.attributes)
        rows = [row for row in report.breakers[:BREAKERS] if _is_breaker(row)]
        room = max(self._memory - self._size + new.size, new.size)  # who says no more than before is heard
        size = weight(report) + sys.getsizeof(new.rejected_why)
        size += (breakers := weight_of_breakers(rows))
        if size > room:
            rows, size = [], size - breakers
        if size > room or (proxy is None and len(self._proxies) >= self._most):
            self.ignored += 1
            return
        self._size += size - new.size
        told = _told(new)
        if proxy is None or not proxy.present:
            self._present += 1
        proxy = self._proxies[report.node] = new
        self._take_seat(proxy, report, address, now)
        proxy.size, proxy.heard = size, now
        if proxy.attributes != report.attributes:
            proxy.attributes, proxy.view = report.attributes, report.attributes.view
        if proxy.breakers != rows:
            proxy.breakers = rows
        proxy.state = report.state if report.state in STATES else UNKNOWN
        proxy.enter(report.epoch)
        if report.serving == report.version:
            proxy.hash = report.hash
        elif report.serving != proxy.version:
            proxy.hash = b""
        proxy.version, proxy.held = report.serving, report.version
        proxy.error = report.error[:MAX_ERROR]
        proxy.requests, proxy.errors = report.requests, report.errors
        proxy.admin, proxy.release = report.admin[:MAX_NAME], report.release[:MAX_NAME]
        proxy.started_ms = report.started_ms
        if told != _told(proxy):
            proxy.since_ms = time.time_ns() // 1_000_000
            self._change()

    def on_answers(self, answers: Iterable[Answer], address: str = "") -> None:
        """Of proxies that have reported; others are ignored until they do, as their report says the same."""
        now = self._clock()
        for answer in answers:
            proxy = self._proxies.get(answer.node)
            if proxy is None:
                if answer.node not in self.relays:
                    self.ignored += 1
                continue
            proxy.heard = now
            if answer.epoch < proxy.epoch:
                continue
            told = (proxy.epoch, proxy.version)
            proxy.enter(answer.epoch)
            if answer.result == SERVING:
                proxy.version = proxy.timed = answer.version
                proxy.us, proxy.compile_us, proxy.swap_us = answer.us, answer.compile_us, answer.swap_us
                proxy.hash, proxy.held = answer.hash, max(proxy.held, answer.version)
                if told != (proxy.epoch, proxy.version):
                    proxy.since_ms = time.time_ns() // 1_000_000
                if answer.error:
                    self._keep(proxy, answer)
                    proxy.rejected, proxy.noted = 0, answer.version
                elif answer.version in (proxy.rejected, proxy.noted):
                    proxy.rejected, proxy.noted, proxy.rejected_why = 0, 0, ""
            elif answer.result == PREPARED:
                proxy.prepared = answer.version
            elif answer.result == REJECTED:
                self._keep(proxy, answer)
                proxy.rejected, proxy.noted = answer.version, 0
            self._change()

    def refuse(self, address: str, name: str, reason: str) -> None:
        """Remember that somebody was refused, for status."""
        self.refused.append(Refusal(time.time_ns() // 1_000_000, address, name, reason))
        self._change()

    def expire(self, now: float | None = None) -> None:
        """Who has been silent is lost, then forgotten. To be called every second or so."""
        now = self._clock() if now is None else now
        deaf = now - REPORTS * self.report
        for known in (self._proxies, self.relays):
            gone = []
            for node, proxy in known.items():
                if proxy.heard >= deaf:
                    continue
                if proxy.present:
                    self._present -= known is self._proxies
                    proxy.state = LOST
                    proxy.since_ms = time.time_ns() // 1_000_000
                    self._change()
                elif proxy.heard < now - REMEMBER:
                    gone.append(node)
            for node in gone:
                self._size -= known.pop(node).size
                self._change()

    # --- what is asked ---

    def proxies(self) -> list[Proxy]:
        """All of them by name, lost ones included."""
        return sorted(self._proxies.values(), key=lambda proxy: proxy.node)

    def picture(self) -> dict[str, Told]:
        """What can be told of each proxy, by name, to be read only: a row is the very object of the picture
        before, unless it has changed, and who asks twice gets one picture."""
        seen, before = self._picture
        if seen != self.changed:
            now = {}
            for p in self.proxies():
                row, old = (p.state, p.epoch, p.version, p.problem or p.error), before.get(p.node)
                now[p.node] = old if old == row else row
            self._picture = self.changed, now
        return self._picture[1]

    def get(self, node: str) -> Proxy | None:
        return self._proxies.get(node)

    def progress(
        self,
        epoch: int,
        version: int,
        among: Callable[[Proxy], bool] | None = None,
        head: int = 1 << 63,
    ) -> Progress:
        """``among``: only these proxies. head: the newest decided version; who serves one between the two
        serves this, who serves one above it serves a candidate, or another history. Who asks the same again
        before something has changed gets the same answer: many wait for one version."""
        key = (self.changed, epoch, version, head)
        if among is None and self._progress and self._progress[0] == key:
            return self._progress[1]
        total = serving = prepared = 0
        rejected: list[tuple[str, str]] = []
        problems: list[tuple[str, str]] = []
        laggards: list[str] = []
        lost: list[str] = []
        times: list[int] = []
        for proxy in self._proxies.values():
            if among and not among(proxy):
                continue
            if not proxy.present:
                lost.append(proxy.node)
                continue
            total += 1
            ours = proxy.epoch == epoch and self.agrees(proxy)
            if ours and proxy.rejected == version:
                rejected.append((proxy.node, proxy.rejected_why))
                continue
            serves = ours and (proxy.version == version or version < proxy.version <= head)
            if serves or (ours and proxy.prepared == version):
                prepared += 1
            if serves:
                serving += 1
                if proxy.noted == proxy.version:
                    problems.append((proxy.node, proxy.rejected_why))
                if proxy.timed == version:
                    times.append(proxy.us)
            else:
                laggards.append(proxy.node)
        times.sort()
        progress = Progress(
            version,
            total,
            serving,
            prepared,
            sorted(rejected)[:LAGGARDS],
            sorted(problems)[:LAGGARDS],
            sorted(laggards)[:LAGGARDS],
            sorted(lost)[:LAGGARDS],
            _share(times, 50),
            _share(times, 99),
            times[-1] if times else 0,
        )
        if among is None:
            self._progress = (key, progress)
        return progress

    async def wait_change(self, seen: int, timeout: float) -> int:
        """``changed``, as soon as it is not ``seen`` any more, or after ``timeout`` seconds. Changes that
        come close together are told as one, the more proxies the longer."""
        if self.changed == seen:
            watcher = asyncio.get_running_loop().create_future()
            self._watchers.add(watcher)
            try:
                await asyncio.wait_for(watcher, timeout)
            except TimeoutError:
                pass
            finally:
                self._watchers.discard(watcher)
        return self.changed

    def breakers(self) -> Mapping[str, list[Any]]:
        """node -> its rows [name, state, order, until_ms, rejected]; only of those that are present."""
        return {p.node: p.breakers for p in self._proxies.values() if p.present and p.breakers}

    # --- inside ---

    def _relay(self, report: Report, address: str, now: float) -> None:
        relay = self.relays.get(report.node)
        if relay is None:
            if len(self.relays) >= RELAYS:
                self.ignored += 1
                return
            relay = self.relays[report.node] = Proxy(report.node, Attributes())
            self._change()
        relay.heard, relay.address = now, address
        relay.state = report.state if report.state in STATES else UNKNOWN
        relay.via = report.via.rpartition("/")[0][:MAX_NAME]
        relay.release, relay.started_ms = report.release[:MAX_NAME], report.started_ms
        relay.error = report.error[:MAX_ERROR]
        relay.epoch, relay.held, relay.hash = report.epoch, report.version, report.hash
        relay.version = report.serving

    def _keep(self, proxy: Proxy, answer: Answer) -> None:
        """Why it does not serve, or what of it does not."""
        why = answer.error[:MAX_ERROR]
        if self._size + sys.getsizeof(why) > self._memory:
            why = why[:100]
        grown = sys.getsizeof(why) - sys.getsizeof(proxy.rejected_why)
        proxy.size += grown
        self._size += grown
        proxy.rejected_why = proxy.error = why

    def _take_seat(self, proxy: Proxy, report: Report, address: str, now: float) -> None:
        """Who speaks under the name now. One that moves is heard at the new place only; two that share it
        are heard in turns."""
        deaf = now - REPORTS * self.report
        seats = [seat for seat in proxy.seats if seat.heard >= deaf]
        via = report.via[:MAX_NAME]
        who = (address, via, report.started_ms)
        ours = next((seat for seat in seats if seat.who == who), None)
        if ours and ours is not seats[-1]:
            seats.remove(ours)
            other = seats[-1].who[0]
            proxy.problem = (
                f"two proxies use this name: at {address or 'an unknown address'} and "
                f"{other or 'an unknown address'}; give one another --node"
            )
        elif len(seats) <= 1:
            proxy.problem = ""
        seat = ours or Seat(who)
        seat.heard = now
        proxy.seats = [*(other for other in seats if other is not seat), seat][-SEATS:]
        proxy.address, proxy.via = address, via

    def _change(self) -> None:
        self.changed += 1
        if self._watchers and self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(SETTLE + SETTLE_EACH * len(self._proxies), self._tell)

    def _tell(self) -> None:
        self._telling = None
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)


def _told(proxy: Proxy) -> tuple[Any, ...]:
    return (proxy.state, proxy.epoch, proxy.version, proxy.held, proxy.error, proxy.problem)


def _share(times: list[int], percent: int) -> int:
    """The nearest rank of sorted times."""
    return times[max(0, -(-len(times) * percent // 100) - 1)] if times else 0


def weight(report: Report) -> int:
    """Bytes that are kept of a report, without its breakers."""
    texts = [report.node, report.via[:MAX_NAME], report.admin[:MAX_NAME], report.release[:MAX_NAME]]
    texts += [report.attributes.namespace, *(text for pair in report.attributes.labels for text in pair)]
    return PROXY + sum(map(sys.getsizeof, (*texts, report.error[:MAX_ERROR])))


def weight_of_breakers(rows: list[Any]) -> int:
    return sum(ROW + sys.getsizeof(row[0]) for row in rows)


def _is_breaker(row: Any) -> bool:
    kinds = (str, str, str, int, int)
    return (
        isinstance(row, list)
        and len(row) == len(kinds)
        and all(type(item) is kind for item, kind in zip(row, kinds, strict=True))
        and len(row[0]) <= MAX_NAME
        and len(row[1]) <= 20
        and len(row[2]) <= 20
    )
