"""A steady load of small requests on kept-alive connections, which tells exactly what went wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Self

import httptools
import uvloop


@dataclass
class Result:
    """ok: answers with 200 and the right body. wrong: other answers. broken: connections that ended in
    an exchange, by their number. refused: dials that failed. closed: ended between exchanges."""

    ok: int = 0
    wrong: list[str] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    refused: int = 0
    closed: int = 0


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load, number: int) -> None:
        self.load, self.number = load, number
        self.busy = False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if self.transport.is_closing():
            return
        if self.load.stopping:
            self.transport.close()
            return
        self.parser = httptools.HttpResponseParser(self)
        self.body = b""
        self.busy = True
        self.transport.write(self.load.request)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.busy = False
        status = self.parser.get_status_code()
        if status == 200 and self.body == self.load.want:
            self.load.result.ok += 1
        else:
            self.load.result.wrong.append(f"{status} {self.body[:100]!r}")
        if self.parser.should_keep_alive():
            asyncio.get_running_loop().call_later(self.load.pause, self.ask)
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.load.result.wrong.append(repr(error))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.load.result.broken.append(self.number)
        elif not self.load.stopping:
            self.load.result.closed += 1
        if not self.ended.done():
            self.ended.set_result(None)


class Load:
    """``with Load(address, connections=16) as load: …`` then ``load.result``. ``pause``: seconds."""

    def __init__(
        self,
        address: str,
        connections: int = 16,
        pause: float = 0.002,
        target: str = "/",
        want: bytes = b"ok",
    ) -> None:
        host, _, port = address.rpartition(":")
        self.host, self.port = host, int(port)
        self.connections, self.pause, self.want = connections, pause, want
        self.request = f"GET {target} HTTP/1.1\r\nHost: load\r\n\r\n".encode()
        self.result = Result()
        self.stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.wait_progress()
        except AssertionError:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Result:
        self.stopping = True
        self._thread.join(15)
        assert not self._thread.is_alive(), "some exchange never ended"
        return self.result

    def wait_progress(self, count: int = 50, timeout: float = 10.0) -> None:
        """Until that many further requests went well."""
        goal = self.result.ok + count
        deadline = time.monotonic() + timeout
        while self.result.ok < goal:
            assert time.monotonic() < deadline, f"the load stands still: {self.result}"
            time.sleep(0.005)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._all())

    async def _all(self) -> None:
        await asyncio.gather(*(self._one(number) for number in range(self.connections)))

    async def _one(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        while not self.stopping:
            try:
                transport, protocol = await loop.create_connection(
                    lambda: _Connection(self, number), self.host, self.port
                )
            except OSError:
                self.result.refused += 1
                await asyncio.sleep(0.02)
                continue
            await protocol.ended
            transport.close()
