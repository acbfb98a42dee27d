"""Where endpoints and listeners come from: names, Unix sockets, workload entries (issue, item 5)."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.client import Client
from tests.support.origin import Origin
from tests.support.proxy import Proxy

ALL = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all}
spec:
  hosts: ["*"]
  http:
  - route: [{destination: {host: service}}]
---
"""
ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: service}
spec:
  hosts: [service]
  ports: [{number: 80, name: http, protocol: HTTP}]
"""


def name_of(client: Client) -> str:
    """Which origin answered."""
    response = client.request()
    assert response.status == 200, response
    return str(json.loads(response.body)["name"])


def test_endpoint_by_name() -> None:
    """resolution: DNS: the agent resolves the endpoint's host name; a worker never does."""
    with Origin("named") as origin:
        config = (
            ALL
            + ENTRY
            + f"  resolution: DNS\n  endpoints: [{{address: localhost, ports: {{http: {origin.port}}}}}]\n"
        )
        with Proxy(config=config) as proxy, proxy.client() as client:
            assert name_of(client) == "named"


def test_unix_endpoint(tmp_path: Path) -> None:
    """An endpoint's address may be unix:///path."""
    with Origin("unix", path=str(tmp_path / "o.sock")) as origin:
        config = ALL + ENTRY + f'  resolution: STATIC\n  endpoints: [{{address: "{origin.address}"}}]\n'
        with Proxy(config=config) as proxy, proxy.client() as client:
            assert name_of(client) == "unix"


def test_workload_entries() -> None:
    """A ServiceEntry with a workloadSelector takes the WorkloadEntries whose labels fit."""
    with Origin("a") as a, Origin("b") as b, Origin("other") as other:
        entries = "".join(
            f"---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: w{port}}}\n"
            f"spec: {{address: 127.0.0.1, ports: {{http: {port}}}, labels: {{app: {app}}}}}\n"
            for port, app in [(a.port, "service"), (b.port, "service"), (other.port, "other")]
        )
        config = (
            ALL + ENTRY + "  resolution: STATIC\n  workloadSelector: {labels: {app: service}}\n" + entries
        )
        with Proxy(config=config) as proxy, proxy.client() as client:
            assert {name_of(client) for _ in range(40)} == {"a", "b"}


def test_unix_gateway(tmp_path: Path, origin: Origin) -> None:
    """A Gateway's bind may be unix:///path; the socket is gone when the proxy is."""
    path = tmp_path / "g.sock"
    gateway = (
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  servers:\n"
        f'  - {{port: {{number: 0, name: http, protocol: HTTP}}, bind: "unix://{path}", hosts: ["*"]}}\n'
    )
    config = ALL.replace("  http:", "  gateways: [edge]\n  http:") + ENTRY
    config += f"  resolution: STATIC\n  endpoints: [{{address: 127.0.0.1, ports: {{http: {origin.port}}}}}]\n"
    with Proxy(config=config + gateway) as proxy:
        with Client(f"unix://{path}") as client:
            assert name_of(client) == "origin"
        proxy.pooled = True
        proxy.assert_counts_at_zero()
    assert not path.exists()


def test_endpoint_weights() -> None:
    """Istio WorkloadEntry.weight: shares of an endpoint among its neighbours."""
    with Origin("light") as light, Origin("heavy") as heavy:
        config = ALL + ENTRY + "  resolution: STATIC\n  endpoints:\n"
        config += f"  - {{address: 127.0.0.1, ports: {{http: {light.port}}}, weight: 1}}\n"
        config += f"  - {{address: 127.0.0.1, ports: {{http: {heavy.port}}}, weight: 4}}\n"
        with Proxy(config=config) as proxy, proxy.client() as client:
            names = [name_of(client) for _ in range(200)]
    assert 8 <= names.count("light") <= 80, names.count("light")
