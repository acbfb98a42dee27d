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
LINGER = 3.0
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
    warnings: list[Problem] = field(default_factory=list)


class Reader:
    """The child process that reads. It stays for :data:`LINGER` seconds after each reading: a burst of
    changes does not pay for its start, a proxy at rest does not pay for its memory."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None
        self._errors = -1  # memfd that is the child's standard error
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Reader {f'pid {self._child.pid}' if self._child else 'idle'}>"

    async def read(
        self, previous: list[Any], path: str = "", texts: list[tuple[str, bytes]] | None = None
    ) -> Reading:
        """Read a file, a folder or texts. Raises ReadError."""
        request = {
            "path": path,
            "texts": texts or [],
            "namespace": self._settings.namespace,
            "labels": self._settings.label,
            "listen": self._settings.listen,
            "to": self._settings.to,
            "previous": previous,
        }
        async with self._lock:
            if self._timer:
                self._timer.cancel()
            try:
                answer = await asyncio.wait_for(self._ask(msgpack.packb(request)), TIMEOUT)
            except TimeoutError:
                await self._end(by_force=True)
                raise ReadError(f"reading the resources took more than {TIMEOUT:g} s") from None
            except BaseException:
                await self._end(by_force=True)
                raise
            self._timer = asyncio.get_running_loop().call_later(LINGER, self._on_idle)
        if "error" in answer:
            raise ReadError(str(answer["error"]))
        problems = [Problem(**row) for row in answer["problems"]]
        warnings = [Problem(**row) for row in answer["warnings"]]
        return Reading(answer["tables"], problems, answer["documents"], warnings)

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._ending:
            await self._ending
        await self._end(by_force=True)

    def _on_idle(self) -> None:
        async def end() -> None:
            async with self._lock:
                await self._end()

        self._ending = asyncio.get_running_loop().create_task(end())

    async def _start(self) -> asyncio.subprocess.Process:
        words = command("fastproxy.resources")
        self._errors = os.memfd_create("fastproxy-reader-errors", os.MFD_CLOEXEC)
        try:
            child = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._errors,
                env=environment(),
            )
        except OSError as e:
            os.close(self._errors)
            raise ReadError(f"cannot start {words[0]}: {e.strerror}") from None
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
        return child

    async def _ask(self, request: bytes) -> dict[str, Any]:
        if self._child is not None and self._child.returncode is not None:
            await self._end()
        if self._child is None:
            self._child = await self._start()
        child = self._child
        assert child.stdin and child.stdout
        answers = msgpack.Unpacker(max_buffer_size=MAX_ANSWER)
        try:
            child.stdin.write(request)
            await child.stdin.drain()
            while data := await child.stdout.read(1 << 20):
                answers.feed(data)
                for answer in answers:
                    if isinstance(answer, dict):
                        return answer
                    raise ReadError("the reader of resources answered nonsense")
        except (ConnectionError, ValueError, msgpack.UnpackException) as e:
            raise ReadError(f"the reader of resources failed: {e or type(e).__name__}") from None
        status = await child.wait()
        raise ReadError(f"the reader of resources ended with status {status}: {self._last_words()}")

    def _last_words(self) -> str:
        size = os.fstat(self._errors).st_size
        said = os.pread(self._errors, 4096, max(0, size - 4096)).decode(errors="replace")
        return " ".join(said.strip().splitlines()[-1:])

    async def _end(self, by_force: bool = False) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.stdin:
            child.stdin.close()
        if by_force and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await child.wait()
        os.close(self._errors)
