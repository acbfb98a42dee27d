"""A small mesh for tests: real control planes, real proxies that follow them, traffic that never rests."""

from __future__ import annotations

import http.client
import threading
from typing import Any, Self

from .server import Server, three_ports

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


class Serve(Server):
    """A server as tests of faults ask it: any status is an answer. ``host``: where proxies reach it."""

    def __init__(self, store: str, *words: str, host: str = "127.0.0.1", **options: Any) -> None:
        self.publish = f"tcp://{host}:{three_ports()}"
        super().__init__(store, *words, publish=self.publish, **options)

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:  # type: ignore[override]
        answer = super().ask(method, path, body, **options)
        return answer.status_code, answer.json() if answer.text[:1] in ("{", "[") else answer.text

    def get(self, path: str) -> Any:
        status, answer = self.ask("GET", path)
        assert status == 200, (status, answer)
        return answer

    def apply(self, text: str, **options: Any) -> int:
        """These documents; the version that they are."""
        files = [{"name": "t.yaml", "text": text}]
        status, answer = self.ask("POST", "/v1/apply", {"files": files, **options})
        assert status == 200, (status, answer)
        return int(answer["version"])

    def proxies(self) -> dict[str, dict[str, Any]]:
        """What ``status`` tells of each proxy, by name."""
        return {row["node"]: row for row in self.get("/v1/status")["proxies"]}


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
