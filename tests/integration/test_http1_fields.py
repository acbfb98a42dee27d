"""Which fields reach the other side, and which the proxy makes (RFC 9110 §7.6, design section 4)."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator

import pytest

from tests.support.client import Client, head
from tests.support.origin import Origin
from tests.support.proxy import Proxy
from tests.support.upstream import OK, Upstream, answer

MADE = ("via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id")


def passed(upstream: Upstream) -> list[tuple[bytes, bytes]]:
    """The fields of the last request that the client sent, without those that the proxy makes."""
    fields = upstream.requests[-1].fields
    return [(n, v) for n, v in fields if n.lower().decode() not in MADE]


def test_fields_are_passed_as_they_came(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §5.3: order, repetition, case and bytes of end-to-end fields are kept."""
    sent = [
        ("User-Agent", "test/1"),
        ("X-b", "2"),
        ("ACCEPT", "a, b"),
        ("X-b", "1"),
        ("cookie", "a=1; b=2"),
        ("X-Empty", ""),
        ("X-Latin", "gr\xfc\xdf"),
        ("authorization", "Basic eDp5"),
    ]
    assert client.request(headers=sent).status == 200
    want = [(n.encode(), v.encode("latin-1")) for n, v in sent]
    assert [f for f in passed(upstream) if f[0].lower() != b"host"] == want


def test_answer_fields_are_passed_as_they_came(client: Client, upstream: Upstream) -> None:
    """The same for answers: Set-Cookie above all must not be joined; the reason phrase is kept."""
    sent = ["Set-Cookie: a=1", "X-Y: 1", "SET-cookie: b=2", "Server: origin", 'ETag: "x"', "X-Y: 0"]
    upstream.answers(answer(b"ok", "207 Many Things", *sent))
    response = client.request()
    assert (response.status, response.reason) == (207, "Many Things")
    got = [
        n + b": " + v for n, v in response.fields if n.lower() in (b"set-cookie", b"x-y", b"server", b"etag")
    ]
    assert got == [s.encode() for s in sent]


