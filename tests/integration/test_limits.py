"""Limits of a message and of time, each with its status (design section 4)."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest

from tests.support.client import Client, head
from tests.support.proxy import Proxy
from tests.support.upstream import OK, Connection, Upstream, answer

CHUNKED = [("Transfer-Encoding", "chunked")]


@pytest.fixture(scope="module")
def _small(_upstream: Upstream) -> Iterator[Proxy]:
    with Proxy(
        to=_upstream.address,
        max_head=4096,
        max_fields=20,
        max_target=1024,
        max_body=65536,
        header_timeout=0.4,
        body_timeout=0.4,
        idle_timeout=0.8,
        write_timeout=0.6,
        upstream_read_timeout=0.5,
        upstream_idle_timeout=0.5,
    ) as proxy:
        yield proxy


@pytest.fixture
def small(upstream: Upstream, _small: Proxy) -> Proxy:
    """A proxy with small limits and short times in front of the scripted upstream."""
    return _small


def assert_error(client: Client, status: int, flag: str) -> None:
    """The proxy's own answer, and the end of the connection behind it."""
    response = client.response()
    assert (response.status, response.get("x-fastproxy-flags")) == (status, flag)
    assert response.tokens("connection") == ["close"]
    client.assert_closed()


def test_head_too_large(small: Proxy, upstream: Upstream) -> None:
    """RFC 6585 §5: a head over --max-head is 431."""
    with small.client() as client:
        client.send(head("GET", "/", [("X", "a" * 5000)]))
        assert_error(client, 431, "DPE")
    assert upstream.connections == []


def test_head_without_end(small: Proxy, upstream: Upstream) -> None:
    """A head that only grows is refused as soon as it is over the limit, not when it ends."""
    with small.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10 + b"Z: " + b"z" * 5000)
        assert_error(client, 431, "DPE")


def test_head_just_small_enough(small: Proxy, upstream: Upstream) -> None:
    """A head of exactly --max-head bytes passes."""
    data = head("GET", "/", [("X", "a" * 100)])
    data = head("GET", "/", [("X", "a" * (100 + 4096 - len(data)))])
    assert len(data) == 4096
    with small.client() as client:
        client.send(data)
        assert client.response().status == 200


def test_too_many_fields(small: Proxy, upstream: Upstream) -> None:
    """More fields than --max-fields is 431, as many is fine."""
    with small.client() as client:
        client.send(head("GET", "/", [("X", "1")] * 19))
        assert client.response().status == 200
        client.send(head("GET", "/", [("X", "1")] * 20))
        assert_error(client, 431, "DPE")
    assert len(upstream.requests) == 1


def test_target_too_long(small: Proxy, upstream: Upstream) -> None:
    """RFC 9112 §3: a target longer than --max-target is 414, even when its end never comes."""
    with small.client() as client:
        client.send(head("GET", "/" + "a" * 1023))
        assert client.response().status == 200
        client.send(head("GET", "/" + "a" * 1024))
        assert_error(client, 414, "DPE")
    with small.client() as client:
        client.send(b"GET /" + b"a" * 2000)
        assert_error(client, 414, "DPE")
    assert len(upstream.requests) == 1


def test_announced_body_too_large(small: Proxy, upstream: Upstream) -> None:
    """RFC 9110 §15.5.14: a Content-Length over --max-body is 413 at once; upstream hears nothing."""
    with small.client() as client:
        client.send(head("POST", "/", [("Content-Length", "65537")]))
        assert_error(client, 413, "DPE")
    assert upstream.connections == []


def test_expected_body_too_large(small: Proxy, upstream: Upstream) -> None:
    """RFC 9110 §10.1.1: with an expectation, the 413 comes in place of the 100."""
    with small.client() as client:
        client.send(head("POST", "/", [("Content-Length", "65537"), ("Expect", "100-continue")]))
        assert_error(client, 413, "DPE")
    assert upstream.connections == []


def test_body_just_small_enough(small: Proxy, upstream: Upstream) -> None:
    """A body of exactly --max-body bytes passes, counted and chunked."""
    with small.client() as client:
        assert client.request("POST", "/", body=b"x" * 65536).status == 200
        client.send(head("POST", "/", CHUNKED) + b"10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n")
        assert client.response().status == 200
    assert [len(r.body) for r in upstream.requests] == [65536, 65536]


def test_chunked_body_too_large(small: Proxy, upstream: Upstream) -> None:
    """A chunked body is 413 when it grows over --max-body; upstream never sees it complete."""
    with small.client() as client:
        client.send(head("POST", "/", CHUNKED) + (b"4000\r\n" + b"x" * 16384 + b"\r\n") * 6)
        assert client.response().status == 413
        client.assert_cut()
    upstream.join()
    assert all(r.framing == "none" for r in upstream.requests)


def test_answers_are_not_limited_by_max_body(small: Proxy, upstream: Upstream) -> None:
    """--max-body is about requests."""
    upstream.answers(answer(b"y" * 200_000))
    with small.client() as client:
        assert len(client.request().body) == 200_000


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r"])
def test_slow_head(small: Proxy, upstream: Upstream, start: bytes) -> None:
    """RFC 9110 §15.5.9: a head that is not complete within --header-timeout is 408."""
    with small.client() as client:
        begun = time.monotonic()
        client.send(start)
        assert_error(client, 408, "SI")
        assert 0.3 < time.monotonic() - begun < 2
    assert upstream.connections == []


