"""kill -9 of workers and upstreams under load (design section 2: only its own connections are lost)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter

from tests.support.client import dial, linger_zero
from tests.support.load import Load
from tests.support.origin import Origin
from tests.support.proxy import ROOT, Proxy, free_port


def test_killed_worker_is_replaced(origin: Origin) -> None:
    """A killed worker is replaced in under a second, and only its own connections are lost, each once."""
    with Proxy(to=origin.address, workers=2) as proxy:
        with Load(proxy.address, connections=32, target="/ok") as load:
            before = proxy.workers()
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)
            killed = time.monotonic()
            while len(now := proxy.workers()) < 2 or before[0] in now:
                assert time.monotonic() - killed < 1, f"workers: {now}"
                time.sleep(0.01)
            proxy.wait_ready(1)
            assert before[1] in now, "the other worker lives on"
            load.wait_progress(300)
        result = load.result
        assert result.wrong == []
        assert max(Counter(result.broken).values(), default=0) <= 1, "a connection was lost twice"
        assert len(set(result.broken)) < 32, "connections of the other worker were lost as well"
        assert result.refused == 0, "the listening socket stays open throughout"
        proxy.pooled = True
        proxy.assert_counts_at_zero()


def test_other_workers_connections_are_unaffected(origin: Origin) -> None:
    """Idle connections tell which worker they belong to: exactly those of the killed one end."""
    with Proxy(to=origin.address, workers=2) as proxy:
        clients = [proxy.client() for _ in range(40)]
        for client in clients:
            assert client.request(target="/ok").status == 200
        victim = proxy.workers()[0]
        os.kill(victim, signal.SIGKILL)
        time.sleep(0.3)
        alive = 0
        for client in clients:
            with contextlib.suppress(Exception):
                alive += client.request(target="/ok").status == 200
        assert 0 < alive < 40, f"{alive} of 40 live on"
        for client in clients:
            client.close()
        with proxy.client() as client:
            assert client.request(target="/ok").status == 200
        assert "signal" in proxy.stderr.lower() or "kill" in proxy.stderr.lower(), proxy.stderr


def test_worker_killed_again_and_again(origin: Origin) -> None:
    """Five kills in a row with one worker: traffic comes back each time, dead counts are zeroed."""
    with Proxy(to=origin.address) as proxy:
        for _ in range(5):
            with proxy.client() as client:
                assert client.request(target="/ok").status == 200
                (worker,) = proxy.workers()
                os.kill(worker, signal.SIGKILL)
                client.assert_cut()
            deadline = time.monotonic() + 8
            while True:
                with contextlib.suppress(Exception), proxy.client(timeout=2) as client:
                    if client.request(target="/ok").status == 200:
                        break
                assert time.monotonic() < deadline, "no worker came back"
                time.sleep(0.05)
        proxy.pooled = True
        proxy.assert_counts_at_zero()


class Process:
    """An origin as a process of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.start()

    def start(self) -> None:
        arguments = [sys.executable, "-m", "tests.support.origin", str(self.port)]
        self.process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_killed_upstreams(origin: Origin) -> None:
    """Upstreams that die under load: what cannot be answered is a 503, all is well when they are back."""
    mortal = Process(free_port())
    try:
        with Proxy(to=[origin.address, f"127.0.0.1:{mortal.port}"]) as proxy:
            with Load(proxy.address, connections=16, target="/ok") as load:
                for _ in range(3):
                    mortal.kill()
                    load.wait_progress(200)
                    mortal.start()
                    load.wait_progress(200)
                assert {text.split()[0] for text in load.result.wrong} <= {"503"}, load.result.wrong
                assert len(load.result.wrong) <= 16 * 3, "more than one failure per connection and kill"
                assert load.result.broken == []
                wrong = len(load.result.wrong)
                load.wait_progress(300)
                assert len(load.result.wrong) == wrong
            proxy.pooled = True
            proxy.assert_counts_at_zero()
    finally:
        mortal.kill()


def test_reset_storm(origin: Origin) -> None:
    """Hundreds of clients that reset at every point of an exchange: others are served, nothing is left."""
    with Proxy(to=origin.address) as proxy:
        request = b"POST /slow/0.02 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789"
        large = b"GET /bytes/3000000 HTTP/1.1\r\nHost: a\r\n\r\n"
        with Load(proxy.address, connections=4, target="/ok") as load:
            for number in range(400):
                data = request if number % 3 else large
                with dial(proxy.address) as sock:
                    linger_zero(sock)
                    sock.sendall(data[: number % (len(data) + 1)] if number % 2 else data)
                    if number % 4 == 0 and data is large:
                        sock.recv(1000)
            load.wait_progress(100)
        assert (load.result.wrong, load.result.broken) == ([], [])
        proxy.pooled = True
        proxy.assert_counts_at_zero()
