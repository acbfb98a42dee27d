"""Sizes at the edges of buffers, floods of small things, and peers that do not read (design section 3)."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest

from tests.support.client import Client, head
from tests.support.http1 import Eof
from tests.support.origin import Origin, pattern
from tests.support.proxy import Proxy, unless_sanitized
from tests.support.upstream import OK, Connection, Upstream, answer

CHUNKED = [("Transfer-Encoding", "chunked")]
EDGES = [4095, 4096, 16384, 32767, 60 * 1024 - 1, 60 * 1024]


def sized_head(size: int, start: str, *fields: str) -> bytes:
    """A head of exactly that many bytes."""
    lines = [start, *fields, "X-Fill: "]
    text = "\r\n".join(lines)
    return (text + "f" * (size - len(text) - 4) + "\r\n\r\n").encode()


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("step", [0, 1000])
def test_request_heads_of_every_size(client: Client, upstream: Upstream, size: int, step: int) -> None:
    """A head up to --max-head (60 KiB) passes whole, in one packet or in many, with its body behind it."""
    data = sized_head(size, "POST /x HTTP/1.1", "Host: a", "Content-Length: 5") + b"hello"
    client.send_in_steps(data, step or len(data))
    client.send(head("GET", "/next"))
    assert client.response().status == 200
    assert client.response().status == 200
    first, second = upstream.requests
    assert (first.body, second.target) == (b"hello", "/next")
    assert len(first.get("x-fill") or "") > size - 100


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("step", [0, 1000])
def test_answer_heads_of_every_size(client: Client, upstream: Upstream, size: int, step: int) -> None:
    """The same for answers."""
    data = sized_head(size, "HTTP/1.1 200 OK", "Content-Length: 5") + b"hello"
    cut = step or len(data)

    def script(conn: Connection) -> None:
        while True:
            conn.request()
            conn.send(*(data[at : at + cut] for at in range(0, len(data), cut)))

    upstream.script(script)
    for _ in range(2):
        response = client.request()
        assert response.body == b"hello"
        assert len(response.get("x-fill") or "") > size - 100


@pytest.mark.parametrize("size", [65535, 65536, 65537, 131072, 262144 + 1])
def test_bodies_at_the_edges_of_buffers(client: Client, upstream: Upstream, size: int) -> None:
    """Bodies around the sizes of buffers and reads, up and down, with the next request right behind."""
    body = pattern(size)

    def script(conn: Connection) -> None:
        while True:
            conn.send(answer(conn.request().body))

    upstream.script(script)
    data = head("POST", "/", [("Content-Length", str(size))]) + body
    for _ in range(3):
        sender = threading.Thread(target=client.send, args=(data + data,))
        sender.start()
        assert client.response("POST").body == body
        assert client.response("POST").body == body
        sender.join()


def test_chunks_of_one_byte(client: Client, upstream: Upstream) -> None:
    """30,000 chunks of one byte each way: slow senders cost time, not memory or correctness."""
    body = pattern(30_000)
    coded = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"

    def script(conn: Connection) -> None:
        assert conn.request().body == body
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded)

    upstream.script(script)
    sender = threading.Thread(target=client.send, args=(head("POST", "/", CHUNKED) + coded,))
    sender.start()
    assert client.response("POST").body == body
    sender.join()


def test_flood_of_pipelined_requests(echo: Proxy, origin: Origin) -> None:
    """3,000 pipelined requests from a client that reads as it sends: all answered, in order."""
    count = 3000
    with echo.client(timeout=30) as client:
        data = b"".join(head("GET", f"/ok?{n}") if n % 2 else head("HEAD", "/ok") for n in range(count))
        sender = threading.Thread(target=client.send, args=(data,))
        sender.start()
        for number in range(count):
            method = "GET" if number % 2 else "HEAD"
            response = client.response(method)
            assert response.status == 200
            if method == "GET":
                assert json.loads(response.body)["target"] == f"/ok?{number}"
        sender.join()


@unless_sanitized
def test_pipelining_client_that_does_not_read(echo: Proxy, origin: Origin) -> None:
    """Requests without end from a client that reads no answer: the proxy stops reading, stays small."""
    worker = echo.workers()[-1]
    pages = Path(f"/proc/{worker}/statm")
    with echo.client(receive_buffer=4096) as client:
        before = int(pages.read_text().split()[1])
        client.sock.settimeout(0.4)
        asked = origin.requests
        with pytest.raises(TimeoutError):
            while True:
                client.sock.send(head("GET", "/bytes/100000") * 100)
        assert origin.requests - asked < 2000
        assert (int(pages.read_text().split()[1]) - before) * 4096 < 8 << 20


def test_body_after_an_early_answer_is_not_a_request(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.3: what is left of a request's body is body, also when its answer came early."""
    inner = head("GET", "/smuggled") * 10

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(answer(b"early", "403 Forbidden"))
        with contextlib.suppress(TimeoutError):
            conn.wait_closed(0.5)

    upstream.script(script)
    client.send(head("POST", "/outer", [("Content-Length", str(len(inner)))]))
    assert client.response("POST").status == 403
    with contextlib.suppress(ConnectionError):
        client.send(inner + head("GET", "/after"))
        client.half_close()
        client.assert_cut()
    assert "/smuggled" not in [request.target for request in upstream.requests]


def test_reset_of_the_upstream_inside_an_upload(client: Client, upstream: Upstream) -> None:
    """An upstream that resets in the middle of a large upload: 503 or a close, and no repetition."""

    def script(conn: Connection) -> None:
        conn.head()
        conn.reader.take(100_000)
        conn.reset()

    upstream.script(script)
    data = head("POST", "/", [("Content-Length", str(8 << 20))]) + pattern(8 << 20)
    with contextlib.suppress(ConnectionError):
        client.send(data)
    try:
        assert client.response("POST").status == 503
    except (ConnectionError, Eof) as error:
        assert isinstance(error, ConnectionError) or error.seen == b""
    assert len(upstream.requests) == 1, "a request that was consumed in part is not repeated"


def test_interim_answer_and_then_the_end(client: Client, upstream: Upstream) -> None:
    """An upstream that says 103 and closes: the hint passes, the answer is the proxy's 503."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n")
        conn.close()

    upstream.script(script)
    response = client.request()
    assert response.status in (502, 503)
    assert [i.status for i in response.interim] in ([103], [])


def test_answers_in_many_small_packets(client: Client, upstream: Upstream) -> None:
    """An answer byte by byte is the same answer."""
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
    data += b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: u\r\n\r\n"

    def script(conn: Connection) -> None:
        while True:
            conn.request()
            conn.send(*(data[at : at + 1] for at in range(len(data))))

    upstream.script(script)
    for _ in range(3):
        response = client.request(headers=[("TE", "trailers"), ("Connection", "TE")])
        assert (response.body, response.trailers) == (b"abc0123456789", [(b"T", b"u")])
    assert len(upstream.connections) == 1


def test_exchange_outlives_its_pipelined_neighbour(client: Client, upstream: Upstream) -> None:
    """A bad request behind a slow good one does not take the good one's answer away."""

    def script(conn: Connection) -> None:
        while True:
            conn.request()
            time.sleep(0.1)
            conn.send(OK)

    upstream.script(script)
    client.send(head("GET", "/slow") + b"BAD\r\n\r\n")
    assert client.response().status == 200
    assert client.response().status == 400
    client.assert_closed()
