"""A server that does what a test's script says, connection by connection, byte by byte."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

from .client import linger_zero
from .http1 import Eof, Reader, Request

Script = Callable[["Connection"], None]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answer(body: bytes = b"ok", status: str = "200 OK", *fields: str) -> bytes:
    """A response with Content-Length."""
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Connection:
    """One accepted connection, as its script sees it. ``number`` counts from 0 since the last reset."""

    def __init__(self, owner: Upstream, sock: socket.socket, number: int) -> None:
        self.owner = owner
        self.sock = sock
        self.number = number
        self.received = bytearray()
        self.completed: list[Request] = []
        self.reader = Reader(self._receive)

    def _receive(self) -> bytes:
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        except TimeoutError:
            raise
        except OSError as error:  # closed by reset() while we waited
            raise Eof from error
        self.received += data
        return data

    def head(self) -> Request:
        """The next request's head; the body stays unread."""
        request = self.reader.request_head()
        self.owner.requests.append(request)
        return request

    def request(self) -> Request:
        """The next request, whole; Eof when the proxy closes instead."""
        request = self.reader.body_of(self.head())
        self.completed.append(request)
        return request

    def send(self, *parts: bytes, pause: float = 0.0) -> None:
        """Each part in a packet of its own."""
        for number, part in enumerate(parts):
            if number and pause:
                time.sleep(pause)
            self.sock.sendall(part)

    def close(self) -> None:
        """FIN both ways; unread bytes would make the kernel send RST, so they are read first."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError, Eof):
            self.sock.settimeout(0.05)
            while self.sock.recv(65536):
                pass
        self.sock.close()

    def drop(self) -> None:
        """close() as it comes: FIN, or RST when there are unread bytes."""
        self.sock.close()

    def half_close(self) -> None:
        """FIN, if the proxy has not reset the connection."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST."""
        linger_zero(self.sock)
        self.sock.close()

    def wait_closed(self, timeout: float = 5.0) -> bytes:
        """What came until the proxy closed or reset; TimeoutError when it does not."""
        self.sock.settimeout(timeout)
        return self.reader.rest()


class Upstream:
    """Listens on loopback (or at ``path``) and runs the script in a thread for each connection.

    A script that ends leaves its connection open until :meth:`reset`, which the fixture calls
    after each test and which raises what a script raised. Eof and a broken pipe end a script
    quietly: the proxy went away.
    """

    def __init__(self, path: str = "") -> None:
        if path:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(path)
            self.address = f"unix://{path}"
        else:
            self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.listener.listen(512)
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.failures: list[BaseException] = []
        self._script: Script = serve_ok
        self._threads: list[threading.Thread] = []
        self._path = path
        self._closing = False
        self._lock = threading.Lock()  # a connection and its thread are registered together
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def script(self, script: Script) -> None:
        """What the connections from now on do."""
        self._script = script

    def answers(self, *answers: bytes) -> None:
        """The nth request since now, on whichever connection, gets the nth answer; then the last again."""
        lock = threading.Lock()
        left = list(answers)

        def run(conn: Connection) -> None:
            while True:
                conn.request()
                with lock:
                    data = left.pop(0) if len(left) > 1 else left[0]
                conn.send(data)

        self._script = run

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            if self._closing:
                sock.close()
                return
            sock.settimeout(20)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                conn = Connection(self, sock, len(self.connections))
                thread = threading.Thread(target=self._run, args=(conn, self._script), daemon=True)
                self.connections.append(conn)
                thread.start()
                self._threads.append(thread)

    def _run(self, conn: Connection, script: Script) -> None:
        try:
            script(conn)
        except (Eof, BrokenPipeError, ConnectionResetError):
            pass
        except BaseException as error:
            if not self._closing:
                self.failures.append(error)
            conn.sock.close()

    def wait_requests(self, count: int, timeout: float = 5.0) -> list[Request]:
        """The requests, once there are ``count`` heads of them."""
        deadline = time.monotonic() + timeout
        while len(self.requests) < count:
            assert time.monotonic() < deadline, (
                f"{len(self.requests)} of {count} requests came: {self.requests}"
            )
            time.sleep(0.005)
        return self.requests

    def join(self, timeout: float = 5.0) -> None:
        """Until every script has ended."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout)
            assert not thread.is_alive(), "a script still waits for the proxy"

    def reset(self, check: bool = True) -> None:
        """Close every connection, forget what was seen, and raise what a script raised."""
        with self._lock:
            connections, threads = self.connections, self._threads
            self.connections, self._threads = [], []
            self._script = serve_ok
        for conn in connections:
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(25)
        for conn in connections:
            conn.sock.close()
        failures = self.failures
        self.requests, self.failures = [], []
        if check and failures:
            raise AssertionError(f"the upstream's script failed: {failures[0]!r}") from failures[0]

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._acceptor.join(5)
        self.reset(check=False)
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def serve_ok(conn: Connection) -> None:
    """200 with the body ``ok`` to every request."""
    while True:
        conn.request()
        conn.send(OK)
