"""What each kind of match means: hosts, paths, repeated fields, parameters, cookies, withoutHeaders,
ports."""

from __future__ import annotations

from typing import Any

import pytest

from fastproxy.tables import Match
from tests.support.plans import EDGE, request, route, tables, view


def rule_of(match: Any, raw: bytes, **options: Any) -> int | None:
    """0: the match holds; 1: it does not, and the route after it is taken."""
    found = view(tables({"*": [route(match), route()]})).match(EDGE, raw, **options)
    assert found is not None
    return found.rule


@pytest.mark.parametrize(
    ("host", "want"),
    [
        ("shop", b"shop"),
        ("SHOP", b"shop"),
        ("shop:8080", b"shop"),
        ("a.example.com", b".example.com"),
        ("A.Example.COM:1", b".example.com"),
        ("x.a.example.com", b".a.example.com"),
        ("a.example.com.evil", b"*"),
        ("example.com", b"*"),
        (".example.com", b"*"),
        ("exact.example.com", b"exact.example.com"),
        ("[::1]:80", b"[::1]"),
        ("other", b"*"),
        ("a" * 300 + ".example.com", b"*"),
    ],
)
def test_host(host: str, want: bytes) -> None:
    """Exact, then the longest suffix, then any; without regard to case or port (Istio's order)."""
    names = ["shop", "*.example.com", "*.a.example.com", "exact.example.com", "[::1]", "*"]
    plan = view(tables({name: [route()] for name in names}))
    found = plan.match(EDGE, request(host=host))
    assert found is not None and found.host_name == want


def test_no_host_no_route() -> None:
    plan = view(tables({"shop": [route()], "*.example.com": [route()]}))
    assert plan.match(EDGE, request(host="other")) is None
    assert plan.host(EDGE, request(host="other")) is None
    assert view(tables({})).match(EDGE, request(host="shop")) is None


def test_no_rule_does_not_fall_back_to_another_host() -> None:
    plan = view(tables({"shop": [route({"path": {"exact": "/a"}})], "*": [route()]}))
    assert plan.match(EDGE, request("/b")) is None


def test_many_hosts() -> None:
    plan = view(tables({f"host-{i}.example": [route()] for i in range(500)}))
    for i in (0, 17, 499):
        found = plan.match(EDGE, request(host=f"host-{i}.example"))
        assert found is not None and found.host_name == f"host-{i}.example".encode()


def test_listeners_are_apart() -> None:
    source = tables({"*": [route(name="edge")]})
    source["listeners"]["mesh"] = {"address": "127.0.0.1", "port": 1, "protocol": "HTTP"}
    source["routes"]["mesh *"] = {"routes": [route(name="inside")], "source": []}
    plan = view(source)
    names = {}
    for listener in (EDGE, "mesh"):
        found = plan.match(listener, request())
        assert found is not None
        names[listener] = plan.route(found.route).name
    assert names == {EDGE: b"edge", "mesh": b"inside"}
    with pytest.raises(LookupError):
        plan.match("other", request())


@pytest.mark.parametrize(
    ("match", "path", "holds"),
    [
        ({"path": {"exact": "/a"}}, "/a", True),
        ({"path": {"exact": "/a"}}, "/a/", False),
        ({"path": {"exact": "/a"}}, "/A", False),
        ({"path": {"exact": "/A"}, "ignore_case": True}, "/a", True),
        ({"path": {"prefix": "/aPi"}, "ignore_case": True}, "/ApI/x", True),
        ({"path": {"prefix": "/api"}}, "/apix", True),  # of the string, not of segments
        ({"path": {"prefix": "/api/"}}, "/api", False),
        ({"path": {"regex": "/v[0-9]+"}}, "/v12", True),
        ({"path": {"regex": "/v[0-9]+"}}, "/v12/x", False),  # the whole path
        ({"path": {"exact": "/a"}}, "/a?b=c", True),  # without the query
        ({"path": {"exact": "/a/c"}}, "/a/./b/../c", True),  # normalised first
        ({"path": {"exact": "/a%2Fb"}}, "/a%2fb", True),
    ],
)
def test_path(match: Match, path: str, holds: bool) -> None:
    assert (rule_of(match, request(path)) == 0) is holds


@pytest.mark.parametrize(
    ("match", "fields", "holds"),
    [
        ({"exact": "a"}, [("X", "a")], True),
        ({"exact": "a"}, [("x", "A")], False),  # values are compared as they are
        ({"exact": "a"}, [], False),
        ({"exact": ""}, [("x", "")], True),
        ({"exact": "a,b"}, [("x", "a"), ("y", "z"), ("X", "b")], True),
        ({"exact": "a"}, [("x", "a"), ("x", "b")], False),
        ({"prefix": "a,"}, [("x", "a"), ("x", "b")], True),
        ({"prefix": "a,bc"}, [("x", "a"), ("x", "b")], False),
        ({"regex": "a,.*"}, [("x", "a"), ("x", "b")], True),
        ({"regex": "a"}, [("x", "a"), ("x", "b")], False),
        ({"regex": ".*"}, [], False),
        ({"present": True}, [("x", "")], True),
        ({"present": True}, [], False),
        ({"prefix": ""}, [], False),
        ({"prefix": ""}, [("x", "q")], True),
    ],
)
def test_header(match: Any, fields: list[tuple[str, str]], holds: bool) -> None:
    """Also next to a second rule on the same field, so that both ways of looking are used."""
    assert (rule_of({"headers": {"x": match}}, request("/", *fields)) == 0) is holds
    both = {"headers": {"x": match}, "without_headers": {"x": {"exact": "never"}}}
    assert (rule_of(both, request("/", *fields)) == 0) is holds


