"""The plane: what is applied, refused, rolled back; what others write; a store that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from ctrl import api_shapes as shapes
from ctrl import orders
from ctrl.model import (
    Candidate,
    Change,
    Compacted,
    Conflict,
    Contents,
    Draft,
    Entry,
    Head,
    StoreError,
    Unsure,
)
from ctrl.orders import Order
from ctrl.plane import Unfit, Wish
from ctrl.rollout import Plan
from ctrl.store.memory import MemoryStore
from ctrl.trial import know
from ctrl.views import Views
from tests.control.links import until
from tests.control.planes import World, put
from tests.support.server import host, three_ports

BAD = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: bad}\nspec: {hosst: [x]}\n"


def service(name: str, hosts: str, more: str = "") -> str:
    return (
        f"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n"
        f"  hosts: [{hosts}]\n  ports: [{{number: 80, name: http, protocol: HTTP}}{more}]\n"
        "  resolution: STATIC\n  endpoints: [{address: 127.0.0.1, ports: {http: 9001}}]\n"
    )


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


# --- applying ---


def test_documents_become_one_version_and_reach_the_proxies() -> None:
    async def main() -> None:
        async with World(2) as (plane, crew):
            done = await put(plane, "one", "two", who="eve", message="the first")
            assert (done.version, done.rollout) == (1, False)
            assert [verb[0] for verb in done.verbs] == ["created", "created"]
            await until(lambda: crew.serve(1), "all serve it")
            assert crew.appliers[0].hosts == {"one", "two"}
            entry = await plane.entry(1)
            assert (entry.who, entry.what, entry.message) == ("eve", "apply", "the first")
            assert entry.hash == plane.head().hash == know(Views(), plane.contents).hash
            done = await plane.delete([("VirtualService", "default", "one")], Wish())
            assert done.verbs == (("deleted", "VirtualService", "default", "one"),)
            await until(lambda: crew.serve(2) and crew.appliers[1].hosts == {"two"}, "it is gone")
            assert plane.head().hash == know(Views(), plane.contents).hash, "the sum was carried on rightly"

    run(main())


def test_nothing_changed_is_no_version() -> None:
    async def main() -> None:
        async with World() as (plane, _):
            first = await put(plane, "one")
            again = await put(plane, "one")
            assert (again.version, again.hash, again.verbs) == (1, first.hash, ())
            assert len(await plane.history()) == 1

    run(main())


def test_a_dry_run_tells_and_writes_nothing() -> None:
    async def main() -> None:
        async with World() as (plane, _):
            await put(plane, "one")
            text = host("one", 404)
            done = await plane.apply([("one", text.encode())], Wish(dry_run=True))
            assert done.diff == [(("VirtualService", "default", "one"), host("one"), text)]
            assert (done.version, done.dry_run) == (1, True)
            wet = await plane.apply([("one", text.encode())], Wish())
            assert (wet.version, wet.hash, wet.diff) == (2, done.hash, [])

    run(main())


def test_a_bad_document_is_left_out_and_told() -> None:
    async def main() -> None:
        async with World() as (plane, _):
            done = await plane.apply(
                [("bad.yaml", BAD.encode()), ("good.yaml", host("one").encode())], Wish()
            )
            assert [str(p) for p in done.problems] == [
                "bad.yaml:4: spec.http: is required",
                "bad.yaml:4: spec.hosst: unknown field (did you mean hosts?)",
            ]
            assert {r.name for r in plane.contents} == {"one"}

    run(main())


@pytest.mark.parametrize("strict", [False, True])
def test_nothing_good_is_an_error(strict: bool) -> None:
    async def main() -> None:
        async with World() as (plane, _):
            with pytest.raises(Unfit, match="nothing was applied") as told:
                await plane.apply([("bad.yaml", BAD.encode())], Wish(strict=strict))
            assert told.value.problems[0].file == "bad.yaml"
            assert plane.head().version == 0

    run(main())


def test_strict_is_all_or_nothing() -> None:
    async def main() -> None:
        async with World() as (plane, _):
            files = [("bad.yaml", BAD.encode()), ("good.yaml", host("one").encode())]
            with pytest.raises(Unfit, match="strict"):
                await plane.apply(files, Wish(strict=True))
            assert plane.head().version == 0

    run(main())


def test_a_document_that_does_not_fit_its_neighbours_is_left_out() -> None:
    """Two services of one host: the one that was there first stays."""

    async def main() -> None:
        async with World() as (plane, _):
            await plane.apply([("a", service("first", "x").encode())], Wish())
            files = [("b", service("second", "x").encode()), ("c", host("one").encode())]
            done = await plane.apply(files, Wish())
            assert [str(p) for p in done.problems] == [
                "b:5: spec.hosts[0]: x is already a host of ServiceEntry default/first"
            ]
            assert {r.name for r in plane.contents} == {"first", "one"}
            assert plane.problems == []

    run(main())


def test_who_makes_another_unfit_is_the_one_that_is_refused() -> None:
    """``first`` takes the host of ``second``. By age ``second`` would have to go, by reason ``first``."""

    async def main() -> None:
        async with World() as (plane, _):
            await plane.apply([("a", service("first", "x").encode())], Wish())
            await plane.apply([("b", service("second", "y").encode())], Wish())
            wider = service("first", "x, y")
            files = [("c", host("one").encode()), ("a", wider.encode()), ("d", host("two").encode())]
            done = await plane.apply(files, Wish())
            assert [(p.kind, p.name, p.file) for p in done.problems] == [("ServiceEntry", "first", "a")]
            assert "ServiceEntry default/second cannot be served" in done.problems[0].message
            assert plane.contents.resources["ServiceEntry", "default", "first"].text != wider
            assert {r.name for r in plane.contents} == {"first", "second", "one", "two"}
            assert plane.problems == []
            both = [("a", wider.encode()), ("b", service("second", "z").encode())]
            assert (await plane.apply(both, Wish())).problems == [], "together they fit"

    run(main())


def test_several_that_make_others_unfit_are_all_found() -> None:
    route = "  - route: [{destination: {host: %s}}]\n"

    async def main() -> None:
        async with World() as (plane, _):
            files = []
            for name in ("a", "b", "c"):
                vs = host(f"v{name}").split("  - direct")[0] + route % name
                files += [(f"{name}.yaml", service(name, name).encode()), (f"v{name}.yaml", vs.encode())]
            await plane.apply(files, Wish(strict=True))
            port = ", {number: 81, name: h2, protocol: HTTP}"
            files = [(f"{name}.yaml", service(name, name, port).encode()) for name in ("a", "c")]
            done = await plane.apply([*files, ("one", host("one").encode())], Wish())
            assert sorted(p.name for p in done.problems) == ["a", "c"]
            assert "VirtualService default/va cannot be served: spec.http[0]" in done.problems[0].message
            assert [verb[3] for verb in done.verbs] == ["one"]
            assert plane.problems == []

    run(main())


def test_too_many_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("ctrl.plane.MAX_DOCUMENTS", 2)
        async with World() as (plane, _):
            with pytest.raises(Unfit, match="3 documents in one apply; at most 2"):
                await put(plane, "one", "two", "three")

    run(main())


def test_what_is_not_there_cannot_be_deleted() -> None:
    async def main() -> None:
        async with World() as (plane, _):
            with pytest.raises(Unfit, match="there is no Gateway default/x"):
                await plane.delete([("Gateway", "default", "x")], Wish())

    run(main())


def test_rollback_is_a_new_version_with_the_old_rows() -> None:
    async def main() -> None:
        async with World(1) as (plane, crew):
            first = await put(plane, "one", "two")
            await plane.delete([("VirtualService", "default", "one")], Wish())
            await put(plane, "three")
            done = await plane.rollback(1, Wish("eve"))
            assert (done.version, done.hash) == (4, first.hash)
            assert [r.name for r in plane.contents] == ["one", "two"]
            assert (await plane.entry(4)).what == "rollback 1"
            await until(lambda: crew.serve(4) and crew.appliers[0].hosts == {"one", "two"}, "it is served")
            with pytest.raises(KeyError, match="no version 9"):
                await plane.rollback(9, Wish())
            with pytest.raises(KeyError, match="no version 0"):
                await plane.rollback(0, Wish())

    run(main())


# --- breaker orders ---


def test_an_order_is_a_document_and_lapses() -> None:
    async def main() -> None:
        async with World() as (plane, _):
            await plane.apply([("a", service("catalog", "catalog").encode())], Wish())
            await plane.order(Order("catalog", "open", 600, reason="it burns"), Wish("eve"))
            done = await plane.order(Order("catalog", "open", 60), Wish("eve"))
            assert done.verbs[0][0] == "configured", "the same target: the order is replaced"
            ((resource, spec),) = orders.in_force(plane.contents)
            assert resource.name == "catalog"
            now = time.time_ns() // 1_000_000
            assert 50_000 < spec["until_ms"] - now <= 60_000
            assert orders.lapsed(plane.contents, spec["until_ms"] + 59_000) == []
            assert orders.lapsed(plane.contents, spec["until_ms"] + 61_000) == [resource.identity]
            await plane.order(Order("catalog", "closed", 60, endpoint="127.0.0.1:9001", port=80), Wish())
            assert len(orders.in_force(plane.contents)) == 2

    run(main())


def test_lapsed_orders_are_cleared_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("ctrl.follower.LOOK_EVERY", 0.05)
        monkeypatch.setattr("ctrl.follower.TURN", 0.05)
        async with World() as (plane, _):
            await plane.apply([("a", service("catalog", "catalog").encode())], Wish())
            await plane.order(Order("catalog", "open", 0.5), Wish())
            monkeypatch.setattr("ctrl.orders.GRACE_MS", 0)
            await until(lambda: not orders.in_force(plane.contents), "it is cleared")
            assert (await plane.entry(plane.head().version)).what == "breaker orders lapsed"

    run(main())


def test_what_is_no_order() -> None:
    async def main() -> None:
        async with World() as (plane, _):
            with pytest.raises(Unfit):
                await plane.order(Order("catalog", "ajar", 60), Wish())
            with pytest.raises(Unfit):
                await plane.order(Order("cata log", "open", 60), Wish())
            assert plane.head().version == 0

    run(main())


def test_targets_that_look_alike_have_names_of_their_own() -> None:
    names = {
        Order("a", "open", 1).name,
        Order("a", "open", 1, subset="b").name,
        Order("a-b", "open", 1).name,
        Order("A-b", "open", 1).name,
        Order("a", "open", 1, endpoint="b").name,
        Order("*", "open", 1).name,
    }
    assert len(names) == 6


# --- several ---


def test_two_control_planes_write_and_both_publish_everything() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with World(1, store) as (one, crew), World(1, store, name="two") as (two, others):
            await asyncio.gather(
                *(put(p, f"h{i}") for i in range(6) for p in (one, two) if i % 2 == (p is two))
            )
            await until(lambda: one.head() == two.head() and one.head().version == 6, "both are at version 6")
            await until(lambda: crew.serve(6) and others.serve(6), "all proxies serve it")
            assert crew.appliers[0].hosts == others.appliers[0].hosts == {f"h{i}" for i in range(6)}
            assert one.contents.resources == two.contents.resources
            assert know(Views(), one.contents).hash == one.head().hash

    run(main())


class Quick(MemoryStore):
    """Somebody else is quicker, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def commit(self, expect: int, draft: Draft) -> Entry:
        if self.times and draft.who != "quick":
            self.times -= 1
            change = Draft("quick", "apply", (), draft.hash)
            await super().commit(expect, change)
        return await super().commit(expect, draft)


