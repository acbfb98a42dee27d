"""Requests that two parsers could read differently are refused (RFC 9112, design section 4)."""

from __future__ import annotations

import json

import pytest

from tests.support.client import Client, head
from tests.support.proxy import Proxy
from tests.support.upstream import Upstream

H = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

REFUSED: dict[str, tuple[int, bytes]] = {
    # framing: RFC 9112 §6
    "both lengths": (400, POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "both lengths, other order": (
        400,
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    "two lengths": (400, POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "two equal lengths": (400, POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "list of lengths": (400, POST + b"Content-Length: 3, 3\r\n\r\nabc"),
    "signed length": (400, POST + b"Content-Length: +3\r\n\r\nabc"),
    "negative length": (400, POST + b"Content-Length: -3\r\n\r\nabc"),
    "hexadecimal length": (400, POST + b"Content-Length: 0x3\r\n\r\nabc"),
    "empty length": (400, POST + b"Content-Length:\r\n\r\n"),
    "length with a space": (400, POST + b"Content-Length: 1 0\r\n\r\n0123456789"),
    "length that overflows": (400, POST + b"Content-Length: 18446744073709551617\r\n\r\na"),
    "gzip before chunked": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunked in two fields": (
        400,
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunked not last": (400, POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    "identity": (400, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "xchunked": (400, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "quoted chunked": (400, POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "vertical tab in the coding": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "empty coding": (400, POST + b"Transfer-Encoding:\r\n\r\n"),
    "chunked in HTTP/1.0": (
        400,
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    # lines and fields: RFC 9112 §2.2, §5
    "bare LF ends the head": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare LF in a field line": (400, H + b"X: 1\nY: 2\r\n\r\n"),
    "bare CR in a value": (400, H + b"X: 1\rY: 2\r\n\r\n"),
    "bare CR in the request line": (400, b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"),
    "NUL in a value": (400, H + b"X: a\x00b\r\n\r\n"),
    "control in a value": (400, H + b"X: a\x01b\r\n\r\n"),
    "DEL in a value": (400, H + b"X: a\x7fb\r\n\r\n"),
    "folded line": (400, H + b"X: a\r\n b\r\n\r\n"),
    "folded first line": (400, b"GET / HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n"),
    "space before the colon": (400, H + b"Content-Length : 3\r\n\r\nabc"),
    "tab before the colon": (400, H + b"X\t: 3\r\n\r\n"),
    "empty name": (400, H + b": a\r\n\r\n"),
    "no colon": (400, H + b"abc\r\n\r\n"),
    "space in a name": (400, H + b"A B: c\r\n\r\n"),
    "non-ASCII name": (400, H + b"X\xc3\xbc: c\r\n\r\n"),
    # request line: RFC 9112 §3
    "empty method": (400, b" / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "method with a separator": (400, b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "trailing space": (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "tab in the target": (400, b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n"),
    "control in the target": (400, b"GET /a\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "relative target": (400, b"GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk with GET": (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "user information": (400, b"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute form without a host": (400, b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"),
    "HTTP/0.9 request": (400, b"GET /\r\n\r\n"),
    "no version": (400, b"GET / \r\nHost: a\r\n\r\n"),
    "lower-case http": (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "version with two digits": (400, b"GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "HTTP/3.0": (505, b"GET / HTTP/3.0\r\nHost: a\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32) + b"\r\n\r\n"),
    # Host: RFC 9112 §3.2
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, H + b"Host: b\r\n\r\n"),
    "two equal Hosts": (400, H + b"Host: a\r\n\r\n"),
    "Host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "Host with user information": (400, b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    "Host with a comma": (400, b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n"),
    "Host with a space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "Host with a bad port": (400, b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n"),
    "absolute form and a bad Host": (400, b"GET http://a/ HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    # what this house needs besides
    "HTTP/1.0 POST without a length": (411, b"POST / HTTP/1.0\r\nHost: a\r\n\r\n"),
}

BAD_CHUNKS: dict[str, bytes] = {
    "no size": b"\r\n\r\n",
    "not hexadecimal": b"g\r\nx\r\n0\r\n\r\n",
    "prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "space before": b" 3\r\nabc\r\n0\r\n\r\n",
    "space after": b"3 \r\nabc\r\n0\r\n\r\n",
    "overflow": b"10000000000000000\r\nabc\r\n0\r\n\r\n",
    "size ends with LF": b"3\nabc\r\n0\r\n\r\n",
    "data ends with LF": b"3\r\nabc\n0\r\n\r\n",
    "data too long": b"3\r\nabcd\r\n0\r\n\r\n",
    "bare CR in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "NUL in an extension": b"3;a\x00b\r\nabc\r\n0\r\n\r\n",
    "extension without end": b"3;" + b"a" * 70000 + b"\r\nabc\r\n0\r\n\r\n",
    "folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "trailer without a colon": b"0\r\nabc\r\n\r\n",
    "trailer with a space": b"0\r\nX : a\r\n\r\n",
    "trailer ended by LF": b"0\r\nX: a\n\r\n",
}


def assert_refused(client: Client, status: int) -> None:
    """The answer, its form, and the end of the connection."""
    response = client.response()
    assert response.status == status
    assert response.tokens("connection") == ["close"]
    assert response.get("x-fastproxy-flags") == "DPE"
    assert response.body, "the reason is told"
    client.assert_closed()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(client: Client, upstream: Upstream, name: str) -> None:
    """Design section 4: refused with its status, the connection closed, nothing forwarded."""
    status, data = REFUSED[name]
    client.send(data + SMUGGLED)
    assert_refused(client, status)
    assert upstream.connections == []


@pytest.mark.parametrize("name", REFUSED)
def test_refused_byte_by_byte(proxy: Proxy, upstream: Upstream, name: str) -> None:
    """The same bytes one by one are refused the same way: split points do not matter."""
    status, data = REFUSED[name]
    with proxy.client() as client:
        try:
            client.send_in_steps(data)
        except ConnectionError:
            return  # refused before its end; the whole form of this test has read the status
        assert client.response().status == status
    assert upstream.connections == []


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks(client: Client, upstream: Upstream, name: str) -> None:
    """RFC 9112 §7.1: a malformed chunk ends the connection; upstream never sees a complete request."""
    client.send(head("POST", "/", [("Transfer-Encoding", "chunked")]) + BAD_CHUNKS[name] + SMUGGLED)
    response = client.response()
    assert response.status == 400
    client.assert_cut()
    assert all(r.target == "/" for r in upstream.requests), "the smuggled request got through"
    upstream.join()
    assert all(r.framing == "none" for r in upstream.requests), "upstream read a complete body"


def test_bad_request_behind_good_ones(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.3.2: the good requests before a bad one are answered first, in order."""
    client.send(head("GET", "/1") + head("GET", "/2") + b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    assert client.response().status == 200
    assert client.response().status == 200
    assert client.response().status == 400
    client.assert_closed()
    assert [r.target for r in upstream.requests] == ["/1", "/2"]


def test_error_body_is_json_when_accepted(client: Client, upstream: Upstream) -> None:
    """Design section 4: a short JSON body for who accepts JSON."""
    response = client.request("GET", "/..", [("Accept", "application/json")])
    assert (response.get("content-type") or "").startswith("application/json")
    assert isinstance(json.loads(response.body), dict)


def test_error_body_is_text_else(client: Client, upstream: Upstream) -> None:
    """Design section 4: a line of text for everyone else."""
    response = client.request("GET", "/..", [("Accept", "text/html,*/*;q=0.8")])
    assert (response.get("content-type") or "").startswith("text/plain")
    assert len(response.body) < 200


def test_error_answer_to_head_has_no_body(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §9.3.2: the proxy's own answer to HEAD has no body either."""
    client.send(head("HEAD", "/../x"))
    assert client.response("HEAD").status == 400
    client.assert_closed()


def test_error_is_readable_though_the_client_still_sends(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §9.6: the close lingers, so that a client in the middle of sending can read the answer."""
    client.send(POST + b"Content-Length: 1000000\r\nContent-Length: 5\r\n\r\n")
    for _ in range(20):
        client.send(b"x" * 5000)
    assert client.response().status == 400
    client.assert_cut()
