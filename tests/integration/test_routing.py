"""Istio's documents decide where a request goes and what it looks like there (design section 5)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.http1 import Response
from tests.support.origin import Origin
from tests.support.proxy import Proxy, free_port

ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: catalog}}
spec:
  hosts: [catalog]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {android}}}, labels: {{os: android}}}}
  - {{address: 127.0.0.1, ports: {{http: {ios}}}, labels: {{os: ios}}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: deserted}}
spec:
  hosts: [deserted]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: []
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog}}
spec:
  host: catalog
  trafficPolicy: {{loadBalancer: {{simple: ROUND_ROBIN}}}}
  subsets:
  - {{name: android, labels: {{os: android}}}}
  - {{name: ios, labels: {{os: ios}}}}
  - {{name: nobody, labels: {{os: plan9}}}}
  - {{name: random, labels: {{}}, trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}}}
  - {{name: least, labels: {{}}, trafficPolicy: {{loadBalancer: {{simple: LEAST_REQUEST}}}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  servers:
  - {{port: {{number: {edge}, name: http, protocol: HTTP}}, bind: 127.0.0.1, hosts: ["*"]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge}}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
  - match: [{{headers: {{client: {{exact: Android}}}}}}]
    route: [{{destination: {{host: catalog, subset: android}}}}]
  - match: [{{headers: {{client: {{exact: IOS}}}}}}]
    route: [{{destination: {{host: catalog, subset: ios}}}}]
---
"""

RULES: list[dict[str, Any]] = [
    {"match": [{"uri": {"exact": "/exact"}}], "to": "android"},
    {"match": [{"uri": {"prefix": "/pre"}}], "to": "android"},
    {"match": [{"uri": {"regex": "/re/[0-9]+"}}], "to": "android"},
    {"match": [{"uri": {"exact": "/case"}, "ignoreUriCase": True}], "to": "android"},
    {"match": [{"uri": {"exact": "/m"}, "method": {"exact": "POST"}}], "to": "android"},
    {"match": [{"uri": {"exact": "/a"}, "authority": {"prefix": "one."}}], "to": "android"},
    {"match": [{"uri": {"exact": "/q"}, "queryParams": {"v": {"exact": "2"}}}], "to": "android"},
    {"match": [{"uri": {"exact": "/h"}, "headers": {"x-p": {}}}], "to": "android"},
    {"match": [{"uri": {"exact": "/hr"}, "headers": {"x-r": {"regex": "[a-c]+"}}}], "to": "android"},
    {"match": [{"uri": {"exact": "/w"}, "withoutHeaders": {"x-w": {"exact": "1"}}}], "to": "android"},
    {
        "match": [{"uri": {"exact": "/c"}, "headers": {"cookie": {"regex": "^(.*?;)?(user=jason)(;.*)?$"}}}],
        "to": "android",
    },
    {"match": [{"uri": {"exact": "/or1"}}, {"uri": {"exact": "/or2"}}], "to": "android"},
]

