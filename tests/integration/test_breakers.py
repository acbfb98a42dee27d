"""Orders to breakers (issue 3, item 8): obeyed in the core at the next admission, lapsing by themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.client import Client
from tests.support.origin import Origin
from tests.support.proxy import Proxy

MESH = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: all}}
spec:
  hosts: ["*"]
  http:
  - match: [{{uri: {{prefix: /other}}}}]
    route: [{{destination: {{host: other}}}}]
  - route: [{{destination: {{host: catalog}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: catalog}}
spec:
  hosts: [catalog]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {a}}}}}
  - {{address: 127.0.0.1, ports: {{http: {b}}}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: other}}
spec:
  hosts: [other]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {b}}}}}]
"""
ORDER = """
---
apiVersion: fastproxy/v1
kind: BreakerOrder
metadata: {{name: {name}}}
spec: {{host: catalog, {endpoint}state: {state}, until: "{until}", for: 10m}}
"""


def order(state: str, seconds: float, endpoint: int = 0, name: str = "drill") -> str:
    until = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    place = f'endpoint: "127.0.0.1:{endpoint}", ' if endpoint else ""
    return ORDER.format(name=name, endpoint=place, state=state, until=until)


@pytest.fixture
def two() -> Iterator[tuple[Origin, Origin]]:
    with Origin("a") as a, Origin("b") as b:
        yield a, b


def change(proxy: Proxy, text: str) -> None:
    """Other documents, served when this returns."""
    status, answer = proxy.ask("/config", "POST", text.encode())
    assert status == 200, answer


def names(client: Client, path: str = "/", count: int = 20) -> set[str]:
    """Who answers."""
    answers = [client.request(target=path) for _ in range(count)]
    assert {r.status for r in answers} == {200}
    return {json.loads(r.body)["name"] for r in answers}


def test_an_open_order_is_obeyed_by_the_next_request_and_lapses(two: tuple[Origin, Origin]) -> None:
    a, b = two
    mesh = MESH.format(a=a.port, b=b.port)
    with Proxy(config=mesh, workers=2) as proxy, proxy.client() as client, proxy.client() as second:
        proxy.pooled = True
        assert names(client) == {"a", "b"}
        change(proxy, mesh + order("open", 3.0))
        given = time.monotonic()
        seen = (a.requests, b.requests)
        for one in (client, second):  # also on connections that stand
            answer = one.request()
            assert (answer.status, answer.get("x-fastproxy-flags")) == (503, "UO")
        assert (a.requests, b.requests) == seen, "nothing is sent upstream"
        assert names(client, "/other") == {"b"}, "other clusters go on"
        while (answer := client.request()).status == 503:
            assert time.monotonic() - given < 5
            time.sleep(0.02)
        assert answer.status == 200
        assert 1.5 < time.monotonic() - given < 4.0
        assert "lapsed" not in proxy.stderr  # nobody had to do anything


def test_taking_the_order_back(two: tuple[Origin, Origin]) -> None:
    a, b = two
    mesh = MESH.format(a=a.port, b=b.port)
    with Proxy(config=mesh + order("open", 600)) as proxy, proxy.client() as client:
        proxy.pooled = True
        assert client.request().status == 503, "a plan never serves before its orders stand"
        change(proxy, mesh)
        assert names(client) == {"a", "b"}


def test_an_order_for_one_endpoint(two: tuple[Origin, Origin]) -> None:
    a, b = two
    mesh = MESH.format(a=a.port, b=b.port)
    with Proxy(config=mesh + order("open", 600, a.port)) as proxy, proxy.client() as client:
        proxy.pooled = True
        assert names(client) == {"b"}
        change(proxy, mesh + order("open", 600, a.port, "one") + order("open", 600, b.port, "two"))
        answer = client.request()
        assert (answer.status, answer.get("x-fastproxy-flags")) == (503, "UO"), "not UH: it is an order"
        change(proxy, mesh + order("closed", 600, a.port, "one"))
        assert names(client) == {"a", "b"}


def test_breakers_are_told(two: tuple[Origin, Origin]) -> None:
    a, b = two
    mesh = MESH.format(a=a.port, b=b.port)
    with Proxy(config=mesh + order("open", 600)) as proxy, proxy.client() as client:
        assert client.request().status == 503
        status, text = proxy.ask("/breakers")
        assert status == 200
        rows = {row["breaker"]: row for row in json.loads(text)["breakers"]}
        told = rows["outbound|80||catalog"]
        assert (told["state"], told["order"], told["rejected"]) == ("CLOSED", "open", 1)
        assert told["until"].endswith("Z")
        assert rows["outbound|80||other"]["order"] == ""
        assert json.loads(proxy.ask("/clusters")[1])["clusters"][0]["rejected"] == 1


def test_a_replaced_worker_obeys_too(two: tuple[Origin, Origin]) -> None:
    a, b = two
    mesh = MESH.format(a=a.port, b=b.port)
    with Proxy(config=mesh + order("open", 600)) as proxy:
        import os
        import signal

        (before,) = proxy.workers()
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not (now := proxy.workers()) or now == [before]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        proxy.wait_ready()
        with proxy.client() as client:
            assert client.request().status == 503
