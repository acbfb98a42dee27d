"""``--wait``: follow a version until every proxy serves it, and say who does not and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn

from ctrl import show
from ctrl.client import ApiError, Client
from ctrl.durations import spell
from ctrl.show import number, word

POLL_SECONDS = 10.0  # one long poll
ROLLOUT_SECONDS = 0.5  # while a rollout goes on its state is asked for as well
AGAIN_SECONDS = 0.5
SPEAK_SECONDS = 5.0  # between two lines where no terminal is
MOST_NAMED = 20

COMMITTED, ABORTED, NONE = "committed", "aborted", "none"


class Outcome(NamedTuple):
    """progress: the last answer; aborted: why the rollout was taken back, empty when it was not; judged: the
    most requests that one stage of the rollout saw with the version, None when nothing says."""

    served: bool
    progress: dict[str, Any]
    aborted: str = ""
    waited: float = 0.0
    judged: int | None = None


class Bar:
    """One line on standard error that is written over; where no terminal is a plain line now and then."""

    def __init__(self) -> None:
        self.console = show.err()
        columns: list[ProgressColumn] = [
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f} serving"),
            TimeElapsedColumn(),
        ]
        self._progress = Progress(*columns, console=self.console, transient=True)
        self._task: TaskID | None = None
        self._spoken = time.monotonic()
        self._words = ""

    @contextmanager
    def shown(self) -> Iterator[Bar]:
        if not self.console.is_terminal:
            yield self
            return
        with self._progress:
            yield self

    def update(self, words: str, done: int, total: int) -> None:
        if self.console.is_terminal:
            if self._task is None:
                self._task = self._progress.add_task(words, total=max(total, 1))
            self._progress.update(self._task, description=words, completed=done, total=max(total, done, 1))
            return
        now = time.monotonic()
        stage = words != self._words and self._words != ""
        if stage or now - self._spoken >= SPEAK_SECONDS:
            show.hint(f"{words}: {done}/{total} serving")
            self._spoken = now
        self._words = words


def wait(
    client: Client,
    version: int,
    seconds: float,
    *,
    rollout: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Until every connected proxy serves ``version``, or each of them has answered and one rejected it, or
    ``seconds`` are over. The time of a rollout's stages does not count: they end by themselves.

    A server that is away for a moment is asked again; one that was started a moment ago learns only by and by
    who is there. Raises ApiError.
    """
    bar = Bar()
    begin = clock()
    deadline = begin + seconds
    progress: dict[str, Any] = {}
    seen: int | None = None
    state: dict[str, Any] = {}
    rolling = rollout
    judged: int | None = None
    least = 0  # after a restart the server learns only by and by who is there
    with bar.shown():
        while True:
            left = deadline - clock()
            try:
                if rolling:
                    state = client.rollout()
                    judged = _judged(state, version, judged)
                    rolling = number(state, "version") == version and word(state, "state") not in (
                        COMMITTED,
                        ABORTED,
                        NONE,
                    )
                    if not rolling:
                        if aborted := _aborted(client, version, state):
                            return Outcome(False, progress, aborted, clock() - begin)
                        deadline, seen = clock() + seconds, None
                        left = seconds
                pause = ROLLOUT_SECONDS if rolling else POLL_SECONDS
                progress = client.progress(version, 0 if seen is None else max(min(left, pause), 0), seen)
            except ApiError as e:
                if e.status not in (0, 502, 503) or left <= AGAIN_SECONDS:
                    raise
                time.sleep(AGAIN_SECONDS)
                seen, least = None, max(least, number(progress, "total"), 1)
                continue
            seen = number(progress, "seen")
            serving, total = number(progress, "serving"), number(progress, "total")
            bar.update(_words(version, state if rolling else {}), serving, total)
            if rolling:
                continue
            refused = len(_rows(progress, "rejected"))
            answered = serving + refused >= max(total, least) and not progress.get("gathering")
            if answered or clock() >= deadline:
                well = answered and not refused and not _rows(progress, "problems")
                return Outcome(well, progress, "", clock() - begin, judged)


