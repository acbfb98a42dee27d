"""Clusters, endpoints, schedules of unequal weights, and the live slots that are carried from plan to
plan."""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastproxy import _plan
from fastproxy.plan import ClusterName, EndpointName, PlanError
from fastproxy.plan.clusters import MAX_SCHEDULE, address, schedule
from fastproxy.slots import Slots, SlotsFull, SlotTable
from fastproxy.tables import Endpoint, Tables
from tests.support.plans import CLUSTER, compiled, tables


def endpoint(address: str, port: int = 80, weight: int = 1, **labels: str) -> Endpoint:
    return {"address": address, "port": port, "weight": weight, "labels": labels}


def world(endpoints: list[Endpoint], *subsets: dict[str, str]) -> Tables:
    """Cluster ``a`` of all endpoints, and one per subset, named v0, v1, …"""
    out = tables({})
    out["endpoints"]["a|80"] = endpoints
    for number, labels in enumerate(subsets):
        subset = {**out["clusters"][CLUSTER], "labels": labels}
        out["clusters"][f"outbound|80|v{number}|a"] = subset  # type: ignore[assignment]
    return out


def clusters(source: Tables, slots: Slots | None = None, **more: Any) -> dict[str, _plan.ClusterView]:
    plan = _plan.PlanView(compiled(source, slots, **more).plan)
    plan.check()
    views = [plan.cluster(number) for number in range(plan.counts()["cluster"])]
    return {cluster.name: cluster for cluster in views}


def test_addresses() -> None:
    found = clusters(
        world([endpoint("10.0.0.1"), endpoint("fd00::1"), endpoint("[fd00::2]"), endpoint("unix:///a", 0)])
    )
    rows = [(e.name, e.family, e.port, e.path) for e in found[CLUSTER].endpoints]
    assert rows == [
        ("10.0.0.1:80", socket.AF_INET, 80, b""),
        ("[fd00::1]:80", socket.AF_INET6, 80, b""),
        ("[fd00::2]:80", socket.AF_INET6, 80, b""),
        ("unix:///a", socket.AF_UNIX, 0, b"/a"),
    ]
    assert found[CLUSTER].endpoints[0].address == socket.inet_pton(socket.AF_INET, "10.0.0.1")
    assert found[CLUSTER].endpoints[1].address == socket.inet_pton(socket.AF_INET6, "fd00::1")


@pytest.mark.parametrize(
    "host",
    [
        "1.2.3.4",
        "[1.2.3.4]",
        "255.255.255.255",
        "01.2.3.4",
        "1.2.3",
        "1.2.3.256",
        "1.2.3.4.5",
        "0x1.2.3.4",
        "1.2.3.4 ",
        "\uff11.2.3.4",
        "1.2.3.4\0",
        "\ud800",
        "FD00:0::1",
        "::ffff:1.2.3.4",
        "fe80::1%eth0",
        "",
        "name.test",
    ],
)
def test_an_address_is_what_python_calls_one(host: str) -> None:
    found = address(host, 80)
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        assert found is None
        return
    assert found
    name = ip.compressed if ip.version == 4 else f"[{ip.compressed}]"
    assert (found.name, found.raw) == (f"{name}:80", ip.packed.ljust(16, b"\0"))


def test_unix_path_has_a_limit() -> None:
    for path in ("", "x" * 108):
        with pytest.raises(PlanError, match="1 to 107 bytes"):
            compiled(world([endpoint(f"unix://{path}", 0)]))


def test_subsets_select_by_labels_and_share_slots() -> None:
    source = world(
        [endpoint("10.0.0.1", v="1", z="a"), endpoint("10.0.0.2", v="2")], {"v": "1"}, {"v": "2"}, {"v": "3"}
    )
    found = clusters(source)
    names = {name: [(e.name, e.slot) for e in c.endpoints] for name, c in found.items()}
    assert names["outbound|80|v0|a"] == [names[CLUSTER][0]]
    assert names["outbound|80|v1|a"] == [names[CLUSTER][1]]
    assert names["outbound|80|v2|a"] == []
    assert len({c.slot for c in found.values()}) == 4


def test_names_of_slots() -> None:
    out = compiled(world([endpoint("10.0.0.1", v="1")], {"v": "1"}))
    assert sorted(out.clusters.values()) == [
        ClusterName("outbound|80|v0|a", "a", "v0", 80),
        ClusterName(CLUSTER, "a", "", 80),
    ]
    assert out.endpoints == {0: EndpointName("10.0.0.1:80", "a", "a|10.0.0.1:80")}


def test_an_address_that_is_there_twice_is_one_endpoint() -> None:
    found = clusters(world([endpoint("10.0.0.1", weight=2), endpoint("10.0.0.2"), endpoint("10.0.0.1")]))
    assert [e.name for e in found[CLUSTER].endpoints] == ["10.0.0.1:80", "10.0.0.2:80"]
    assert Counter(found[CLUSTER].schedule) == {0: 3, 1: 1}


def test_host_names_are_what_the_agent_resolved() -> None:
    source = world([endpoint("one.test"), endpoint("two.test", 81), endpoint("10.0.0.1")])
    out = compiled(source, resolved={"one.test": ["10.0.0.7", "fd00::7"]})
    assert out.unresolved == ["two.test"]
    assert sorted(e.name for e in out.endpoints.values()) == ["10.0.0.1:80", "10.0.0.7:80", "[fd00::7]:80"]


