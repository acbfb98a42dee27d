"""Views: what each proxy gets, the same everywhere, quickly, whatever else is wrong."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from ctrl.model import Change, Contents, Resource
from ctrl.views import ALL, KEPT, Made, Views
from fastproxy.resources.routes import MAX_PLACES
from fastproxy.rows import Rows
from fastproxy.tables import NAMES
from fastproxy.wire import Attributes

ROOT = Path(__file__).resolve().parents[2]


def document(
    kind: str, name: str, spec: dict[str, Any], namespace: str = "default", ours: bool = False
) -> str:
    version = "fastproxy/v1" if ours else "networking.istio.io/v1"
    metadata = {"name": name, "namespace": namespace}
    return json.dumps({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}, indent=1)


def service(name: str, namespace: str = "default", ports: Iterable[int] = (80,), **more: Any) -> str:
    listed = [{"number": p, "name": f"p{p}", "protocol": "HTTP"} for p in ports]
    spec = {"hosts": [name], "ports": listed, "resolution": "STATIC", **more}
    spec.setdefault("endpoints", [{"address": "127.0.0.1"}])
    return document("ServiceEntry", name, spec, namespace)


def virtual(name: str, to: str, namespace: str = "default", **more: Any) -> str:
    http = [{"route": [{"destination": {"host": to}}]}]
    return document("VirtualService", name, {"hosts": [name], "http": http, **more}, namespace)


def edge(name: str, port: int, **selector: str) -> str:
    server = {"port": {"number": port, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    return document("Gateway", name, {"servers": [server], "selector": selector})


def order(name: str, host: str) -> str:
    spec = {"host": host, "state": "open", "until": "2030-12-31T23:59:59Z"}
    return document("BreakerOrder", name, spec, ours=True)


def resources(*texts: str) -> list[Resource]:
    found, problems = Views().check([("a.yaml", "\n---\n".join(texts).encode())])
    assert problems == []
    return found


def contents(*texts: str) -> Contents:
    return Contents().after(1, [Change(r.identity, r) for r in resources(*texts)])


def proxy(namespace: str = "default", mesh: bool = False, **labels: str) -> Attributes:
    return Attributes.of(namespace, labels, mesh)


def keys(made: Made) -> dict[str, list[str]]:
    return {name: list(made.tables[name]) for name in NAMES if made.tables[name]}  # type: ignore[literal-required]


def packed(made: Made) -> bytes:
    out: bytes = msgpack.packb([made.tables, made.problems, made.warnings])
    return out


SMALL = (
    service("catalog"),
    service("orders", ports=(80, 81), exportTo=["."]),
    service("idle"),
    document("DestinationRule", "catalog", {"host": "catalog", "subsets": [{"name": "v1"}]}),
    edge("edge", 9000, app="edge"),
    edge("inner", 9001, app="inner"),
    virtual("www", "catalog", gateways=["edge"]),
    virtual("admin", "idle", gateways=["inner"], exportTo=["ops"]),
    virtual("catalog", "catalog"),
    order("stop", "catalog"),
)

# --- what is selected ---


def test_all_is_everything() -> None:
    made = Views().make(contents(*SMALL))
    assert made.problems == [] and made.warnings == []
    every = keys(made)
    assert every["listeners"] == ["0.0.0.0:9000", "0.0.0.0:9001"]
    assert [key for key in every["routes"] if not key.startswith("mesh")] == [
        "0.0.0.0:9000 www",
        "0.0.0.0:9001 admin",
    ]
    assert len(every["clusters"]) == 5 and len(every["endpoints"]) == 4
    assert every["breakers"] == ["outbound|80|v1|catalog", "outbound|80||catalog"]


def test_a_gateway_has_its_own_listeners_and_what_their_routes_name() -> None:
    assert keys(Views().make(contents(*SMALL), proxy(app="edge"))) == {
        "listeners": ["0.0.0.0:9000"],
        "routes": ["0.0.0.0:9000 www"],
        "clusters": ["outbound|80||catalog"],
        "endpoints": ["catalog|80"],
        "breakers": ["outbound|80||catalog"],
    }
    assert keys(Views().make(contents(*SMALL), proxy(app="none"))) == {}
    # not exported to default
    assert keys(Views().make(contents(*SMALL), proxy(app="inner"))) == {"listeners": ["0.0.0.0:9001"]}
    assert keys(Views().make(contents(*SMALL), proxy("ops", app="inner"))) == {
        "listeners": ["0.0.0.0:9001"],
        "routes": ["0.0.0.0:9001 admin"],
        "clusters": ["outbound|80||idle"],
        "endpoints": ["idle|80"],
    }


def test_a_proxy_without_labels_takes_every_gateway() -> None:
    assert keys(Views().make(contents(*SMALL), proxy()))["listeners"] == ["0.0.0.0:9000", "0.0.0.0:9001"]


def test_a_sidecar_has_the_mesh_of_its_namespace() -> None:
    made = keys(Views().make(contents(*SMALL), proxy(mesh=True, app="none")))
    assert made["routes"] == ["mesh catalog", "mesh idle", "mesh orders"]
    assert "listeners" not in made and len(made["clusters"]) == 4
    other = keys(Views().make(contents(*SMALL), proxy("shop", mesh=True, app="none")))
    assert other["routes"] == ["mesh catalog", "mesh idle"]
    assert other["endpoints"] == ["catalog|80", "idle|80"]


def test_documents_are_compiled_in_the_order_in_which_they_were_created() -> None:
    first, second = resources(virtual("b", "x", hosts=["h"]), virtual("a", "y", hosts=["h"]))
    start = Contents().after(1, [Change(first.identity, first)]).after(2, [Change(second.identity, second)])
    changed = start.after(3, [Change(first.identity, first)])  # a change keeps its place
    shuffled = Contents(3, dict(reversed(changed.resources.items())))
    for some in (start, changed, shuffled):
        assert Views().make(some).tables["routes"]["mesh h"]["source"] == [
            "VirtualService default/b",
            "VirtualService default/a",
        ]


# --- the same everywhere ---


def mesh_of(seed: int, services: int = 12) -> list[str]:
    """Documents of all kinds that refer to each other at random; some do not fit."""
    draw = random.Random(seed)
    exports: list[list[str]] = [[], ["*"], ["."], ["shop"], ["."], ["~"]]
    spaces = ("default", "shop", "far")
    texts = [edge("edge", 9000, app="edge"), edge("inner", 9001)]
    for i in range(services):
        space, some = draw.choice(spaces), f"s{i}.example"
        ports = draw.sample((80, 81, 8080), draw.randint(1, 2))
        texts.append(service(some, space, ports, exportTo=draw.choice(exports)))
        subset = {"name": "v1", "labels": {"b": "1", "a": "2"}}
        rule = {"host": some, "subsets": [subset], "exportTo": draw.choice(exports)}
        texts.append(document("DestinationRule", f"r{i}", rule, space))
        gateways = draw.choice([["mesh"], ["default/edge"], ["default/edge", "mesh", "default/inner"]])
        headers = {f"x-{draw.randint(0, 9)}": {"exact": "1"} for _ in range(5)}
        destination: dict[str, Any] = {"host": f"s{draw.randint(0, services)}.example"}
        if draw.random() < 0.7:
            destination["port"] = {"number": draw.choice((80, 81))}
        http = [{"match": [{"headers": headers}], "route": [{"destination": destination}]}]
        spec = {"hosts": [f"h{i % 5}"], "gateways": gateways, "http": http, "exportTo": draw.choice(exports)}
        texts.append(document("VirtualService", f"v{i}", spec, space))
        if draw.random() < 0.3:
            texts.append(order(f"o{i}", some))
    return texts


VIEWS: list[Attributes | None] = [
    ALL,
    proxy(),
    proxy(mesh=True),
    proxy("shop", mesh=True, app="edge"),
    proxy("far", app="edge"),
    proxy("nowhere", mesh=True),
]

PROGRAM = """
import sys
from tests.control.test_views import VIEWS, contents, mesh_of
from ctrl.views import Views
from fastproxy.resources.routes import MAX_PLACES
from fastproxy.rows import Rows
views, some = Views(), contents(*mesh_of(7))
order = list(range(len(VIEWS)))
if sys.argv[1] == "back":
    order.reverse()
