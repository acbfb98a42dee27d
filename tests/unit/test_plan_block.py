"""The block as such: what opens, what is refused, and that no corrupt block makes a reader leave it."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from typing import Any

import pytest

from fastproxy import _plan
from fastproxy.plan.writer import HEADER
from fastproxy.slots import Slots
from tests.support.plans import CLUSTER, EDGE, compiled, request, route, tables

SEEDS = 60
FLIPS = 60


def world() -> Any:
    """Tables that use every section."""
    ops = {"request": {"set": {"x-a": "1"}, "remove": ["x-b"]}, "response": {"add": {"x-c": "2"}}}
    routes = [
        route({"path": {"prefix": "/" + "a" * n}, "headers": {"x": {"exact": f"v{n}"}}}) for n in range(1, 9)
    ]
    routes += [
        route({"path": {"exact": "/b"}, "ignore_case": True, "query": {"q": {"prefix": "1"}}}, headers=ops),
        route({"path": {"regex": "/c/[0-9]+"}, "cookies": {"k": {"exact": "1"}}, "method": {"exact": "GET"}}),
        route(
            {"path": {"prefix": "/d"}, "authority": {"exact": "shop"}, "port": 9000}, rewrite={"uri": "/x"}
        ),
        route({"path": {"prefix": "/e"}}, rewrite={"regex": ("/(e+)/(.*)", r"/\2/\1")}),
        route({"path": {"prefix": "/f"}}, redirect={"uri": "/g", "port": 0, "scheme": "https"}),
        route({"headers": {"y": {"present": True}}, "without_headers": {"z": {"regex": "a|b"}}}),
        route(
            destinations=[{"cluster": CLUSTER, "weight": 1, "headers": ops}, {"cluster": "gone", "weight": 2}]
        ),
        route({"path": {"prefix": "/h"}}, direct={"status": 200, "body": b"hello"}),
    ]
    out = tables({"*": routes, "shop": routes[3:], "*.example.com": routes})
    out["endpoints"]["a|80"][0]["weight"] = 3
    out["endpoints"]["a|80"].append({"address": "unix:///run/a.sock", "port": 0, "weight": 1, "labels": {}})
    return out


REQUESTS = [
    request("/aaaa/b", ("x", "v3")),
    request("/B?q=12&r"),
    request("/c/12", ("Cookie", "a=b; k=1")),
    request("/d/1", host="a.example.com"),
    request("/eee/x/y", host="other"),
    request("/f", ("y", "1"), ("y", "2")),
    request("/h", ("z", "a")),
]


def use(plan: _plan.PlanView) -> None:
    """Every reader, over every row."""
    for raw in REQUESTS if EDGE in plan.listeners() else []:
        for linear in (False, True):
            plan.match(EDGE, raw, linear=linear)
        plan.explain(EDGE, raw)
        plan.rewritten(EDGE, raw)
    for number in range(plan.counts()["route"]):
        plan.route(number)
        plan.removes(number, b"x-a")
        plan.pick(number, 1 << 31)
    for number in range(plan.counts()["cluster"]):
        plan.cluster(number)


def sealed(block: bytearray) -> bytes:
    """The block with the checksum of what it now holds, as a hostile writer would make it."""
    struct.pack_into("<Q", block, 32, _plan.checksum(memoryview(block)[HEADER.size :]))
    return bytes(block)


def test_every_section_is_used() -> None:
    plan = _plan.PlanView(compiled(world()).plan)
    plan.check()
    assert [name for name, count in plan.counts().items() if count == 0] == []
    use(plan)


def test_checksum() -> None:
    good = compiled(world()).plan
    for at in range(HEADER.size, len(good), 97):
        bad = bytearray(good)
        bad[at] ^= 0x10
        with pytest.raises(ValueError, match="checksum"):
            _plan.PlanView(bytes(bad)).check()


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0), (4, 99), (24, 1), (24, 1 << 40), (40, 1 << 31), (44, 1 << 30), (40, 4)],
    ids=["magic", "format", "size", "larger", "offset", "count", "into the header"],
)
def test_header(at: int, value: int) -> None:
    bad = bytearray(compiled(world()).plan)
    struct.pack_into("<I", bad, at, value & 0xFFFFFFFF)
    with pytest.raises(ValueError):
        _plan.PlanView(bytes(bad)).check()


def test_short_blocks() -> None:
    good = compiled(world()).plan
    for size in (0, 1, HEADER.size - 1, HEADER.size, len(good) - 1):
        with pytest.raises(ValueError, match="not a plan"):
            _plan.PlanView(good[:size])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_corrupt_block_is_followed_out_of_itself(seed: int) -> None:
    """Flip numbers, mostly to what hurts; what passes the check is used in every way. The ASan build makes
    a read outside of the block fatal; here a crash would be."""
    rng = random.Random(seed)
    good = compiled(world()).plan
    hurtful = [0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, len(good), len(good) - 1]
    survivors = 0
    for _ in range(FLIPS):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            kind = rng.random()
            at = rng.randrange(40, len(good) - 8)
            if kind < 0.4:
                bad[at] ^= 1 << rng.randrange(8)
            elif kind < 0.8:
                struct.pack_into("<I", bad, at & ~3, rng.choice(hurtful))
            else:
                (old,) = struct.unpack_from("<I", bad, at & ~3)
                struct.pack_into("<I", bad, at & ~3, (old + rng.choice([-8, -4, -1, 1, 4, 8])) & 0xFFFFFFFF)
        try:
            plan = _plan.PlanView(sealed(bad))
            plan.check()
        except ValueError:
            continue
        survivors += 1
        use(plan)
    assert survivors > 0


@pytest.mark.parametrize("change", ["zero", "most", "up", "down"])
def test_every_number_of_a_block(change: str) -> None:
    """One at a time, all of them. (A rewrite's group whose end was saved without its start was found so.)"""
    good = compiled(world()).plan
    refused = 0
    for at in range(HEADER.size, len(good) - 3, 4):
        bad = bytearray(good)
        (old,) = struct.unpack_from("<I", bad, at)
        new = {"zero": 0, "most": 0xFFFFFFFF, "up": old + 1, "down": old - 1}[change]
        struct.pack_into("<I", bad, at, new & 0xFFFFFFFF)
        plan = _plan.PlanView(sealed(bad))
        try:
            plan.check()
        except ValueError:
            refused += 1
            continue
        use(plan)
    assert refused > 100


def test_the_same_tables_give_the_same_bytes() -> None:
    first = compiled(world(), Slots(), epoch=3, version=4)
    source = world()
    source["routes"] = dict(reversed(source["routes"].items()))
    again = compiled(source, Slots(), epoch=3, version=4)
    assert first == again
    other = compiled(world(), Slots(), epoch=3, version=5)
    plan = _plan.PlanView(other.plan)
    assert (plan.epoch, plan.version) == (3, 5)
    assert other.plan[HEADER.size :] == first.plan[HEADER.size :]


def test_the_same_tables_give_the_same_bytes_in_every_process() -> None:
    """Sets of strings have another order in each."""
    told = "from tests.unit.test_plan_block import *; print(compiled(world()).plan.hex())"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", told],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert bytes.fromhex(done.stdout) == compiled(world()).plan


def test_hosts_with_the_same_matches_share_the_index() -> None:
    routes = [route({"path": {"exact": f"/{i}"}}) for i in range(50)]
    one = _plan.PlanView(compiled(tables({"a": routes})).plan).counts()
    ten = _plan.PlanView(compiled(tables({f"h{i}": routes for i in range(10)})).plan).counts()
    assert ten["rule"] == one["rule"] == 50 and ten["node"] == one["node"]
    assert ten["route"] == 500


def test_names() -> None:
    out = compiled(world(), epoch=1, version=1)
    assert out.listeners == [EDGE]
    plan = _plan.PlanView(out.plan)
    for raw in REQUESTS:
        found = plan.match(EDGE, raw)
        assert found is not None
        name = out.routes[found.route]
        assert name.name.encode() == plan.route(found.route).name and name.listener == EDGE
        assert name.host.lstrip("*").encode() == found.host_name.lstrip(b"*")
    assert {name.host for name in out.routes} == {"*", "shop", "*.example.com"}
    assert [name.name for name in out.routes if name.host == "*"][:2] == [
        "VirtualService default/test#0",
        "VirtualService default/test#1",
    ]


def test_mesh_routes_wait_for_their_listener() -> None:
    source = tables({"*": [route()]})
    source["routes"]["mesh *"] = {"routes": [route()], "source": []}
    assert compiled(source).listeners == [EDGE]
    source["routes"]["elsewhere *"] = {"routes": [route()], "source": []}
    with pytest.raises(ValueError, match="listener elsewhere, which does not exist"):
        compiled(source)
