"""Reads resources in a child (``python -m fastproxy.resources``): the agent never holds the schema."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import msgpack

from fastproxy.agent.program import command, environment
from fastproxy.settings import Settings
from fastproxy.tables import Tables

TIMEOUT = 120.0
MAX_ANSWER = 512 * 1024 * 1024
NICE = 10  # reading never competes with traffic


class ReadError(Exception):
    """The resources could not be read at all; the text says why."""


@dataclass(slots=True)
class Problem:
    """What is wrong with one document. ``line`` 0: the file as a whole."""

    file: str
    line: int
    field: str
    message: str
    kind: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def place(self) -> str:
        """``file:line: field``, as far as known."""
        parts = [f"{self.file}:{self.line}" if self.line else self.file]
        return ": ".join([p for p in [*parts, self.field] if p])

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Reading:
    """Tables of the good documents and of the last good versions of the bad ones, and the bad ones' problems.

    ``documents`` are the child's own notes on what the tables were made of; the next reading gets them back.
    """

    tables: Tables
    problems: list[Problem] = field(default_factory=list)
    documents: list[Any] = field(default_factory=list)


async def read_resources(
    settings: Settings, previous: list[Any], path: str = "", texts: list[tuple[str, bytes]] | None = None
) -> Reading:
    """Read a file, a folder or texts. Raises ReadError."""
    request = {
        "path": path,
        "texts": texts or [],
        "labels": settings.label,
        "listen": settings.listen,
        "to": settings.to,
        "previous": previous,
    }
    answer = await _ask(msgpack.packb(request))
    if "error" in answer:
        raise ReadError(str(answer["error"]))
    problems = [Problem(**row) for row in answer["problems"]]
    return Reading(answer["tables"], problems, answer["documents"])


async def _ask(request: bytes) -> dict[str, Any]:
    words = command("fastproxy.resources")
    try:
        child = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
    except OSError as e:
        raise ReadError(f"cannot start {words[0]}: {e.strerror}") from None
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
    try:
        out, err = await asyncio.wait_for(child.communicate(request), TIMEOUT)
    except TimeoutError:
        child.kill()
        await child.wait()
        raise ReadError(f"reading the resources took more than {TIMEOUT:g} s") from None
    except BaseException:
        child.kill()
        await child.wait()
        raise
    if child.returncode != 0:
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        raise ReadError(f"the reader of resources ended with status {child.returncode}: {' '.join(last)}")
    try:
        answer = msgpack.unpackb(out, max_buffer_size=MAX_ANSWER)
    except ValueError as e:
        raise ReadError(f"the reader of resources answered nonsense: {e}") from None
    if not isinstance(answer, dict):
        raise ReadError("the reader of resources answered nonsense")
    return answer
