"""Both sides misbehave at once: random messages, splits, cuts and resets, tiny socket buffers, many
connections.

Every exchange has a number, and all about it follows from the number: what the client sends, what the
upstream answers, and what goes wrong. So each side can check each byte it got. What must hold whatever
happens: an answer that is whole is the one that the upstream gave to this very request, or one of the
proxy's own; a request that is whole at the upstream is the one that the client sent; nobody waits for
ever; the worker lives; nothing stays behind.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.support.client import Client, head
from tests.support.http1 import Eof, Malformed, Request, Response
from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream

SEED = 20
SECONDS = 4.0
CLIENTS = 24
STALL = 12.0  # every timeout of the proxy is far shorter
TIMEOUTS = {
    "header_timeout": 2,
    "body_timeout": 2,
    "write_timeout": 2,
    "upstream_read_timeout": 3,
    "tunnel_idle_timeout": 2,
}
SIZES = (0, 1, 100, 5000, 70_000, 200_000, 700_000)
ANSWERS = ("length",) * 6 + ("chunked",) * 5 + ("close", "close", "none", "upgrade", "upgrade")
FAULTS = ("",) * 12 + ("no head", "half head", "no http", "half body", "half body", "more", "reset", "late")
REFUSED = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n" + b"x" * 5000,
)


def pattern(text: str, size: int) -> bytes:
    """``size`` bytes that no other exchange has."""
    return (text.encode() * (size // len(text) + 1))[:size]


def in_chunks(r: random.Random, data: bytes, trailer: bytes = b"") -> bytes:
    parts = []
    while data:
        size = r.choice((1, 17, 4000, 100_000))
        extension = r.choice((b"", b"", b";a=b", b';q="x\\"y"'))
        parts.append(b"%x%s\r\n%s\r\n" % (len(data[:size]), extension, data[:size]))
        data = data[size:]
    return b"".join(parts) + b"0\r\n" + trailer + b"\r\n"


class Case:
    """All about the exchange of one number."""

    def __init__(self, number: int, unix: bool) -> None:
        r = self.random = random.Random(number)
        self.number = number
        self.answer = r.choice(ANSWERS)
        self.fault = r.choice(FAULTS)
        self.method = "GET" if self.answer == "upgrade" else r.choice(("GET", "GET", "HEAD", "POST", "PUT"))
        self.minor = 0 if self.answer != "upgrade" and r.random() < 0.1 else 1
        has_body = self.method in ("POST", "PUT")
        self.sent = pattern(f"<up {number}>", r.choice(SIZES) if has_body else 0)
        self.body = pattern(f"<down {number}>", r.choice(SIZES))
        self.status = r.choice((204, 304)) if self.answer == "none" else 200
        self.early = r.random() < 0.15  # answers before it reads the body
        if self.fault == "half body" and (
            len(self.body) < 1000
            or self.method == "HEAD"
            or self.answer == "none"
            or (
                unix and (self.answer == "close" or self.minor == 0)
            )  # not to be told: no RST on Unix sockets
        ):
            self.fault = ""
        if self.fault == "more" and self.answer in ("upgrade", "close"):
            self.fault = ""  # there it would be part of the answer
        self.interim = r.choice((0, 0, 0, 1, 3))
        fields = [("X-Number", str(number))]
        if self.answer == "upgrade":
            fields += [("Connection", "Upgrade"), ("Upgrade", "x")]
        coded = self.sent
        if has_body and self.minor and r.random() < 0.5 and len(self.sent) < 100_000:
            fields.append(("Transfer-Encoding", "chunked"))
            coded = in_chunks(r, self.sent)
        elif has_body:
            fields.append(("Content-Length", str(len(self.sent))))
        self.request = head(self.method, f"/{number}", fields, minor=self.minor) + coded

    @property
    def last(self) -> bool:
        """Nothing can follow on the client's connection."""
        return self.minor == 0 or self.answer == "upgrade"

    def response(self) -> bytes:
        """As the upstream sends it when nothing goes wrong."""
        parts = [b"HTTP/1.1 103 Early\r\nLink: <x>\r\n\r\n"] * self.interim
        start = f"HTTP/1.1 {self.status} Fine\r\nX-Number: {self.number}\r\n".encode()
        if self.answer == "upgrade":
            start = f"HTTP/1.1 101 Switch\r\nX-Number: {self.number}\r\nConnection: Upgrade\r\n".encode()
            parts.append(start + b"Upgrade: x\r\n\r\n" + self.body)
        elif self.answer == "length":
            parts.append(start + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body)
        elif self.answer == "chunked":
            coded = in_chunks(self.random, self.body[:100_000], b"X-End: 1\r\n")
            parts.append(start + b"Transfer-Encoding: chunked\r\n\r\n" + coded)
        elif self.answer == "close":
            parts.append(start + b"\r\n" + self.body)
        else:
            parts.append(start + b"\r\n")
        if self.method == "HEAD":
            parts[-1] = parts[-1][: parts[-1].index(b"\r\n\r\n") + 4]
        return b"".join(parts)

    def assert_answer(self, response: Response) -> None:
        """It is whole: then it is this one's."""
        if response.get("X-Fastproxy-Flags") is not None:
            return
        assert self.fault in ("", "more", "late") or self.answer == "upgrade", (
            self.number,
            self.fault,
            response,
        )
        assert response.get("X-Number") == str(self.number), (self.number, response.fields)
        if self.answer == "upgrade":
            assert response.status == 101
            return
        assert response.status == self.status
        expected = self.body[:100_000] if self.answer == "chunked" else self.body
        if self.method == "HEAD" or self.answer == "none":
            expected = b""
        assert response.body == expected, (self.number, self.answer, len(response.body), len(expected))


