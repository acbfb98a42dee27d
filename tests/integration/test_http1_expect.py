"""Expect: 100-continue and interim answers (RFC 9110 §10.1.1 and §15.2)."""

from __future__ import annotations

import pytest

from tests.support.client import Client, head
from tests.support.upstream import OK, Connection, Upstream, answer

EXPECT = [("Expect", "100-continue"), ("Content-Length", "5")]
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def test_continue_is_passed_through(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §10.1.1: Expect goes upstream, its 100 comes back, and only then the body is sent."""

    def script(conn: Connection) -> None:
        while True:
            request = conn.head()
            assert request.get("expect") == "100-continue"
            assert not conn.reader.buffer, "the body came before the 100"
            conn.send(CONTINUE)
            assert conn.reader.body_of(request).body == b"hello"
            conn.send(OK)

    upstream.script(script)
    for _ in range(2):
        client.send(head("POST", "/", EXPECT))
        interim = client.reader.response_head()
        assert interim.status == 100
        client.send(b"hello")
        response = client.response()
        assert (response.status, response.interim) == (200, [])


def test_final_status_instead_of_continue(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §10.1.1: a final status in place of the 100 reaches the client, which keeps its body."""

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(answer(b"no", "413 Content Too Large", "Connection: close"))
        assert conn.wait_closed() == b"", "nothing of the body is sent"

    upstream.script(script)
    client.send(head("POST", "/", EXPECT))
    response = client.response()
    assert (response.status, response.body, response.interim) == (413, b"no", [])
    client.assert_cut()


def test_body_sent_without_waiting(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §10.1.1: a client need not wait; a body right behind the head is forwarded."""

    def script(conn: Connection) -> None:
        request = conn.head()
        conn.send(CONTINUE)
        assert conn.reader.body_of(request).body == b"hello"
        conn.send(OK)

    upstream.script(script)
    client.send(head("POST", "/", EXPECT) + b"hello")
    assert client.response().status == 200


def test_upstream_that_never_says_continue(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §10.1.1: a body that the client sends at last is forwarded, 100 or not."""
    client.send(head("POST", "/", EXPECT))
    upstream.wait_requests(1)
    client.send(b"hello")
    response = client.response()
    assert response.status == 200
    assert upstream.requests[0].body == b"hello"


def test_continue_when_the_upstream_is_http10(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §10.1.1: the proxy says 100 itself when the next hop is known to speak HTTP/1.0 only."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
        conn.close()

    upstream.script(script)
    assert client.request().status == 200
    client.send(head("POST", "/", EXPECT))
    assert client.reader.response_head().status == 100
    client.send(b"hello")
    assert client.response().status == 200
    assert upstream.requests[-1].body == b"hello"


def test_http10_client_gets_no_continue(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §10.1.1: the expectation of an HTTP/1.0 request is ignored; interim answers never go there."""

    def script(conn: Connection) -> None:
        request = conn.head()
        conn.send(CONTINUE)
        conn.reader.body_of(request)
        conn.send(OK)

    upstream.script(script)
    client.send(head("POST", "/", EXPECT, minor=0) + b"hello")
    response = client.response()
    assert (response.status, response.interim) == (200, [])
    assert upstream.requests[0].body == b"hello"


def test_unknown_expectation(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §10.1.1: an expectation that is not known is answered with 417."""
    response = client.request("POST", "/", [("Expect", "a-miracle")], b"x")
    assert response.status == 417
    assert upstream.requests == []


@pytest.mark.parametrize("times", [1, 3])
def test_early_hints_are_passed_on(client: Client, upstream: Upstream, times: int) -> None:
    """RFC 9110 §15.2: a proxy forwards 1xx answers, as many as come, with their fields."""
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    upstream.answers(hint * times + OK)
    for _ in range(2):
        response = client.request()
        assert [i.status for i in response.interim] == [103] * times
        assert all(i.get("link") == "</a.css>; rel=preload" for i in response.interim)
        assert response.body == b"ok"


def test_early_hints_long_before_the_answer(client: Client, upstream: Upstream) -> None:
    """RFC 8297: hints are of use only before the answer, so they are not held back."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n")
        conn.request()

    upstream.script(script)
    client.send(head("GET", "/"))
    assert client.reader.response_head().status == 103


def test_interim_answers_do_not_reach_http10(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §15.2: no 1xx to an HTTP/1.0 client."""
    upstream.answers(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + OK)
    client.send(head("GET", "/", minor=0))
    response = client.response()
    assert (response.status, response.interim, response.body) == (200, [], b"ok")


def test_endless_interim_answers(client: Client, upstream: Upstream) -> None:
    """Bounded time and memory: an upstream that never comes to its answer does not hold the worker."""

    def script(conn: Connection) -> None:
        conn.request()
        for _ in range(2000):
            conn.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        conn.send(OK)

    upstream.script(script)
    client.send(head("GET", "/"))
    response = client.response()
    assert response.status in (200, 502)
