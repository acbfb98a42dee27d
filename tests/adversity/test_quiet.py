"""A worker that has nothing to do does nothing: no state of a connection may make its loop spin."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import pytest

from tests.support.client import dial, head
from tests.support.origin import Origin
from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream

TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """CPU seconds that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def assert_quiet(proxy: Proxy, seconds: float = 0.6) -> None:
    """The workers use less than a tenth of the time that passes; a spinning loop uses all of it."""
    workers = proxy.workers()
    time.sleep(0.1)
    before = sum(cpu(pid) for pid in workers)
    time.sleep(seconds)
    used = sum(cpu(pid) for pid in workers) - before
    assert used < seconds / 10, f"{used:.2f} s of CPU in {seconds} s"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Proxy, Upstream]]:
    """A proxy and the scripted upstream behind it."""
    with Upstream() as upstream, Proxy(to=upstream.address, connect_timeout=5) as proxy:
        yield proxy, upstream


def test_with_idle_connections(pair: tuple[Proxy, Upstream]) -> None:
    """100 kept-alive connections, on both sides."""
    proxy, upstream = pair
    for _ in range(100):
        proxy.client().request()
    assert_quiet(proxy)
    proxy.close_clients()
    upstream.reset()


def test_with_a_half_closed_client_that_waits(pair: tuple[Proxy, Upstream]) -> None:
    """The client's FIN is read once; its answer is still to come."""
    proxy, upstream = pair
    upstream.script(lambda conn: conn.request() and conn.wait_closed(10))
    client = proxy.client()
    client.send(head("GET", "/"))
    client.half_close()
    upstream.wait_requests(1)
    assert_quiet(proxy)
    proxy.close_clients()
    upstream.reset()


def test_with_a_client_that_does_not_read(pair: tuple[Proxy, Upstream]) -> None:
    """A full socket and a full buffer are waited for, not asked again and again."""
    proxy, upstream = pair

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            conn.send(b"x" * 65536)

    upstream.script(script)
    client = proxy.client(receive_buffer=4096)
    client.send(head("GET", "/"))
    upstream.wait_requests(1)
    assert_quiet(proxy)
    proxy.close_clients()
    upstream.reset()


def test_with_an_upstream_that_does_not_read(pair: tuple[Proxy, Upstream]) -> None:
    """The same in the other direction, with a client that would send more, and then one that has left."""
    proxy, upstream = pair
    upstream.script(lambda conn: conn.head() and time.sleep(3))
    client = proxy.client()
    client.send(head("POST", "/", [("Content-Length", str(1 << 30))]))
    client.sock.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while True:
            client.sock.send(b"x" * 65536)
    assert_quiet(proxy)
    client.half_close()
    assert_quiet(proxy)
    proxy.close_clients()
    upstream.reset()


def test_with_half_closed_tunnels(pair: tuple[Proxy, Upstream]) -> None:
    """A tunnel of which one side has said its last word."""
    proxy, upstream = pair
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(switched)
        if conn.number % 2:
            conn.half_close()
        conn.wait_closed(10)

    upstream.script(script)
    for number in range(4):
        client = proxy.client()
        assert client.request(headers=[("Upgrade", "x"), ("Connection", "Upgrade")]).status == 101
        if number < 2:
            client.half_close()
    assert_quiet(proxy)
    proxy.close_clients()
    upstream.reset()


def test_with_refused_requests_that_linger(pair: tuple[Proxy, Upstream]) -> None:
    """Clients that were told 400 and neither read it nor go away."""
    proxy, upstream = pair
    for _ in range(20):
        proxy.client().send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nmore")
    assert_quiet(proxy)
    proxy.close_clients()
    upstream.reset()
    proxy.assert_counts_at_zero()


def test_out_of_descriptors(origin: Origin) -> None:
    """A queue of connections that cannot be accepted is looked at now and then, not all the time."""
    with (
        Proxy(to=origin.address, descriptors=96, max_connections=1000) as proxy,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(150):
            stack.enter_context(dial(proxy.address))
        time.sleep(0.2)
        assert_quiet(proxy)
        assert proxy.gauges()["descriptors_exhausted"] > 0
