"""VirtualServices, Gateways and services to routes, as Istio would route them."""

from __future__ import annotations

from typing import Any

import pytest

from fastproxy.resources import load_texts, settle
from fastproxy.tables import Tables

GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingress}
  servers:
  - {port: {number: 9000, name: http, protocol: HTTP}, bind: 127.0.0.1, hosts: [%s]}
---
"""


def compile_text(text: str, **options: Any) -> Tables:
    loaded = load_texts([("a.yaml", text.encode())])
    assert loaded.problems == []
    tables, _, problems = settle(loaded.documents, **options)
    assert problems == []
    return tables


def service(name: str, *ports: int, host: str = "", namespace: str = "default") -> str:
    rows = ", ".join(f"{{number: {p}, name: p{p}, protocol: HTTP}}" for p in ports or (80,))
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  hosts: [{host or name}]
  ports: [{rows}]
  resolution: STATIC
---
"""


def virtual(name: str, hosts: str, http: str, *, gateways: str = "", namespace: str = "default") -> str:
    lines = "\n".join("  " + line for line in http.strip("\n").split("\n"))
    bound = f"  gateways: [{gateways}]\n" if gateways else ""
    return f"""
apiVersion: fastproxy/v1
kind: VirtualService
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  hosts: [{hosts}]
{bound}  http:
{lines}
---
"""


def route_of(http: str, **options: Any) -> Any:
    tables = compile_text(service("s") + virtual("v", "v.example", http), **options)
    (route,) = tables["routes"]["mesh v.example"]["routes"]
    return route


TO_S = "route: [{destination: {host: s}}]"


@pytest.mark.parametrize(
    ("match", "row"),
    [
        ("{uri: {exact: /a}}", {"path": {"exact": "/a"}}),
        ("{uri: {prefix: /a}, ignoreUriCase: true}", {"path": {"prefix": "/a"}, "ignore_case": True}),
        ("{uri: {regex: '/[0-9]+'}}", {"path": {"regex": "/[0-9]+"}}),
        ("{method: {exact: POST}}", {"method": {"exact": "POST"}}),
        ("{scheme: {exact: https}}", {"scheme": {"exact": "https"}}),
        ("{authority: {prefix: api.}}", {"authority": {"prefix": "api."}}),
        ("{port: 8080}", {"port": 8080}),
        ("{headers: {Client: {exact: a}}}", {"headers": {"client": {"exact": "a"}}}),
        ("{headers: {b: {}, a: {prefix: x}}}", {"headers": {"a": {"prefix": "x"}, "b": {"present": True}}}),
        ("{withoutHeaders: {X: {}}}", {"without_headers": {"x": {"present": True}}}),
        ("{queryParams: {Q: {exact: ''}}}", {"query": {"Q": {"exact": ""}}}),
        ("{queryParams: {q: {}}}", {"query": {"q": {"present": True}}}),
        ("{cookies: {Sid: {regex: 'a.*'}}}", {"cookies": {"Sid": {"regex": "a.*"}}}),
        ("{name: n, headers: {a: {exact: 'on'}}}", {"name": "n", "headers": {"a": {"exact": "on"}}}),
        ("{headers: {a: {exact: on}}}", {"headers": {"a": {"exact": "on"}}}),
        ("{}", {}),
    ],
)
def test_match(match: str, row: dict[str, Any]) -> None:
    assert route_of(f"- match: [{match}]\n  {TO_S}")["matches"] == [row]


def test_maps_are_in_one_order() -> None:
    row = route_of(f"- match: [{{headers: {{b: {{}}, A: {{}}, c: {{}}}}}}]\n  {TO_S}")["matches"][0]
    assert list(row["headers"]) == ["a", "b", "c"]


CLUSTER_S = "outbound|80||s"


