"""``fastproxy run`` as a test sees it: started, asked, counted, stopped."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from .client import Client

unless_sanitized = pytest.mark.skipif(
    bool(os.environ.get("FASTPROXY_SANITIZED")), reason="the memory measured would be the sanitizer's own"
)
ROOT = Path(__file__).resolve().parents[2]
# Gauges that must be back at zero once every connection is closed (fastproxy/_balance.pxd, struct Gauges).
AT_ZERO = (
    "downstream_connections",
    "downstream_idle",
    "upstream_connections",
    "upstream_idle",
    "exchanges",
    "chunks",
    "chunk_bytes",
    "pipes",
    "invariant_failures",
)
SAMPLE = re.compile(r"^fastproxy_worker_(\w+?)(?:_total)?(?:\{([^}]*)\})? ([0-9.eE+-]+)$", re.MULTILINE)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def limit_descriptors(count: int) -> None:
    """For ``preexec``: this process and its children may have ``count`` descriptors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


class Proxy:
    """A running proxy. Flags are keyword arguments: ``max_head=4096`` is ``--max-head 4096``.

    With ``to`` it is the one-line proxy; with ``config`` (YAML text) it reads the file :attr:`config`,
    which a test may rewrite. Leaving the context stops it with SIGTERM and wants exit code 0.
    """

    live: list[Proxy] = []

    def __init__(
        self,
        to: str | list[str] | None = None,
        config: str | None = None,
        listen: str | None = None,
        descriptors: int = 0,
        ready: bool = True,
        **flags: object,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fastproxy-test-")
        self.folder = Path(self._folder.name)
        self.config = self.folder / "config.yaml"
        self.address = listen or f"127.0.0.1:{free_port()}"
        self.admin = f"127.0.0.1:{free_port()}"
        self.touched = False
        self._clients: list[Client] = []
        arguments = [
            sys.executable,
            "-m",
            "fastproxy",
            "run",
            "--listen",
            self.address,
            "--admin",
            self.admin,
        ]
        if to is not None:
            arguments += ["--to", to if isinstance(to, str) else ",".join(to)]
        if config is not None:
            self.config.write_text(config)
            arguments += ["-c", str(self.config)]
        flags.setdefault("workers", 1)
        flags.setdefault("drain_timeout", 2)
        for name, value in flags.items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                arguments.append(flag)
            elif value is False:
                arguments.append(flag.replace("--", "--no-", 1))
            else:
                arguments += [flag, str(value)]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=(lambda: limit_descriptors(descriptors)) if descriptors else None,
            env={k: v for k, v in os.environ.items() if not k.startswith("FASTPROXY_")},
        )
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()
        self.plans = int(str(flags["workers"]))
        self.pooled = False  # idle upstream connections may stay
        if ready:
            try:
                self.wait_ready()
            except BaseException:
                self.process.kill()
                self._reap()
                raise
        Proxy.live.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop(check=kind is None)

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def stderr(self) -> str:
        return "\n".join(self.lines)

    def _reap(self) -> None:
        self.process.wait(10)
        self._collector.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self._folder.cleanup()

    def stop(self, check: bool = True) -> None:
        """SIGTERM; SIGKILL when that does not end it. With ``check`` the exit code must be 0."""
        if self in Proxy.live:
            Proxy.live.remove(self)
        self.close_clients()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
            late = False
        except subprocess.TimeoutExpired:
            late = True
            self.process.kill()
        self._reap()
        if check:
            assert not late, f"SIGTERM did not end it in 10 s; stderr:\n{self.stderr}"
            assert self.process.returncode == 0, (
                f"exit code {self.process.returncode}; stderr:\n{self.stderr}"
            )

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, str]:
        """Status and text of an admin address."""
        host, _, port = self.admin.rpartition(":")
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def wait_ready(self, timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            code = self.process.poll()
            if code is not None:
                self._collector.join(5)
                raise AssertionError(f"the proxy ended with {code}; stderr:\n{self.stderr}")
            with contextlib.suppress(OSError):
                if self.ask("/ready")[0] == 200:
                    return
            assert time.monotonic() < deadline, f"not ready in {timeout} s; stderr:\n{self.stderr}"
            time.sleep(0.02)

    def gauges(self) -> dict[str, float]:
        """The workers' gauges, added up."""
        status, text = self.ask("/metrics")
        assert status == 200, text
        total: dict[str, float] = {}
        for name, _, value in SAMPLE.findall(text):
            total[name] = total.get(name, 0) + float(value)
        assert total, f"no fastproxy_worker_ metrics in:\n{text[:2000]}"
        return total

    def gauge_of(self, worker: int, name: str) -> float:
        """One worker's gauge."""
        text = self.ask("/metrics")[1]
        return sum(
            float(v) for n, key, v in SAMPLE.findall(text) if n == name and key == f'worker="{worker}"'
        )

    def wait_said(self, *words: str, timeout: float = 3.0) -> None:
        """Until a line on standard error has all of these words."""
        deadline = time.monotonic() + timeout
        while not any(all(word in line for word in words) for line in self.lines):
            assert time.monotonic() < deadline, f"no line with {words} in:\n{self.stderr}"
            time.sleep(0.02)

    def wait_gauge(self, name: str, value: float, timeout: float = 5.0) -> None:
        """Until that gauge has that value."""
        deadline = time.monotonic() + timeout
        while (now := self.gauges()[name]) != value:
            assert time.monotonic() < deadline, f"{name} is {now}, not {value}, after {timeout} s"
            time.sleep(0.02)

    def assert_counts_at_zero(self, timeout: float = 3.0) -> None:
        """Everything acquired is released; one plan is mapped by each worker; nothing impossible happened."""
        deadline = time.monotonic() + timeout
        while True:
            gauges = self.gauges()
            if self.pooled:
                gauges["upstream_connections"] -= gauges["upstream_idle"]
                gauges["upstream_idle"] = 0
            left = {name: gauges[name] for name in AT_ZERO if gauges[name] != 0}
            if gauges["plans"] != self.plans:
                left["plans"] = gauges["plans"]
            if not left:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"not released: {left}; stderr:\n{self.stderr}")
            time.sleep(0.02)

    def client(self, timeout: float = 10.0, receive_buffer: int = 0) -> Client:
        """A new connection to the listener that ``--listen`` opened."""
        self.touched = True
        client = Client(self.address, timeout, receive_buffer)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        """Close what a test that failed may have left open."""
        while self._clients:
            self._clients.pop().close()

    def workers(self) -> list[int]:
        """Process ids of the workers, in their order: descendants that are named fastproxy:w0, w1, …"""
        found: dict[str, int] = {}
        left = [self.process.pid]
        while left:
            pid = left.pop()
            with contextlib.suppress(OSError):  # it may end while we look
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                if name.startswith("fastproxy:w"):
                    found[name] = pid
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                left += [int(child) for child in children.split()]
        return [found[name] for name in sorted(found)]
