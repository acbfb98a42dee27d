"""The configuration that serves: from flags, a file or folder, or POST /config. One change at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastproxy.agent import log
from fastproxy.agent.publisher import Published, Publisher
from fastproxy.agent.reading import Problem, Reader, ReadError, Reading
from fastproxy.agent.shape import ShapeError, check_shape
from fastproxy.agent.source import Answer, Source, StartError
from fastproxy.agent.watch import Watch
from fastproxy.oneline import one_line
from fastproxy.settings import Settings

MAX_SHOWN = 20  # problems on standard error at a time
POSTED = "POST /config"


class Configuration(Source):
    """Reads, compares, publishes. Reloads asked for while one runs are one more after it."""

    def __init__(self, settings: Settings, publisher: Publisher) -> None:
        super().__init__(settings, publisher)
        self._reader = Reader(settings)
        self._wanted = asyncio.Event()
        self._watch = Watch(settings.config) if settings.config else None
        self._documents: list[Any] = []
        self._said: set[str] = set()
        self._warned: set[str] = set()
        self._asked = False
        self.source = settings.config or "--to"

    def __repr__(self) -> str:
        return f"<Configuration of {self.source}: {len(self.problems)} problems, {self.reloads} reloads>"

    async def start(self) -> Published:
        """The first version. Raises StartError after saying why there is none."""
        settings = self._settings
        try:
            if not settings.config:
                return await self._publisher.publish(one_line(settings.listen, settings.to))
            reading = await self._read()
        except (ReadError, ValueError) as e:
            log.error(str(e), self.source)
            raise StartError from None
        self._say(reading)
        if not reading.documents:
            if any(p.line for p in reading.problems):
                log.error(
                    "no good document", self.source, "correct the above; fastproxy check shows it again"
                )
            raise StartError
        try:
            published = await self._publisher.publish(reading.tables)
        except ValueError as e:
            log.error(str(e), self.source)
            raise StartError from None
        self._take(reading)
        return published

    async def run(self) -> None:
        """Follow changes of the file, wishes to reload, and names that resolve anew."""
        jobs = [super().run(), self._reload_when_wanted()]
        if self._watch:
            jobs.append(self._want_on_change(self._watch))
        await asyncio.gather(*jobs)

    async def close(self) -> None:
        await self._reader.close()

    def ask_reload(self) -> None:
        if self._settings.config:
            self._asked = True
            self._wanted.set()
        else:
            log.info("nothing to read again: the configuration is --listen and --to")

    async def replace(self, text: bytes) -> Answer:
        """Put these documents in the place of all others; with any problem nothing changes."""
        try:
            reading = await self._reader.read([], texts=[(POSTED, text)])
        except ReadError as e:
            return self._refuse(str(e))
        if reading.problems:
            return self._refuse(_count(reading.problems), reading.problems)
        self._warn(reading.warnings)
        return await self._replace(reading)

    async def replace_tables(self, tables: object) -> Answer:
        """The same with tables, as the control plane sends them."""
        try:
            return await self._replace(Reading(check_shape(tables)))
        except ShapeError as e:
            return self._refuse(str(e))

    # --- inside ---

    async def _replace(self, reading: Reading) -> Answer:
        async with self._lock:
            try:
                changed = await self._publish(reading.tables)
            except ValueError as e:
                return self._refuse(str(e))
            self.source = POSTED
            self._take(reading)
            self._say_serving(changed)
            return Answer(self._version(), changed)

    def _refuse(self, error: str, problems: Sequence[Problem] = ()) -> Answer:
        first = f": {problems[0].place}: {problems[0].message}" if problems else ""
        log.error(f"refused, {error}{first}", POSTED, f"version {self._version()} goes on")
        return Answer(problems=list(problems), error=error)

    def _say_serving(self, changed: bool) -> None:
        now = self._publisher.current
        if now is None:
            return
        if not changed:
            log.info(f"nothing has changed, version {now.version} goes on", self.source)
        elif now.outcome:
            log.info(
                f"version {now.version} serves: compiled in {now.compile_seconds * 1e3:.0f} ms, "
                f"swapped in {now.outcome.swap_us} us",
                self.source,
            )

    async def _reload_when_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            async with self._lock:
                await self._reload()

    async def _reload(self) -> None:
        self.reloads += 1
        asked, self._asked = self._asked, False
        try:
            reading = await self._read()
        except ReadError as e:
            self.failures += 1
            log.error(str(e), self._settings.config, f"version {self._version()} goes on")
            return
        self._say(reading, again=asked)
        if not reading.documents:  # also where no last good version is of this file: it came by POST
            self.failures += 1
            self.problems = reading.problems
            return
        try:
            changed = await self._publish(reading.tables)
        except ValueError as e:
            self.failures += 1
            log.error(str(e), self._settings.config, f"version {self._version()} goes on")
            return
        self.source = self._settings.config
        if reading.problems:
            self.failures += 1
        self._take(reading)
        if changed or asked:
            self._say_serving(changed)

    async def _read(self) -> Reading:
        if self._watch:
            self._watch.mark()
        return await self._reader.read(self._documents, path=self._settings.config)

    async def _want_on_change(self, watch: Watch) -> None:
        while True:
            await watch.changed()
            watch.mark()
            self._wanted.set()

    def _take(self, reading: Reading) -> None:
        self.problems = reading.problems
        self._documents = reading.documents

    def _say(self, reading: Reading, again: bool = False) -> None:
        """Each problem once, until it changes or is gone; ``again``: those that were said, too."""
        problems = reading.problems
        fresh = [p for p in problems if again or f"{p.place} {p.message}" not in self._said]
        for p in fresh[:MAX_SHOWN]:
            log.error(p.message, p.place, self._consequence(p, reading))
        if len(fresh) > MAX_SHOWN:
            log.error(
                f"{len(fresh) - MAX_SHOWN} more problems", self._settings.config, "fastproxy check shows them"
            )
        if self._said and not problems:
            log.info("all problems are gone", self._settings.config)
        self._said = {f"{p.place} {p.message}" for p in problems}
        self._warn(reading.warnings, again)

    def _warn(self, warnings: list[Problem], again: bool = False) -> None:
        """The same for what serves, though surely not as it was meant."""
        fresh = [p for p in warnings if again or f"{p.place} {p.message}" not in self._warned]
        for p in fresh[:MAX_SHOWN]:
            log.warning(p.message, p.place)
        if len(fresh) > MAX_SHOWN:
            log.warning("more of these", self.source, "fastproxy check shows them")
        self._warned = {f"{p.place} {p.message}" for p in warnings}

    def _consequence(self, problem: Problem, reading: Reading) -> str:
        """What serves instead of what is wrong."""
        before = {tuple(row[:3]) for row in self._documents}
        kept = [row for row in reading.documents if tuple(row[:3]) in before]
        if problem.name:
            identity = (problem.kind, problem.namespace, problem.name)
            good = any(tuple(row[:3]) == identity for row in kept)
            return "its last good version goes on" if good else "this document is left out"
        if self._publisher.current is None:
            return (
                "this document is left out"
                if problem.line
                else "name a file of resources, or a folder of them"
            )
        if not reading.documents:
            return f"version {self._version()} goes on"
        folder = problem.file.rstrip("/") + "/"
        if any(row[3] == problem.file or row[3].startswith(folder) for row in kept):
            return "the last good versions of what it held go on"
        return "this document is left out" if problem.line else "nothing is read from it"


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems)} problem{'s' * (len(problems) != 1)}"