ACTIONS = """
- match: [{uri: {exact: /weighted}}]
  route:
  - {destination: {host: catalog, subset: android}, weight: 75}
  - {destination: {host: catalog, subset: ios}, weight: 25}
- match: [{uri: {exact: /weight-zero}}]
  route:
  - {destination: {host: catalog, subset: android}, weight: 0}
  - {destination: {host: catalog, subset: ios}, weight: 100}
- match: [{uri: {exact: /round}}]
  route: [{destination: {host: catalog}}]
- match: [{uri: {exact: /random}}]
  route: [{destination: {host: catalog, subset: random}}]
- match: [{uri: {exact: /least}}]
  route: [{destination: {host: catalog, subset: least}}]
- match: [{uri: {exact: /redirect}}]
  redirect: {uri: /elsewhere, authority: new.example, redirectCode: 302}
- match: [{uri: {exact: /redirect-scheme}}]
  redirect: {scheme: https}
- match: [{uri: {prefix: /rewrite/}}]
  rewrite: {uri: /rewritten/, authority: inner.example}
  route: [{destination: {host: catalog, subset: android}}]
- match: [{uri: {prefix: /regex/}}]
  rewrite: {uriRegexRewrite: {match: "/regex/([a-z]+)/([0-9]+)", rewrite: "/\\\\2/\\\\1"}}
  route: [{destination: {host: catalog, subset: android}}]
- match: [{uri: {exact: /direct}}]
  directResponse: {status: 418, body: {string: short and stout}}
- match: [{uri: {exact: /direct-empty}}]
  directResponse: {status: 204}
- match: [{uri: {exact: /headers}}]
  headers:
    request: {set: {x-set: new, x-made: "1"}, add: {x-add: more}, remove: [x-gone]}
    response: {set: {x-answer: set}, add: {x-answer-add: a}, remove: [content-type]}
  route:
  - destination: {host: catalog, subset: android}
    headers: {request: {add: {x-dest: "1"}}, response: {add: {x-dest-answer: "1"}}}
- match: [{uri: {prefix: /slow/}}]
  timeout: 300ms
  route: [{destination: {host: catalog, subset: android}}]
- match: [{uri: {exact: /deserted}}]
  route: [{destination: {host: deserted}}]
- match: [{uri: {exact: /nobody}}]
  route: [{destination: {host: catalog, subset: nobody}}]
- match: [{uri: {exact: /unknown-subset}}]
  route: [{destination: {host: catalog, subset: symbian}}]
- match: [{uri: {exact: /unknown-host}}]
  route: [{destination: {host: nowhere}}]
"""


def virtual_services() -> str:
    """The mesh's rules: one host for matches, one for actions, and hosts by suffix."""
    import yaml

    rules = [
        {"match": rule["match"], "route": [{"destination": {"host": "catalog", "subset": rule["to"]}}]}
        for rule in RULES
    ]
    rules.append({"route": [{"destination": {"host": "catalog", "subset": "ios"}}]})
    ios = [{"route": [{"destination": {"host": "catalog", "subset": "ios"}}]}]
    android = [{"route": [{"destination": {"host": "catalog", "subset": "android"}}]}]
    services = {
        "match": (["match.example", "one.match.example"], rules),
        "action": (["action.example"], yaml.safe_load(ACTIONS)),
        "suffix": (["*.suffix.example"], ios),
        "inner": (["deep.suffix.example"], android),
    }
    documents = [
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": name},
            "spec": {"hosts": hosts, "http": http},
        }
        for name, (hosts, http) in services.items()
    ]
    return yaml.safe_dump_all(documents, sort_keys=False)


@pytest.fixture(scope="module")
def mesh() -> Iterator[tuple[Proxy, str]]:
    """The proxy, and the address of its Gateway."""
    edge = free_port()
    with Origin("android") as android, Origin("ios") as ios:
        config = ENTRY.format(android=android.port, ios=ios.port, edge=edge) + virtual_services()
        with Proxy(config=config) as proxy:
            proxy.pooled = True
            yield proxy, f"127.0.0.1:{edge}"


def ask(
    mesh: tuple[Proxy, str], host: str, target: str, *headers: tuple[str, str], method: str = "GET"
) -> Response:
    """One request to the mesh listener."""
    proxy = mesh[0]
    with proxy.client() as client:
        return client.request(method, target, [("Host", host), *headers])


def told(response: Response) -> dict[str, Any]:
    """What the origin echoed."""
    assert response.status == 200, response
    answer: dict[str, Any] = json.loads(response.body)
    return answer


@pytest.mark.parametrize(("client_field", "name"), [("Android", "android"), ("IOS", "ios")])
def test_gateway_and_subsets(mesh: tuple[Proxy, str], client_field: str, name: str) -> None:
    """Design section 5, the example: the field `client` chooses the subset."""
    with Client(mesh[1]) as client:
        for _ in range(4):
            assert told(client.request(headers=[("Client", client_field)]))["name"] == name


