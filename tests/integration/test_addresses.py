"""Unix sockets on both sides, IPv6, several endpoints of the one-line proxy (issue, item 5)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.support.client import head
from tests.support.origin import Origin, pattern
from tests.support.proxy import Proxy, free_port
from tests.support.upstream import Upstream


def test_unix_upstream(tmp_path: Path) -> None:
    """An endpoint may be a Unix socket, unix:///path."""
    with Origin(path=str(tmp_path / "o.sock")) as origin, Proxy(to=origin.address) as proxy:
        with proxy.client() as client:
            told = json.loads(client.request(target="/x").body)
            assert told["target"] == "/x"
            assert client.request(target="/bytes/1000000").body == pattern(1000000)
        proxy.pooled = True
        proxy.assert_counts_at_zero()


def test_unix_listener(origin: Origin, tmp_path: Path) -> None:
    """A listener may be a Unix socket; the client then has no address to be forwarded for."""
    with Proxy(to=origin.address, listen=f"unix://{tmp_path}/l.sock") as proxy:
        with proxy.client() as client:
            told = json.loads(client.request(target="/x").body)
        fields = {name.lower(): value for name, value in told["headers"]}
        assert told["target"] == "/x"
        assert not fields.get("x-forwarded-for", "").startswith("127.")
        assert fields["x-forwarded-host"] == "test"
        proxy.pooled = True
        proxy.assert_counts_at_zero()


def test_stale_socket_file_is_replaced(origin: Origin, tmp_path: Path) -> None:
    """A socket file that a killed process left behind does not keep the listener from opening."""
    path = tmp_path / "l.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Proxy(to=origin.address, listen=f"unix://{path}") as proxy, proxy.client() as client:
        assert client.request().status == 200


def test_ipv6(origin: Origin) -> None:
    """[::1] as a listener; the client's address is forwarded without brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback on this machine: {error}")
    port = free_port()
    with (
        Proxy(to=origin.address, listen=f"[::1]:{port}") as proxy,
        socket.create_connection(("::1", port), timeout=10) as sock,
    ):
        sock.sendall(head("GET", "/", [("Connection", "close")]))
        data = b""
        while part := sock.recv(65536):
            data += part
        told = json.loads(data.partition(b"\r\n\r\n")[2])
        assert {n.lower(): v for n, v in told["headers"]}["x-forwarded-for"] == "::1"
        proxy.pooled = True


def test_several_endpoints() -> None:
    """--to with a list: each gets its part of 60 requests."""
    with Origin("a") as a, Origin("b") as b, Proxy(to=[a.address, b.address]) as proxy:
        with proxy.client() as client:
            names = [json.loads(client.request().body)["name"] for _ in range(60)]
        assert min(names.count("a"), names.count("b")) >= 10


def test_another_endpoint_when_one_refuses() -> None:
    """A connection that is refused sent nothing: another endpoint is asked before anyone sees a 503."""
    with (
        Origin("a") as a,
        Proxy(to=[a.address, f"127.0.0.1:{free_port()}"]) as proxy,
        proxy.client() as client,
    ):
        assert [client.request().status for _ in range(10)] == [200] * 10


def test_two_workers_serve(upstream: Upstream) -> None:
    """Both workers accept from the one socket: while one is stopped, the other serves who comes."""
    with Proxy(to=upstream.address, workers=2) as proxy:
        for worker in proxy.workers():
            os.kill(worker, signal.SIGSTOP)
            try:
                clients = [proxy.client(timeout=5) for _ in range(10)]
                assert [client.request().status for client in clients] == [200] * 10
            finally:
                os.kill(worker, signal.SIGCONT)
        proxy.close_clients()
        accepted = re.findall(
            r'fastproxy_worker_accepted_total{worker="(\d)"} (\d+)', proxy.ask("/metrics")[1]
        )
        assert sorted(accepted) == [("0", "10"), ("1", "10")]
        upstream.reset()
        proxy.assert_counts_at_zero()
