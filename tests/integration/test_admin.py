"""The admin API of a running proxy: what it tells, what it refuses, where it listens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.client import Client
from tests.support.origin import Origin
from tests.support.proxy import ROOT, Proxy, free_port


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as one:
        yield one


@pytest.fixture(scope="module")
def proxy(origin: Origin) -> Iterator[Proxy]:
    with Proxy(to=origin.address, workers=2) as one:
        yield one


def told(proxy: Proxy, path: str, status: int = 200) -> Any:
    got, text = proxy.ask(path)
    assert got == status, text
    return json.loads(text)


def test_live_and_ready(proxy: Proxy) -> None:
    assert told(proxy, "/live")["live"] is True
    assert told(proxy, "/ready") == {"ready": True, "reason": ""}


def test_plan_tells_version_workers_and_hosts(proxy: Proxy) -> None:
    plan = told(proxy, "/plan")
    assert plan["version"] == 1 and plan["source"] == "--to"
    assert abs(plan["epoch"] / 1000 - time.time()) < 600
    assert [(w["worker"], w["state"], w["serving"]) for w in plan["workers"]] == [
        (0, "ready", 1),
        (1, "ready", 1),
    ]
    assert [w["pid"] for w in plan["workers"]] == proxy.workers()
    assert plan["listeners"] == [{"name": "mesh", "address": proxy.address, "open": True, "error": ""}]
    assert [(h["listener"], h["host"], h["rules"]) for h in plan["hosts"]] == [("mesh", "*", 1)]
    assert len(plan["hash"]) == 64


def test_clusters_tell_what_runs_now(proxy: Proxy, origin: Origin) -> None:
    with Client(proxy.address) as client:
        client.send(b"GET /slow/0.5 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        (cluster,) = told(proxy, "/clusters")["clusters"]
        (endpoint,) = cluster["endpoints"]
        assert (endpoint["endpoint"], endpoint["health"]) == (origin.address, "healthy")
        assert (cluster["active"], endpoint["active"]) == (1, 1)
        assert endpoint["connections"] >= 1
        assert client.response().status == 200


def test_explain_answers_for_the_plan_that_serves(proxy: Proxy, origin: Origin) -> None:
    path = f"/explain?request={quote('GET http://any/x?y=1')}&header={quote('A: b')}"
    answer = told(proxy, path)
    assert answer["action"] == "forward" and answer["sent"] == "/x?y=1"
    assert answer["destinations"][0]["endpoints"] == [origin.address]
    assert "request" in told(proxy, "/explain", 400)["error"]
    assert "METHOD URL" in told(proxy, "/explain?request=x", 400)["error"]
    assert "NAME: VALUE" in told(proxy, path + "&header=x", 400)["error"]


def test_metrics_have_the_agents_own(proxy: Proxy) -> None:
    status, text = proxy.ask("/metrics")
    assert status == 200
    assert "fastproxy_plan_version 1\n" in text
    assert "fastproxy_workers_died_total 0\n" in text
    assert "# TYPE fastproxy_config_reloads_total counter\n" in text


def test_every_family_of_metrics_is_there_once(proxy: Proxy, origin: Origin) -> None:
    """The exposition format allows one HELP and one TYPE line per name, and one sample per set of labels."""
    with Client(proxy.address) as client:
        assert client.request("GET", "/").status == 200
    text = proxy.ask("/metrics")[1]
    for word in ("HELP", "TYPE"):
        names = [line.split()[2] for line in text.splitlines() if line.startswith(f"# {word} ")]
        assert len(names) > 40 and sorted(names) == sorted(set(names))
    samples = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert sorted(samples) == sorted(set(samples))
    parsed = list(text_string_to_metric_families(text))
    assert len(parsed) == len({family.name for family in parsed})
    assert sum(len(family.samples) for family in parsed) == len(samples)
    versions = [f.samples for f in parsed if f.name == "fastproxy_worker_plan_version"]
    assert [(s.labels["worker"], s.value) for s in versions[0]] == [("0", 1), ("1", 1)]


def test_unknown_paths_and_methods(proxy: Proxy) -> None:
    assert proxy.ask("/nowhere")[0] == 404
    assert proxy.ask("/config")[0] == 405
    assert proxy.ask("/plan", "POST", b"")[0] == 405


def test_a_body_that_is_too_large_is_refused(proxy: Proxy) -> None:
    with Client(proxy.admin) as client:
        client.send(b"POST /config HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
        chunk = b" " * (1 << 20)
        for _ in range(66):
            try:
                client.send(chunk)
            except (BrokenPipeError, ConnectionResetError):
                break
        assert client.response().status == 413
    assert told(proxy, "/plan")["version"] == 1


def test_killed_workers_are_replaced_in_under_a_second(origin: Origin) -> None:
    with Proxy(to=origin.address, workers=2) as proxy:
        first, second = proxy.workers()
        os.kill(first, signal.SIGKILL)
        started = time.monotonic()
        while not (len(now := proxy.workers()) == 2 and first not in now and serving(proxy)):
            assert time.monotonic() - started < 1.0, "not replaced in a second"
            time.sleep(0.01)
        assert second in now
        assert "killed by SIGKILL; starting another" in proxy.stderr
        with Client(proxy.address) as client:
            assert client.request("GET", "/").status == 200
        assert "fastproxy_workers_died_total 1\n" in proxy.ask("/metrics")[1]


def serving(proxy: Proxy) -> bool:
    return all(w["serving"] for w in told(proxy, "/plan")["workers"])


def test_a_killed_spawner_is_replaced_and_traffic_goes_on(origin: Origin) -> None:
    with Proxy(to=origin.address) as proxy, Client(proxy.address) as client:
        (worker,) = proxy.workers()
        spawner = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        assert Path(f"/proc/{spawner}/comm").read_text() == "fastproxy:spawn\n"
        os.kill(spawner, signal.SIGKILL)
        for _ in range(20):
            assert client.request("GET", "/").status == 200
            time.sleep(0.02)
        os.kill(worker, signal.SIGKILL)
        deadline = time.monotonic() + 3
        while [w["pid"] for w in told(proxy, "/plan")["workers"]] in ([0], [worker]) or not serving(proxy):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with Client(proxy.address) as again:
            assert again.request("GET", "/").status == 200


def test_a_name_is_resolved(origin: Origin) -> None:
    with Proxy(to=f"localhost:{origin.port}") as proxy, Client(proxy.address) as client:
        for _ in range(4):
            assert client.request("GET", "/").status == 200
        (cluster,) = told(proxy, "/clusters")["clusters"]
        assert cluster["resolution"] == "DNS"
        assert f"127.0.0.1:{origin.port}" in [e["endpoint"] for e in cluster["endpoints"]]


def test_admin_on_a_unix_socket_is_for_its_owner(origin: Origin, tmp_path: Path) -> None:
    path = tmp_path / "admin"
    words = ["--listen", f"127.0.0.1:{free_port()}", "--to", origin.address, "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastproxy", "run", *words, "--admin", f"unix://{path}"], cwd=ROOT
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            assert time.monotonic() < deadline
            time.sleep(0.02)
            if path.exists():
                with Client(f"unix://{path}") as client:
                    if client.request("GET", "/ready").status == 200:
                        break
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        process.terminate()
        assert process.wait(10) == 0
    assert not path.exists()


def test_admin_in_use_is_exit_1(origin: Origin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [
            "--listen",
            f"127.0.0.1:{free_port()}",
            "--to",
            origin.address,
            "--admin",
            f"127.0.0.1:{port}",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "fastproxy", "run", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        f"fastproxy: error: 127.0.0.1:{port} is in use by another program (--admin); "
        "stop it or choose another port\n"
    )