@pytest.mark.parametrize(
    ("action", "rows"),
    [
        ("route: [{destination: {host: s}}]", {"destinations": [{"cluster": CLUSTER_S, "weight": 1}]}),
        (
            "route: [{destination: {host: s}, weight: 0}]",
            {"destinations": [{"cluster": CLUSTER_S, "weight": 1}]},
        ),
        (
            "route: [{destination: {host: s}, weight: 3}, {destination: {host: s, subset: x}}]",
            {
                "destinations": [
                    {"cluster": CLUSTER_S, "weight": 3},
                    {"cluster": "outbound|80|x|s", "weight": 0},
                ]
            },
        ),
        # not in the registry: 503 NC, the route stays
        (
            "route: [{destination: {host: gone}}]",
            {"destinations": [{"cluster": "outbound|0||gone", "weight": 1}]},
        ),
        (
            "route: [{destination: {host: s, port: {number: 99}}}]",
            {"destinations": [{"cluster": "outbound|99||s", "weight": 1}]},
        ),
        ("redirect: {uri: /b}", {"redirect": {"code": 301, "uri": "/b"}}),
        (
            "redirect: {authority: B.example:8443, scheme: https, redirectCode: 308}",
            {"redirect": {"code": 308, "scheme": "https", "authority": "b.example:8443"}},
        ),
        (
            "redirect: {prefixRewrite: /c, port: 8080}",
            {"redirect": {"code": 301, "port": 8080, "prefix": "/c"}},
        ),
        (
            "redirect: {uri: /, derivePort: FROM_REQUEST_PORT}",
            {"redirect": {"code": 301, "port": 0, "uri": "/"}},
        ),
        ("redirect: {uri: /, derivePort: FROM_PROTOCOL_DEFAULT}", {"redirect": {"code": 301, "uri": "/"}}),
        ("directResponse: {status: 204}", {"direct": {"status": 204, "body": b""}}),
        (
            "directResponse: {status: 200, body: {string: é}}",
            {"direct": {"status": 200, "body": "é".encode()}},
        ),
        (
            "directResponse: {status: 200, body: {bytes: AP8=}}",
            {"direct": {"status": 200, "body": b"\0\xff"}},
        ),
        (
            TO_S + "\n  rewrite: {uri: /n, authority: n.example}",
            {"rewrite": {"uri": "/n", "authority": "n.example"}},
        ),
        (
            TO_S + "\n  rewrite: {uriRegexRewrite: {match: '/(.*)', rewrite: '/x/\\1'}}",
            {"rewrite": {"regex": ("/(.*)", "/x/\\1")}},
        ),
        (TO_S + "\n  timeout: 1.5s", {"timeout": 1500}),
        (TO_S + "\n  timeout: 1h2m3s4ms", {"timeout": 3723004}),
        (TO_S + "\n  headers: {request: {set: {Host: h.example}}}", {"rewrite": {"authority": "h.example"}}),
        (
            TO_S + "\n  headers: {request: {set: {':authority': h.example}}}",
            {"rewrite": {"authority": "h.example"}},
        ),
        (
            "route: [{destination: {host: s}, headers: {request: {set: {host: h.example}}}}]",
            {"rewrite": {"authority": "h.example"}, "destinations": [{"cluster": CLUSTER_S, "weight": 1}]},
        ),
        (
            TO_S
            + "\n  headers:"
            + "\n    request: {set: {X-B: '100%%', X-A: a}}"
            + "\n    response: {add: {Y: z}, remove: [Q, p, q]}",
            {
                "headers": {
                    "request": {"set": {"x-a": "a", "x-b": "100%"}},
                    "response": {"add": {"y": "z"}, "remove": ["p", "q"]},
                }
            },
        ),
    ],
)
def test_action(action: str, rows: dict[str, Any]) -> None:
    route = route_of(f"- {action}")
    for key, row in rows.items():
        assert route.pop(key) == row
    assert route.pop("name") == "v#0"
    assert route.pop("matches") == []
    assert set(route) <= {"destinations"}


def test_no_timeout_is_no_key() -> None:
    assert "timeout" not in route_of(f"- timeout: 0s\n  {TO_S}")


def hosts(tables: Tables, listener: str) -> dict[str, list[str]]:
    """host -> names of its routes"""
    found = {}
    for key, row in tables["routes"].items():
        name, _, host = key.partition(" ")
        if name == listener:
            found[host] = [r["name"] for r in row["routes"]]
    return found


EDGE = "127.0.0.1:9000"


@pytest.mark.parametrize(
    ("server", "given", "answers"),
    [
        ('"*"', '"*"', ["*"]),
        ('"*"', "a.example", ["a.example"]),
        ("'*.example'", "a.example", ["a.example"]),
        ("'*.example'", "A.B.example.", ["a.b.example"]),
        ("'*.example'", "example", []),
        ("'*.example'", "'*.b.example'", ["*.b.example"]),
        ("a.example", "'*.example'", ["a.example"]),
        ("a.example, b.example", "'*'", ["a.example", "b.example"]),
        ("a.example", "b.example", []),
        ("'*.example'", "'*.other'", []),
        ("default/a.example", "a.example", ["a.example"]),
        ("./a.example", "a.example", ["a.example"]),
        ("'*/a.example'", "a.example", ["a.example"]),
        ("other/a.example", "a.example", []),
    ],
)
def test_gateway_hosts(server: str, given: str, answers: list[str]) -> None:
    tables = compile_text(
        GATEWAY % server + virtual("v", given, "- directResponse: {status: 200}", gateways="edge")
    )
    assert sorted(hosts(tables, EDGE)) == answers
    assert hosts(tables, "mesh") == {}


