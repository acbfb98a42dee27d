"""``fastproxyctl publish``: documents of a file straight to proxies, without a server, a store or an API.

The same plane and publisher as of ``serve``, on a store that is gone with the process. A new start is a new
epoch, so proxies take what it has as they would from a server that was restored from a backup.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctrl import documents, show
from ctrl.durations import spell
from ctrl.keys import server_key
from ctrl.model import Change, Contents
from ctrl.plane import Outcome, Plane, Unfit, Wish
from ctrl.store.memory import MemoryStore
from ctrl.zap import Authority
from fastproxy.resources.problem import Problem
from fastproxy.resources.source import names

LOOK_SECONDS = 0.5  # between two looks at the files
NAMED = 20  # proxies that are missing, in the last line

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Options:
    """paths: as of ``-f``. wait: proxies that have to serve it. once: end when they do, or when ``timeout``
    seconds are over."""

    paths: list[str]
    recursive: bool = False
    publish: str = "tcp://127.0.0.1:9910"
    keys: str = ""
    wait: int = 0
    once: bool = False
    timeout: float = 30.0
    heartbeat: float = 1.0
    report: float = 5.0
    name: str = ""


async def publish(options: Options) -> int:
    """Publish until it is ended by a signal (0), or with ``once`` until enough proxies serve it (0; 1 when
    they did not in time; 2 when a document is bad, as then nothing is published), or 2 when none is good.

    Raises DocumentsError, KeyError_, OSError when an address is in use."""
    texts = await asyncio.to_thread(documents.read, options.paths, options.recursive)
    secured: dict[str, Any] = {}
    if options.keys:
        secured = {
            "curve": server_key(options.keys).curve,
            "authority": Authority(Path(options.keys) / "allow"),
        }
    plane = _Plane(
        MemoryStore(),
        name=options.name,
        bind=options.publish,
        heartbeat=options.heartbeat,
        report=options.report,
        **secured,
    )
    await plane.start()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    try:
        session = _Session(plane, options)
        if not await session.take(texts):
            return 2
        show.say(f"publishing at {plane.publisher.address}; proxies: --control {plane.publisher.address}")
        waiting = [asyncio.create_task(ended.wait()), asyncio.create_task(session.tell())]
        if documents.STDIN not in options.paths and not options.once:
            waiting.append(asyncio.create_task(session.follow()))
        limit = options.timeout if options.once else None
        done, _ = await asyncio.wait(waiting, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for task in done:
            if not task.cancelled() and (failure := task.exception()):
                raise failure
        if done:
            return 0
        session.missing()
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        await plane.close()


class _Plane(Plane):
    """Its contents are those of the files, no more and no less."""

    async def replace(self, files: Sequence[tuple[str, bytes]], strict: bool = False) -> Outcome:
        """These documents as one version, from which all others are gone; one that became bad stays as it
        was. With ``strict`` nothing is taken when one is bad. Raises Unfit.

        Where an error of syntax hides which document it is in, what is missing is not taken for deleted.
        """
        resources, problems = await self._work(self.views.check, files)
        named = {r.identity for r in resources} | {p.identity for p in problems}
        hidden = any(not p.name for p in problems)

        def choose(contents: Contents) -> list[Change]:
            gone = [] if hidden else [Change(i, None) for i in contents.resources if i not in named]
            return [*gone, *(Change(r.identity, r) for r in resources)]

        return await self._change("publish", choose, Wish(who="publish", strict=strict), problems)


class _Session:
    """What is published and who has it."""

    def __init__(self, plane: _Plane, options: Options) -> None:
        self.plane = plane
        self.options = options
        self.stamp = stamp(options)

    async def take(self, texts: list[tuple[str, str]]) -> bool:
        """Make the documents the next version; False when nothing of them is good, then the one before
        stays."""
        try:
            # a proxy may have a good version of a bad document from an earlier run, and we have none to give:
            # who can correct it at once need not lose it
            files = [(name, text.encode()) for name, text in texts]
            outcome = await self.plane.replace(files, strict=self.options.once)
        except Unfit as e:
            show.problems(problem.to_dict() for problem in e.problems)
            stays = "the version before stays" if self.plane.head().version else "proxies keep what they have"
            show.fail(f"{e}; {stays}")
            return False
        show.problems(problem.to_dict() for problem in outcome.problems)
        self._kept(outcome.problems)
        show.problems((problem.to_dict() for problem in outcome.warnings), "warning")
        head = self.plane.head()
        documents = show.count(len(self.plane.contents), "document")
        show.say(f"version {head.version}, hash {head.hash[:12]}: {documents}")
        return True

    def _kept(self, problems: Sequence[Problem]) -> None:
        """What becomes of documents that are bad now."""
        for kind, namespace, name in dict.fromkeys(p.identity for p in problems):
            good = self.plane.contents.resources.get((kind, namespace, name))
            if not name:
                show.hint("what this error may hide stays as it was")
            elif good:
                show.hint(f"{kind} {namespace}/{name} stays as in version {good.version}")
            else:
                show.hint(f"{kind} {namespace}/{name} is left out: this run has had no good version of it")

    async def follow(self) -> None:
        """Take what changes in the files, once they are quiet; ends never."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = await asyncio.to_thread(stamp, self.options)
            if now == self.stamp:
                continue
            self.stamp = now
            try:
                texts = await asyncio.to_thread(documents.read, self.options.paths, self.options.recursive)
            except documents.DocumentsError as e:
                show.fail(f"{e}; the version before stays")
                continue
            await self.take(texts)

    async def tell(self) -> None:
        """Say who serves, whenever that changes; ends with ``once`` when enough do."""
        fleet = self.plane.fleet
        told = ""
        seen = -1
        while True:
            head = self.plane.head()
            now = fleet.progress(head.epoch, head.version)
            line = f"{now.serving}/{max(now.total, self.options.wait)} serving version {head.version}"
            whole = now.serving >= max(now.total, self.options.wait, 1)
            if whole and now.max_us:
                line += f", p50 {spell(now.p50_us)}, max {spell(now.max_us)}"
            for node, error in now.rejected[:NAMED]:
                line += f"\n  {node} rejected it: {error}"
            if line != told and (whole or now.rejected or (now.total and not self.options.once)):
                for text in line.splitlines():
                    show.say(f"{time.strftime('%H:%M:%S')} {text}" if not self.options.once else text)
                told = line
            if self.options.once and now.serving >= max(self.options.wait, 1):
                return
            seen = await fleet.wait_change(seen, 1.0)
            await asyncio.sleep(0.02)  # many at once are one line

    def missing(self) -> None:
        """Why ``once`` ends without success."""
        head = self.plane.head()
        now = self.plane.fleet.progress(head.epoch, head.version)
        wanted = max(self.options.wait, 1)
        show.fail(
            f"{now.serving}/{wanted} serve version {head.version} after {self.options.timeout:g} s; "
            f"is fastproxy run --control {self.plane.publisher.address} running?"
        )
        for name in now.laggards[:NAMED]:
            show.hint(f"  {name} does not serve it yet")


def stamp(options: Options) -> Stamp:
    """What changes when a file does; a file that is not there is left out."""
    found = []
    for path in options.paths:
        with contextlib.suppress(OSError, documents.DocumentsError):
            for file in documents.below(path) if options.recursive else names(path):
                about = documents.about(file)
                if about:
                    found.append((file, *about))
    return tuple(found)
