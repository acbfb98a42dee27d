"""Max-Forwards of OPTIONS and TRACE, RFC 9110 section 7.6.2."""

from __future__ import annotations

import pytest

from tests.support.client import Client, head
from tests.support.upstream import Connection, Upstream


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE"])
def test_goes_on_with_one_less(client: Client, upstream: Upstream, method: str) -> None:
    """Each hop lowers it by one; other fields stay."""
    told = []

    def script(conn: Connection) -> None:
        told.append(conn.request().raw_head)
        conn.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    upstream.script(script)
    client.send(head(method, "/", [("Max-Forwards", "3"), ("X-Stays", "1")]))
    assert client.response(method).status == 204
    assert told[0].lower().count(b"max-forwards:") == 1
    assert b"Max-Forwards: 2\r\n" in told[0]
    assert b"X-Stays: 1\r\n" in told[0]


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE"])
def test_zero_ends_here(client: Client, upstream: Upstream, method: str) -> None:
    """0 is never forwarded."""
    client.send(head(method, "/", [("Max-Forwards", "0")]))
    assert client.response(method).status == 501
    assert upstream.connections == []


def test_other_methods_do_not_care(client: Client, upstream: Upstream) -> None:
    """GET passes it on as it is."""
    told = []

    def script(conn: Connection) -> None:
        told.append(conn.request().raw_head)
        conn.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    upstream.script(script)
    client.send(head("GET", "/", [("Max-Forwards", "0")]))
    assert client.response().status == 204
    assert b"Max-Forwards: 0\r\n" in told[0]
