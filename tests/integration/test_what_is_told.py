"""What the proxy adds to answers, and what its access log says of the exchange."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

from tests.support.client import Client, head
from tests.support.proxy import Proxy
from tests.support.upstream import Upstream


def lines(path: Path, count: int) -> list[dict[str, object]]:
    """The log's lines, once there are that many."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        told = path.read_text().splitlines() if path.exists() else []
        if len(told) >= count:
            return [json.loads(line) for line in told]
        time.sleep(0.02)
    raise AssertionError(f"{path} never had {count} lines")


def field(response: object, name: bytes) -> list[str]:
    return [value.decode() for key, value in response.fields if key.lower() == name]  # type: ignore[attr-defined]


def test_date_is_added(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §6.6.1: a recipient with a clock dates an answer without Date; one that has it is kept."""
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    upstream.answers(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode(),
    )
    assert len(field(client.request(), b"date")) == 1
    assert field(client.request(), b"date") == [date]


def test_own_answers_can_be_found(tmp_path: Path, upstream: Upstream) -> None:
    """X-Request-Id is made when absent; an error carries it, so that its line in the log is found."""
    log = tmp_path / "access.log"
    with Proxy(to=upstream.address, access_log=str(log)) as proxy, proxy.client() as client:
        refused = client.request("GET", "/", [("Expect", "a-miracle")])
        assert refused.status == 417
        made = field(refused, b"x-request-id")
        assert len(made) == 1
        assert uuid.UUID(made[0]).version == 4
        client.close()
        with proxy.client() as other:
            kept = other.request("GET", "/", [("Expect", "a-miracle"), ("X-Request-Id", "mine")])
            assert field(kept, b"x-request-id") == []
        told = lines(log, 2)
        assert [line["request_id"] for line in told] == [made[0], "mine"]


def test_duration_begins_with_the_first_byte(tmp_path: Path, upstream: Upstream) -> None:
    """Envoy's DURATION: from the first byte of the head, however slowly the rest of it comes."""
    log = tmp_path / "access.log"
    with Proxy(to=upstream.address, access_log=str(log)) as proxy, proxy.client() as client:
        whole = head("GET", "/")
        client.send(whole[:9])
        time.sleep(0.3)
        client.send(whole[9:])
        assert client.response().status == 200
        (line,) = lines(log, 1)
        assert 300_000 <= int(str(line["duration_us"])) < 3_000_000
