"""What a route does: rewrites, redirects, header operations, weights."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastproxy.plan import PlanError
from tests.support.plans import CLUSTER, EDGE, compiled, request, route, tables, view


def sent(row: Any, raw: bytes, **options: Any) -> str | None:
    out = view(tables({"*": [row]})).rewritten(EDGE, raw, **options)
    return None if out is None else out.decode()


@pytest.mark.parametrize(
    ("match", "uri", "path", "want"),
    [
        ({"path": {"prefix": "/api"}}, "/v2", "/api/x", "/v2/x"),
        ({"path": {"prefix": "/api/"}}, "/", "/api/x", "/x"),
        ({"path": {"prefix": "/api"}}, "/", "/api/x", "//x"),  # Istio's own result: the string is replaced
        ({"path": {"prefix": "/api"}}, "/v2", "/api", "/v2"),
        ({"path": {"prefix": "/API"}, "ignore_case": True}, "/v2", "/api/x", "/v2/x"),
        ({"path": {"exact": "/api"}}, "/v2", "/api", "/v2"),
        ({"path": {"regex": "/a.*"}}, "/v2", "/api/x", "/v2"),
        ({}, "/v2/", "/api/x", "/v2/api/x"),  # no path match is the prefix "/"
        ({"path": {"prefix": "/api"}}, "v2", "/api/x", "/v2/x"),
        ({"path": {"prefix": "/api"}}, "/v2", "/api/./x?q=1", "/v2/x"),
    ],
)
def test_rewrite_prefix(match: Any, uri: str, path: str, want: str) -> None:
    assert sent(route(match, rewrite={"uri": uri}), request(path)) == want


@pytest.mark.parametrize(
    ("pattern", "rewrite", "path", "want"),
    [
        ("^/api/(v[0-9]+)/(.*)$", r"/\2/\1", "/api/v1/users", "/users/v1"),
        ("/a", "/b", "/a/a/x", "/b/b/x"),
        ("a", r"\0\0", "/banana", "/baanaanaa"),
        ("(x)?a", r"[\1]", "/axa", "/[][x]"),
        ("a*?", "-", "/aa", "/-/-a-a-"),
        ("a+?", "-", "/aaa", "/---"),
        ("/(.*)", r"\1", "/x", "/x"),  # a path begins with "/", whatever is asked for
        (".*", "", "/x", "/"),
        (r"\\", "", "/x", "/x"),
        ("x", r"a\\b", "/x", "/a\\b"),
        ("(?i)API", "v2", "/api/Api", "/v2/v2"),
        (r"\bfoo\b", "bar", "/foo/foobar/foo", "/bar/foobar/bar"),
        ("(a|ab)(c|bcd)(d*)", r"<\1|\2|\3>", "/abcd", "/<a|bcd|>"),  # leftmost first, not longest
    ],
)
def test_rewrite_regex(pattern: str, rewrite: str, path: str, want: str) -> None:
    assert sent(route(rewrite={"regex": (pattern, rewrite)}), request(path)) == want


def _global_replace(pattern: str, rewrite: str, text: str) -> str:
    """RE2's GlobalReplace with Python's engine: no empty match right after another match."""
    compiled_pattern = re.compile(pattern)
    out: list[str] = []
    at = done = 0
    last = -1
    while at <= len(text):
        found = compiled_pattern.search(text, at)
        if found is None:
            break
        if found.start() == found.end() == last:
            at, last = at + 1, -1
            continue
        out += [text[done : found.start()], found.expand(rewrite.replace(r"\0", r"\g<0>"))]
        done = at = last = found.end()
    return "".join(out) + text[done:]


PIECES = st.sampled_from(
    ["a", "b", "/", "[ab]", ".", "[^a]", "(a)", "(a|b)", "(ab|a)", "(?:a|ab)", "^", "$", "()"]
)
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}"])


@st.composite
def patterns(draw: st.DrawFn) -> str:
    out = ""
    for _ in range(draw(st.integers(1, 4))):
        piece = draw(PIECES)
        out += piece + ("" if piece in ("^", "$") else draw(REPEATS))
    return draw(st.sampled_from(["", "(", "|"])).join([out, draw(PIECES)]) if draw(st.booleans()) else out


@settings(max_examples=400, deadline=None)
@given(
    patterns(), st.sampled_from(["", "x", r"<\0>", r"[\1]"]), st.lists(st.text("ab/", max_size=8), min_size=1)
)
def test_rewrite_regex_is_as_python_finds(pattern: str, rewrite: str, texts: list[str]) -> None:
    pattern += ")" * (pattern.count("(") - pattern.count(")"))
    if rewrite == r"[\1]" and re.compile(pattern).groups == 0:
        pattern = f"({pattern})"
    plan = view(tables({"*": [route(rewrite={"regex": (pattern, rewrite)})]}))
    for text in texts:
        path = "/" + text
        want = _global_replace(pattern, rewrite, path)
        got = plan.rewritten(EDGE, request(path), merge=False)
        assert got == (want if want.startswith("/") else "/" + want).encode()


def test_rewrite_is_bounded_in_time_and_room() -> None:
    """A search from every position that runs to the end each time: refused, instead of seconds of a
    worker."""
    row = route(rewrite={"regex": ("a[^z]*z|a", "b")})
    assert sent(row, request("/" + "a" * 16000)) is None
    assert sent(row, request("/" + "a" * 100)) == "/" + "b" * 100
    assert sent(route(rewrite={"uri": "/long"}), request("/x"), room=5) is None
    assert sent(route(rewrite={"uri": "/long"}), request("/x"), room=6) == "/longx"
    assert sent(route(rewrite={"regex": ("x", "yy")}), request("/x"), room=2) is None
    assert sent(route(), request("/abc"), room=3) is None


@pytest.mark.parametrize(
    ("redirect", "raw", "https", "want"),
    [
        ({}, request("/a?b=c"), False, "http://shop/a?b=c"),
        ({"uri": "/new"}, request("/a/b?c=d"), False, "http://shop/new?c=d"),
        ({"uri": "/new?x=y"}, request("/a?c=d"), False, "http://shop/new?x=y"),
        ({"prefix": "/new"}, request("/old/x?c=d"), False, "http://shop/new/x?c=d"),
        ({"authority": "other:81"}, request("/old"), False, "http://other:81/old"),
        ({"scheme": "https"}, request("/old", host="shop:80"), False, "https://shop/old"),
        ({"scheme": "https"}, request("/old", host="shop:8080"), False, "https://shop:8080/old"),
        ({"scheme": "http"}, request("/old", host="shop:443"), True, "http://shop/old"),
        ({"port": 8443, "scheme": "https"}, request("/old", host="shop:80"), False, "https://shop:8443/old"),
        ({"port": 443, "scheme": "https"}, request("/old", host="shop:80"), False, "https://shop/old"),
        ({"port": 0, "authority": "other"}, request("/old", host="shop:81"), False, "http://other:81/old"),
        ({"port": 0, "authority": "other"}, request("/old", host="shop"), False, "http://other:9000/old"),
        ({"port": 8080}, request("/old", host="[::1]:80"), False, "http://[::1]:8080/old"),
        ({"port": 8080}, request("/old", host="[::1]"), False, "http://[::1]:8080/old"),
        ({}, b"GET /old HTTP/1.0\r\n\r\n", False, "/old"),
    ],
)
def test_redirect(redirect: Any, raw: bytes, https: bool, want: str) -> None:
    row = route({"path": {"prefix": "/old"}}, {}, redirect={"code": 302, **redirect})
    plan = view(tables({"*": [row]}))
    assert plan.rewritten(EDGE, raw, https=https) == want.encode()
    assert plan.route(0).status == 302
    assert plan.rewritten(EDGE, raw, https=https, room=len(want) - 1) is None


def test_direct() -> None:
    found = view(tables({"*": [route(direct={"status": 418, "body": b"tea\0pot"}, timeout=250)]})).route(0)
    assert (found.kind, found.status, found.body, found.timeout_ms) == (3, 418, b"tea\0pot", 250)


def test_header_operations() -> None:
    """`set` replaces: it removes and appends. Names are lower case, lines ready to send."""
    ops = {"set": {"x-a": "1"}, "add": {"x-b": "two words"}, "remove": ["X-C", "x-a"]}
    headers = {"request": ops, "response": {"remove": ["server"]}}
    plan = view(tables({"*": [route(headers=headers)]}))
    row = plan.route(0)
    assert row.request.append == b"x-a: 1\r\nx-b: two words\r\n"
    assert row.request.remove == [b"x-a", b"x-c"]
    assert row.response == ([b"server"], b"")
    assert {name: plan.removes(0, name) for name in (b"X-A", b"x-b", b"x-C", b"x-cc", b"")} == {
        b"X-A": True,
        b"x-b": False,
        b"x-C": True,
        b"x-cc": False,
        b"": False,
    }


def test_header_operations_of_destinations() -> None:
    ops = {"request": {"set": {"x-v": "1"}}, "response": {"add": {"x-w": "2"}}}
    destinations = [{"cluster": CLUSTER, "weight": 1, "headers": ops}, {"cluster": CLUSTER, "weight": 1}]
    first, second = view(tables({"*": [route(destinations=destinations)]})).route(0).destinations
    assert (first.request, first.response) == (([b"x-v"], b"x-v: 1\r\n"), ([], b"x-w: 2\r\n"))
    assert (second.request, second.response) == (([], b""), ([], b""))


def test_setting_host_rewrites_the_authority() -> None:
    row = view(tables({"*": [route(headers={"request": {"set": {"Host": "other", "x": "y"}}})]})).route(0)
    assert row.authority == b"other"
    assert row.request == ([b"x"], b"x: y\r\n")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (route(headers={"request": {"set": {"x": "a\r\nEvil: 1"}}}), "control character"),
        (route(headers={"request": {"add": {"x y": "a"}}}), "not a field name"),
        (route(headers={"response": {"remove": ["Transfer-Encoding"]}}), "frames or routes"),
        (route(headers={"request": {"add": {"host": "x"}}}), "frames or routes"),
        (route(rewrite={"uri": "/a b"}), "space"),
        (route(rewrite={"regex": ("(", "x")}), r"missing \)"),
        (route(rewrite={"regex": ("a", r"\1")}), "has 0 groups"),
        (route(rewrite={"authority": "a\nb"}), "control character"),
        (route(redirect={"uri": "/a\x01"}), "control character"),
        (route(redirect={"port": 65536}), "port 65536"),
        (route({"path": {"regex": "(?=a)"}}), "lookaround"),
        (route({"path": {}}), "exactly one"),
        (route(destinations=[]), "without destinations"),
        (route(destinations=[{"cluster": CLUSTER, "weight": 0}] * 2), "add up to 0"),
        (route(destinations=[{"cluster": CLUSTER, "weight": -1}] * 2), "negative"),
        (route(destinations=[{"cluster": CLUSTER, "weight": 1 << 31}] * 2), "add up"),
    ],
)
def test_what_cannot_be_compiled_is_named(row: Any, why: str) -> None:
    with pytest.raises(PlanError, match=f"VirtualService default/test: .*{why}"):
        compiled(tables({"*": [row]}))


def test_weights() -> None:
    """Shares of the 32-bit range are those of the weights; weight 0 is never picked."""
    weights = [0, 3, 0, 1, 0]
    row = route(destinations=[{"cluster": CLUSTER, "weight": weight} for weight in weights])
    plan = view(tables({"*": [row]}))
    assert [d.weight for d in plan.route(0).destinations] == weights
    step = 1 << 20
    picks = Counter(plan.pick(0, x) for x in range(0, 1 << 32, step))
    assert picks == {1: 3072, 3: 1024}
    assert plan.pick(0, 0) == 1 and plan.pick(0, (1 << 32) - 1) == 3


def test_a_single_destination_needs_no_weight() -> None:
    plan = view(tables({"*": [route(destinations=[{"cluster": CLUSTER, "weight": 0}])]}))
    assert plan.pick(0, 0) == 0 and plan.route(0).destinations[0].weight == 1


def test_destination_to_an_unknown_cluster() -> None:
    row = view(tables({"*": [route(destinations=[{"cluster": "outbound|80|v9|a", "weight": 1}])]})).route(0)
    assert row.destinations[0].cluster is None
