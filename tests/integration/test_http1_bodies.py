"""Bodies and their framing in both directions (RFC 9112 §6 and §7, RFC 9110 §6.4 and §6.5)."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from tests.support.client import Client, head
from tests.support.origin import Origin, digest, pattern
from tests.support.proxy import Proxy, unless_sanitized
from tests.support.upstream import OK, Connection, Upstream, answer

CHUNKED = [("Transfer-Encoding", "chunked")]


def chunks(data: bytes, size: int) -> bytes:
    """``data`` in chunks of ``size``, ended."""
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_chunked_request(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §7.1: a chunked request body arrives whole, framed as chunked or counted."""
    client.send(head("POST", "/", CHUNKED) + b"5\r\nhello\r\n1;ext=1\r\n \r\n5\r\nworld\r\n0\r\n\r\n")
    assert client.response().status == 200
    request = upstream.requests[0]
    assert request.body == b"hello world"
    assert request.framing == "chunked"


def test_chunked_request_streams(client: Client, upstream: Upstream) -> None:
    """Design section 3: what can be forwarded is not kept: each chunk arrives before the next is sent."""
    seen = threading.Semaphore(0)

    def script(conn: Connection) -> None:
        conn.head()
        for letter in b"abc":
            assert conn.reader.take(6) == b"1\r\n%c\r\n" % letter
            seen.release()
        assert conn.reader.take(5) == b"0\r\n\r\n"
        conn.send(OK)

    upstream.script(script)
    client.send(head("POST", "/", CHUNKED))
    for letter in b"abc":
        client.send(b"1\r\n%c\r\n" % letter)
        assert seen.acquire(timeout=3), "the chunk was held back"
    client.send(b"0\r\n\r\n")
    assert client.response().status == 200


def test_chunked_answer_streams(client: Client, upstream: Upstream) -> None:
    """Design section 3: an answer is forwarded as it comes."""
    go = threading.Semaphore(0)

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for letter in b"abc":
            conn.send(b"1\r\n%c\r\n" % letter)
            assert go.acquire(timeout=3), "the client did not get the chunk"
        conn.send(b"0\r\n\r\n")

    upstream.script(script)
    client.send(head("GET", "/"))
    assert client.reader.response_head().get("transfer-encoding") == "chunked"
    for letter in b"abc":
        assert client.reader.take(6) == b"1\r\n%c\r\n" % letter
        go.release()
    assert client.reader.take(5) == b"0\r\n\r\n"


