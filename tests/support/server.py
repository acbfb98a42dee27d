"""``fastproxyctl serve`` as a test sees it: a process of its own on free ports, and its HTTP API."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx

from .proxy import ROOT

YAML = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: [{name}]
  http:
  - directResponse: {{status: {status}}}
"""


def host(name: str, status: int = 200) -> str:
    """A document with which the mesh answers this host by itself, with this status."""
    return YAML.format(name=name, status=status)


def three_ports() -> int:
    """The first of three free ports in a row, below those that the system gives to clients: they stay free
    for a server that comes again."""
    while True:
        first = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + 3):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


class Server:
    """The process. ``store``: default a SQLite file in :attr:`folder`. Flags are words, or keyword arguments,
    True for those without a value. It may be killed, paused, and started again where it was. Leaving the
    context ends it with SIGTERM and wants exit code 0."""

    def __init__(
        self,
        store: str = "",
        *words: str,
        api: str = "127.0.0.1:0",
        publish: str = "",
        environment: dict[str, str] | None = None,
        **flags: object,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fastproxy-test-")
        self.folder = Path(self._folder.name)
        self.store = store or f"sqlite:///{self.folder}/store.db"
        publish = publish or f"tcp://127.0.0.1:{three_ports()}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTPROXY_")}
        self._environment = clean | (environment or {})
        self._words = ["--api", api, "--publish", publish, *words]
        self._words += [] if "heartbeat" in flags else ["--heartbeat", "200ms"]
        self._words += [] if "report" in flags else ["--report", "500ms"]
        for name, value in flags.items():
            flag = "--" + name.replace("_", "-")
            self._words += [flag] if value is True else [flag, str(value)]
        self.lines: list[str] = []
        self.url = self.address = ""
        self.process: subprocess.Popen[str]
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            code = self.stop()
            assert kind is not None or code == 0 or self._killed, f"exit code {code}; stderr:\n{self.stderr}"
        finally:
            self._folder.cleanup()

    @property
    def stderr(self) -> str:
        return "\n".join(self.lines)

    def start(self, *more: str) -> None:
        """Again after :meth:`stop` or :meth:`kill`, at the same addresses and on the same store."""
        self.lines, self._killed = [], False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ctrl", "serve", "--store", self.store, *self._words, *more],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()
        deadline = time.monotonic() + 20
        while not (said := [line for line in self.lines if "API at http" in line]):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self._reap()
                raise AssertionError(f"it does not serve; stderr:\n{self.stderr}")
            time.sleep(0.01)
        words = said[0].replace(",", "").split()
        self.url, self.address = words[3], words[6]
        host, publish = self.url.removeprefix("http://"), self.address
        self._words[:4] = ["--api", host, "--publish", publish]

    def _collect(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def _reap(self) -> int:
        code = self.process.wait(10)
        self._collector.join(5)
        assert self.process.stderr
        self.process.stderr.close()
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code. Nothing where it has ended already."""
        if self.process.poll() is None:
            self.resume()
            self.process.send_signal(number)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self._reap()
            raise AssertionError(f"signal {number} did not end it; stderr:\n{self.stderr}") from None
        return self._reap()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: nothing is said, nothing is closed in order."""
        self._killed = True
        self.process.kill()
        self._reap()

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """One request of the API, on a connection of its own."""
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.request(method, self.url + path, json=body, **options)

    def get(self, path: str) -> Any:
        """What it answers, which must be 200."""
        response = self.ask("GET", path)
        assert response.status_code == 200, response.text
        return response.json()

    def apply(self, *texts: str, **options: Any) -> Any:
        """Apply these documents; the answer, which must be 200. Options in the API's spelling."""
        files = [{"name": f"{i}.yaml", "text": text} for i, text in enumerate(texts)]
        response = self.ask("POST", "/v1/apply", {"files": files, **options})
        assert response.status_code == 200, response.text
        return response.json()

    def wait_serving(self, version: int, proxies: int = 1, timeout: float = 20.0) -> Any:
        """Until so many proxies serve that version; the progress."""
        deadline = time.monotonic() + timeout
        seen = None
        while True:
            more = f"&wait=1&seen={seen}" if seen is not None else ""
            progress = self.get(f"/v1/progress?version={version}{more}")
            if progress["serving"] >= proxies:
                return progress
            assert time.monotonic() < deadline, f"{progress}; stderr:\n{self.stderr}"
            seen = progress["seen"]
