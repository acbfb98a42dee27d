"""Explain: the words for why a rule failed, and that the pick is the core's."""

from __future__ import annotations

from typing import Any

import pytest

from fastproxy.explain import Choice, Explanation, Tried, choose_listener, explain, head, with_mesh
from fastproxy.tables import Match, Route, Tables, empty
from tests.support.plans import CLUSTER, EDGE, route, tables, view

CLIENTS = [
    route({"headers": {"client": {"exact": "Android"}}, "name": "android users"}, name="android"),
    route({"path": {"prefix": "/never"}}, {"headers": {"client": {"exact": "IOS"}}}, name="ios"),
    route(name="rest"),
]


def told(routes: list[Route], method: str, url: str, *fields: tuple[str, str], **more: Any) -> Explanation:
    source = tables({"*": routes})
    return explain(source, view(source), method, url, fields, **more)


def test_each_rule_tried_and_the_pick() -> None:
    out = told(CLIENTS, "POST", "http://catalog/x?y=1", ("Client", "IOS"))
    assert out.tried == [
        Tried(1, "android", 'header client "IOS" is not "Android"', "android users"),
        Tried(2, "ios", 'path "/x" does not begin with "/never"'),
        Tried(3, "ios", ""),
    ]
    assert (out.listener, out.listener_reason) == (EDGE, "the only one")
    assert out.hosts == [("catalog", False), ("*", True)]
    assert (out.virtual_host, out.route, out.action, out.sent, out.error) == (
        "*",
        "ios",
        "forward",
        "/x?y=1",
        "",
    )
    assert out.source == ["VirtualService default/test"]
    assert out.destinations == [Choice(CLUSTER, 1.0, False, ["127.0.0.1:9001", "127.0.0.1:9002"])]
    assert out.to_json()["tried"][2] == {"rule": 3, "route": "ios", "reason": "", "match": ""}


@pytest.mark.parametrize(
    ("match", "reason"),
    [
        ({"path": {"exact": "/a"}}, 'path "/x" is not "/a"'),
        (
            {"path": {"prefix": "/A"}, "ignore_case": True},
            'path "/x" does not begin with "/a" (case ignored)',
        ),
        ({"path": {"regex": "/[0-9]+"}}, 'path "/x" does not match /[0-9]+'),
        ({"method": {"exact": "PUT"}}, 'method "GET" is not "PUT"'),
        ({"scheme": {"exact": "https"}}, 'scheme "http" is not "https"'),
        ({"authority": {"prefix": "a"}}, 'authority "shop" does not begin with "a"'),
        ({"port": 81}, "port is 9000, not 81"),
        ({"headers": {"y": {"present": True}}}, "no header y"),
        ({"headers": {"y": {"exact": "1"}}}, "no header y"),
        ({"headers": {"x": {"regex": "a+"}}}, 'header x "1,2" does not match a+'),
        ({"without_headers": {"x": {"present": True}}}, "header x is there"),
        ({"without_headers": {"x": {"exact": "1,2"}}}, 'header x is "1,2", which is excluded'),
        ({"without_headers": {"x": {"prefix": "1"}}}, 'header x "1,2" begins with "1", which is excluded'),
        ({"without_headers": {"y": {"regex": "a*"}}}, 'header y "" matches a*, which is excluded'),
        ({"query": {"q": {"exact": "1"}}}, 'query q "2" is not "1"'),
        ({"query": {"r": {"exact": "1"}}}, "no query r"),
        ({"cookies": {"c": {"exact": "1"}}}, 'cookie c "0" is not "1"'),
    ],
)
def test_reasons(match: Match, reason: str) -> None:
    fields = [("X", "1"), ("x", "2"), ("Cookie", "c=0")]
    out = told([route(match), route()], "GET", "http://shop/x?q=2", *fields)
    assert [tried.reason for tried in out.tried] == [reason, ""]


def test_no_rule() -> None:
    out = told(CLIENTS[:1], "GET", "shop/x")
    assert out.error == "404 NR: no rule of * matches" and out.route == "" and len(out.tried) == 1


def test_no_host() -> None:
    source = tables({"shop": [route()], "*.example.com": [route()]})
    out = explain(source, view(source), "GET", "http://a.example.org/")
    assert out.error == f"404 NR: no virtual host for a.example.org on {EDGE}"
    assert out.hosts == [("a.example.org", False), ("*.example.org", False), ("*.org", False), ("*", False)]
    found = explain(source, view(source), "GET", "http://A.example.com:99/")
    assert (found.virtual_host, found.hosts) == (
        "*.example.com",
        [("a.example.com", False), ("*.example.com", True)],
    )
    named = explain(source, view(source), "GET", "http://127.0.0.1:9000/", [("host", "Shop:9000")])
    assert (named.host, named.virtual_host) == ("shop", "shop")


def test_redirect_and_direct() -> None:
    moved = told([route(redirect={"uri": "/new", "code": 308})], "GET", "http://shop/old?a=b")
    assert (moved.action, moved.status, moved.sent) == ("redirect", 308, "http://shop/new?a=b")
    said = told([route(direct={"status": 204, "body": b""})], "GET", "http://shop/")
    assert (said.action, said.status, said.sent, said.destinations) == ("direct response", 204, "", [])