def test_request_trailers(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §6.5: trailers of a request are passed on as trailers, never merged into the head."""
    client.send(
        head("POST", "/", [*CHUNKED, ("Trailer", "X-Sum")]) + b"2\r\nhi\r\n0\r\nX-Sum: 7\r\nX-B: c\r\n\r\n"
    )
    assert client.response().status == 200
    request = upstream.requests[0]
    assert request.trailers == [(b"X-Sum", b"7"), (b"X-B", b"c")]
    assert request.get("x-sum") is None


def test_answer_trailers(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §6.5: trailers of an answer are passed on to a client that takes them."""
    upstream.answers(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
        b"2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n"
    )
    response = client.request(headers=[("TE", "trailers"), ("Connection", "TE")])
    assert (response.body, response.trailers) == (b"hi", [(b"X-Sum", b"7")])
    assert client.request(headers=[("TE", "trailers"), ("Connection", "TE")]).status == 200


@pytest.mark.parametrize("name", ["Content-Length", "Transfer-Encoding", "Host"])
def test_framing_trailer_in_a_request_is_refused(client: Client, upstream: Upstream, name: str) -> None:
    """RFC 9110 §6.5.1: fields that frame or route a message may not be trailers."""
    client.send(head("POST", "/", CHUNKED) + f"0\r\n{name}: 5\r\n\r\n".encode())
    assert client.response().status == 400
    client.assert_closed()
    assert all(r.framing == "none" for r in upstream.requests), "no request was completed upstream"


def test_head_answer_has_no_body(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §9.3.2: an answer to HEAD announces a length and has no body; the next one follows."""
    upstream.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", OK)
    response = client.request("HEAD")
    assert (response.status, response.get("content-length"), response.body) == (200, "1000", b"")
    assert client.request().body == b"ok"
    assert len(upstream.connections) == 1


def test_head_answer_with_chunked(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §6.3: Transfer-Encoding in an answer to HEAD announces only."""
    upstream.answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", OK)
    assert client.request("HEAD").status == 200
    assert client.request().body == b"ok"
    assert len(upstream.connections) == 1


@pytest.mark.parametrize(
    "start",
    [
        b"204 No Content\r\n",
        b"304 Not Modified\r\nETag: x\r\n",
        b"304 Not Modified\r\nContent-Length: 55\r\n",
    ],
)
def test_status_without_a_body(client: Client, upstream: Upstream, start: bytes) -> None:
    """RFC 9112 §6.3: 204 and 304 have no body whatever their fields announce."""
    upstream.answers(b"HTTP/1.1 " + start + b"\r\n", OK)
    response = client.request()
    assert response.status == int(start[:3])
    assert client.request().body == b"ok"
    assert len(upstream.connections) == 1


def test_204_with_chunked_is_not_passed_on(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §6.1: no Transfer-Encoding is ever sent in a 204; this client's reader is strict."""
    upstream.answers(b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert client.request().status in (204, 502)


def test_empty_bodies(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §6.3: Content-Length: 0 and an empty chunked body are bodies of no bytes."""
    upstream.answers(answer(b""), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", OK)
    assert client.request("POST", "/", body=b"").body == b""
    client.send(head("POST", "/", CHUNKED) + b"0\r\n\r\n")
    assert client.response().body == b""
    assert client.request().body == b"ok"
    assert upstream.requests[0].all("content-length") == [b"0"]


def test_get_with_a_body(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §6: the framing says whether there is a body, not the method."""
    assert client.request("GET", "/", body=b"abc").status == 200
    assert client.request("DELETE", "/", body=b"xy").status == 200
    assert [r.body for r in upstream.requests] == [b"abc", b"xy"]


def test_chunk_sizes(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §7.1: upper case, leading zeros and extensions are all chunk sizes."""
    upstream.answers(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'000A;a=b;c="d e"\r\n0123456789\r\nb\r\n0123456789a\r\n0000\r\n\r\n'
    )
    assert client.request().body == b"01234567890123456789a"


@pytest.mark.parametrize("size", [1, 1000, 65536, 1 << 20, 16 << 20])
@pytest.mark.parametrize("kind", ["bytes", "chunked"])
def test_answers_byte_exact(echo: Proxy, origin: Origin, size: int, kind: str) -> None:
    """Bodies pass through untouched, counted and chunked, up to 16 MiB."""
    with echo.client() as client:
        response = client.request(target=f"/{kind}/{size}")
        assert digest(response.body) == digest(pattern(size))
        assert response.framing == {"bytes": "length", "chunked": "chunked"}[kind]


@pytest.mark.parametrize("size", [1, 1000, 65536, 1 << 20, 16 << 20])
@pytest.mark.parametrize("chunk", [0, 4096, 100003])
def test_uploads_byte_exact(echo: Proxy, origin: Origin, size: int, chunk: int) -> None:
    """Request bodies pass through untouched, counted (chunk 0) and chunked, up to 16 MiB."""
    data = pattern(size)
    with echo.client() as client:
        if chunk:
            client.send(head("POST", "/hash", CHUNKED) + chunks(data, chunk))
        else:
            client.send(head("POST", "/hash", [("Content-Length", str(size))]) + data)
        told = json.loads(client.response("POST").body)
    assert told == {"length": size, "sha256": digest(data)}


def test_large_bodies_at_the_same_time(echo: Proxy, origin: Origin) -> None:
    """Eight clients move 1 MiB up and 1 MiB down at once, and each gets its own bytes."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            data = pattern(1 << 20)[number:]
            with echo.client() as client:
                for _ in range(3):
                    told = json.loads(client.request("POST", "/hash", body=data).body)
                    assert told["sha256"] == digest(data)
                    assert (
                        client.request(target=f"/chunked/{(1 << 20) - number}").body
                        == pattern(1 << 20)[: (1 << 20) - number]
                    )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@unless_sanitized
def test_slow_reader_of_a_large_answer(echo: Proxy, origin: Origin) -> None:
    """Design section 3: when the client is slow the proxy stops reading: 64 MiB never pile up in it."""
    size = 64 << 20
    worker = echo.workers()[-1]
    with echo.client(receive_buffer=65536) as client:
        before = resident(worker)
        client.send(head("GET", f"/bytes/{size}"))
        response = client.reader.response_head()
        assert response.get("content-length") == str(size)
        got = len(client.reader.buffer)
        highest = 0
        for _ in range(20):
            time.sleep(0.02)
            highest = max(highest, resident(worker))
            got += len(client.sock.recv(65536))
        assert highest - before < 8 << 20, f"grew by {highest - before} bytes"
        while got < size:
            got += len(client.sock.recv(1 << 20))
        assert got == size


@unless_sanitized
def test_slow_upstream_of_a_large_upload(proxy: Proxy, upstream: Upstream) -> None:
    """Design section 3: when the upstream does not read, the client's sends halt; nothing piles up."""
    go = threading.Event()
    size = 64 << 20

    def script(conn: Connection) -> None:
        conn.head()
        assert go.wait(10)
        for _ in range(size >> 20):
            conn.reader.take(1 << 20)
        conn.send(OK)

    upstream.script(script)
    worker = proxy.workers()[-1]
    with proxy.client() as client:
        before = resident(worker)
        client.send(head("POST", "/", [("Content-Length", str(size))]))
        data = pattern(1 << 20)
        sent = 0
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while sent < size:
                sent += client.sock.send(data)
        assert sent < 48 << 20, "the client could send all of it to an upstream that reads nothing"
        assert resident(worker) - before < 8 << 20
        go.set()
        client.sock.settimeout(20)
        while sent < size:
            sent += client.sock.send(data[: size - sent])
        assert client.response("POST").status == 200
