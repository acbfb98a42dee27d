"""fastproxy as a user runs it: one worker, metrics on; the agent beside it is counted too."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path

import msgpack

from benchmarks.load import Failed
from benchmarks.peers.base import Peer
from benchmarks.process import ROOT, descendants, free_port, pin
from benchmarks.scenarios import prefix, tenant
from fastproxy import __version__
from fastproxy.tables import FORMAT, Tables

RESOURCES = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  servers:
  - {{port: {{number: {port}, name: http, protocol: HTTP}}, bind: 127.0.0.1, hosts: ["*"]}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: origin}}
spec:
  hosts: [origin]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {origin}}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: origin}}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
"""
RULE = """\
  - match: [{{uri: {{prefix: {prefix}}}, headers: {{x-tenant: {{exact: {tenant}}}}}}}]
    route: [{{destination: {{host: origin}}}}]
"""


class Fastproxy(Peer):
    """``fastproxy run`` with one worker and metrics; the agent beside it counts. Rules are VirtualService
    documents read by ``-c``; without rules it is the one-line proxy."""

    name = "fastproxy"
    patience = 120.0  # 10,000 rules of YAML

    @classmethod
    def version(cls) -> str:
        if not list((ROOT / "fastproxy").glob("_core.*.so")):
            raise Failed("the compiled modules are missing (python setup.py build_ext --inplace)")
        return __version__

    def command(self) -> list[str]:
        self.admin = free_port()
        argv = [
            sys.executable,
            "-m",
            "fastproxy",
            "run",
            "--workers",
            "1",
            "--admin",
            f"127.0.0.1:{self.admin}",
        ]
        if self.setup.rules:
            file = self.folder / "rules.yaml"
            file.write_text(self.resources())
            argv += ["-c", str(file)]
        else:
            upstream = (
                f"unix://{self.upstream.path}" if self.setup.unix else f"127.0.0.1:{self.upstream.port}"
            )
            argv += ["--listen", f"127.0.0.1:{self.port}", "--to", upstream]
        return [*argv, "--access-log", str(self.folder / "access.log") if self.setup.log else "off"]

    def resources(self) -> str:
        """The rules as a person writes them."""
        rules = range(1, self.setup.rules + 1)
        return RESOURCES.format(port=self.port, origin=self.upstream.port) + "".join(
            RULE.format(prefix=prefix(i), tenant=tenant(i)) for i in rules
        )

    def tables(self, turn: int) -> bytes:
        """The rules as tables. An odd ``turn`` differs in every rule but the last, which traffic asks for."""
        rules = self.setup.rules
        cluster = "outbound|80||origin"
        listener = f"127.0.0.1:{self.port}"
        mark = "-odd" if turn % 2 else ""
        routes = [
            {
                "name": "",
                "matches": [
                    {
                        "path": {"prefix": prefix(i)},
                        "headers": {"x-tenant": {"exact": tenant(i) + (mark if i < rules else "")}},
                    }
                ],
                "destinations": [{"cluster": cluster, "weight": 1}],
            }
            for i in range(1, rules + 1)
        ]
        tables: Tables = {
            "format": FORMAT,
            "listeners": {listener: {"address": "127.0.0.1", "port": self.port, "protocol": "HTTP"}},
            "routes": {f"{listener} *": {"routes": routes, "source": ["benchmark"]}},  # type: ignore[typeddict-item]
            "clusters": {
                cluster: {
                    "service": "origin",
                    "port": 80,
                    "endpoints": "origin|80",
                    "labels": {},
                    "lb": "ROUND_ROBIN",
                    "resolution": "STATIC",
                }
            },
            "endpoints": {
                "origin|80": [{"address": "127.0.0.1", "port": self.upstream.port, "weight": 1, "labels": {}}]
            },
            "breakers": {},
        }
        packed: bytes = msgpack.packb(tables)
        return packed

    def swap(self, tables: bytes) -> None:
        """Give the running proxy another version of everything."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=30)
        try:
            connection.request("POST", "/config", tables, {"Content-Type": "application/x-msgpack"})
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace")
            if answer.status not in (200, 202, 204):
                raise Failed(f"/config said {answer.status}: {said[:200]}")
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"/config: {error!r}") from error
        finally:
            connection.close()

    def logged(self) -> int:
        """Lines in the access log."""
        with open(self.folder / "access.log", "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))

    def settle(self) -> None:
        """The worker stays on the proxy's core; the agent goes to the other, as a second service would."""
        pin(self.agent_pids(), self.where.load)
        pin(self.worker_pids(), self.where.proxy)

    def worker_pids(self) -> list[int]:
        found = [pid for pid in descendants(self.pid) if _is_worker(pid)]
        if not found:
            raise Failed("no worker process is running")
        return found

    def agent_pids(self) -> list[int]:
        return [self.pid, *(pid for pid in descendants(self.pid) if not _is_worker(pid))]


def _is_worker(pid: int) -> bool:
    """Workers name themselves ``fastproxy:w<number>``."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("fastproxy:w")
    except OSError:
        return False
