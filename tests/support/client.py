"""A client that sends exactly the bytes it is told and reads answers strictly."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable
from typing import Self

from .http1 import Reader, Response

Headers = Iterable[tuple[str, str]]


def dial(address: str, timeout: float = 10.0, receive_buffer: int = 0) -> socket.socket:
    """A connected socket; ``address`` is HOST:PORT or unix:///path."""
    if address.startswith("unix://"):
        sock = socket.socket(socket.AF_UNIX)
        target: str | tuple[str, int] = address.removeprefix("unix://")
    else:
        host, _, port = address.rpartition(":")
        sock = socket.socket(socket.AF_INET)
        target = (host, int(port))
    try:
        sock.settimeout(timeout)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(target)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def linger_zero(sock: socket.socket) -> None:
    """Closing it will send RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def head(method: str, target: str, headers: Headers = (), minor: int = 1, host: str | None = "test") -> bytes:
    """A request head; ``host`` None leaves Host out."""
    lines = [f"{method} {target} HTTP/1.{minor}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Client:
    """One connection. Every read has a deadline, so that a test fails and never hangs."""

    def __init__(self, address: str, timeout: float = 10.0, receive_buffer: int = 0) -> None:
        self.sock = dial(address, timeout, receive_buffer)
        self.reader = Reader(self._receive)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> bytes:
        return self.sock.recv(65536)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_in_steps(self, data: bytes, step: int = 1, pause: float = 0.0) -> None:
        """``step`` bytes a packet, with a rest between."""
        for at in range(0, len(data), step):
            self.sock.sendall(data[at : at + step])
            if pause:
                time.sleep(pause)

    def response(self, method: str = "GET") -> Response:
        return self.reader.response(method)

    def request(
        self, method: str = "GET", target: str = "/", headers: Headers = (), body: bytes | None = None
    ) -> Response:
        """One exchange; a body is sent with Content-Length."""
        fields = list(headers)
        if body is not None:
            fields.append(("Content-Length", str(len(body))))
        host = None if any(name.lower() == "host" for name, _ in fields) else "test"
        self.send(head(method, target, fields, host=host) + (body or b""))
        return self.response(method)

    def assert_closed(self) -> None:
        """The peer ends the stream cleanly, with nothing more in it: FIN, not RST."""
        rest = self.reader.rest()
        assert rest == b"", f"unexpected bytes before the end: {rest[:300]!r}"

    def assert_cut(self) -> bytes:
        """The stream ends, by FIN or RST; what came before is returned."""
        try:
            while data := self._receive():
                self.reader.buffer += data
        except ConnectionError:
            pass
        return bytes(self.reader.buffer)

    def assert_open(self, wait: float = 0.1) -> None:
        """Nothing comes and nothing ends within ``wait`` seconds."""
        before = self.sock.gettimeout()
        self.sock.settimeout(wait)
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            return
        finally:
            self.sock.settimeout(before)
        raise AssertionError(f"expected silence, got {data[:300]!r}")

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        linger_zero(self.sock)
        self.sock.close()

    def close(self) -> None:
        self.sock.close()
