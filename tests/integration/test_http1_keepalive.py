"""Persistence, pipelining and HTTP/1.0, on both sides (RFC 9112 §9, design section 4)."""

from __future__ import annotations

import threading

import pytest

from tests.support.client import Client, head
from tests.support.proxy import Proxy
from tests.support.upstream import OK, Connection, Upstream, answer

GET = head("GET", "/")


def test_downstream_connection_is_kept(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.3: an HTTP/1.1 connection persists over many exchanges."""
    for number in range(20):
        response = client.request(target=f"/{number}")
        assert (response.status, response.body, response.minor) == (200, b"ok", 1)
        assert "close" not in response.tokens("connection")
    assert [r.target for r in upstream.requests] == [f"/{n}" for n in range(20)]


def test_upstream_connection_is_reused(proxy: Proxy, upstream: Upstream) -> None:
    """Design section 3: upstream connections are pooled; the next client's request takes the idle one."""
    for _ in range(5):
        with proxy.client() as client:
            assert client.request().status == 200
    assert len(upstream.requests) == 5
    assert len(upstream.connections) == 1


def test_upstream_close_is_not_reused(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.6: after `Connection: close` from upstream no request is sent on that connection."""
    upstream.answers(answer(b"ok", "200 OK", "Connection: close"))
    for _ in range(3):
        response = client.request()
        assert response.status == 200
        assert response.get("connection") is None, "the upstream's Connection is hop-by-hop"
    assert len(upstream.connections) == 3


def test_client_close_is_honoured(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.6: a request with `Connection: close` is answered with it, and then the stream ends."""
    response = client.request(headers=[("Connection", "close")])
    assert response.status == 200
    assert response.tokens("connection") == ["close"]
    client.assert_closed()
    assert upstream.requests[0].tokens("connection") in ([], ["keep-alive"])


def test_nothing_is_served_after_close(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.6: requests behind one with `Connection: close` are not processed."""
    client.send(head("GET", "/a", [("Connection", "close")]) + head("GET", "/b"))
    assert client.response().status == 200
    client.assert_cut()
    assert [r.target for r in upstream.requests] == ["/a"]


def test_client_closing_between_requests_is_no_error(proxy: Proxy, upstream: Upstream) -> None:
    """RFC 9112 §9.6: a client may close an idle connection; the pooled upstream connection stays."""
    with proxy.client() as client:
        client.request()
    proxy.wait_gauge("downstream_connections", 0)
    assert proxy.gauges()["upstream_idle"] == 1
    assert proxy.gauges()["exchanges"] == 0


@pytest.mark.parametrize("count", [2, 10, 64])
def test_pipelined_requests_are_answered_in_order(client: Client, upstream: Upstream, count: int) -> None:
    """RFC 9112 §9.3.2: responses come in the order in which the requests came."""

    def script(conn: Connection) -> None:
        while True:
            request = conn.request()
            conn.send(answer(request.target.encode()))

    upstream.script(script)
    client.send(b"".join(head("GET", f"/{n}") for n in range(count)))
    assert [client.response().body for _ in range(count)] == [f"/{n}".encode() for n in range(count)]


def test_pipelined_behind_a_slow_one(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.3.2: a slow first answer holds the later ones back, and none overtakes it."""
    let_go = threading.Event()

    def script(conn: Connection) -> None:
        while True:
            request = conn.request()
            if request.target == "/slow":
                assert let_go.wait(5)
            conn.send(answer(request.target.encode()))

    upstream.script(script)
    client.send(head("GET", "/slow") + b"".join(head("GET", f"/{n}") for n in range(12)))
    upstream.wait_requests(1)
    client.assert_open(0.1)
    let_go.set()
    assert [client.response().body for _ in range(13)] == [b"/slow", *(f"/{n}".encode() for n in range(12))]


def test_pipelined_bodies(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.3.2: bodies of pipelined requests end where their framing says, chunked and counted."""

    def script(conn: Connection) -> None:
        while True:
            request = conn.request()
            conn.send(answer(request.target.encode() + b"=" + request.body))

    upstream.script(script)
    chunked = head("POST", "/b", [("Transfer-Encoding", "chunked")]) + b"3\r\nxyz\r\n0\r\n\r\n"
    counted = head("POST", "/a", [("Content-Length", "3")]) + b"abc"
    client.send(counted + chunked + GET + counted + chunked)
    bodies = [client.response().body for _ in range(5)]
    assert bodies == [b"/a=abc", b"/b=xyz", b"/=", b"/a=abc", b"/b=xyz"]


def test_pipelined_byte_by_byte(client: Client, upstream: Upstream) -> None:
    """A TCP stream has no packets: requests that come byte by byte are the same requests."""
    data = head("POST", "/a", [("Transfer-Encoding", "chunked")]) + b"3\r\nxyz\r\n0\r\n\r\n" + GET
    client.send_in_steps(data)
    assert client.response().status == 200
    assert client.response().status == 200
    assert [(r.target, r.body) for r in upstream.requests] == [("/a", b"xyz"), ("/", b"")]


def test_empty_line_before_a_request_is_ignored(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §2.2: a server ignores at least one empty line (CRLF) before the request line."""
    client.send(b"\r\n" + GET)
    assert client.response().status == 200
    client.send(b"\r\n" + GET)
    assert client.response().status == 200


def test_half_closed_client_still_gets_its_answer(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.6: a client that is done sending may half-close; its answer is still delivered."""
    client.send(GET)
    client.half_close()
    assert client.response().body == b"ok"
    client.assert_closed()


def test_half_closed_client_with_pipelined_requests(client: Client, upstream: Upstream) -> None:
    """All requests that were complete before the half close are answered."""
    client.send(GET * 5)
    client.half_close()
    assert [client.response().status for _ in range(5)] == [200] * 5
    client.assert_closed()


def test_http10_client_is_closed(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.3: an HTTP/1.0 request without keep-alive ends the connection."""
    client.send(head("GET", "/", minor=0))
    response = client.response()
    assert (response.status, response.body) == (200, b"ok")
    client.assert_closed()


def test_http10_client_with_keep_alive(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.3: HTTP/1.0 with `Connection: keep-alive` persists, and the answer says so."""
    for _ in range(3):
        client.send(head("GET", "/", [("Connection", "keep-alive")], minor=0))
        response = client.response()
        assert response.status == 200
        assert "keep-alive" in response.tokens("connection")
    assert len(upstream.requests) == 3


def test_http10_request_is_upgraded_upstream(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §6.2: the proxy sends its own version upstream; a missing Host gets a value."""
    client.send(head("GET", "/", minor=0, host=None))
    assert client.response().status == 200
    request = upstream.requests[0]
    assert request.minor == 1
    assert len(request.all("host")) == 1


def test_chunked_answer_to_http10_client(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §6.1: no chunks to an HTTP/1.0 client: the body is decoded and ends at the close."""
    upstream.answers(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nx: y\r\n\r\n"
    )
    client.send(head("GET", "/", [("Connection", "keep-alive")], minor=0))
    response = client.response()
    assert response.get("transfer-encoding") is None
    assert response.framing == "close"
    assert response.body == b"hello world"
    assert "keep-alive" not in response.tokens("connection")


def test_http10_upstream_closes(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §6.3: an HTTP/1.0 answer without a length ends with the close; said so, or re-framed."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nhello")
        conn.close()

    upstream.script(script)
    response = client.request()
    assert (response.body, response.minor) == (b"hello", 1)
    assert response.framing == "chunked" or response.tokens("connection") == ["close"]


def test_http11_upstream_body_until_close(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §6.3: neither length nor coding: the body ends with the close, here too or re-framed."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\n\r\n", b"hel", b"lo", pause=0.02)
        conn.close()

    upstream.script(script)
    response = client.request()
    assert response.body == b"hello"
    assert response.framing == "chunked" or response.tokens("connection") == ["close"]


def test_body_until_close_to_http10_client(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §6.3: to an HTTP/1.0 client such a body ends with the close too."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        conn.close()

    upstream.script(script)
    client.send(head("GET", "/", minor=0))
    response = client.response()
    assert (response.body, response.framing) == (b"hello", "close")


def test_http10_upstream_with_keep_alive(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.3: an HTTP/1.0 answer with a length and keep-alive leaves both connections usable."""
    upstream.answers(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
    for _ in range(3):
        response = client.request()
        assert (response.body, response.minor) == (b"ok", 1)
    assert len(upstream.connections) <= 3


def test_http10_upstream_without_keep_alive_is_not_reused(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.3: HTTP/1.0 without keep-alive does not persist."""
    upstream.answers(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
    for _ in range(2):
        assert client.request().body == b"ok"
    assert len(upstream.connections) == 2


def test_many_clients_share_the_pool(proxy: Proxy, upstream: Upstream) -> None:
    """Exchanges at the same time use a connection each: HTTP/1.1 upstream requests are not pipelined."""
    clients = [proxy.client() for _ in range(30)]
    try:
        let_go = threading.Event()

        def script(conn: Connection) -> None:
            while True:
                conn.request()
                assert let_go.wait(5)
                conn.send(OK)

        upstream.script(script)
        for client in clients:
            client.send(GET)
        upstream.wait_requests(30)
        assert len(upstream.connections) == 30
        assert proxy.gauges()["exchanges"] == 30
        let_go.set()
        assert [client.response().status for client in clients] == [200] * 30
    finally:
        for client in clients:
            client.close()
