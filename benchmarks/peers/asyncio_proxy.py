"""A reverse proxy as a Python team would write it: asyncio protocols, httptools, uvloop, pooled keep-alive.

python -m benchmarks.peers.asyncio_proxy PORT UPSTREAM      UPSTREAM: a port of 127.0.0.1, or a Unix socket
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import Any

import httptools
import uvloop

HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"transfer-encoding"}
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Side(asyncio.Protocol):
    """One connection: a transport, and the other side that stops reading while we cannot write."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.fields: list[tuple[bytes, bytes]] = []
        self.chunked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def facing(self) -> Side | None:
        """The other side, while there is one."""
        return None

    def pause_writing(self) -> None:
        side = self.facing()
        if side is not None:
            side.transport.pause_reading()

    def resume_writing(self) -> None:
        side = self.facing()
        if side is not None:
            side.transport.resume_reading()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def head(self, first: bytes, extra: bytes) -> bytes:
        """Start line and end-to-end fields."""
        parts = [first]
        self.chunked = False
        for name, value in self.fields:
            low = name.lower()
            if low in HOP:
                self.chunked |= low == b"transfer-encoding"
            else:
                parts.append(b"%b: %b\r\n" % (name, value))
        if self.chunked:
            parts.append(b"Transfer-Encoding: chunked\r\n")
        parts.append(extra)
        parts.append(b"\r\n")
        return b"".join(parts)

    def framed(self, body: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(body), body) if self.chunked else body


class Upstream(Side):
    """Reads answers for the downstream it is lent to."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self.proxy = proxy
        self.other: Downstream | None = None
        self.parser = httptools.HttpResponseParser(self)

    def facing(self) -> Side | None:
        return self.other

    def data_received(self, data: bytes) -> None:
        if self.other is None:  # nobody asked
            self.transport.close()
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.fields = []

    def on_headers_complete(self) -> None:
        if self.other is not None:
            first = b"HTTP/1.1 %d OK\r\n" % self.parser.get_status_code()
            close = b"" if self.other.keep else b"Connection: close\r\n"
            self.other.transport.write(self.head(first, close))

    def on_body(self, body: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(self.framed(body))

    def on_message_complete(self) -> None:
        downstream = self.other
        if downstream is None:
            return
        if self.chunked:
            downstream.transport.write(b"0\r\n\r\n")
        self.other = None
        if self.parser.should_keep_alive():
            self.proxy.pool.append(self)
        else:
            self.transport.close()
        downstream.answered()

    def connection_lost(self, _error: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()
        elif self in self.proxy.pool:
            self.proxy.pool.remove(self)


class Downstream(Side):
    """Reads requests and lends itself an upstream for each."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self.proxy = proxy
        self.other: Upstream | None = None
        self.parser = httptools.HttpRequestParser(self)
        self.keep = True
        self.target = b""
        self.waiting: list[bytes] | None = None  # of a request whose upstream is being dialled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        self.extra = b"X-Forwarded-For: %b\r\n" % name[0].encode()

    def facing(self) -> Side | None:
        return self.other

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(BAD_REQUEST)
            self.transport.close()

    def on_message_begin(self) -> None:
        self.fields = []
        self.target = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_headers_complete(self) -> None:
        self.keep = self.parser.should_keep_alive()
        first = b"%b %b HTTP/1.1\r\n" % (self.parser.get_method(), self.target)
        head = self.head(first, self.extra)
        pool = self.proxy.pool
        if pool:
            self.lend(pool.pop())
            self.send(head)
        else:
            self.waiting = [head]
            self.transport.pause_reading()
            self.proxy.dial(self)

    def on_body(self, body: bytes) -> None:
        self.send(self.framed(body))

    def on_message_complete(self) -> None:
        if self.chunked:
            self.send(b"0\r\n\r\n")

    def lend(self, upstream: Upstream) -> None:
        self.other = upstream
        upstream.other = self
        if self.waiting is not None:
            upstream.transport.writelines(self.waiting)
            self.waiting = None
            self.transport.resume_reading()

    def send(self, data: bytes) -> None:
        if self.waiting is not None:
            self.waiting.append(data)
        elif self.other is not None:
            self.other.transport.write(data)

    def answered(self) -> None:
        self.other = None
        if not self.keep:
            self.transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        if self.other is not None:  # an answer is on its way to nobody
            upstream, self.other = self.other, None
            upstream.other = None
            upstream.transport.close()


class Proxy:
    """The pool, and the dialling of what it lacks."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.pool: deque[Upstream] = deque()
        self.tasks: set[asyncio.Task[None]] = set()

    def dial(self, downstream: Downstream) -> None:
        task = asyncio.get_running_loop().create_task(self._dial(downstream))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _dial(self, downstream: Downstream) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self.upstream.startswith("/"):
                _, made = await loop.create_unix_connection(lambda: Upstream(self), self.upstream)
            else:
                _, made = await loop.create_connection(
                    lambda: Upstream(self), "127.0.0.1", int(self.upstream)
                )
        except OSError:
            downstream.transport.write(BAD_GATEWAY)
            downstream.transport.close()
            return
        if downstream.transport.is_closing():
            self.pool.append(made)
        else:
            downstream.lend(made)


async def main(port: int, upstream: str) -> None:
    """Serve until we are told to end."""
    proxy = Proxy(upstream)
    server = await asyncio.get_running_loop().create_server(
        lambda: Downstream(proxy), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