def test_no_route(mesh: tuple[Proxy, str]) -> None:
    """Design section 4: no rule matches: 404 NR, and the connection goes on."""
    with Client(mesh[1]) as client:
        for value in ("Windows", "android"):
            response = client.request(headers=[("Client", value)])
            assert (response.status, response.get("x-fastproxy-flags")) == (404, "NR")
        assert told(client.request(headers=[("Client", "IOS")]))["name"] == "ios"
    assert ask(mesh, "unknown.example", "/").status == 404


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.suffix.example", "ios"),
        ("A.B.Suffix.Example:8080", "ios"),
        ("deep.suffix.example", "android"),
        ("DEEP.suffix.example:1", "android"),
    ],
)
def test_hosts(mesh: tuple[Proxy, str], host: str, name: str) -> None:
    """RFC 9110 §4.2.3: hosts match without case and port; exact wins over a suffix."""
    assert told(ask(mesh, host, "/"))["name"] == name


@pytest.mark.parametrize("host", ["suffix.example", "xsuffix.example"])
def test_suffix_wants_a_label(mesh: tuple[Proxy, str], host: str) -> None:
    """`*.suffix` is one label or more before the dot."""
    assert ask(mesh, host, "/").status == 404


@pytest.mark.parametrize(
    ("target", "method", "headers", "hit"),
    [
        ("/exact", "GET", {}, True),
        ("/exact?x=/pre", "GET", {}, True),
        ("/exact/", "GET", {}, False),
        ("/pre", "GET", {}, True),
        ("/prefix/x", "GET", {}, True),
        ("/Pre", "GET", {}, False),
        ("/re/123", "GET", {}, True),
        ("/re/12x", "GET", {}, False),
        ("/x/re/1", "GET", {}, False),
        ("/CaSe", "GET", {}, True),
        ("/m", "POST", {}, True),
        ("/m", "GET", {}, False),
        ("/a", "GET", {"Host": "one.match.example"}, True),
        ("/a", "GET", {}, False),
        ("/q?v=2", "GET", {}, True),
        ("/q?a=1&v=2&b=3", "GET", {}, True),
        ("/q?v=22", "GET", {}, False),
        ("/q?xv=2", "GET", {}, False),
        ("/h", "GET", {"X-P": "anything"}, True),
        ("/h", "GET", {"X-P": ""}, True),
        ("/h", "GET", {}, False),
        ("/hr", "GET", {"x-r": "abc"}, True),
        ("/hr", "GET", {"x-r": "abcd"}, False),
        ("/w", "GET", {}, True),
        ("/w", "GET", {"X-W": "1"}, False),
        ("/w", "GET", {"X-W": "2"}, True),
        ("/c", "GET", {"Cookie": "a=b;user=jason;c=d"}, True),
        ("/c", "GET", {"Cookie": "user=jasons"}, False),
        ("/or2", "GET", {}, True),
        ("/else", "GET", {}, False),
    ],
)
def test_matches(
    mesh: tuple[Proxy, str], target: str, method: str, headers: dict[str, str], hit: bool
) -> None:
    """Issue, item 5: every kind of match, hit and missed; first match in order."""
    host = headers.pop("Host", "match.example")
    got = told(ask(mesh, host, target, *headers.items(), method=method))
    assert got["name"] == ("android" if hit else "ios")


def test_weights(mesh: tuple[Proxy, str]) -> None:
    """Istio: weights are shares. 75 % of 400 within five standard deviations (43)."""
    with mesh[0].client() as client:
        names = Counter(
            told(client.request(target="/weighted", headers=[("Host", "action.example")]))["name"]
            for _ in range(400)
        )
    assert 257 <= names["android"] <= 343, names


def test_weight_zero(mesh: tuple[Proxy, str]) -> None:
    """Istio: a destination of weight 0 gets nothing."""
    with mesh[0].client() as client:
        host = [("Host", "action.example")]
        names = {told(client.request(target="/weight-zero", headers=host))["name"] for _ in range(50)}
    assert names == {"ios"}


def test_round_robin(mesh: tuple[Proxy, str]) -> None:
    """ROUND_ROBIN: in turn."""
    with mesh[0].client() as client:
        host = [("Host", "action.example")]
        names = [told(client.request(target="/round", headers=host))["name"] for _ in range(20)]
    assert names in (["android", "ios"] * 10, ["ios", "android"] * 10)


