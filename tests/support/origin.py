"""A well-behaved HTTP/1.1 origin: echoes what it received as JSON, or sends bodies of known bytes.

    /bytes/N  N bytes of pattern      /chunked/N  the same, chunked      /hash  length and SHA-256 of the body
    /slow/S   answers after S s       /status/N   that status, no body   /ok    "ok"
    anything else: JSON of the request

``python -m tests.support.origin PORT [NAME]`` runs it as a process of its own, to be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
from typing import Self

import uvloop

from .http1 import REQUEST_LINE, Fields, Malformed, parse_fields

PATTERN = hashlib.shake_128(b"fastproxy").digest(65521)  # a prime length, so that shifted bytes do not match


def pattern(size: int) -> bytes:
    """The first ``size`` bytes of the endless pattern."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Origin:
    """The origin in a thread of this process. ``name`` is told in every echo."""

    def __init__(self, name: str = "origin", path: str = "", port: int = 0) -> None:
        self.name = name
        self.requests = 0
        self.connections = 0
        self.malformed: list[str] = []
        self._path = path
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self.address = f"unix://{path}"
        else:
            self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.port = 0 if path else self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        start = asyncio.start_unix_server if self._path else asyncio.start_server
        server = await start(self._accepted, sock=self._listener, limit=1 << 20)
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except (Malformed, asyncio.LimitOverrunError, ValueError) as error:
            self.malformed.append(repr(error))
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(Exception):
                writer.close()

    async def _body(self, reader: asyncio.StreamReader, fields: dict[bytes, bytes]) -> tuple[bytes, Fields]:
        if fields.get(b"transfer-encoding") == b"chunked":
            parts = []
            while size := int((await reader.readuntil(b"\r\n"))[:-2].partition(b";")[0], 16):
                parts.append(await reader.readexactly(size))
                await reader.readexactly(2)
            trailers = []
            while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                trailers.append(line[:-2])
            return b"".join(parts), parse_fields(trailers)
        return await reader.readexactly(int(fields.get(b"content-length", b"0"))), []

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        match = REQUEST_LINE.fullmatch(lines[0])
        if match is None:
            raise Malformed(f"request line {lines[0]!r}")
        ordered = parse_fields(lines[1:])
        fields = {name.lower(): value for name, value in ordered}
        method, target = match[1].decode(), match[2].decode("latin-1")
        if fields.get(b"expect", b"").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, trailers = await self._body(reader, fields)
        self.requests += 1
        keep = match[3] == b"1" and b"close" not in fields.get(b"connection", b"").lower()
        status, extra, answer = 200, b"", b""
        if special := re.fullmatch(r"/(bytes|chunked|slow|status)/([0-9.]+)(?:\?.*)?", target):
            if special[1] == "slow":
                await asyncio.sleep(float(special[2]))
            elif special[1] == "status":
                status = int(special[2])
            else:
                answer = pattern(int(special[2]))
        elif target == "/ok":
            answer = b"ok"
        elif target.startswith("/hash"):
            answer = json.dumps({"length": len(body), "sha256": digest(body)}).encode()
        else:
            extra = b"Content-Type: application/json\r\n"
            echo = {
                "name": self.name,
                "method": method,
                "target": target,
                "minor": int(match[3]),
                "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in ordered],
                "trailers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in trailers],
                "body": body.decode("latin-1"),
            }
            answer = json.dumps(echo).encode()
        if not keep:
            extra += b"Connection: close\r\n"
        start = b"HTTP/1.1 %d Fine\r\n%s" % (status, extra)
        if target.startswith("/chunked/") and method != "HEAD":
            writer.write(start + b"Transfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(answer), 10007):
                part = answer[at : at + 10007]
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        else:
            length = b"" if status in (204, 304) else b"Content-Length: %d\r\n" % len(answer)
            writer.write(start + length + b"\r\n" + (b"" if method == "HEAD" else answer))
        await writer.drain()
        return keep


def main() -> None:
    origin = Origin(name=sys.argv[2] if len(sys.argv) > 2 else "origin", port=int(sys.argv[1]))
    print(origin.address, flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    origin.close()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    main()
