"""Wakes those who watch a store in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Bell:
    """Level-triggered: rings between two waits are one, none is missed. Of one event loop."""

    def __init__(self) -> None:
        self._ears: set[asyncio.Event] = set()
        self.closed = False

    def ring(self) -> None:
        for ear in self._ears:
            ear.set()

    def close(self) -> None:
        self.closed = True
        self.ring()

    @contextmanager
    def listen(self) -> Iterator[asyncio.Event]:
        """Set at every ring; the listener clears it before it looks."""
        ear = asyncio.Event()
        self._ears.add(ear)
        try:
            yield ear
        finally:
            self._ears.discard(ear)
