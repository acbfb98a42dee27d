"""The index and the plain reading of the rules give the same answer; that answer is the first match in
order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastproxy.tables import Match, Route, StringMatch
from tests.support.plans import EDGE, first_match, request, route, tables, view

# A small world, so that rules and requests meet often.
WORDS = st.text("ab/", max_size=5)
PATHS = WORDS.map(lambda text: "/" + text.replace("//", "/").strip("/"))
PREFIXES = st.sampled_from(
    ["/", "/a", "/a/", "/a/b", "/ab", "/aa", "/aaa", "/aaaa", "/aaaaa", "/aab", "", "/b"]
)
PATTERNS = st.sampled_from(["/a.*", "/(a|b)+", ".*b", "/a", "[^/]*", "a|b", "", ".*", "/a/[ab]?"])
VALUES = st.sampled_from(["", "a", "b", "ab", "abb", "a,b", "A", "aab"])
NAMES = st.sampled_from(["x", "client", "x-tenant", "y"])


def string_match(values: st.SearchStrategy[str], *, present: bool) -> st.SearchStrategy[StringMatch]:
    kinds = [
        st.builds(lambda v: {"exact": v}, values),
        st.builds(lambda v: {"prefix": v}, values | st.just("")),
        st.builds(lambda v: {"regex": v}, PATTERNS),
    ]
    if present:
        kinds.append(st.just({"present": True}))
    return st.one_of(kinds)  # type: ignore[arg-type]


ON_VALUE = string_match(VALUES, present=True)
MATCHES = st.fixed_dictionaries(
    {},
    optional={
        "path": string_match(PATHS | PREFIXES, present=False),
        "ignore_case": st.booleans(),
        "method": string_match(st.sampled_from(["GET", "POST", "G"]), present=False),
        "scheme": string_match(st.sampled_from(["http", "https"]), present=False),
        "authority": string_match(st.sampled_from(["shop", "shop:80"]), present=False),
        "port": st.sampled_from([9000, 80]),
        "headers": st.dictionaries(NAMES, ON_VALUE, max_size=4),
        "without_headers": st.dictionaries(NAMES, ON_VALUE, max_size=2),
        "query": st.dictionaries(NAMES, ON_VALUE, max_size=2),
        "cookies": st.dictionaries(NAMES, ON_VALUE, max_size=2),
    },
)
ROUTES = st.lists(st.lists(MATCHES, max_size=4), min_size=1, max_size=30)
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
REQUESTS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "POST"]),
        "path": PATHS,
        "fields": PAIRS,
        "query": PAIRS,
        "cookies": PAIRS,
        "authority": st.sampled_from(["shop", "shop:80"]),
    }
)


def send(world: dict[str, Any]) -> bytes:
    query = "&".join(f"{name}={value}" for name, value in world["query"])
    fields = list(world["fields"])
    if world["cookies"]:
        fields.append(("Cookie", "; ".join(f"{name}={value}" for name, value in world["cookies"])))
    target = world["path"] + (f"?{query}" if query else "")
    return request(target, *fields, method=world["method"], host=world["authority"])


@settings(max_examples=400, deadline=None)
@given(ROUTES, st.lists(REQUESTS, min_size=1, max_size=10))
def test_index_linear_and_meaning_agree(matches: list[list[Match]], worlds: list[dict[str, Any]]) -> None:
    routes = [route(*blocks) for blocks in matches]
    plan = view(tables({"*": routes}))
    for world in worlds:
        raw = send(world)
        want = first_match(routes, port=9000, **world)
        indexed, linear = plan.match(EDGE, raw), plan.match(EDGE, raw, linear=True)
        assert (indexed and indexed.rule) == want
        assert (linear and linear.rule) == want
        if indexed is not None:
            steps = plan.explain(EDGE, raw)
            assert [step.failed is None for step in steps] == [False] * indexed.rule + [True]
            assert steps[-1].route == indexed.route


def many(count: int, make: Any) -> list[Route]:
    return [route(make(i)) for i in range(count)]


@pytest.mark.parametrize(
    ("make", "target", "fields"),
    [
        (
            lambda i: {"path": {"prefix": "/p/"}, "headers": {"client": {"exact": f"v{i}"}}},
            "/p/x",
            lambda i: [("client", f"v{i}")],
        ),
        (
            lambda i: {"path": {"prefix": f"/p{i}/"}, "headers": {"client": {"exact": "v"}}},
            "/p{}/x",
            lambda i: [("client", "v")],
        ),
        (lambda i: {"path": {"exact": f"/p{i}"}}, "/p{}", lambda i: []),
        (
            lambda i: {"headers": {"one": {"exact": f"v{i // 100}"}, "two": {"exact": f"v{i % 100}"}}},
            "/",
            lambda i: [("one", f"v{i // 100}"), ("two", f"v{i % 100}")],
        ),
        (
            lambda i: {"headers": {f"name-{i % 200}": {"exact": f"v{i}"}}},
            "/",
            lambda i: [(f"name-{i % 200}", f"v{i}")],
        ),
        (
            lambda i: {"path": {"regex": f"/p{i}/[0-9]+"}},
            "/p{}/7",
            lambda i: [],
        ),
        (lambda i: {"query": {"q": {"exact": f"v{i}"}}}, "/?q=v{}", lambda i: []),
        (lambda i: {"cookies": {"c": {"exact": f"v{i}"}}}, "/", lambda i: [("Cookie", f"a=b; c=v{i}")]),
    ],
    ids=["header", "path", "exact", "cross", "names", "regex", "query", "cookie"],
)
def test_cost_does_not_grow_with_rules(make: Any, target: str, fields: Any) -> None:
    """Steps of the search (trie nodes, words, rules looked at), not time: the last of 2,000 costs little
    more than the only one."""
    steps = {}
    for count in (1, 2000):
        plan = view(tables({"*": many(count, make)}))
        found = plan.match(EDGE, request(target.format(count - 1), *fields(count - 1)))
        assert found is not None and found.rule == count - 1
        steps[count] = found.steps
    assert steps[2000] <= steps[1] + 12


def test_no_route_costs_little_too() -> None:
    plan = view(tables({"*": many(2000, lambda i: {"path": {"exact": f"/p{i}"}}) + [route({"port": 1})]}))
    assert plan.match(EDGE, request("/q")) is None


def test_all_rules_may_be_residual() -> None:
    routes = many(300, lambda i: {"without_headers": {"x": {"exact": f"v{i}"}}, "port": 9000 + (i < 299)})
    found = view(tables({"*": routes})).match(EDGE, request("/"))
    assert found is not None and found.rule == 299


def test_five_attributes_and_more() -> None:
    """More attributes than dimensions: those left over are looked at one by one."""
    names = [f"h{i}" for i in range(8)]
    routes = [
        route({"headers": {name: {"exact": "1" if k == j else "0"} for k, name in enumerate(names)}})
        for j in range(8)
    ]
    plan = view(tables({"*": routes}))
    for j in range(8):
        fields = [(name, "1" if k == j else "0") for k, name in enumerate(names)]
        found = plan.match(EDGE, request("/", *fields))
        assert found is not None and found.rule == j
    assert plan.match(EDGE, request("/", *[(name, "0") for name in names])) is None


def test_more_names_than_the_index_holds() -> None:
    routes = many(700, lambda i: {"headers": {f"name-{i}": {"exact": "v"}}})
    plan = view(tables({"*": routes}))
    for i in (0, 255, 256, 699):
        found = plan.match(EDGE, request("/", (f"name-{i}", "v")))
        assert found is not None and found.rule == i


def test_long_chain_of_nested_prefixes() -> None:
    """Each prefix begins with all shorter ones; the rules are in every order, the first that covers wins."""
    order = [(50 + i * 37) % 101 for i in range(101)]
    routes = [route({"path": {"prefix": "/" + "a" * depth}}) for depth in order]
    plan = view(tables({"*": routes}))
    for length in range(101):
        found = plan.match(EDGE, request("/" + "a" * length))
        want = next(i for i, depth in enumerate(order) if depth <= length)
        assert found is not None and found.rule == want
        assert found.covered == order[want] + 1


def test_sets_of_several_summary_words() -> None:
    """More than 4,096 rules, spread so that each set of a header value reaches over all of them."""
    routes = many(
        9000, lambda i: {"headers": {"one": {"exact": f"v{i // 3}"}, "two": {"exact": f"w{i % 3}"}}}
    )
    plan = view(tables({"*": routes}))
    for i in (0, 1, 4095, 4096, 4097, 6000, 8191, 8192, 8999):
        found = plan.match(EDGE, request("/", ("one", f"v{i // 3}"), ("two", f"w{i % 3}")))
        assert found is not None and found.rule == i and found.steps < 25
    assert plan.match(EDGE, request("/", ("one", "v1"), ("two", "w3"))) is None


def test_names_that_share_a_hash_slot_are_told_apart() -> None:
    names = [f"q{i}" for i in range(200)]
    routes = [route({"query": {name: {"exact": name}}}) for name in names]
    plan = view(tables({"*": routes}))
    for number, name in enumerate(names):
        found = plan.match(EDGE, request(f"/?{name}={name}"))
        assert found is not None and found.rule == number
        assert plan.match(EDGE, request(f"/?{name}={name}x")) is None