@pytest.mark.parametrize(
    ("gateways", "namespace", "places"),
    [
        ("", "default", {"mesh"}),
        ("mesh", "default", {"mesh"}),
        ("edge", "default", {EDGE}),
        ("edge, mesh", "default", {EDGE, "mesh"}),
        ("default/edge", "shop", {EDGE}),
        ("edge", "shop", set()),
        ("egde", "default", set()),
    ],
)
def test_gateways_of_a_virtual_service(gateways: str, namespace: str, places: set[str]) -> None:
    text = virtual(
        "v", "a.example", "- directResponse: {status: 200}", gateways=gateways, namespace=namespace
    )
    tables = compile_text(GATEWAY % '"*"' + text)
    assert {p for p in (EDGE, "mesh") if hosts(tables, p)} == places


def test_match_gateways_and_port_are_decided_here() -> None:
    http = f"""
- {{name: mesh-only, match: [{{gateways: [mesh]}}], {TO_S}}}
- {{name: edge-only, match: [{{gateways: [edge], uri: {{exact: /a}}}}], {TO_S}}}
- {{name: port, match: [{{port: 9000}}], {TO_S}}}
- {{name: other-port, match: [{{port: 9001}}], {TO_S}}}
- {{name: either, match: [{{port: 9001}}, {{uri: {{prefix: /b}}}}], {TO_S}}}
"""
    tables = compile_text(
        GATEWAY % '"*"' + service("s") + virtual("v", "a.example", http, gateways="edge, mesh")
    )
    assert hosts(tables, EDGE)["a.example"] == ["edge-only", "port", "either"]
    assert hosts(tables, "mesh")["a.example"] == ["mesh-only", "port", "other-port", "either"]
    edge = tables["routes"][f"{EDGE} a.example"]["routes"]
    assert edge[1]["matches"] == [{}]
    assert edge[2]["matches"] == [{"path": {"prefix": "/b"}}]
    assert tables["routes"]["mesh a.example"]["routes"][1]["matches"] == [{"port": 9000}]


def test_redirect_to_the_request_port_of_a_gateway_is_that_port() -> None:
    http = "- redirect: {uri: /, derivePort: FROM_REQUEST_PORT}"
    tables = compile_text(GATEWAY % '"*"' + virtual("v", '"*"', http, gateways="edge"))
    assert tables["routes"][f"{EDGE} *"]["routes"][0]["redirect"]["port"] == 9000  # type: ignore[typeddict-item]


def test_virtual_services_of_one_host_follow_each_other_and_defaults_come_last() -> None:
    one = virtual("one", "a.example", f"- {{match: [{{uri: {{exact: /1}}}}, {{}}], {TO_S}}}")
    two = virtual("two", "a.example, b.example", f"- {{match: [{{uri: {{exact: /2}}}}], {TO_S}}}\n- {TO_S}")
    row = compile_text(service("s") + one + two)["routes"]["mesh a.example"]
    assert [(r["name"], r["matches"]) for r in row["routes"]] == [
        ("one#0", [{"path": {"exact": "/1"}}]),
        ("two#0", [{"path": {"exact": "/2"}}]),
        ("one#0", [{}]),
        ("two#1", []),
    ]
    assert row["source"] == ["VirtualService default/one", "VirtualService default/two"]


def test_mesh_defaults() -> None:
    tables = compile_text(service("one") + service("two", 80, 81) + service("three", 7))
    assert set(hosts(tables, "mesh")) == {"one", "two", "three"}
    assert tables["routes"]["mesh one"]["routes"] == [
        {"name": "default", "matches": [], "destinations": [{"cluster": "outbound|80||one", "weight": 1}]}
    ]
    assert tables["routes"]["mesh two"]["routes"] == [
        {
            "name": "default",
            "matches": [{"port": 81}],
            "destinations": [{"cluster": "outbound|81||two", "weight": 1}],
        },
        {"name": "default", "matches": [], "destinations": [{"cluster": "outbound|80||two", "weight": 1}]},
    ]
    assert tables["listeners"] == {}


