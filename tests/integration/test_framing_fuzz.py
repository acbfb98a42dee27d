"""Random traffic through the proxy, with h11 as the second opinion on every message (design section 9)."""

from __future__ import annotations

import json
import random
import re
import time

import h11
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.client import Client
from tests.support.origin import Origin
from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MADE = {"via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id"}

token = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12).map(lambda s: "x-" + s)
value = st.text("abcXYZ 019,;=\"'()/\xe4\t", max_size=40).map(lambda s: s.strip(" \t"))
path = st.lists(st.text("abcxyz0189-_.~", min_size=1, max_size=8), max_size=4).map(
    lambda p: "/" + "/".join(p)
)


@st.composite
def request(draw: st.DrawFn) -> tuple[bytes, dict[str, object]]:
    """A valid request, and what the origin must report of it."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]))
    target = "/t" + draw(path.filter(lambda p: not re.search(r"/\.{1,2}(/|$)", p)))
    target += draw(st.sampled_from(["", "?", "?a=b", "?x=/../y&z"]))
    fields = draw(st.lists(st.tuples(token.filter(lambda n: n not in MADE), value), max_size=6))
    body = draw(st.binary(max_size=300))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    lines = [f"{method} {target} HTTP/1.1", "Host: fuzz.example", *(f"{n}: {v}" for n, v in fields)]
    data, trailers = b"", []
    if framing == "none":
        body = b""
    elif framing == "length":
        lines.append(f"Content-Length: {len(body)}")
        data = body
    else:
        lines.append("Transfer-Encoding: chunked")
        at = 0
        while at < len(body):
            size = draw(st.integers(1, 100))
            part = body[at : at + size]
            at += len(part)
            data += b"%x%s\r\n%s\r\n" % (len(part), draw(st.sampled_from([b"", b";a=b"])), part)
        trailers = draw(st.lists(st.tuples(token, value), max_size=2))
        data += b"0\r\n" + "".join(f"{n}: {v}\r\n" for n, v in trailers).encode("latin-1") + b"\r\n"
    raw = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data
    told = {
        "method": method,
        "target": target,
        "body": body.decode("latin-1"),
        "headers": [list(f) for f in fields],
        "trailers": [list(f) for f in trailers],
    }
    return raw, told


@QUICK
@given(st.lists(request(), min_size=1, max_size=6), st.integers(0, 1 << 30))
def test_valid_requests_split_anywhere(
    echo: Proxy, origin: Origin, requests: list[tuple[bytes, dict[str, object]]], seed: int
) -> None:
    """Pipelined requests, cut into packets anywhere, are echoed as a direct connection would echo them."""
    dice = random.Random(seed)
    data = b"".join(raw for raw, _ in requests)
    cuts = sorted(dice.sample(range(len(data)), min(len(data), dice.randint(0, 8))))
    with echo.client() as client:
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            client.send(data[start:end])
            if dice.random() < 0.3:
                time.sleep(0.001)
        for raw, want in requests:
            told = json.loads(client.response(str(want["method"])).body)
            told["headers"] = [f for f in told["headers"] if f[0].startswith("x-") and f[0] not in MADE]
            got = {key: told[key] for key in want}
            assert got == want, raw
    assert origin.malformed == []


@st.composite
def response(draw: st.DrawFn) -> tuple[bytes, tuple[int, bytes]]:
    """A valid response, and its status and body."""
    status = draw(st.sampled_from([200, 201, 204, 304, 404, 500]))
    body = draw(st.binary(max_size=400))
    framing = draw(st.sampled_from(["length", "chunked"]))
    fields = draw(st.lists(st.tuples(token, value), max_size=5))
    hints = draw(st.integers(0, 2))
    raw = b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" * hints
    raw += f"HTTP/1.1 {status} Some Reason\r\n".encode()
    raw += "".join(f"{n}: {v}\r\n" for n, v in fields).encode("latin-1")
    if status in (204, 304):
        return raw + b"\r\n", (status, b"")
    if framing == "length":
        return raw + b"Content-Length: %d\r\n\r\n" % len(body) + body, (status, body)
    raw += b"Transfer-Encoding: chunked\r\n\r\n"
    at = 0
    while at < len(body):
        part = body[at : at + draw(st.integers(1, 150))]
        at += len(part)
        raw += b"%X\r\n%s\r\n" % (len(part), part)
    return raw + b"0\r\n\r\n", (status, body)


@QUICK
@given(st.lists(response(), min_size=1, max_size=4), st.integers(0, 1 << 30))
def test_valid_answers_split_anywhere(
    proxy: Proxy, upstream: Upstream, answers: list[tuple[bytes, tuple[int, bytes]]], seed: int
) -> None:
    """Answers, cut into packets anywhere, read by h11 at the client, are the ones that were sent."""
    dice = random.Random(seed)
    left = [raw for raw, _ in answers]

    def script(conn: Connection) -> None:
        while left:
            conn.request()
            data = left.pop(0)
            cuts = sorted(dice.sample(range(len(data)), min(len(data), dice.randint(0, 6))))
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                conn.send(data[start:end])
                if dice.random() < 0.3:
                    time.sleep(0.001)

    upstream.script(script)
    with proxy.client() as client:
        for raw, want in answers:
            assert by_h11(client) == want, raw
    upstream.reset()


def by_h11(client: Client) -> tuple[int, bytes]:
    """One exchange with h11 as the client's parser: status and body."""
    parser = h11.Connection(h11.CLIENT)
    client.send(parser.send(h11.Request(method="GET", target="/", headers=[("Host", "a")])) or b"")
    client.send(parser.send(h11.EndOfMessage()) or b"")
    status, body = 0, b""
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(client.sock.recv(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert parser.trailing_data[0] == b"", "bytes behind the answer"
            return status, body
        else:
            assert isinstance(event, h11.InformationalResponse), event


SEEDS = [
    b"GET /a HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    b"GET http://b/d?x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-a\r\nX-A: b\r\n\r\n",
    b"PUT /e HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi",
]
SPLICES = [
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b" ",
        b"\t",
        b"\x0b",
        b":",
        b",",
        b";",
        b"\xff",
        b"0",
        b"chunked",
        b"\r\n\r\n",
    ),
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Host: c\r\n",
    b"Connection: close\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
]


@st.composite
def mutant(draw: st.DrawFn) -> bytes:
    """Two pipelined requests, damaged in one to three places."""
    data = draw(st.sampled_from(SEEDS)) + draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["insert", "delete", "flip", "double"])):
            case "insert":
                data = data[:at] + draw(st.sampled_from(SPLICES)) + data[at:]
            case "delete":
                data = data[:at] + data[at + draw(st.integers(1, 4)) :]
            case "flip":
                data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
            case _:
                data = data[:at] + data[max(0, at - draw(st.integers(1, 30))) : at] + data[at:]
    return data


