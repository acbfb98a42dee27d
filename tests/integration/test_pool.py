"""Kept-alive upstream connections and the moment they die (issue, item 4: stale pooled connections)."""

from __future__ import annotations

import select
import threading
import time

import pytest

from tests.support.client import Client, head
from tests.support.proxy import Proxy
from tests.support.upstream import OK, Connection, Script, Upstream


def serve_until(go: threading.Event, end: str) -> Script:
    """Serves each connection until ``go``, which ends one of them, idle or with an unread request."""

    def script(conn: Connection) -> None:
        while True:
            conn.request()
            conn.send(OK)
            while not go.is_set() and not select.select([conn.sock], [], [], 0.0005)[0]:
                pass
            if go.is_set():
                go.clear()
                getattr(conn, end)()
                return

    return script


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
def test_connection_closed_while_idle(client: Client, upstream: Upstream, method: str) -> None:
    """An upstream that closed an idle connection a while ago is dialled again."""

    def script(conn: Connection) -> None:
        request = conn.request()
        conn.send(OK if request.method != "HEAD" else b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        time.sleep(0.02)
        conn.close()

    upstream.script(script)
    for _ in range(3):
        assert client.request().status == 200
        upstream.join()
        body = b"data" if method in ("PUT", "POST") else None
        assert client.request(method, "/", body=body).status == 200
        upstream.join()


@pytest.mark.parametrize(
    ("end", "method"),
    [("half_close", "GET"), ("drop", "GET"), ("reset", "GET"), ("drop", "POST"), ("reset", "POST")],
)
def test_connection_that_ends_as_the_request_comes(
    client: Client, upstream: Upstream, end: str, method: str
) -> None:
    """Issue, item 4: a pooled connection whose end crosses the request, of which nothing was consumed,
    is replaced by a fresh one, so that an upstream's idle timeout never shows as a 503."""
    go = threading.Event()
    upstream.script(serve_until(go, end))
    body = b"x" * 10 if method == "POST" else None
    for _ in range(30):
        assert client.request(method, "/", body=body).status == 200
        go.set()
        assert client.request(method, "/", body=body).status == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_races_with_an_idle_timeout(proxy: Proxy, upstream: Upstream, method: str) -> None:
    """Upstreams whose idle timeout is as long as the client's pause: never a 503, hundreds of times."""

    def script(conn: Connection) -> None:
        conn.sock.settimeout(0.01)
        try:
            while True:
                conn.request()
                conn.send(OK)
        except TimeoutError:
            conn.drop()

    upstream.script(script)
    statuses: list[int] = []

    def run() -> None:
        with proxy.client() as client:
            for number in range(60):
                body = b"hello" if method == "POST" else None
                statuses.append(client.request(method, "/", body=body).status)
                time.sleep(0.0095 + (number % 10) / 10000)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 240


def test_request_that_was_answered_in_part_is_not_retried(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §9.2.2: once a byte of an answer came, the request was consumed: no retry."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(OK)
        conn.request()
        conn.send(b"HTTP/1.1 2")
        conn.close()

    upstream.script(script)
    assert client.request().status == 200
    assert client.request("POST", "/", body=b"once").status in (502, 503)
    assert [r.method for r in upstream.requests] == ["GET", "POST"]


def test_fresh_connection_is_not_retried(client: Client, upstream: Upstream) -> None:
    """Only a pooled connection can be stale: a fresh one that ends may have consumed the request."""

    def script(conn: Connection) -> None:
        conn.head()
        conn.close()

    upstream.script(script)
    assert client.request("POST", "/", body=b"once").status == 503
    assert len(upstream.requests) == 1


def test_retry_sends_the_whole_request(client: Client, upstream: Upstream) -> None:
    """The request on the fresh connection is the same, head and body, byte for byte."""

    go = threading.Event()
    upstream.script(serve_until(go, "drop"))
    body = bytes(range(256)) * 16
    data = head("POST", "/again?x=1", [("X-A", "b"), ("Content-Length", str(len(body)))]) + body
    for _ in range(10):
        assert client.request().status == 200
        go.set()
        client.send(data)
        assert client.response().status == 200
        request = upstream.requests[-1]
        assert (request.target, request.body, request.get("x-a")) == ("/again?x=1", body, "b")


def test_newest_connection_is_taken_first(proxy: Proxy, upstream: Upstream) -> None:
    """The pool is a stack: the connection used last is the warmest, the others age out."""
    served: list[int] = []

    def script(conn: Connection) -> None:
        while True:
            conn.request()
            served.append(conn.number)
            time.sleep(0.03)
            conn.send(OK)

    upstream.script(script)
    clients = [proxy.client() for _ in range(3)]
    for client in clients:
        client.send(head("GET", "/"))
    for client in clients:
        assert client.response().status == 200
    last = served[-1]
    del served[:]
    for _ in range(5):
        clients[0].request()
    assert len(set(served)) == 1, f"one connection is enough for one client: {served}, last was {last}"
    for client in clients:
        client.close()
