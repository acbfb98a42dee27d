"""The control plane as a child, on a SQLite store, and the mesh that is applied to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.load import Failed
from benchmarks.process import ROOT, cpu_between, cpu_clock, free_port

START = 60.0  # seconds; ten thousand routes are read anew


def _free(*ports: int) -> bool:
    """Nobody listens on any of these ports of 127.0.0.1."""
    try:
        for port in ports:
            with socket.create_server(("127.0.0.1", port)):
                pass
    except OSError:
        return False
    return True


def services(count: int, endpoints: int, turn: int = 0) -> Iterator[dict[str, Any]]:
    """``count`` ServiceEntries with ``endpoints`` endpoints each. ``turn`` moves the first of each."""
    for i in range(count):
        rows = [
            {"address": f"10.{i >> 8}.{i & 255}.{e + 1}", "ports": {"http": 8000 + (turn if e == 0 else 0)}}
            for e in range(endpoints)
        ]
        yield {
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {"name": f"svc-{i:05d}"},
            "spec": {
                "hosts": [f"svc-{i:05d}"],
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                "resolution": "STATIC",
                "endpoints": rows,
            },
        }


def routes(count: int, each: int, turn: int = 0) -> Iterator[dict[str, Any]]:
    """``count`` VirtualServices with ``each`` routes. ``turn`` changes the first route of the first."""
    for i in range(count):
        http = [
            {
                "match": [
                    {
                        "uri": {"prefix": f"/api/v{r}/{turn if i == r == 0 else ''}"},
                        "method": {"exact": "GET"},
                    }
                ],
                "route": [{"destination": {"host": f"svc-{i:05d}"}}],
            }
            for r in range(each)
        ]
        yield {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": f"svc-{i:05d}"},
            "spec": {"hosts": [f"svc-{i:05d}"], "http": http},
        }


class Plane:
    """One ``fastproxyctl serve``. It may be killed and started again on the same store and ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        first = next(port for port in range(20_000, 30_000) if _free(port, port + 1, port + 2))
        self._api = free_port()
        self.publish = f"tcp://127.0.0.1:{first}"
        self._log = folder / "plane.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> float:
        """Seconds until it was ready."""
        began = time.monotonic()
        words = ["serve", "--store", f"sqlite:///{self._folder}/store.db", "--publish", self.publish]
        words += ["--api", f"127.0.0.1:{self._api}"]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ctrl", *words], stdout=log, stderr=log, cwd=ROOT
            )
        while time.monotonic() - began < START:
            if self._process.poll() is not None:
                break
            try:
                if self.get("/ready", raw=True):
                    return time.monotonic() - began
            except OSError:
                time.sleep(0.01)
        raise Failed(f"the control plane does not start: {self._log.read_text()[-600:]}")

    def kill(self) -> None:
        """As a crash: no goodbye."""
        assert self._process
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def get(self, path: str, raw: bool = False) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._api}{path}", timeout=60) as answer:
            data = answer.read()
        return data if raw else json.loads(data)

    def apply(self, documents: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> dict[str, Any]:
        """One version of these documents."""
        text = "\n---\n".join(json.dumps(d) for d in documents)
        body = json.dumps({"files": [{"name": "mesh.yaml", "text": text}], "strict": True}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._api}/v1/apply", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as e:
            raise Failed(f"apply: {e.code} {e.read()[:600].decode(errors='replace')}") from None

    def known(self, version: int, count: int, seconds: float) -> float:
        """When the control plane knows that ``count`` proxies serve this version, Unix seconds. Raises
        Failed."""
        deadline = time.monotonic() + seconds
        seen = ""
        while time.monotonic() < deadline:
            progress = self.get(f"/v1/progress?version={version}&wait=1{seen}")
            if progress["serving"] >= count:
                return time.time()
            seen = f"&seen={progress['seen']}"
            time.sleep(0.05)  # each look costs the control plane a walk over all proxies
        raise Failed(f"after {seconds} s the control plane does not know all to serve {version}: {progress}")

    def cpu_ns(self) -> dict[int, int]:
        return cpu_clock([self.pid])

    def cpu_since(self, before: dict[int, int]) -> int:
        """Nanoseconds run since :meth:`cpu_ns`."""
        return cpu_between(before, self.cpu_ns())

    def peak_rss(self) -> int:
        """Bytes, the most it ever had."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0