def parsed_by_h11(data: bytes) -> list[tuple[str, bytes, bool]]:
    """What a strict parser sees in a connection's bytes: method, body, complete. Raises what h11 refuses."""
    found = []
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            return found
        if isinstance(event, h11.Request):
            found.append((event.method.decode(), b"", False))
        elif isinstance(event, h11.Data):
            method, body, _ = found[-1]
            found[-1] = (method, body + bytes(event.data), False)
        elif isinstance(event, h11.EndOfMessage):
            found[-1] = (*found[-1][:2], True)
            rest = parser.trailing_data[0]
            if not rest:
                return found
            parser = h11.Connection(h11.SERVER)
            parser.receive_data(rest)


@settings(QUICK, max_examples=200)
@given(mutant())
def test_damaged_requests_are_never_read_differently(proxy: Proxy, upstream: Upstream, data: bytes) -> None:
    """Whatever comes in, what goes out is read the same way by our strict reader and by h11."""
    with proxy.client(timeout=3) as client:
        client.send(data)
        client.half_close()
        client.assert_cut()
    connections = list(upstream.connections)
    try:
        upstream.reset()  # raises what our strict reader refused
        for conn in connections:
            ours = [(request.method, request.body) for request in conn.completed]
            theirs = parsed_by_h11(bytes(conn.received))
            assert [(method, body) for method, body, complete in theirs if complete] == ours, conn.received
    except (AssertionError, h11.RemoteProtocolError) as error:
        sent = [bytes(conn.received) for conn in connections]
        raise AssertionError(f"sent upstream: {sent!r} for {data!r}") from error