def test_optional_white_space_is_not_a_value(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §5: white space around a value is not part of it."""
    client.send(b"GET / HTTP/1.1\r\nHost:   test \t \r\nX-A:\t b c \t\r\n\r\n")
    assert client.response().status == 200
    assert upstream.requests[0].get("host") == "test"
    assert upstream.requests[0].get("x-a") == "b c"


@pytest.mark.parametrize(
    ("name", "value"),
    [("Keep-Alive", "timeout=5"), ("Proxy-Connection", "keep-alive"), ("TE", "gzip"), ("Upgrade", "h2c")],
)
def test_hop_by_hop_request_fields_go(client: Client, upstream: Upstream, name: str, value: str) -> None:
    """RFC 9110 §7.6.1: fields about this connection are not forwarded."""
    assert client.request(headers=[(name, value), ("Connection", name), ("X-End", "1")]).status == 200
    request = upstream.requests[0]
    assert request.get(name) is None
    assert name.lower() not in request.tokens("connection")
    assert request.get("x-end") == "1"


def test_h2c_upgrade_is_not_passed_on(client: Client, upstream: Upstream) -> None:
    """RFC 9113 §3.1: HTTP2-Settings belongs to this connection; no smuggling by h2c."""
    fields = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk")]
    assert client.request(headers=fields).status == 200
    assert upstream.requests[0].get("http2-settings") is None


def test_nominated_request_fields_go(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §7.6.1: a field that Connection names is removed, whatever its case, all lines of it."""
    fields = [
        ("X-One", "1"),
        ("Connection", "x-ONE , close"),
        ("x-one", "2"),
        ("X-Two", "3"),
        ("Connection", "X-Two"),
        ("X-Three", "4"),
    ]
    assert client.request(headers=fields).status == 200
    request = upstream.requests[0]
    assert (request.all("x-one"), request.all("x-two"), request.all("x-three")) == ([], [], [b"4"])


def test_nominated_answer_fields_go(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §7.6.1: the same for answers."""
    upstream.answers(
        answer(
            b"ok", "200 OK", "X-One: 1", "Connection: x-one, keep-alive", "Keep-Alive: timeout=9", "X-Two: 2"
        )
    )
    response = client.request()
    assert (response.get("x-one"), response.get("keep-alive"), response.get("x-two")) == (None, None, "2")
    assert "x-one" not in response.tokens("connection")


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Transfer-Encoding"])
def test_framing_fields_cannot_be_nominated(client: Client, upstream: Upstream, name: str) -> None:
    """RFC 9110 §7.6.1: Connection must not name a field that frames or routes the message: 400."""
    client.send(head("POST", "/", [("Connection", name), ("Content-Length", "0")]))
    assert client.response().status == 400
    assert upstream.connections == []


def test_via_is_added(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §7.6.3: the proxy adds itself, with the version it received, behind what is there."""
    client.request()
    assert upstream.requests[0].tokens("via") == ["1.1 fastproxy"]
    client.request(headers=[("Via", "1.0 fred"), ("Via", "1.1 joe")])
    assert upstream.requests[1].tokens("via") == ["1.0 fred", "1.1 joe", "1.1 fastproxy"]
    client.send(head("GET", "/", [("Connection", "keep-alive")], minor=0))
    assert client.response().status == 200
    assert upstream.requests[2].tokens("via") == ["1.0 fastproxy"]


def test_via_of_an_answer_is_kept(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §7.6.3: Via of an answer stays, with the proxy behind it if anywhere."""
    upstream.answers(answer(b"ok", "200 OK", "Via: 1.1 cache"))
    assert client.request().tokens("via") in (["1.1 cache"], ["1.1 cache", "1.1 fastproxy"])


def test_forwarded_fields_are_made(client: Client, upstream: Upstream) -> None:
    """Issue, item 4: X-Forwarded-For, -Proto and -Host say who asked, how and for what."""
    client.request(headers=[("Host", "shop.example:8080")])
    request = upstream.requests[0]
    assert request.get("x-forwarded-for") == "127.0.0.1"
    assert request.get("x-forwarded-proto") == "http"
    assert request.get("x-forwarded-host") == "shop.example:8080"
    assert request.get("host") == "shop.example:8080"
    assert request.get("forwarded") is None


def test_untrusted_forwarded_fields_are_dropped(client: Client, upstream: Upstream) -> None:
    """Issue, item 4: with no trusted hop, what the client claims about others is not passed on."""
    lies = [
        ("X-Forwarded-For", "6.6.6.6"),
        ("x-forwarded-for", "7.7.7.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil"),
        ("Forwarded", "for=6.6.6.6"),
    ]
    client.request(headers=lies)
    request = upstream.requests[0]
    assert request.get("x-forwarded-for") == "127.0.0.1"
    assert request.get("x-forwarded-proto") == "http"
    assert request.get("x-forwarded-host") == "test"
    assert request.get("forwarded") is None


def test_request_id_is_made(client: Client, upstream: Upstream) -> None:
    """Issue, item 4: X-Request-Id is made when absent: a UUID, another one each time."""
    for _ in range(3):
        client.request()
    made = [request.get("x-request-id") for request in upstream.requests]
    assert all(text and str(uuid.UUID(text)) == text.lower() for text in made)
    assert len(set(made)) == 3


def test_request_id_is_kept(client: Client, upstream: Upstream) -> None:
    """Issue, item 4: a request id that came is the one that goes on."""
    client.request(headers=[("X-Request-Id", "abc-123")])
    assert upstream.requests[0].get("x-request-id") == "abc-123"


def test_own_answers_are_told_from_the_upstreams(client: Client, upstream: Upstream) -> None:
    """Design section 4: the flag header marks the proxy's own answers; it is absent from all others."""
    assert client.request().get("x-fastproxy-flags") is None


@pytest.fixture(scope="module")
def trusting(origin: Origin) -> Iterator[Proxy]:
    """A proxy that believes one hop and writes Forwarded."""
    with Proxy(to=origin.address, trusted_hops=1, forwarded=True, via="edge") as proxy:
        proxy.pooled = True
        yield proxy


def echoed(client: Client, headers: list[tuple[str, str]]) -> dict[str, str]:
    """The fields as the origin got them, names lower case."""
    told = json.loads(client.request(headers=headers).body)
    return {name.lower(): value for name, value in told["headers"]}


def test_trusted_forwarded_fields_are_extended(trusting: Proxy) -> None:
    """Issue, item 4: with a trusted hop, X-Forwarded-For is appended to, -Proto and -Host stay."""
    with trusting.client() as client:
        fields = [("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "a.b")]
        got = echoed(client, fields)
    assert re.split(r"\s*,\s*", got["x-forwarded-for"]) == ["1.2.3.4", "127.0.0.1"]
    assert got["x-forwarded-proto"] == "https"
    assert got["x-forwarded-host"] == "a.b"


def test_trusting_makes_what_is_absent(trusting: Proxy) -> None:
    """With a trusted hop that said nothing, the fields are made from the connection."""
    with trusting.client() as client:
        got = echoed(client, [])
    assert got["x-forwarded-for"] == "127.0.0.1"
    assert got["x-forwarded-proto"] == "http"
    assert got["x-forwarded-host"] == "test"


def test_forwarded_on_request(trusting: Proxy) -> None:
    """RFC 7239 §4: --forwarded adds for, host and proto, behind elements that came from a trusted hop."""
    with trusting.client() as client:
        elements = [e.strip() for e in echoed(client, [("Forwarded", "for=1.2.3.4")])["forwarded"].split(",")]
        assert elements[0] == "for=1.2.3.4"
        alone = echoed(client, [("Host", "a.b:80")])["forwarded"]
    assert len(elements) == 2
    pairs = dict(pair.strip().lower().split("=", 1) for pair in alone.split(";"))
    assert re.fullmatch(r'"?127\.0\.0\.1(:\d+)?"?', pairs["for"])
    assert pairs["proto"] == "http"
    assert pairs["host"] == '"a.b:80"', "a colon is no token: RFC 7239 §4 wants it quoted"


def test_via_pseudonym(trusting: Proxy) -> None:
    """RFC 9110 §7.6.3: --via names the proxy."""
    with trusting.client() as client:
        assert echoed(client, [])["via"] == "1.1 edge"


def test_many_fields(client: Client, upstream: Upstream) -> None:
    """A browser's request is 20 fields and 700 bytes; 90 fields and 20 KiB of cookies pass as well."""
    fields = [(f"X-Field-{n}", "v" * n) for n in range(80)] + [("Cookie", "c=" + "x" * 20000)]
    upstream.answers(answer(b"ok", "200 OK", *(f"X-Field-{n}: {'v' * n}" for n in range(80))), OK)
    response = client.request(headers=fields)
    assert response.status == 200
    for number in range(80):
        assert upstream.requests[0].get(f"x-field-{number}") == "v" * number
        assert response.get(f"x-field-{number}") == "v" * number
    assert upstream.requests[0].get("cookie") == "c=" + "x" * 20000
