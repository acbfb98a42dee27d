"""Descriptors and patience run out (design section 4, issue "Bad input and faults")."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.support.client import Client, dial
from tests.support.load import Load
from tests.support.origin import Origin
from tests.support.proxy import Proxy, unless_sanitized


def test_descriptor_exhaustion(origin: Origin) -> None:
    """Out of descriptors: stop accepting, keep serving who is there, recover when some are free again."""
    with Proxy(to=origin.address, descriptors=96) as proxy:
        with contextlib.ExitStack() as stack:
            served = [stack.enter_context(proxy.client()) for _ in range(4)]
            for client in served:
                assert client.request(target="/ok").status == 200
            crowd: list[socket.socket] = []
            for _ in range(200):
                sock = dial(proxy.address)
                stack.callback(sock.close)
                crowd.append(sock)
            time.sleep(0.3)
            for _ in range(3):
                for client in served:
                    assert client.request(target="/ok").status == 200, "who is there is served"
        deadline = time.monotonic() + 5
        while True:
            with contextlib.suppress(OSError), proxy.client(timeout=2) as client:
                if client.request(target="/ok").status == 200:
                    break
            assert time.monotonic() < deadline, "it did not recover"
        proxy.pooled = True
        proxy.assert_counts_at_zero()


def test_idle_crowd_without_a_warm_pool(origin: Origin) -> None:
    """Clients that only hold connections open leave descriptors for the upstreams of those who ask."""
    with Proxy(to=origin.address, descriptors=120) as proxy:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(proxy.client())
            for _ in range(150):
                stack.callback(dial(proxy.address).close)
            time.sleep(0.3)
            for _ in range(3):
                assert first.request(target="/ok").status == 200
        proxy.pooled = True
        proxy.assert_counts_at_zero()


def test_descriptors_for_upstreams_run_out(origin: Origin) -> None:
    """A crowd of requests larger than the descriptors allow: each is answered, with 200 or 503, in time."""
    with Proxy(to=origin.address, descriptors=96) as proxy:
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(Client(proxy.address, timeout=15)) for _ in range(60)]
            for client in crowd:
                client.send(b"GET /slow/0.3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            statuses = [client.response().status for client in crowd]
        assert set(statuses) <= {200, 503}, statuses
        assert statuses.count(200) >= 10
        with proxy.client() as client:
            assert client.request(target="/ok").status == 200
        proxy.pooled = True
        proxy.assert_counts_at_zero()


def test_slowloris(origin: Origin) -> None:
    """200 clients that send a head byte by byte: each is closed in time, the others do not notice."""
    with Proxy(to=origin.address, header_timeout=1.0) as proxy:
        with contextlib.ExitStack() as stack:
            begun = time.monotonic()
            slow = [stack.enter_context(dial(proxy.address)) for _ in range(200)]
            with Load(proxy.address, connections=8, target="/ok") as load:
                for letter in (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1000)[:15]:
                    for sock in slow:
                        with contextlib.suppress(ConnectionError):
                            sock.sendall(bytes([letter]))
                    time.sleep(0.1)
                for sock in slow:
                    sock.settimeout(5)
                    data = b""
                    with contextlib.suppress(ConnectionError):
                        while part := sock.recv(4096):
                            data += part
                    assert data == b"" or data.startswith(b"HTTP/1.1 408 "), data
                assert time.monotonic() - begun < 6
                load.wait_progress(100)
        assert (load.result.wrong, load.result.broken) == ([], [])
        proxy.pooled = True
        proxy.assert_counts_at_zero()


@unless_sanitized
def test_thousands_of_idle_connections(origin: Origin) -> None:
    """Design section 3: an idle connection owns no buffer: 2,000 of them cost the worker little memory."""
    with Proxy(to=origin.address) as proxy:
        (worker,) = proxy.workers()
        clients = []
        try:
            for _ in range(100):
                clients.append(proxy.client())
                assert clients[-1].request(target="/ok").status == 200
            before = private(worker)
            for _ in range(2000):
                clients.append(proxy.client())
                assert clients[-1].request(target="/ok").status == 200
            assert proxy.gauges()["chunks"] == 0
            grown = private(worker) - before
            assert grown < 2000 * 1024, f"{grown / 2000:.0f} bytes per connection"
        finally:
            for client in clients:
                client.close()
        proxy.pooled = True
        proxy.assert_counts_at_zero()


def private(pid: int) -> int:
    """Private bytes of a process."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_"))