def test_a_virtual_service_replaces_the_default() -> None:
    tables = compile_text(service("s") + service("t") + virtual("v", "s", "- directResponse: {status: 200}"))
    assert hosts(tables, "mesh") == {"s": ["v#0"], "t": ["default"]}


def test_a_wildcard_on_the_mesh_takes_the_services_it_covers() -> None:
    text = service("in", host="in.example") + service("out", host="out.other")
    tables = compile_text(text + virtual("v", "'*.example'", "- directResponse: {status: 200}"))
    assert hosts(tables, "mesh") == {"*.example": ["v#0"], "out.other": ["default"]}


def test_names_of_kubernetes() -> None:
    """A registered x.ns.svc.cluster.local answers under its short names, and is meant by them."""
    full = "reviews.shop.svc.cluster.local"
    text = service("reviews", host=full, namespace="shop")
    tables = compile_text(text)
    names = {"reviews", "reviews.shop", "reviews.shop.svc", full}
    assert set(hosts(tables, "mesh")) == names
    http = "- route: [{destination: {host: reviews}}]"
    tables = compile_text(text + virtual("v", "reviews", http, namespace="shop"))
    assert hosts(tables, "mesh") == dict.fromkeys(names, ["shop/v#0"])
    for name in names:
        assert (
            tables["routes"][f"mesh {name}"]["routes"][0]["destinations"][0]["cluster"]
            == f"outbound|80||{full}"
        )


@pytest.mark.parametrize("written", ["s", "s.default", "s.default.svc", "s.default.svc.cluster.local"])
def test_a_short_service_is_meant_by_its_long_names(written: str) -> None:
    tables = compile_text(
        service("s") + virtual("v", "x", f"- route: [{{destination: {{host: {written}}}}}]")
    )
    assert tables["routes"]["mesh x"]["routes"][0]["destinations"][0]["cluster"] == CLUSTER_S


def test_selector() -> None:
    text = GATEWAY % '"*"'
    assert set(compile_text(text)["listeners"]) == {EDGE}
    assert set(compile_text(text, labels={"istio": "ingress", "a": "b"})["listeners"]) == {EDGE}
    assert compile_text(text, labels={"a": "b"})["listeners"] == {}


def test_servers_that_share_an_address_are_one_listener() -> None:
    two = GATEWAY.replace("name: edge}", "name: two}") % "b.example"
    text = GATEWAY % "a.example" + two
    text += virtual("v", "'*'", "- directResponse: {status: 200}", gateways="edge, two")
    text += virtual("w", "'*'", "- directResponse: {status: 201}", gateways="two")
    tables = compile_text(text)
    assert set(tables["listeners"]) == {EDGE}
    assert hosts(tables, EDGE) == {"a.example": ["v#0"], "b.example": ["v#0", "w#0"]}


@pytest.mark.parametrize(
    ("bind", "key", "row"),
    [
        ("", "0.0.0.0:9000", {"address": "0.0.0.0", "port": 9000}),
        ("bind: '::'", "[::]:9000", {"address": "::", "port": 9000}),
        ("bind: 'unix:///run/a.sock'", "unix:///run/a.sock", {"address": "unix:///run/a.sock", "port": 0}),
    ],
)
def test_bind(bind: str, key: str, row: dict[str, Any]) -> None:
    tables = compile_text((GATEWAY % '"*"').replace("bind: 127.0.0.1", bind or "name: s"))
    assert tables["listeners"] == {key: {**row, "protocol": "HTTP"}}


def test_listen_opens_the_mesh() -> None:
    tables = compile_text(service("s"), listen="127.0.0.1:8000", to=["127.0.0.1:9001"])
    assert tables["listeners"] == {"mesh": {"address": "127.0.0.1", "port": 8000, "protocol": "HTTP"}}
    assert hosts(tables, "mesh") == {"s": ["default"], "*": ["upstream"]}


def test_to_beside_a_service_of_its_name() -> None:
    loaded = load_texts([("a.yaml", service("upstream").encode())])
    assert settle(loaded.documents, to=["127.0.0.1:81"])[2] == []
    with pytest.raises(ValueError, match="a service is named upstream and has port 80"):
        settle(loaded.documents, to=["127.0.0.1:80"])


def test_listen_and_gateway_on_one_address() -> None:
    loaded = load_texts([("a.yaml", (GATEWAY % '"*"').encode())])
    tables, documents, problems = settle(loaded.documents, listen=EDGE)
    assert [str(p) for p in problems] == [f"a.yaml:7: spec.servers: {EDGE} is the address of --listen"]
    assert documents == []
    assert set(tables["listeners"]) == {"mesh"}
