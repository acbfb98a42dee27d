"""Upstreams that misbehave: a correct answer or a visible truncation, never a spliced response."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from tests.support.client import Client, head
from tests.support.origin import pattern
from tests.support.proxy import Proxy, free_port
from tests.support.upstream import OK, Connection, Upstream, answer

MALFORMED: dict[str, bytes] = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "two-digit status": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "four-digit status": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
    "status 600": b"HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "bare CR": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok",
    "NUL": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok",
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "no colon": b"HTTP/1.1 200 OK\r\nContent-Length 2\r\n\r\nok",
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "overflowing length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "control in the reason": b"HTTP/1.1 200 O\x01K\r\nContent-Length: 2\r\n\r\nok",
    "huge head": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 300 + b"\r\n",
}


def assert_flag(client: Client, status: int, flag: str) -> None:
    """An error of the proxy's own, behind which the client's connection still works or is closed."""
    response = client.response()
    assert (response.status, response.get("x-fastproxy-flags")) == (status, flag)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_answer(client: Client, upstream: Upstream, name: str) -> None:
    """Design section 4: upstream answers get the same care: 502, never passed on, connection not reused."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(MALFORMED[name])
        conn.wait_closed()

    upstream.script(script)
    client.send(head("GET", "/"))
    assert_flag(client, 502, "UPE")
    upstream.join()


def test_status_line_without_its_last_space(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §4: the space behind the status is often left out; it is sent on as it should be."""
    upstream.answers(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok")
    assert client.request().raw_head.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("name", ["both lengths", "bare LF", "folded", "two lengths"])
def test_malformed_answer_byte_by_byte(client: Client, upstream: Upstream, name: str) -> None:
    """Split points do not matter there either."""

    def script(conn: Connection) -> None:
        conn.request()
        data = MALFORMED[name]
        conn.send(*(data[at : at + 1] for at in range(len(data))))
        conn.wait_closed()

    upstream.script(script)
    client.send(head("GET", "/"))
    assert_flag(client, 502, "UPE")


def test_reset_before_the_answer(client: Client, upstream: Upstream) -> None:
    """An upstream that resets a fresh connection once it has read the request: 503 UR."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.reset()

    upstream.script(script)
    client.send(head("GET", "/"))
    assert_flag(client, 503, "UR")
    assert len(upstream.requests) == 1, "a request that was read on a fresh connection is not repeated"


def test_close_before_the_answer(client: Client, upstream: Upstream) -> None:
    """The same with a clean close: 503 UC."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.close()

    upstream.script(script)
    client.send(head("GET", "/"))
    assert_flag(client, 503, "UC")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_end_inside_the_head(client: Client, upstream: Upstream, how: str) -> None:
    """Half a head and the end: an error of the proxy, nothing of that head."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nX-Secret: 1\r\n")
        getattr(conn, how)()

    upstream.script(script)
    client.send(head("GET", "/"))
    response = client.response()
    assert response.status in (502, 503)
    assert response.get("x-secret") is None


@pytest.mark.parametrize("how", ["close", "reset"])
def test_counted_body_cut_short(client: Client, upstream: Upstream, how: str) -> None:
    """RFC 9112 §8: a body shorter than its Content-Length stays visibly short: the client is closed."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        threading.Event().wait(0.05)
        getattr(conn, how)()

    upstream.script(script)
    client.send(head("GET", "/") + head("GET", "/next"))
    assert client.assert_cut().endswith(b"\r\n\r\nhello")
    assert [r.target for r in upstream.requests] == ["/"]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    "part", [b"5\r\nhello\r\n", b"5\r\nhel", b"5\r\nhello\r\n0\r\n", b"5\r\nhello\r\n0\r\nX: 1\r\n"]
)
def test_chunked_body_cut_short(client: Client, upstream: Upstream, part: bytes, how: str) -> None:
    """RFC 9112 §8: a chunked body without its last chunk does not get one from the proxy."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + part)
        threading.Event().wait(0.05)
        getattr(conn, how)()

    upstream.script(script)
    client.send(head("GET", "/"))
    got = client.assert_cut()
    assert b"hel" in got
    assert not got.endswith(b"0\r\n\r\n")
    assert not got.endswith(b"1\r\n\r\n"), "the trailer section was ended by the proxy"


def test_chunked_cut_short_to_http10(client: Client, upstream: Upstream) -> None:
    """To an HTTP/1.0 client, whose bodies end with the close, only a reset makes a truncation visible."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        threading.Event().wait(0.05)
        conn.close()

    upstream.script(script)
    client.send(head("GET", "/", minor=0))
    with pytest.raises(ConnectionResetError):
        client.response()


@pytest.mark.parametrize("junk", [b"3\r\nabcd\r\n0\r\n\r\n", b"x\r\n", b"3\nabc\r\n0\r\n\r\n"])
def test_malformed_chunk_in_an_answer(client: Client, upstream: Upstream, junk: bytes) -> None:
    """RFC 9112 §7.1: a malformed chunk ends both connections; what came before stays visibly short."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", junk, pause=0.05)
        conn.wait_closed()

    upstream.script(script)
    client.send(head("GET", "/"))
    got = client.assert_cut()
    assert b"hello" in got
    assert not got.endswith(b"0\r\n\r\n")
    upstream.join()


