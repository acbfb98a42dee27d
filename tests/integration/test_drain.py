"""SIGTERM: stop accepting, finish, end; bounded. A second one, and SIGINT, end at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import Client
from tests.support.origin import Origin
from tests.support.proxy import Proxy


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as one:
        yield one


def ended(proxy: Proxy, seconds: float) -> int:
    """The exit code, when it ends in time."""
    return proxy.process.wait(seconds)


def wait_refused(address: str, seconds: float = 2.0) -> None:
    """Until nobody accepts there any more."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as sock:
            if sock.connect_ex((host, int(port))) != 0:
                return
        assert time.monotonic() < deadline, "still accepts"
        time.sleep(0.01)


def test_an_exchange_finishes_and_its_connection_closes(origin: Origin) -> None:
    with Proxy(to=origin.address, drain_timeout=10) as proxy, Client(proxy.address) as client:
        client.send(b"GET /slow/0.6 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        started = time.monotonic()
        proxy.process.send_signal(signal.SIGTERM)
        wait_refused(proxy.address)
        assert time.monotonic() - started < 0.35
        status, text = proxy.ask("/ready")
        assert (status, json.loads(text)["reason"]) == (503, "draining")
        response = client.response()
        assert response.status == 200
        assert response.tokens("connection") == ["close"]
        assert ended(proxy, 3) == 0
        assert time.monotonic() - started < 3


def test_an_idle_connection_does_not_hold_it_up(origin: Origin) -> None:
    with Proxy(to=origin.address, drain_timeout=10) as proxy, Client(proxy.address) as client:
        assert client.request("GET", "/").status == 200
        started = time.monotonic()
        proxy.process.send_signal(signal.SIGTERM)
        assert ended(proxy, 5) == 0
        assert time.monotonic() - started < 2
        client.assert_closed()


def test_the_time_is_bounded_and_what_is_cut_is_said(origin: Origin) -> None:
    with Proxy(to=origin.address, drain_timeout=0.5) as proxy, Client(proxy.address) as client:
        client.send(b"GET /slow/30 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        started = time.monotonic()
        proxy.process.send_signal(signal.SIGTERM)
        assert ended(proxy, 5) == 0
        assert 0.4 < time.monotonic() - started < 3
        assert "had not finished after 0.5 s" in proxy.stderr


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(origin: Origin, second: signal.Signals) -> None:
    with Proxy(to=origin.address, drain_timeout=30) as proxy, Client(proxy.address) as client:
        client.send(b"GET /slow/30 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        proxy.process.send_signal(signal.SIGTERM)
        wait_refused(proxy.address)
        started = time.monotonic()
        proxy.process.send_signal(second)
        assert ended(proxy, 5) == 0
        assert time.monotonic() - started < 1.5


def test_sigint_ends_at_once(origin: Origin) -> None:
    with Proxy(to=origin.address, drain_timeout=30) as proxy, Client(proxy.address) as client:
        client.send(b"GET /slow/30 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        proxy.process.send_signal(signal.SIGINT)
        assert ended(proxy, 2) == 0


def test_posted_drain_is_the_same(origin: Origin) -> None:
    with Proxy(to=origin.address, drain_timeout=10) as proxy, Client(proxy.address) as client:
        client.send(b"GET /slow/0.5 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        assert proxy.ask("/drain")[0] == 405
        assert proxy.ask("/drain", "POST")[0] == 202
        assert client.response().status == 200
        assert ended(proxy, 3) == 0


def test_no_process_no_socket_file_and_no_zombie_is_left(origin: Origin, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Proxy(to=origin.address, listen=f"unix://{path}", workers=2) as proxy:
        workers = proxy.workers()
        assert len(workers) == 2
        with Client(f"unix://{path}") as client:
            assert client.request("GET", "/").status == 200
        assert (path.stat().st_mode & 0o777) == 0o666
        proxy.process.send_signal(signal.SIGTERM)
        assert ended(proxy, 5) == 0
    assert not path.exists()
    deadline = time.monotonic() + 2
    for pid in workers:
        while alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_a_killed_agent_leaves_nothing_running(origin: Origin) -> None:
    with Origin() as other, Proxy(to=other.address, workers=2) as proxy:
        workers = proxy.workers()
        with Client(proxy.address) as client:
            client.send(b"GET /slow/0.5 HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.2)
            proxy.process.kill()
            proxy.process.wait(5)
            assert client.response().status == 200  # what runs may finish
        deadline = time.monotonic() + 5
        while any(alive(pid) for pid in workers):
            assert time.monotonic() < deadline, "workers outlive their agent"
            time.sleep(0.02)
        proxy.process.returncode = 0  # it was meant to die: leaving the context wants 0


def test_a_stale_socket_file_is_replaced_and_a_used_one_is_not(origin: Origin, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with Proxy(to=origin.address, listen=f"unix://{path}"):
        with Client(f"unix://{path}") as client:
            assert client.request("GET", "/").status == 200
        with pytest.raises(AssertionError, match="in use by another program"):
            Proxy(to=origin.address, listen=f"unix://{path}")
        with Client(f"unix://{path}") as client:
            assert client.request("GET", "/").status == 200
