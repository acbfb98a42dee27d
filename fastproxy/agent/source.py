"""Where the tables come from, whoever that is; and what keeps them true while nobody sends others."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastproxy.agent import log
from fastproxy.agent.metrics import Text
from fastproxy.agent.publisher import Published, Publisher
from fastproxy.agent.reading import Problem
from fastproxy.settings import Settings
from fastproxy.tables import Tables

LISTENER_RETRY = 1.0
FAULTS = (ValueError, OSError, MemoryError)  # of one version: the one before goes on
BAD, CONFLICT = 400, 409


class StartError(Exception):
    """There is nothing to serve; the reasons have been said."""


@dataclass(slots=True)
class Answer:
    """To POST /config: ``version`` serves now, or why not."""

    version: int = 0
    changed: bool = False
    problems: Sequence[Problem] = ()
    error: str = ""
    status: int = BAD


class Source(ABC):
    """One publication at a time: who publishes holds ``_lock``."""

    def __init__(self, settings: Settings, publisher: Publisher) -> None:
        self._settings = settings
        self._publisher = publisher
        self._lock = asyncio.Lock()
        self._resolve = asyncio.Event()
        self.source = ""
        self.problems: list[Problem] = []
        self.reloads = 0
        self.failures = 0

    @abstractmethod
    async def start(self) -> Published:
        """The first version. Raises StartError after saying why there is none."""

    async def run(self) -> None:
        """Follow names that resolve anew and listeners that could not be opened."""
        await asyncio.gather(self._publish_when_resolved(), self._retry_listeners())

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    def ask_reload(self) -> None:
        """SIGHUP. Whoever sends it gets an answer, also where nothing is new."""

    def on_resolved(self) -> None:
        self._resolve.set()

    def waits_for(self) -> str:
        """Why nothing serves yet."""
        return "no plan yet"

    @abstractmethod
    async def replace(self, text: bytes) -> Answer:
        """POST /config: put these documents in the place of all others."""

    @abstractmethod
    async def replace_tables(self, tables: object) -> Answer:
        """The same with tables."""

    def describe(self) -> dict[str, Any]:
        """What /plan says of it besides the problems."""
        return {}

    def metrics(self, text: Text) -> None:
        """What it adds to the agent's own metrics."""
        return

    # --- inside ---

    async def _publish(self, tables: Tables) -> bool:
        """False: these serve already. Raises ValueError."""
        if self._publisher.is_current(tables):
            return False
        await self._publisher.publish(tables)
        return True

    def _version(self) -> int:
        return self._publisher.current.version if self._publisher.current else 0

    async def _publish_when_resolved(self) -> None:
        while True:
            await self._resolve.wait()
            self._resolve.clear()
            async with self._lock:
                now = self._publisher.current
                if now is None:
                    continue
                try:
                    await self._publish(now.tables)
                except FAULTS as e:
                    log.error(
                        f"names resolved anew, but: {e or type(e).__name__}",
                        do=f"version {now.version} goes on",
                    )

    async def _retry_listeners(self) -> None:
        while True:
            await asyncio.sleep(LISTENER_RETRY)
            if self._publisher.listeners.errors:
                async with self._lock:
                    self._publisher.retry_listeners()