def test_trickling_head(small: Proxy, upstream: Upstream) -> None:
    """The time of a head is counted from its first byte, so one byte now and then does not help."""
    with small.client() as client:
        begun = time.monotonic()
        for letter in head("GET", "/", [("X", "a" * 200)]):
            client.send(bytes([letter]))
            if select.select([client.sock], [], [], 0.03)[0]:
                break
        assert_error(client, 408, "SI")
        assert 0.3 < time.monotonic() - begun < 1.5
    assert upstream.connections == []


def test_silent_connection(small: Proxy, upstream: Upstream) -> None:
    """A connection that never says a word is closed, without an answer to what was not asked."""
    with small.client() as client:
        begun = time.monotonic()
        client.assert_closed()
        assert time.monotonic() - begun < 3


def test_idle_connection(small: Proxy, upstream: Upstream) -> None:
    """A kept-alive connection without a request is closed after --idle-timeout, without an answer."""
    with small.client() as client:
        assert client.request().status == 200
        begun = time.monotonic()
        client.assert_closed()
        assert 0.6 < time.monotonic() - begun < 3


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_slow_body(small: Proxy, upstream: Upstream, framing: str) -> None:
    """A request body of which nothing comes for --body-timeout is 408; upstream sees it cut, not complete."""
    field = ("Content-Length", "10") if framing == "length" else CHUNKED[0]
    with small.client() as client:
        client.send(head("POST", "/", [field]) + b"3\r\n")
        assert_error(client, 408, "SI")
    upstream.join()
    assert [r.framing for r in upstream.requests] in ([], ["none"])


def test_steady_slow_body(small: Proxy, upstream: Upstream) -> None:
    """A body that keeps coming may take longer than --body-timeout as a whole."""
    with small.client() as client:
        client.send(head("POST", "/", [("Content-Length", "8")]))
        for _ in range(8):
            client.send(b"x")
            time.sleep(0.1)
        assert client.response().status == 200


def test_slow_answer(small: Proxy, upstream: Upstream) -> None:
    """RFC 9110 §15.6.5: no head from upstream within --upstream-read-timeout is 504."""
    upstream.script(lambda conn: conn.request() and conn.wait_closed())
    with small.client() as client:
        begun = time.monotonic()
        response = client.request()
        assert (response.status, response.get("x-fastproxy-flags")) == (504, "UT")
        assert 0.3 < time.monotonic() - begun < 2
    upstream.join()


def test_slow_answer_head(small: Proxy, upstream: Upstream) -> None:
    """The same when half of a head came."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Le")
        conn.wait_closed()

    upstream.script(script)
    with small.client() as client:
        assert client.request().status == 504


def test_stalled_answer_body(small: Proxy, upstream: Upstream) -> None:
    """An answer that stalls in its body is cut: visibly too short, never ended as if whole."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        conn.wait_closed()

    upstream.script(script)
    with small.client() as client:
        client.send(head("GET", "/"))
        assert client.assert_cut().endswith(b"\r\n\r\nhello")


def test_client_that_takes_nothing(small: Proxy, upstream: Upstream) -> None:
    """A client that does not read its answer for --write-timeout is let go; upstream is released."""
    upstream.answers(answer(b"z" * (32 << 20)))
    with small.client(receive_buffer=4096) as client:
        client.send(head("GET", "/"))
        upstream.wait_requests(1)
        small.wait_gauge("downstream_connections", 0)
        small.wait_gauge("upstream_connections", 0)


def test_idle_upstream_connections_are_closed(small: Proxy, upstream: Upstream) -> None:
    """A pooled connection without a request is closed after --upstream-idle-timeout."""
    with small.client() as client:
        client.request()
        small.wait_gauge("upstream_idle", 1)
        small.wait_gauge("upstream_connections", 0, timeout=3)


def test_connections_over_the_limit(upstream: Upstream) -> None:
    """Connections beyond --max-connections wait or are refused; the others are served, and places free up."""
    with Proxy(to=upstream.address, max_connections=4) as proxy:
        first = [proxy.client() for _ in range(4)]
        assert [c.request().status for c in first] == [200] * 4
        with proxy.client(timeout=0.4) as fifth:
            try:
                status = fifth.request().status
            except TimeoutError:
                status = 0  # it waits in the queue of the listener
            assert status in (0, 503)
            assert [c.request().status for c in first] == [200] * 4
        for client in first:
            client.close()
        proxy.wait_gauge("downstream_connections", 0)
        with proxy.client() as client:
            assert client.request().status == 200
        upstream.reset()
        proxy.assert_counts_at_zero()


def test_pool_is_bounded(upstream: Upstream) -> None:
    """No more than --max-pooled idle connections are kept for an endpoint."""

    def script(conn: Connection) -> None:
        while True:
            conn.request()
            time.sleep(0.1)
            conn.send(OK)

    upstream.script(script)
    with Proxy(to=upstream.address, max_pooled=3) as proxy:
        clients = [proxy.client() for _ in range(8)]
        for client in clients:
            client.send(head("GET", "/"))
        assert [client.response().status for client in clients] == [200] * 8
        proxy.wait_gauge("upstream_connections", 3)
        assert proxy.gauges()["upstream_idle"] == 3
        for client in clients:
            client.close()
        upstream.reset()
        proxy.assert_counts_at_zero()
