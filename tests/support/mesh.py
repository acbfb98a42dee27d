"""A small mesh for tests: real control planes, real proxies that follow them, traffic that never rests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from .proxy import ROOT, free_port
from .server import three_ports

EVERYTHING = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: all}}
spec:
  hosts: ["*"]
  http:
  - match: [{{uri: {{exact: /version}}}}]
    directResponse: {{status: 200, body: {{string: "{word}"}}}}
  - route: [{{destination: {{host: origin}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: origin}}
spec:
  hosts: [origin]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
"""


def everything(port: int, word: str) -> str:
    """All traffic to the origin at ``port``; ``/version`` tells ``word``."""
    return EVERYTHING.format(port=port, word=word)


class Serve:
    """One ``fastproxyctl serve``. It may be killed, paused, and started again where it was.

    ``wrap``: words before the command, to run it elsewhere (``ip netns exec …``).
    """

    def __init__(
        self,
        store: str,
        *flags: str,
        host: str = "127.0.0.1",
        wrap: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.store, self.flags, self.wrap = store, list(flags), list(wrap)
        self.publish = f"tcp://{host}:{three_ports()}"
        self.api = free_port()
        self._environment = environment or {}
        self._process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api}"

    @property
    def stderr(self) -> str:
        return "".join(self.lines)

    def start(self, *flags: str) -> None:
        words = [*self.wrap, sys.executable, "-m", "ctrl", "serve", "--store", self.store]
        words += ["--publish", self.publish, "--api", f"127.0.0.1:{self.api}"]
        words += ["--heartbeat", "200ms", "--report", "500ms", *self.flags, *flags]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTPROXY_")}
        self._process = subprocess.Popen(
            words,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=clean | self._environment,
        )
        threading.Thread(target=self._collect, args=(self._process,), daemon=True).start()
        self.wait_ready()

    def _collect(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        with process.stderr as stream:
            self.lines += stream

    def wait_ready(self, timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/ready")[0] == 200:
                    return
            assert self._process and self._process.poll() is None, f"it ended:\n{self.stderr}"
            assert time.monotonic() < deadline, f"not ready:\n{self.stderr}"
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        """To the process, and to what it was wrapped in."""
        assert self._process
        for pid in [self._process.pid, *_children(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a crash: nobody is told."""
        self.signal(signal.SIGKILL)
        assert self._process
        self._process.wait(5)

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self.resume()
            self.signal(signal.SIGTERM)
            try:
                assert self._process.wait(10) == 0, self.stderr
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"it did not end:\n{self.stderr}") from None

    # --- the API ---

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 30.0) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.api, timeout=timeout)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"content-type": "application/json"} if data else {})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text.decode()
        finally:
            connection.close()

    def apply(self, text: str, **options: Any) -> int:
        """These documents; the version that they are."""
        status, answer = self.ask(
            "POST", "/v1/apply", {"files": [{"name": "t.yaml", "text": text}], **options}
        )
        assert status == 200, (status, answer)
        return int(answer["version"])

    def wait_serving(self, version: int, proxies: int, timeout: float = 10.0) -> None:
        """Until so many proxies serve it."""
        deadline = time.monotonic() + timeout
        while (seen := self.ask("GET", f"/v1/progress?version={version}")[1])["serving"] < proxies:
            assert time.monotonic() < deadline, (seen, self.ask("GET", "/v1/status"))
            time.sleep(0.05)

    def proxies(self) -> dict[str, dict[str, Any]]:
        """What ``status`` tells of each proxy, by name."""
        return {row["node"]: row for row in self.ask("GET", "/v1/status")[1]["proxies"]}


class Traffic:
    """Requests to a proxy, one after the other on a connection that stays and on fresh ones, until its end.

    A request that fails, or is answered with anything but 200, is kept in :attr:`failures`.
    """

    def __init__(self, address: str, path: str = "/") -> None:
        self._host, _, port = address.rpartition(":")
        self._port, self._path = int(port), path
        self._ended = threading.Event()
        self.failures: list[str] = []
        self.answers = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        if kind is None:
            assert not self.failures, self.failures[:5]
            assert self.answers > 20, f"only {self.answers} requests were answered"

    def _run(self) -> None:
        kept = http.client.HTTPConnection(self._host, self._port, timeout=5)
        while not self._ended.is_set():
            fresh = http.client.HTTPConnection(self._host, self._port, timeout=5)
            for connection in (kept, fresh):
                try:
                    connection.request("GET", self._path)
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status == 200:
                        self.answers += 1
                    else:
                        self.failures.append(f"{answer.status} {answer.getheader('x-fastproxy-flags')}")
                except (OSError, http.client.HTTPException) as e:
                    self.failures.append(repr(e))
                    connection.close()
            fresh.close()
            self._ended.wait(0.004)
        kept.close()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