def test_too_much_is_never_delivered(client: Client, upstream: Upstream) -> None:
    """Bytes behind a complete answer are nobody's: dropped, and that connection is not used again."""

    def script(conn: Connection) -> None:
        request = conn.request()
        evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        conn.send(answer(request.target.encode()) + evil)
        conn.wait_closed()

    upstream.script(script)
    assert [client.request(target=f"/{n}").body for n in range(4)] == [b"/0", b"/1", b"/2", b"/3"]
    assert len(upstream.connections) == 4
    upstream.join()


def test_too_much_a_little_later(client: Client, upstream: Upstream) -> None:
    """The same when they come while the connection is idle in the pool."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(OK, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", pause=0.05)
        conn.wait_closed()

    upstream.script(script)
    assert client.request().body == b"ok"
    upstream.join()
    assert client.request().body == b"ok"
    assert len(upstream.connections) == 2


def test_too_much_in_an_answer_to_head(client: Client, upstream: Upstream) -> None:
    """A body sent with an answer to HEAD is not the next answer."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        )

    upstream.script(script)
    assert client.request("HEAD").body == b""
    upstream.script(lambda conn: (conn.request(), conn.send(OK))[0])
    assert client.request().body == b"ok"


@pytest.mark.parametrize("status", ["413 Content Too Large", "401 Unauthorized", "200 OK"])
@pytest.mark.parametrize("end", ["close", "keep"])
def test_answer_before_the_request_is_read(client: Client, upstream: Upstream, status: str, end: str) -> None:
    """RFC 9112 §9.5: an answer while the body is still being sent reaches the client."""
    size = 4 << 20

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(answer(b"early", status, *(["Connection: close"] if end == "close" else [])))
        if end == "close":
            conn.half_close()
        assert len(conn.wait_closed()) <= size, "more than the body came"

    upstream.script(script)
    client.send(head("POST", "/", [("Content-Length", str(size))]))
    response = client.response("POST")
    assert (response.status, response.body) == (int(status[:3]), b"early")
    data = pattern(size)
    with contextlib.suppress(ConnectionError):
        client.send(data)
    client.close()
    upstream.join()


def test_reset_while_the_body_is_sent(client: Client, upstream: Upstream) -> None:
    """An upstream that answers early and resets: the answer is what the client gets, not the reset."""

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(answer(b"early", "413 Content Too Large", "Connection: close"))
        threading.Event().wait(0.1)
        conn.reset()

    upstream.script(script)
    client.send(head("POST", "/", [("Content-Length", "1000000")]) + b"x" * 1000)
    response = client.response("POST")
    assert (response.status, response.body) == (413, b"early")


def test_client_leaves_while_waiting(proxy: Proxy, client: Client, upstream: Upstream) -> None:
    """A client that resets before its answer: the upstream connection is closed, not pooled."""
    upstream.script(lambda conn: conn.request() and conn.wait_closed())
    client.send(head("GET", "/"))
    upstream.wait_requests(1)
    client.reset()
    upstream.join()
    proxy.wait_gauge("exchanges", 0)
    assert proxy.gauges()["upstream_idle"] == 0


@pytest.mark.parametrize("framing", [("Content-Length", "100"), ("Transfer-Encoding", "chunked")])
def test_client_leaves_inside_its_body(client: Client, upstream: Upstream, framing: tuple[str, str]) -> None:
    """RFC 9112 §8: an incomplete request body is cut for the upstream too, never completed."""
    client.send(head("POST", "/", [framing]) + b"5\r\nhello\r\n")
    upstream.wait_requests(1)
    client.close()
    upstream.join()
    assert [r.framing for r in upstream.requests] == ["none"]


def test_client_leaves_inside_its_answer(proxy: Proxy, client: Client, upstream: Upstream) -> None:
    """A client that goes in the middle of an answer takes its upstream connection with it."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            conn.send(b"x" * 65536)

    upstream.script(script)
    client.send(head("GET", "/"))
    assert client.reader.response_head().status == 200
    client.reset()
    upstream.join()
    proxy.wait_gauge("upstream_connections", 0)


def test_connection_refused() -> None:
    """Nobody listens: 503 UF, JSON for who wants it."""
    with Proxy(to=f"127.0.0.1:{free_port()}") as proxy, proxy.client() as client:
        response = client.request(headers=[("Accept", "application/json")])
        assert (response.status, response.get("x-fastproxy-flags")) == (503, "UF")
        assert isinstance(json.loads(response.body), dict)
        assert client.request().status == 503, "the client's connection is still good"
        client.close()
        proxy.assert_counts_at_zero()


def test_connect_timeout() -> None:
    """A listener whose queue is full does not answer: 503 UF after --connect-timeout."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            waiting.append(sock)
        with Proxy(to=f"127.0.0.1:{port}", connect_timeout=0.3) as proxy, proxy.client() as client:
            response = client.request()
            assert (response.status, response.get("x-fastproxy-flags")) == (503, "UF")
        for sock in waiting:
            sock.close()
