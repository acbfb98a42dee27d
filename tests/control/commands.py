"""What the tests of fastproxyctl share: the program in this process, and proxies that are only links."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import pytest

from ctrl import cli
from fastproxy.link import ApplierAction, Link
from fastproxy.rows import Rows
from fastproxy.sync import Done
from fastproxy.wire import Attributes

from .links import Counting

MESH = """\
# the shop
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: catalog}
spec:
  hosts: [catalog]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1, ports: {http: 9001}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog}
spec:
  hosts: [catalog]
  http:
  - timeout: 3s                     # as agreed
    route: [{destination: {host: catalog}}]
"""
BAD = """\
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bad}
spec:
  hosts: [bad]
  htp: []
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Program:
    """``fastproxyctl``, run in this process."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: str = ""
    ) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        for name in ("FASTPROXY_TOKEN", "FASTPROXY_API", "VISUAL", "EDITOR", "FASTPROXY_KEYS"):
            monkeypatch.delenv(name, raising=False)
        if api:
            monkeypatch.setenv("FASTPROXY_API", api)

    def __call__(self, *words: str, stdin: str = "") -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["fastproxyctl", *words])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, *self._capsys.readouterr())

    def good(self, *words: str, stdin: str = "") -> str:
        """Its output; it must end with 0."""
        done = self(*words, stdin=stdin)
        assert done.code == 0, done
        return done.out


class Late(Counting):
    """One that can be told to hold its work back."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Event()
        self.free.set()

    async def carry_out(self, actions: Sequence[ApplierAction], rows: Rows) -> list[tuple[type, Done]]:
        await self.free.wait()
        return await super().carry_out(actions, rows)


class Proxies:
    """Links of these names that serve what they are told, on a thread of their own."""

    def __init__(self, address: str, names: Sequence[str]) -> None:
        self.appliers = {name: Late() for name in names}
        self._address = address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._tasks: list[asyncio.Task[None]] = []

    async def _run(self) -> None:
        for name, applier in self.appliers.items():
            link = Link(name, Attributes(), [self._address], applier, release="test")
            self._tasks.append(asyncio.create_task(link.run()))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks])
        self._thread.join(10)
        self._loop.close()

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """It does nothing of what it is told meanwhile."""
        free = self.appliers[name].free
        self._loop.call_soon_threadsafe(free.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(free.set)

    def refuse(self, name: str, version: int, why: str) -> None:
        self.appliers[name].refuses[version] = why