def test_a_writer_that_is_late_tries_again() -> None:
    async def main() -> None:
        async with World(0, Quick(3)) as (plane, _):
            done = await put(plane, "one")
            assert (done.version, plane.counts.conflicts) == (4, 3)

    run(main())


def test_a_writer_that_is_always_late_is_told() -> None:
    async def main() -> None:
        async with World(0, Quick(99)) as (plane, _):
            with pytest.raises(Conflict, match="try again"):
                await put(plane, "one")

    run(main())


# --- a store that fails ---


class Flaky(MemoryStore):
    """It can be away, or answer a write with silence."""

    def __init__(self) -> None:
        super().__init__()
        self.away = ""
        self.unsure = False

    def _check(self) -> None:
        if self.away:
            raise StoreError(self.away)

    async def head(self) -> Head:
        self._check()
        return await super().head()

    async def contents(self, version: int | None = None) -> Contents:
        self._check()
        return await super().contents(version)

    async def commit(self, expect: int, draft: Draft) -> Entry:
        self._check()
        entry = await super().commit(expect, draft)
        if self.unsure:
            raise Unsure("the store stopped answering")
        return entry

    async def watch(self) -> AsyncIterator[None]:
        async for _ in super().watch():
            self._check()
            yield


def test_a_store_that_is_away_changes_nothing_for_proxies() -> None:
    async def main() -> None:
        store = Flaky()
        async with World(1, store) as (plane, crew):
            await put(plane, "one")
            await until(lambda: crew.serve(1), "it is served")
            store.away = "nobody answers at 127.0.0.1:2379"
            with pytest.raises(StoreError, match="nobody answers"):
                await put(plane, "two")
            assert plane.trouble == store.away
            assert [r.name for r in plane.contents] == ["one"]
            crew.join(1)  # who comes now is served from memory
            await until(lambda: crew.serve(1), "the new one serves it")
            store.away = ""
            assert (await put(plane, "two")).version == 2
            assert plane.trouble == ""
            await until(lambda: crew.serve(2), "all serve the next")

    run(main())


