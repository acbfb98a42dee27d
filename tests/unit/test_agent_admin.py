"""The admin API by itself: who does not ask leaves the place to others."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from fastproxy.agent import admin
from tests.support.proxy import free_port


async def live(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.split(b" ", 2)[1]


@pytest.mark.parametrize(
    "sent", [b"", b"GET /live HT", b"POST /config HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\na"]
)
def test_half_a_request_does_not_keep_its_place(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "RECEIVE_TIMEOUT", 0.5)

    async def body() -> None:
        port = free_port()
        one = admin.Admin(cast(Any, SimpleNamespace(started=0.0)))
        await one.open(f"127.0.0.1:{port}")
        crowd: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        try:
            for _ in range(admin.CONCURRENCY - 1):
                crowd.append(await asyncio.open_connection("127.0.0.1", port))
                crowd[-1][1].write(sent)
                await asyncio.sleep(0.001)  # told before the next one comes
            await asyncio.sleep(0.2)
            assert await live(port) == b"503"
            await asyncio.sleep(0.6)
            assert await live(port) == b"200"
            for reader, _ in crowd:
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), 2) == b""
        finally:
            for _, writer in crowd:
                writer.close()
            await one.close()
            await asyncio.sleep(0)

    uvloop.run(body())


def test_a_connection_that_asks_in_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "RECEIVE_TIMEOUT", 0.2)

    async def body() -> None:
        port = free_port()
        one = admin.Admin(cast(Any, SimpleNamespace(started=0.0)))
        await one.open(f"127.0.0.1:{port}")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for _ in range(3):
                writer.write(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                await reader.readuntil(b"}\n")
                await asyncio.sleep(0.3)
        finally:
            writer.close()
            await one.close()

    uvloop.run(body())
