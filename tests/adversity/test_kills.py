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
            lost = proxy.gauge_of(0, "downstream_connections")
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
        assert len(result.broken) + result.closed <= lost, "connections of the other worker were lost as well"
        assert result.refused == 0, "the listening socket stays open throughout"
        proxy.pooled = True
        proxy.assert_counts_at_zero()


def test_other_workers_connections_are_unaffected(origin: Origin) -> None:
    """Exactly the connections of the killed worker end. Which are whose is sure: the other was stopped."""
    with Proxy(to=origin.address, workers=2) as proxy:
        pids = proxy.workers()
        groups = []
        for stopped in reversed(pids):
            os.kill(stopped, signal.SIGSTOP)
            try:
                groups.append([proxy.client() for _ in range(20)])
                assert [c.request(target="/ok").status for c in groups[-1]] == [200] * 20
            finally:
                os.kill(stopped, signal.SIGCONT)
        os.kill(pids[0], signal.SIGKILL)
        for client in groups[0]:
            client.assert_cut()
        assert [c.request(target="/ok").status for c in groups[1]] == [200] * 20
        with proxy.client() as client:
            assert client.request(target="/ok").status == 200
        proxy.wait_said("worker 0", "SIGKILL")


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