def test_identity_is_of_the_address() -> None:
    """A slot that got another address is told from the old one."""
    first = clusters(world([endpoint("10.0.0.1"), endpoint("10.0.0.2")]))[CLUSTER].endpoints
    second = clusters(world([endpoint("10.0.0.2")]))[CLUSTER].endpoints
    assert first[0].slot == second[0].slot
    assert second[0].identity == first[1].identity != first[0].identity


@pytest.mark.parametrize(
    ("weights", "want"),
    [
        ([], []),
        ([0, 0], [0, 1]),
        ([5, 5, 5], [0, 1, 2]),
        ([1, 0], [0]),
        ([1, 3], [1, 0, 1, 1]),
        ([2, 4], [1, 0, 1]),
    ],
)
def test_schedule(weights: list[int], want: list[int]) -> None:
    assert schedule(weights) == want


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=50))
def test_schedule_is_fair_bounded_and_spread(weights: list[int]) -> None:
    turns = schedule(weights)
    counts = Counter(turns)
    assert len(turns) <= max(MAX_SCHEDULE, len(weights))
    if any(weights):
        equal = len(set(weights)) == 1
        assert set(counts) == {i for i, weight in enumerate(weights) if weight or equal}
        for index, count in counts.items():
            exact = len(turns) * weights[index] / sum(weights)
            # rounding down, at least one; and what was lifted to one is taken from the largest
            assert count >= 1 and abs(count - exact) <= 1 + len(weights)
            places = [place for place, turn in enumerate(turns) if turn == index]
            gaps = [b - a for a, b in pairwise(places)]
            assert all(gap <= 2 * len(turns) / count + len(weights) for gap in gaps)
    else:
        assert turns == list(range(len(weights)))


def test_unknown_load_balancing() -> None:
    source = world([])
    source["clusters"][CLUSTER]["lb"] = "MAGIC"  # type: ignore[typeddict-item]
    with pytest.raises(PlanError, match="MAGIC"):
        compiled(source)


def test_slots_are_carried_over() -> None:
    slots = Slots()
    first = {
        e.name: e.slot
        for e in clusters(world([endpoint("10.0.0.1"), endpoint("10.0.0.2")]), slots)[CLUSTER].endpoints
    }
    second = {
        e.name: e.slot
        for e in clusters(world([endpoint("10.0.0.3"), endpoint("10.0.0.2")]), slots)[CLUSTER].endpoints
    }
    assert second["10.0.0.2:80"] == first["10.0.0.2:80"]
    assert second["10.0.0.3:80"] not in first.values()  # 10.0.0.1's is retired, not free
    assert slots.endpoints.retired() == {"a|10.0.0.1:80": first["10.0.0.1:80"]}
    slots.release([], ["a|10.0.0.1:80"])
    third = clusters(world([endpoint("10.0.0.2"), endpoint("10.0.0.4"), endpoint("10.0.0.3")]), slots)
    assert [e.slot for e in third[CLUSTER].endpoints] == [
        first["10.0.0.2:80"],
        first["10.0.0.1:80"],
        second["10.0.0.3:80"],
    ]


def test_a_retired_name_comes_back_to_its_slot() -> None:
    slots = Slots()
    (before,) = clusters(world([endpoint("10.0.0.1")]), slots)[CLUSTER].endpoints
    clusters(world([]), slots)
    clusters(world([endpoint("10.0.0.9")]), slots)
    (after,) = clusters(world([endpoint("10.0.0.1")]), slots)[CLUSTER].endpoints
    assert after.slot == before.slot


def test_a_failed_compile_changes_no_slot() -> None:
    slots = Slots(clusters=10, endpoints=1)
    with pytest.raises(SlotsFull, match="more than 1 in use .*raise --max-endpoints"):
        compiled(world([endpoint("10.0.0.1"), endpoint("10.0.0.2")]), slots)
    assert slots.clusters.retired() == {} and slots.endpoints.retired() == {}
    (only,) = clusters(world([endpoint("10.0.0.2")]), slots)[CLUSTER].endpoints
    assert only.slot == 0


def test_only_retired_names_are_released() -> None:
    table = SlotTable(4, "max-x")
    table.commit(table.plan(["a", "b"]))
    table.commit(table.plan(["b"]))
    for name in ("b", "c"):
        with pytest.raises(ValueError, match="not retired"):
            table.release([name])
    table.release(["a"])
    with pytest.raises(ValueError, match="not retired"):
        table.release(["a"])
    assert repr(table) == "<SlotTable max-x: 1 live, 0 retired of 4>"


@given(st.lists(st.tuples(st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12))), max_size=20))
def test_slots_never_collide(rounds: list[tuple[set[int], set[int]]]) -> None:
    """Whatever comes, goes and is released: one slot has one name, live or retired."""
    table = SlotTable(16, "max-x")
    held: dict[str, int] = {}
    for live, released in rounds:
        planned = table.plan(sorted(map(str, live)))
        table.commit(planned)
        for name, slot in planned.items():
            assert held.get(name, slot) == slot
        held.update(planned)
        assert len(set(held.values())) == len(held) and all(slot < 16 for slot in held.values())
        free = [name for name in map(str, released) if name in table.retired()]
        table.release(free)
        for name in free:
            del held[name]