@pytest.mark.parametrize(
    ("match", "fields", "holds"),
    [
        ({"exact": "a"}, [("x", "b")], True),
        ({"exact": "a"}, [("x", "a")], False),
        ({"exact": "a"}, [], True),
        ({"exact": ""}, [], False),  # an absent field counts as empty, as in Istio
        ({"regex": "a*"}, [], False),
        ({"present": True}, [("x", "")], False),
        ({"present": True}, [], True),
    ],
)
def test_without_headers(match: Any, fields: list[tuple[str, str]], holds: bool) -> None:
    assert (rule_of({"without_headers": {"x": match}}, request("/", *fields)) == 0) is holds


@pytest.mark.parametrize(
    ("match", "query", "holds"),
    [
        ({"exact": "1"}, "a=1", True),
        ({"exact": "1"}, "b=2&a=1&a=2", True),
        ({"exact": "2"}, "a=1&a=2", False),  # the first counts
        ({"exact": ""}, "a", True),
        ({"exact": ""}, "a=&b", True),
        ({"exact": "x=y"}, "a=x=y", True),
        ({"exact": "%41"}, "a=%41", True),  # not decoded, as Envoy
        ({"exact": "A"}, "a=%41", False),
        ({"present": True}, "&&a&", True),
        ({"present": True}, "A=1", False),
        ({"present": True}, "aa=1&b=a", False),
        ({"prefix": "1"}, "a=12", True),
        ({"regex": "[0-9]+"}, "a=12", True),
        ({"regex": "[0-9]+"}, "a=1x", False),
        ({"exact": "1"}, "", False),
    ],
)
def test_query(match: Any, query: str, holds: bool) -> None:
    raw = request(f"/?{query}")
    assert (rule_of({"query": {"a": match}}, raw) == 0) is holds


@pytest.mark.parametrize(
    ("match", "fields", "holds"),
    [
        ({"exact": "1"}, ["a=1"], True),
        ({"exact": "1"}, ["b=2; a=1; a=3"], True),
        ({"exact": "1"}, ["b=2", "a=1"], True),
        ({"exact": "1"}, ['a="1"'], True),
        ({"exact": "1"}, ["  a=1 ;b=2"], True),
        ({"exact": "x=y"}, ["a=x=y"], True),
        ({"present": True}, ["a="], True),
        ({"present": True}, ["a"], False),  # no "=": not a cookie
        ({"present": True}, ["A=1"], False),
        ({"exact": "1"}, [], False),
    ],
)
def test_cookie(match: Any, fields: list[str], holds: bool) -> None:
    raw = request("/", *[("Cookie", value) for value in fields])
    assert (rule_of({"cookies": {"a": match}}, raw) == 0) is holds


@pytest.mark.parametrize(
    ("match", "raw", "https", "holds"),
    [
        ({"method": {"exact": "GET"}}, request(), False, True),
        ({"method": {"exact": "get"}}, request(), False, False),
        ({"method": {"regex": "GET|POST"}}, request(method="POST"), False, True),
        ({"method": {"exact": "PURGE"}}, request(method="PURGE"), False, True),
        ({"scheme": {"exact": "https"}}, request(), True, True),
        ({"scheme": {"exact": "https"}}, request(), False, False),
        ({"authority": {"exact": "shop:81"}}, request(host="shop:81"), False, True),
        ({"authority": {"exact": "shop"}}, request(host="shop:81"), False, False),
        ({"port": 9000}, request(host="shop:81"), False, True),
        ({"port": 81}, request(host="shop:81"), False, False),
    ],
)
def test_request_line(match: Match, raw: bytes, https: bool, holds: bool) -> None:
    assert (rule_of(match, raw, https=https) == 0) is holds


@pytest.mark.parametrize(
    ("host", "https", "port"),
    [("shop:81", False, 81), ("shop", False, 80), ("shop", True, 443), ("[::1]:7", 0, 7)],
)
def test_port_in_the_mesh_is_the_one_addressed(host: str, https: bool, port: int) -> None:
    source = tables({"*": [route({"port": port}), route()]}, listener="mesh", port=15001)
    found = view(source).match("mesh", request(host=host), https=bool(https))
    assert found is not None and found.rule == 0


def test_absolute_form_wins_over_host() -> None:
    plan = view(tables({"shop": [route()]}))
    assert plan.match(EDGE, b"GET http://shop/ HTTP/1.1\r\nHost: other\r\n\r\n") is not None


def test_asterisk_form() -> None:
    raw = b"OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n"
    plan = view(tables({"*": [route({"path": {"prefix": "/"}}), route(rewrite={"uri": "/x"})]}))
    found = plan.match(EDGE, raw)
    assert found is not None and found.rule == 1
    assert plan.rewritten(EDGE, raw) == b"*"
