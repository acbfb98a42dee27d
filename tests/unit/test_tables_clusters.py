"""ServiceEntries, WorkloadEntries and DestinationRules to clusters and endpoints."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from fastproxy.resources import load_texts, settle
from fastproxy.tables import Tables


def compile_text(text: str) -> Tables:
    loaded = load_texts([("a.yaml", text.encode())])
    assert loaded.problems == []
    tables, _, problems = settle(loaded.documents)
    assert problems == []
    return tables


def document(kind: str, name: str, spec: str, metadata: str = "") -> str:
    lines = "\n".join("  " + line for line in spec.strip("\n").split("\n"))
    head = f"apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}{metadata}}}\n"
    return f"{head}spec:\n{lines}\n---\n"


ENTRY = """
hosts: [catalog]
ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 81, name: admin, protocol: HTTP}]
resolution: %s
%s
"""


def entry(endpoints: str = "", resolution: str = "STATIC") -> str:
    return document("ServiceEntry", "catalog", ENTRY % (resolution, endpoints))


@pytest.mark.parametrize(
    ("endpoint", "http", "admin"),
    [
        ("{address: 10.0.0.1}", ("10.0.0.1", 8080), ("10.0.0.1", 81)),
        ("{address: 10.0.0.1, ports: {http: 9001}}", ("10.0.0.1", 9001), ("10.0.0.1", 81)),
        ("{address: '2001:DB8::1'}", ("2001:db8::1", 8080), ("2001:db8::1", 81)),
        ("{address: 'unix:///run/c.sock'}", ("unix:///run/c.sock", 0), ("unix:///run/c.sock", 0)),
        (
            "{address: 'unix:///run/c.sock', ports: {http: 0}}",
            ("unix:///run/c.sock", 0),
            ("unix:///run/c.sock", 0),
        ),
    ],
)
def test_endpoint_ports(endpoint: str, http: tuple[str, int], admin: tuple[str, int]) -> None:
    tables = compile_text(entry(f"endpoints: [{endpoint}]"))
    for key, (address, port) in (("catalog|80", http), ("catalog|81", admin)):
        assert tables["endpoints"][key] == [{"address": address, "port": port, "weight": 1, "labels": {}}]


def test_no_endpoints_is_an_empty_list() -> None:
    assert compile_text(entry())["endpoints"] == {"catalog|80": [], "catalog|81": []}


def test_dns_without_endpoints_asks_for_the_host_itself() -> None:
    tables = compile_text(entry(resolution="DNS"))
    assert tables["endpoints"]["catalog|80"] == [
        {"address": "catalog", "port": 8080, "weight": 1, "labels": {}}
    ]
    assert tables["clusters"]["outbound|80||catalog"]["resolution"] == "DNS"


def test_dns_endpoints_have_names() -> None:
    tables = compile_text(entry("endpoints: [{address: A.example, weight: 3, labels: {b: c}}]", "DNS"))
    row = {"address": "a.example", "port": 8080, "weight": 3, "labels": {"b": "c"}}
    assert tables["endpoints"]["catalog|80"] == [row]


def test_workload_entries_are_selected_by_labels_within_the_namespace() -> None:
    text = entry("workloadSelector: {labels: {app: catalog}}")
    text += document(
        "WorkloadEntry", "one", "address: 10.0.0.1\nlabels: {app: catalog, v: spec}", ", labels: {v: meta}"
    )
    text += document("WorkloadEntry", "two", "address: 10.0.0.2\nlabels: {app: other}")
    text += document("WorkloadEntry", "far", "address: 10.0.0.3\nlabels: {app: catalog}", ", namespace: far")
    text += document(
        "WorkloadEntry", "meta", "address: 10.0.0.4\nports: {admin: 9}\nweight: 2", ", labels: {app: catalog}"
    )
    rows = compile_text(text)["endpoints"]["catalog|81"]
    assert rows == [
        {"address": "10.0.0.1", "port": 81, "weight": 1, "labels": {"app": "catalog", "v": "meta"}},
        {"address": "10.0.0.4", "port": 9, "weight": 2, "labels": {"app": "catalog"}},
    ]


RULE = """
host: %s
trafficPolicy: %s
subsets:
- {name: v1, labels: {version: v1}}
- {name: v2, labels: {version: v2}, trafficPolicy: %s}
"""


def rule(name: str = "r", host: str = "catalog", policy: str = "{}", subset: str = "{}") -> str:
    return document("DestinationRule", name, RULE % (host, policy, subset))


def test_subsets_are_clusters_of_every_port() -> None:
    tables = compile_text(entry() + rule())
    assert set(tables["clusters"]) == {
        f"outbound|{port}|{subset}|catalog" for port in (80, 81) for subset in ("", "v1", "v2")
    }
    assert tables["clusters"]["outbound|81|v2|catalog"] == {
        "service": "catalog",
        "port": 81,
        "endpoints": "catalog|81",
        "labels": {"version": "v2"},
        "resolution": "STATIC",
        "lb": "LEAST_REQUEST",
    }


@pytest.mark.parametrize(
    ("policy", "subset", "base", "v2"),
    [
        ("{}", "{}", ("LEAST_REQUEST", None), ("LEAST_REQUEST", None)),
        ("{loadBalancer: {simple: ROUND_ROBIN}}", "{}", ("ROUND_ROBIN", None), ("ROUND_ROBIN", None)),
        ("{loadBalancer: {simple: UNSPECIFIED}}", "{}", ("LEAST_REQUEST", None), ("LEAST_REQUEST", None)),
        (
            "{loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: {connectTimeout: 2s}}}",
            "{loadBalancer: {simple: RANDOM}}",
            ("ROUND_ROBIN", 2000),
            ("RANDOM", 2000),
        ),
        (
            "{loadBalancer: {simple: LEAST_CONN}, connectionPool: {tcp: {connectTimeout: 2s}}}",
            "{connectionPool: {tcp: {connectTimeout: 50ms}}}",
            ("LEAST_REQUEST", 2000),
            ("LEAST_REQUEST", 50),
        ),
    ],
)
def test_policy(policy: str, subset: str, base: tuple[str, Any], v2: tuple[str, Any]) -> None:
    clusters = compile_text(entry() + rule(policy=policy, subset=subset))["clusters"]
    for name, (lb, timeout) in (("", base), ("v1", base), ("v2", v2)):
        row = clusters[f"outbound|80|{name}|catalog"]
        assert (row["lb"], row.get("connect_timeout")) == (lb, timeout)


@pytest.mark.parametrize(
    ("host", "applies"),
    [
        ("a.b.example", True),
        ("'*.b.example'", True),
        ("'*.example'", True),
        ("'*'", True),
        ("'*.a.b.example'", False),
        ("b.example", False),
    ],
)
def test_rule_of_a_wildcard_host(host: str, applies: bool) -> None:
    text = entry().replace("[catalog]", "[a.b.example]") + rule(host=host)
    assert ("outbound|80|v1|a.b.example" in compile_text(text)["clusters"]) is applies


def test_the_nearest_rule_wins() -> None:
    text = entry().replace("[catalog]", "[a.example]")
    text += rule("wide", "'*'", "{loadBalancer: {simple: RANDOM}}")
    text += rule("near", "'*.example'", "{loadBalancer: {simple: ROUND_ROBIN}}")
    assert compile_text(text)["clusters"]["outbound|80||a.example"]["lb"] == "ROUND_ROBIN"


def test_rules_of_unknown_hosts_are_no_error() -> None:
    assert compile_text(rule(host="nobody"))["clusters"] == {}


def test_addresses_are_hosts_on_the_mesh() -> None:
    tables = compile_text(entry("addresses: [10.9.8.7]"))
    assert set(tables["routes"]) == {"mesh catalog", "mesh 10.9.8.7"}


def test_the_same_contents_are_the_same_bytes() -> None:
    parts = [entry("endpoints: [{address: 10.0.0.1, labels: {b: x, a: y}}]"), rule(), rule("s", "other")]
    packed = {msgpack.packb(compile_text("".join(order))) for order in (parts, parts[::-1])}
    packed.add(msgpack.packb(compile_text("".join(parts).replace("{b: x, a: y}", "{a: y, b: x}"))))
    assert len(packed) == 1