def _aborted(client: Client, version: int, state: dict[str, Any]) -> str:
    """Why a rollout that is over was aborted; empty: it was not."""
    if number(state, "version") == version:
        if word(state, "state") != ABORTED:
            return ""
        return word(state, "reason") or "no reason is given"
    try:
        what = word(client.entry(version), "what")
    except ApiError as e:
        if e.status != 404:
            raise
        return f"version {version} is not in the history"
    return what if what.startswith(ABORTED) else ""


def _judged(state: dict[str, Any], version: int, before: int | None) -> int | None:
    observed = state.get("observed")
    if number(state, "version") != version or not isinstance(observed, dict):
        return before
    return max(before or 0, number(observed, "requests"))


def unjudged(outcome: Outcome, conditions: Sequence[str]) -> str:
    """A sentence where a version was taken and no stage had the requests that its conditions need; else
    empty."""
    from ctrl.rollout import MIN_REQUESTS

    rates = [text for text in conditions if "error_rate" in text]
    if not rates or outcome.aborted or outcome.judged is None or outcome.judged >= MIN_REQUESTS:
        return ""
    return (
        f"{', '.join(rates)}: was never judged, as no stage saw more than "
        f"{show.count(outcome.judged, 'request')} with the version; {MIN_REQUESTS} are needed"
    )


def _words(version: int, state: dict[str, Any]) -> str:
    return f"version {version}: {at_stage(state)}" if state else f"version {version}"


def at_stage(state: dict[str, Any]) -> str:
    """``baking 10% (stage 2 of 3)`` of an answer of /v1/rollout; ``preparing`` where there are no stages."""
    stages, stage = state.get("stages"), number(state, "stage")
    text = word(state, "state")
    if not isinstance(stages, list) or not 1 <= stage <= len(stages):
        return text
    return f"{text} {word({'stage': stages[stage - 1]}, 'stage')} (stage {stage} of {len(stages)})"


def _rows(progress: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = progress.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def tell(outcome: Outcome, version: int) -> None:
    """The last line, and who is missing and why."""
    progress = outcome.progress
    serving, total = number(progress, "serving"), number(progress, "total")
    if outcome.aborted:
        show.fail(f"version {version} was not taken, all proxies stay on the one before: {outcome.aborted}")
    elif outcome.served:
        show.say(summary(progress, version))
    else:
        took = spell(int(outcome.waited * 1e6))
        show.fail(f"{serving}/{total} serve version {version} after {took}; it stays applied")
    if progress.get("gathering"):
        show.hint("  the server was started a moment ago: proxies may be on their way back to it")
    for name, verb in (("rejected", "rejected it:"), ("problems", "serves it, and yet:")):
        for row in _rows(progress, name)[:MOST_NAMED]:
            show.hint(f"  {word(row, 'node')} {verb} {word(row, 'error')}")
        _name(verb.rstrip(":"), len(_rows(progress, name)) - MOST_NAMED)
    silent = show.names(progress, "lost")
    for name in silent[:MOST_NAMED]:
        show.hint(f"  {name} is lost and not counted: what it serves is not known")
    _name("are lost", len(silent) - MOST_NAMED)
    names = show.names(progress, "laggards")
    if names and not outcome.served and not outcome.aborted:
        refused = {word(row, "node") for row in _rows(progress, "rejected")}
        names = [name for name in names if name not in refused]
        for name in names[:MOST_NAMED]:
            show.hint(f"  {name} does not serve it yet; it will when it can")
        _name("do not serve it yet", len(names) - MOST_NAMED)


def _name(what: str, more: int) -> None:
    if more > 0:
        show.hint(f"  and {more} more {what}: {show.PROGRAM} status")


def summary(progress: dict[str, Any], version: int) -> str:
    """``1000/1000 serving version 42, p50 6 ms, max 31 ms``"""
    total = number(progress, "total")
    if not total:
        return f"version {version} is served to nobody: no proxy is connected"
    text = f"{number(progress, 'serving')}/{total} serving version {version}"
    if number(progress, "maxUs"):
        text += f", p50 {spell(number(progress, 'p50Us'))}, max {spell(number(progress, 'maxUs'))}"
    return text