class Hammer:
    """One run: an upstream and its clients."""

    def __init__(self, seed: int, unix: bool) -> None:
        self.seed = seed
        self.unix = unix
        self.deadline = 0.0
        self.whole = 0  # answers that were checked
        self.failures: list[str] = []

    def serve(self, conn: Connection) -> None:
        """The upstream's script."""
        r = random.Random(conn.number)
        if conn.sock.family == socket.AF_INET and r.random() < 0.5:
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        while True:
            request = conn.head()
            case = Case(int(request.get("X-Number") or 0), self.unix)
            if not case.early:
                self._read_body(conn, case, request)
            data = case.response()
            if case.fault == "reset":
                return conn.reset()
            if case.fault == "no head":
                return conn.close()
            if case.fault == "no http":
                conn.send(b"\0\r\n\r\n")
                return conn.close()
            if case.fault == "late":
                time.sleep(r.random() * 0.05)
            body_at = data.rindex(b"\r\n\r\n" if case.answer == "none" else b"X-Number")
            if case.fault == "half head":
                conn.send(data[: body_at + 3])
                return conn.close()
            if case.fault == "half body":
                self._send(r, conn, data[: r.randrange(body_at + 60, len(data) - 6)])
                if case.answer in ("close", "upgrade") or r.random() < 0.5:
                    return conn.reset()
                return conn.close()
            self._send(r, conn, data + (b"\0more" if case.fault == "more" else b""))
            if case.answer == "upgrade":
                conn.half_close()
                if case.fault == "":
                    got = conn.reader.rest()
                    if not pattern(f"<in {case.number}>", 9999).startswith(got):
                        self.failures.append(f"{case.number}: tunnel brought {got[:100]!r}")
                return conn.close()
            if case.answer == "close":
                return conn.close()
            if case.early:
                self._read_body(conn, case, request)

    def _read_body(self, conn: Connection, case: Case, request: Request) -> None:
        body = conn.reader.body_of(request).body
        if body != case.sent:
            self.failures.append(f"{case.number}: request of {len(body)} bytes, not {len(case.sent)}")

    def _send(self, r: random.Random, peer: Connection | Client, data: bytes) -> None:
        """In pieces, mostly few."""
        for _ in range(r.choice((0, 0, 1, 3, 20))):
            if not data:
                return
            size = r.choice((1, 2, 100, 5000, r.randrange(len(data)) + 1))
            peer.send(data[:size])
            data = data[size:]
            time.sleep(r.choice((0, 0, 0.001)))
        peer.send(data)

    def client(self, proxy: Proxy, number: int) -> None:
        """One after the other until the time is over."""
        turn = 0
        while time.monotonic() < self.deadline and not self.failures:
            turn += 1
            base = ((self.seed * 100 + number) * 10_000 + turn) * 10
            try:
                self._connection(proxy, base)
            except (ConnectionError, Eof, BrokenPipeError):
                continue
            except (AssertionError, Malformed, TimeoutError) as error:
                self.failures.append(f"connection {base}: {type(error).__name__} {error}"[:1000])

    def _connection(self, proxy: Proxy, base: int) -> None:
        r = random.Random(base)
        cases: list[Case] = []
        for number in range(base, base + r.choice((1, 2, 5))):
            cases.append(Case(number, self.unix))
            if cases[-1].last:
                break
        refused = r.choice(REFUSED) if r.random() < 0.15 and not cases[-1].last else b""
        data = b"".join(case.request for case in cases) + refused
        if cases[-1].answer == "upgrade" and r.random() < 0.3:
            data += pattern(f"<in {cases[-1].number}>", 5000)
        end = r.choice(("", "", "", "fin", "rst", "close"))
        cut = r.randrange(len(data) + 1) if end and r.random() < 0.6 else len(data)
        with contextlib.closing(Client(proxy.address, STALL, r.choice((0, 0, 4096)))) as client:
            told: list[OSError] = []
            sender = threading.Thread(target=self._say, args=(client, data[:cut], end, told), daemon=True)
            sender.start()
            try:
                for case in cases:
                    if r.random() < 0.1:
                        time.sleep(r.random() * 0.1)
                    response = client.response(case.method)
                    if response.framing == "close":
                        sender.join(STALL)
                    # what only the connection ends may have been ended by us, or by a cut that is no RST, or
                    # by one that the kernel told our send: it tells only once
                    if response.framing != "close" or not (self.unix or told or end in ("rst", "close")):
                        case.assert_answer(response)
                        self.whole += 1
                    if response.status == 101:
                        got = client.reader.rest()
                        assert case.body.startswith(got), (case.number, got[:100])
                if refused:
                    response = client.response()
                    assert response.get("X-Fastproxy-Flags"), (base, refused, response)
            finally:
                with contextlib.suppress(OSError):
                    client.sock.shutdown(socket.SHUT_RDWR)
                sender.join()

    def _say(self, client: Client, data: bytes, end: str, told: list[OSError]) -> None:
        try:
            self._send(random.Random(len(data)), client, data)
            if end == "fin":
                client.half_close()
            elif end:
                time.sleep(0.01)
                if end == "rst":
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            told.append(error)


def hammer(seed: int, seconds: float, folder: Path, unix: bool) -> Hammer:
    """Run it; raises AssertionError with the first failure."""
    run = Hammer(seed, unix)
    listen = f"unix://{folder}/down" if unix else None
    with Upstream(f"{folder}/up" if unix else "") as upstream:
        if not unix:
            upstream.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # inherited
        upstream.script(run.serve)
        with Proxy(to=upstream.address, listen=listen, **TIMEOUTS) as proxy:
            workers = proxy.workers()
            run.deadline = time.monotonic() + seconds
            threads = [
                threading.Thread(target=run.client, args=(proxy, n), daemon=True) for n in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(seconds + 3 * STALL)
            stuck = [thread for thread in threads if thread.is_alive()]
            assert not run.failures and not stuck, (run.failures, stuck, proxy.stderr)
            assert proxy.workers() == workers, proxy.stderr
            upstream.reset()
            proxy.assert_counts_at_zero(10)
    return run


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_nobody_gets_another_ones_answer(tmp_path: Path, unix: bool) -> None:
    run = hammer(SEED, SECONDS, tmp_path, unix)
    assert run.whole > 100, "too few answers were whole to say anything"
