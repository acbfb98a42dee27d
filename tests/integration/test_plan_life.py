"""Plans come and go under running exchanges (design section 2: a plan lives until its last exchange ends)."""

from __future__ import annotations

import json
import threading
import time

import pytest

from tests.support.client import head
from tests.support.origin import Origin
from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream, answer

CONFIG = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: service}}
spec:
  hosts: [service]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: service}}
spec:
  hosts: ["*"]
  http:
  - headers: {{response: {{set: {{x-plan: "{name}"}}}}}}
    route: [{{destination: {{host: service}}}}]
"""


def post(proxy: Proxy, port: int | str, name: str) -> None:
    """Another plan, serving when this returns."""
    before = proxy.gauges()["plan_swaps"]
    status, said = proxy.ask("/config", "POST", CONFIG.format(port=port, name=name).encode())
    assert status in (200, 202, 204), said
    deadline = time.monotonic() + 5
    while proxy.gauges()["plan_swaps"] == before:
        assert time.monotonic() < deadline, "the worker did not swap"
        time.sleep(0.01)


def test_exchange_finishes_on_its_plan(upstream: Upstream) -> None:
    """The old plan stays mapped as long as one exchange runs on it, and not longer."""
    go = threading.Event()

    def script(conn: Connection) -> None:
        conn.request()
        assert go.wait(10)
        conn.send(answer(b"old"))

    upstream.script(script)
    port = upstream.address.rpartition(":")[2]
    with Origin("new") as origin, Proxy(config=CONFIG.format(port=port, name="first")) as proxy:
        slow = proxy.client()
        slow.send(head("GET", "/"))
        upstream.wait_requests(1)
        for number in range(5):
            post(proxy, origin.port, f"n{number}")
            with proxy.client() as client:
                response = client.request()
                assert response.get("x-plan") == f"n{number}"
                assert json.loads(response.body)["name"] == "new"
            proxy.wait_gauge("plans", 2)
        go.set()
        response = slow.response()
        assert (response.body, response.get("x-plan")) == (b"old", "first")
        slow.close()
        upstream.reset()
        proxy.pooled = True
        proxy.assert_counts_at_zero()


def test_next_request_of_a_connection_takes_the_new_plan(origin: Origin) -> None:
    """A kept-alive connection is not bound to the plan it was accepted under."""
    with Proxy(config=CONFIG.format(port=origin.port, name="one")) as proxy, proxy.client() as client:
        assert client.request().get("x-plan") == "one"
        post(proxy, origin.port, "two")
        assert client.request().get("x-plan") == "two"
        proxy.pooled = True


def test_tunnel_outlives_its_plan(upstream: Upstream) -> None:
    """A tunnel goes on under later plans, and lets go of its own when it ends."""

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        while data := conn.sock.recv(100):
            conn.send(data)

    upstream.script(script)
    port = upstream.address.rpartition(":")[2]
    with Proxy(config=CONFIG.format(port=port, name="0")) as proxy:
        with proxy.client() as client:
            assert client.request(headers=[("Upgrade", "x"), ("Connection", "Upgrade")]).status == 101
            for number in range(1, 4):
                post(proxy, port, str(number))
                client.send(b"ping")
                assert client.reader.take(4) == b"ping"
        upstream.reset()
        proxy.assert_counts_at_zero()


def test_pool_of_an_endpoint_that_goes(origin: Origin) -> None:
    """Idle connections to an endpoint that no plan names any more are not used, and closed in their time."""
    config = CONFIG.format(port=origin.port, name="a")
    with Origin("next") as following, Proxy(config=config, upstream_idle_timeout=1) as proxy:
        with proxy.client() as client:
            client.request()
            assert proxy.gauges()["upstream_idle"] == 1
            post(proxy, following.port, "b")
            for _ in range(3):
                assert json.loads(client.request().body)["name"] == "next"
        proxy.wait_gauge("upstream_idle", 0)


def test_slots_that_are_used_again() -> None:
    """Design section 2: live slots are carried over by name; where few are used again, no request
    goes down a pooled connection of the endpoint that had the slot before."""
    origins = [Origin(f"o{number}") for number in range(6)]
    try:
        with Proxy(
            config=CONFIG.format(port=origins[0].port, name="0"), max_endpoints=4, upstream_idle_timeout=0.1
        ) as proxy:
            with proxy.client() as client:
                for number in [1, 2, 3, 4, 5, 0, 2, 4, 1, 3, 5]:
                    post(proxy, origins[number].port, f"{number}")
                    for _ in range(3):
                        assert json.loads(client.request().body)["name"] == f"o{number}"
                    if number % 2:
                        proxy.wait_gauge("upstream_idle", 0)
            proxy.pooled = True
            proxy.assert_counts_at_zero()
    finally:
        for origin in origins:
            origin.close()


@pytest.mark.parametrize("document", ["kind: [", "apiVersion: networking.istio.io/v1\nkind: Nothing"])
def test_faulty_plan_changes_nothing(origin: Origin, document: str) -> None:
    """Issue, item 6: what cannot be read is refused with its reason; the old plan serves on."""
    with Proxy(config=CONFIG.format(port=origin.port, name="good")) as proxy, proxy.client() as client:
        status, said = proxy.ask("/config", "POST", document.encode())
        assert status == 400 or status == 422, said
        assert len(said) > 10
        assert client.request().get("x-plan") == "good"
        proxy.pooled = True