hashes = {i: Rows.pack(views.make(some, VIEWS[i]).tables).hash.hex() for i in order}
print(*(hashes[i] for i in range(len(VIEWS))))
"""


def test_other_processes_compute_the_same_hashes() -> None:
    some = contents(*mesh_of(7))
    mine = [Rows.pack(Views().make(some, attributes).tables).hash.hex() for attributes in VIEWS]
    assert len(set(mine)) == len(VIEWS)
    for seed, direction in (("0", "on"), ("1", "back"), ("4242", "back")):
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM, direction],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.split() == mine


def test_what_was_asked_before_changes_nothing() -> None:
    some = contents(*mesh_of(3))
    fresh = [packed(Views().make(some, attributes)) for attributes in VIEWS]
    views = Views()
    for i in (5, 0, 3, 3, 1, 4, 2, 0):
        assert packed(views.make(some, VIEWS[i])) == fresh[i]


@pytest.mark.parametrize("seed", range(4))
def test_what_is_remembered_of_older_contents_changes_nothing(seed: int) -> None:
    """Whatever changes: ports of services that routes were translated for, Gateways, exports, all at once."""
    draw = random.Random(seed)
    pool = [r for n in range(4) for r in resources(*mesh_of(seed * 10 + n))]
    some, views = contents(*mesh_of(seed)), Views()
    for version in range(2, 14):
        changes = {r.identity: Change(r.identity, r) for r in draw.sample(pool, draw.randint(1, 4))}
        gone = draw.choice(list(some.resources))
        changes[gone] = Change(gone, None)
        some = some.after(version, changes.values())
        for attributes in VIEWS:
            assert packed(views.make(some, attributes)) == packed(Views().make(some, attributes))


def test_two_threads_at_once() -> None:
    views, both = Views(), [contents(*mesh_of(1)), contents(*mesh_of(2))]
    want = [[packed(Views().make(some, a)) for a in VIEWS] for some in both]
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(5):
            if [packed(views.make(both[which], a)) for a in VIEWS] != want[which]:
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- what is bad ---


def test_documents_that_are_bad_are_left_out_with_their_reasons() -> None:
    good = contents(*SMALL)
    broken = Resource("VirtualService", "default", "www", "{kind: [", "b.yaml", 10)
    other = Resource("VirtualService", "default", "catalog", virtual("not-catalog", "idle"), "c.yaml", 20)
    again = "# a comment\n" + service("idle").replace('"name": "idle"', '"name": "again"')
    taken = Resource("ServiceEntry", "default", "again", again, "d.yaml", 30)
    changes = [Change(r.identity, r) for r in (broken, other, taken)]
    made = Views().make(good.after(2, changes))
    assert [(p.identity, p.file, p.line) for p in made.problems] == [
        (broken.identity, "b.yaml", 10),
        (other.identity, "c.yaml", 20),
        (taken.identity, "d.yaml", 40),
    ]
    assert "not YAML" in made.problems[0].message
    assert made.problems[1].message == "the text is no VirtualService default/catalog"
    assert made.problems[2].message == "idle is already a host of ServiceEntry default/idle"
    rest = keys(made)
    assert "0.0.0.0:9000 www" not in rest["routes"] and "0.0.0.0:9001 admin" in rest["routes"]
    assert rest["clusters"] == keys(Views().make(good))["clusters"]


def test_a_bad_document_is_told_of_where_it_would_be_seen() -> None:
    text = service("idle", "shop", exportTo=["shop"]).replace("idle", "again", 1)
    some = contents(*SMALL).after(2, [Change(r.identity, r) for r in resources(text)])
    assert [p.name for p in Views().make(some).problems] == ["again"]
    assert [p.name for p in Views().make(some, proxy("shop", mesh=True)).problems] == ["again"]
    assert Views().make(some, proxy("far", mesh=True)).problems == []


def test_warnings_are_those_of_all() -> None:
    some = contents(virtual("www", "nobody"))
    assert ["no ServiceEntry has the host nobody" in w.message for w in Views().make(some).warnings] == [True]
    assert Views().make(some, proxy(mesh=True)).warnings == []


# --- documents as they come in ---


def test_check_parts_texts_into_documents() -> None:
    one, two = virtual("a", "x"), virtual("b", "x")
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": [json.loads(one), json.loads(two)]})
    texts = [
        ("a.yaml", f"# both\n---\n\n{one}\n\n---\n{virtual('c', 'x')}".encode()),
        ("list.json", listed.replace('"a"', '"d"').encode()),
        ("bad.yaml", b"kind: VirtualService\n---\n" + virtual("e", "x").encode() + b"\n---\nx: [\n"),
    ]
    found, problems = Views().check(texts)
    assert [(r.name, r.file, r.line) for r in found] == [
        ("a", "a.yaml", 4),
        ("c", "a.yaml", 7 + one.count("\n")),
        ("d", "list.json", 1),
        ("b", "list.json", 1),
        ("e", "bad.yaml", 3),
    ]
    assert [(p.file, p.line) for p in problems] == [("bad.yaml", 1), ("bad.yaml", 6 + one.count("\n"))]
    assert found[0].text == one + "\n" and json.loads(found[3].text) == json.loads(two)
    assert all(r.created == (0, 0) and r.version == 0 for r in found)


def test_check_tells_of_duplicates_and_of_nothing_at_all() -> None:
    found, problems = Views().check(
        [("a.yaml", b"---\n".join([virtual("a", t).encode() + b"\n" for t in "xy"]))]
    )
    assert len(found) == 1 and "x" in found[0].text
    assert [p.message for p in problems] == ["VirtualService default/a is defined twice, first at a.yaml:5"]
    assert [p.message for p in Views().check([("a.yaml", b"# nothing\n")])[1]] == [
        "no document: empty, or nothing but comments"
    ]


YAML = """apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a]
  http:
  - directResponse:
      status: 200
      body:
        string: %s
          x