@pytest.mark.parametrize("path", ["/random", "/least"])
def test_other_balancers(mesh: tuple[Proxy, str], path: str) -> None:
    """RANDOM and LEAST_REQUEST: both endpoints get a fair part of 100 idle requests."""
    with mesh[0].client() as client:
        host = [("Host", "action.example")]
        names = Counter(told(client.request(target=path, headers=host))["name"] for _ in range(100))
    assert min(names["android"], names["ios"]) >= 20, names


def test_redirect(mesh: tuple[Proxy, str]) -> None:
    """Istio HTTPRedirect: uri and authority replaced, the code as given; the default is 301."""
    response = ask(mesh, "action.example", "/redirect?q=1")
    assert (response.status, response.get("location")) == (302, "http://new.example/elsewhere?q=1")
    response = ask(mesh, "action.example", "/redirect-scheme")
    assert (response.status, response.get("location")) == (301, "https://action.example/redirect-scheme")


def test_rewrite(mesh: tuple[Proxy, str]) -> None:
    """Istio HTTPRewrite: the matched prefix is replaced, the query stays, Host becomes the authority."""
    got = told(ask(mesh, "action.example", "/rewrite/a/b?q=1"))
    fields = {name.lower(): value for name, value in got["headers"]}
    assert got["target"] == "/rewritten/a/b?q=1"
    assert fields["host"] == "inner.example"
    assert fields["x-forwarded-host"] == "action.example"


def test_regex_rewrite(mesh: tuple[Proxy, str]) -> None:
    """Istio RegexRewrite: groups of the pattern in the replacement, query untouched."""
    assert (
        told(ask(mesh, "action.example", "/regex/abc/123?q=/regex/a/1"))["target"] == "/123/abc?q=/regex/a/1"
    )


def test_direct_response(mesh: tuple[Proxy, str]) -> None:
    """Istio HTTPDirectResponse: answered by the proxy, with a body or without."""
    response = ask(mesh, "action.example", "/direct")
    assert (response.status, response.body) == (418, b"short and stout")
    assert ask(mesh, "action.example", "/direct-empty").status == 204
    with mesh[0].client() as client:
        host = [("Host", "action.example")]
        assert client.request("HEAD", "/direct", host).get("content-length") == "15"
        assert client.request("POST", "/direct", host, b"a body to be thrown away").status == 418
        assert client.request("GET", "/direct", host).body == b"short and stout"


def test_header_operations(mesh: tuple[Proxy, str]) -> None:
    """Istio Headers: set overwrites, add appends, remove removes; of the route and of the destination."""
    sent = [("X-Set", "old"), ("X-SET", "older"), ("X-Add", "one"), ("X-Gone", "1"), ("X-Kept", "1")]
    response = ask(mesh, "action.example", "/headers", *sent)
    fields = [(name.lower(), value) for name, value in told(response)["headers"]]
    values = {name: [v for n, v in fields if n == name] for name, _ in fields}
    assert values["x-set"] == ["new"]
    assert values["x-made"] == ["1"]
    assert ",".join(values["x-add"]).replace(" ", "") == "one,more"
    assert "x-gone" not in values
    assert values["x-kept"] == ["1"]
    assert values["x-dest"] == ["1"]
    assert response.get("x-answer") == "set"
    assert response.get("x-answer-add") == "a"
    assert response.get("x-dest-answer") == "1"
    assert response.get("content-type") is None


def test_route_timeout(mesh: tuple[Proxy, str]) -> None:
    """Istio HTTPRoute.timeout: 504 UT when the answer is not there in time; in time it is the answer."""
    response = ask(mesh, "action.example", "/slow/5")
    assert (response.status, response.get("x-fastproxy-flags")) == (504, "UT")
    assert ask(mesh, "action.example", "/slow/0.01").status == 200


@pytest.mark.parametrize(
    ("path", "flag"),
    [("/deserted", "UH"), ("/nobody", "UH"), ("/unknown-subset", "NC"), ("/unknown-host", "NC")],
)
def test_nowhere_to_go(mesh: tuple[Proxy, str], path: str, flag: str) -> None:
    """Design section 4: no endpoint is 503 UH, an unknown subset or cluster 503 NC, never a 404."""
    response = ask(mesh, "action.example", path)
    assert (response.status, response.get("x-fastproxy-flags")) == (503, flag)