def test_rewrite_operations_weights_and_missing_clusters() -> None:
    row = route(
        {"path": {"prefix": "/api"}},
        destinations=[
            {"cluster": CLUSTER, "weight": 1, "headers": {"request": {"add": {"x-dest": "d"}}}},
            {"cluster": "outbound|80|v9|a", "weight": 3},
        ],
        rewrite={"uri": "/v2", "authority": "inside"},
        headers={"request": {"set": {"x-a": "1"}}, "response": {"remove": ["server"]}},
        timeout=1500,
    )
    out = told([row], "GET", "http://shop/api/./x?q")
    assert (out.sent, out.authority, out.timeout_ms) == ("/v2/x?q", "inside", 1500)
    assert out.headers == {"request": {"set": {"x-a": "1"}}, "response": {"remove": ["server"]}}
    assert [c.headers for c in out.destinations] == [{"request": {"add": {"x-dest": "d"}}}, {}]
    assert [(c.cluster, c.share, c.missing, len(c.endpoints)) for c in out.destinations] == [
        (CLUSTER, 0.25, False, 2),
        ("outbound|80|v9|a", 0.75, True, 0),
    ]


def test_https() -> None:
    out = told([route({"scheme": {"exact": "https"}})], "GET", "https://shop/")
    assert out.error == ""


def listening(*ports: int, mesh: bool = False) -> Tables:
    out = empty()
    for port in ports:
        out["listeners"][f"0.0.0.0:{port}"] = {"address": "0.0.0.0", "port": port, "protocol": "HTTP"}
    if mesh:
        out["routes"]["mesh *"] = {"routes": [route()], "source": []}
        out["listeners"]["mesh"] = {"address": "127.0.0.1", "port": 8080, "protocol": "HTTP"}
    return out


def test_choice_of_the_listener() -> None:
    assert choose_listener(listening(80, 81), 81, False) == ("0.0.0.0:81", "has port 81")
    assert choose_listener(listening(443, 80), 0, True) == ("0.0.0.0:443", "has port 443")
    assert choose_listener(listening(9000, 9001, mesh=True), 0, False) == (
        "mesh",
        "no other listener has port 80",
    )
    assert choose_listener(listening(9000, mesh=True), 0, False)[0] == "mesh"
    assert choose_listener(with_mesh(listening(9000)), 0, False)[0] == "0.0.0.0:9000"
    named = with_mesh(listening(9000))
    named["routes"]["mesh shop"] = {"routes": [route()], "source": []}
    why = "it has shop, and no other listener has port 81; --listen opens it"
    assert choose_listener(named, 81, False, "", "shop") == ("mesh", why)
    assert choose_listener(named, 81, False, "", "other")[0] == "0.0.0.0:9000"
    assert choose_listener(named, 0, False, "", "shop")[0] == "0.0.0.0:9000"
    assert choose_listener(with_mesh(listening()), 0, False) == ("mesh", "there is no other")
    assert choose_listener(listening(9000), 0, False) == ("0.0.0.0:9000", "the only one")
    assert choose_listener(listening(1, 2), 9, False, "0.0.0.0:2") == ("0.0.0.0:2", "asked for")
    for source, wanted, why in (
        (listening(1, 2), "", "no listener has port 80; name one of: 0.0.0.0:1, 0.0.0.0:2"),
        (with_mesh(listening(1, 2)), "", "no listener has port 80; name one of: 0.0.0.0:1, 0.0.0.0:2, mesh"),
        (listening(1), "x", "no listener x; there are: 0.0.0.0:1"),
        (listening(), "", "there is no listener"),
    ):
        with pytest.raises(LookupError, match=why):
            choose_listener(source, 0, False, wanted)


def test_a_listener_that_is_not_in_the_plan() -> None:
    source = tables({"*": [route()]})
    source["routes"]["mesh *"] = {"routes": [route()], "source": []}
    out = explain(with_mesh(source), view(source), "GET", "http://shop/", listener="mesh")
    assert (out.listener, out.error) == ("", "listener mesh is not open here")
    assert explain(with_mesh(source), view(with_mesh(source)), "GET", "http://shop/").error == ""


def test_request_head() -> None:
    assert head("GET", "http://shop:1?a#frag", [("A", "b")]) == (
        b"GET /?a HTTP/1.1\r\nHost: shop:1\r\nA: b\r\n\r\n",
        False,
    )
    assert head("GET", "http://user:pass@shop/", [("HOST", "other")]) == (
        b"GET / HTTP/1.1\r\nHost: other\r\n\r\n",
        False,
    )
    for method, url, fields, why in (
        ("GET", "ftp://shop/", [], "not an http or https URL"),
        ("GET", "http://shop/", [("a", "b\r\nc: d")], "line break"),
    ):
        with pytest.raises(ValueError, match=why):
            head(method, url, fields)


@pytest.mark.parametrize(
    ("method", "url", "fields", "error"),
    [
        ("G T", "http://shop/", [], "400 DPE: malformed HTTP version"),
        ("G(T", "http://shop/", [], "400 DPE: malformed method"),
        ("GET", "http://shop/a/../..", [], "400 DPE: path leaves its root or has a refused escape"),
        ("GET", "http://shop/", [("a b", "c")], "400 DPE: malformed field name"),
    ],
)
def test_what_the_parser_refuses(method: str, url: str, fields: list[tuple[str, str]], error: str) -> None:
    out = told([route()], method, url, *fields)
    assert (out.error, out.tried, out.route) == (error, [], "")