"""


@pytest.mark.parametrize("style", ["|", ">", "|+", ">+", "|2+", "|-"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n", "   \n"])
def test_a_document_means_the_same_wherever_it_stands(style: str, end: str) -> None:
    text = (YAML % style).rstrip("\n") + end
    bodies = set()
    for before in ("", "---\n", "\n\n---\n", "kind: no\n---\n"):
        found, _ = Views().check([("a.yaml", (before + text).encode())])
        assert found[0].text.startswith("apiVersion") and found[0].line == 1 + before.count("\n")
        bodies.add(Rows.pack(Views().make(contents_of(found)).tables).hash)
        # read again from the store, where the check is not remembered
        views = Views()
        views.check([("a.yaml", (before + text).encode())])
        bodies.add(Rows.pack(views.make(contents_of(found)).tables).hash)
    assert len(bodies) == 1


def contents_of(found: list[Resource]) -> Contents:
    return Contents().after(1, [Change(r.identity, r) for r in found])


def test_what_was_checked_tells_the_same_lines_as_what_is_read_from_the_store() -> None:
    text = "# first\n---\n" + service("a") + "\n---\n" + service("a").replace('"a"', '"b"', 1)
    views = Views()
    found, _ = views.check([("a.yaml", text.encode())])
    assert views.make(contents_of(found)).problems == Views().make(contents_of(found)).problems != []


# --- what it costs ---


def test_views_that_choose_alike_share_their_tables() -> None:
    views, some = Views(), contents(*SMALL)
    one = views.make(some, proxy("shop", app="edge", zone="a")).tables
    assert views.make(some, proxy("far", app="edge", zone="b")).tables is one
    assert views.make(some, proxy("ops", app="edge")).tables is one, "its own document is for another Gateway"
    assert views.make(some, proxy("ops")).tables is not one
    changed = some.after(2, [Change(r.identity, r) for r in resources(virtual("catalog", "idle"))])
    assert views.make(changed, proxy("shop", app="edge")).tables is one, "what changed is not its business"
    assert views.make(changed).tables is not views.make(some).tables


def test_what_is_remembered_is_bounded() -> None:
    views, some = Views(), contents(*SMALL)
    for version in range(2, 12):
        more = resources(virtual("catalog", f"to-{version}"))
        some = some.after(version, [Change(r.identity, r) for r in more])
        for attributes in VIEWS:
            views.make(some, attributes)
    # the change is for the mesh: two views have one result for all contents, four have one for each
    assert repr(views) == f"<Views: {len(SMALL) + KEPT - 1} documents, {KEPT * 4 + 2} results>"


def test_a_gateway_that_moves_for_ever_leaves_nothing_behind() -> None:
    views, some = Views(), contents(edge("edge", 9000), virtual("www", "nobody", gateways=["edge"]))
    for version in range(2, 200):
        moved = resources(edge("edge", 9000 + version))
        some = some.after(version, [Change(r.identity, r) for r in moved])
        assert list(views.make(some).tables["routes"]) == [f"0.0.0.0:{9000 + version} www"]
    kept = [d.memo for d, _ in views._read.values() if d is not None and d.row.kind == "VirtualService"]
    assert [0 < len(memo) <= MAX_PLACES for memo in kept] == [True]


def test_one_change_among_thousands_is_not_a_new_start() -> None:
    texts = [service(f"s{i}.example") for i in range(200)]
    texts += [virtual(f"v{i}", f"s{i % 200}.example") for i in range(2000)]
    some = contents(*texts)
    views = Views()
    start = time.process_time()
    views.make(some)
    first = time.process_time() - start
    changed = some.after(2, [Change(r.identity, r) for r in resources(virtual("v7", "s3.example"))])
    start = time.process_time()
    after = views.make(changed)
    assert time.process_time() - start < first / 2
    assert (
        after.tables["routes"]["mesh v7"]["routes"][0]["destinations"][0]["cluster"]
        == "outbound|80||s3.example"
    )