class Mute(MemoryStore):
    """It takes a while to find out that nobody answers, and says it differently each time."""

    mute = False

    async def head(self) -> Head:
        if self.mute:
            began = time.monotonic()
            await asyncio.sleep(0.4)
            raise StoreError(f"no answer in {time.monotonic() - began} s")
        return await super().head()

    async def candidate(self) -> Candidate | None:
        await self.head()
        return await super().candidate()

    async def commit(self, expect: int, draft: Draft) -> Entry:
        await self.head()
        return await super().commit(expect, draft)


def test_who_waits_behind_a_write_that_fails_does_not_wait_for_the_same_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An etcd that was stopped let each of ten writers wait for its own five seconds, one behind the other;
    and the log said so at each of them, as the words had a time in them."""

    async def main() -> None:
        store = Mute()
        async with World(0, store) as (plane, _):
            await put(plane, "one")
            store.mute = True
            began = time.monotonic()
            ends = await asyncio.gather(*(put(plane, f"x{i}") for i in range(10)), return_exceptions=True)
            assert [type(end) for end in ends] == [StoreError] * 10
            assert time.monotonic() - began < 2.0
            with pytest.raises(StoreError):
                await plane.look()
            assert capsys.readouterr().err.count("the store fails") == 1
            store.mute = False
            assert (await put(plane, "two")).version == 2

    run(main())


def test_a_write_whose_end_is_not_known_is_found_again() -> None:
    async def main() -> None:
        store = Flaky()
        async with World(1, store) as (plane, crew):
            await put(plane, "one")
            store.unsure = True
            with pytest.raises(Unsure):
                await put(plane, "two")
            store.unsure = False
            await until(lambda: plane.head().version == 2, "the plane has found it")
            await until(lambda: crew.serve(2), "and published it")
            assert (await put(plane, "three")).version == 3

    run(main())


# --- life ---


def test_a_restart_goes_on_where_it_was() -> None:
    async def main() -> None:
        store, bind = MemoryStore(), f"tcp://127.0.0.1:{three_ports()}"
        async with World(0, store, bind=bind) as (plane, _):
            await put(plane, "one")
            head = plane.head()
        async with World(1, store, bind=bind) as (plane, crew):
            assert plane.head() == head
            assert (await put(plane, "one")).version == 1, "it knows what it has"
            await until(lambda: crew.serve(1), "it is served")

    run(main())


def test_a_new_epoch_makes_proxies_take_an_older_version() -> None:
    async def main() -> None:
        new, old, bind = MemoryStore(), MemoryStore(), f"tcp://127.0.0.1:{three_ports()}"
        async with World(1, new, bind=bind) as (plane, crew):
            for name in ("one", "two", "three"):
                await put(plane, name)
            await until(lambda: crew.serve(3), "it is served")
            await plane.close()
            await old.open()
            old._head = Head(plane.head().epoch)  # a backup of the same store
            world = World(0, old, bind=bind)
            await world.plane.start(new_epoch=True)
            try:
                await put(world.plane, "one")
                await until(lambda: crew.serve(1) and crew.appliers[0].hosts == {"one"}, "it is taken")
            finally:
                await world.plane.close()

    run(main())


def test_history_that_is_not_kept() -> None:
    async def main() -> None:
        async with World(0, keep=2) as (plane, _):
            for i in range(6):
                await put(plane, f"h{i}")
            await plane.store.compact(2)
            with pytest.raises(Compacted):
                await plane.rollback(1, Wish())

    run(main())


def test_old_versions_are_compacted_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("ctrl.follower.LOOK_EVERY", 0.02)
        monkeypatch.setattr("ctrl.follower.TURN", 0.02)
        async with World(0, keep=3) as (plane, _):
            for i in range(8):
                await put(plane, f"h{i}")
            store = plane.store
            assert isinstance(store, MemoryStore)
            await until(lambda: len(store._entries) <= 4, "the oldest are gone")
            assert len(plane.contents) == 8

    run(main())


def test_closing_ends_an_open_rollout() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with World(1, store) as (plane, crew):
            await put(plane, "one")
            await until(lambda: crew.serve(1), "it is served")
            await put(plane, "two", plan=Plan.parse(["1"], bake=60))
            await until(lambda: crew.serve(2), "the candidate is served")
        head = await store.head()
        assert (head.version, head.decided) == (1, 2)
        assert "was stopped" in (await store.entry(2)).message

    run(main())


def test_another_release_that_makes_other_tables_is_a_version_of_its_own() -> None:
    """Else proxies would be told other rows under a number that they hold, and refuse them."""

    async def main() -> None:
        store = MemoryStore()
        async with World(1, store) as (plane, crew):
            await put(plane, "one")
            await until(lambda: crew.serve(1), "all serve it")
            resource = next(iter(plane.contents))
        changed = Change(resource.identity, replace(resource, text=resource.text + "\n# a comment\n"))
        await store.commit(1, Draft("an older release", "apply", (changed,), "0" * 64))
        async with World(1, store) as (plane, crew):
            await until(lambda: crew.serve(3), "the version that this release made of it")
            assert plane.head().hash == know(Views(), plane.contents).hash
            assert [(e.version, e.what, e.verbs) for e in await plane.history(1)] == [(3, "recompile", ())]

    run(main())


def test_verify_asks_what_serves_not_what_is_held() -> None:
    async def main() -> None:
        async with World(2) as (plane, crew):
            await put(plane, "one")
            await until(lambda: crew.serve(1), "all serve it")
            await until(lambda: shapes.verify(plane).equal, "all hold the same bytes")
            crew.appliers[1].refuses[2] = "it does not fit"
            await put(plane, "two")
            await until(lambda: plane.fleet.progress(plane.head().epoch, 2).rejected, "it is refused")
            told = shapes.verify(plane)
            assert not told.equal
            rows = {row.node: (row.version, row.equal) for view in told.views for row in view.proxies}
            assert rows == {"node-0": (2, True), "node-1": (1, False)}

    run(main())
