"""The agent's applier on a real publisher without workers: what it does with several actions at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from fastproxy._balance import Live
from fastproxy.agent import subscriber
from fastproxy.agent.dns import Resolver
from fastproxy.agent.last_good import Kept, LastGood
from fastproxy.agent.listeners import Listeners
from fastproxy.agent.orders import Orders
from fastproxy.agent.publisher import Publisher
from fastproxy.agent.subscriber import Subscriber, decoded, joined
from fastproxy.agent.supervisor import Outcome
from fastproxy.agent.telemetry import Telemetry
from fastproxy.link import ApplierAction, Link
from fastproxy.rows import Changes, Rows, changes_between, pack_row
from fastproxy.settings import Settings
from fastproxy.sync import Apply, Drop, Flip, Prepare, Settle
from fastproxy.tables import Tables, empty
from fastproxy.wire import Attributes
from tests.support.control import routes


class NoWorkers:
    """Every plan is taken, unless its version is one of these; ``served``: in order."""

    def __init__(self) -> None:
        self.workers: list[Any] = []
        self.served: list[int] = []
        self.reject: set[int] = set()
        self.names: list[str] = []
        self.withdrawn = 0

    async def publish(self, version: int, fd: int) -> Outcome:
        os.fstat(fd)
        self.served.append(version)
        rejected = {0: "not today"} if version in self.reject else {}
        return Outcome(version, 0.001, 7, rejected)

    def withdraw(self) -> None:
        self.withdrawn += 1

    def listen(self, name: str, sock: socket.socket) -> None:
        self.names.append(name)

    def unlisten(self, name: str) -> None:
        if name in self.names:  # as the Supervisor, which forgets a name that it never heard
            self.names.remove(name)


class Agent:
    """What a Subscriber needs of one, and the rows as a Link would have them."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        nobody = f"ipc://{folder}/p"
        given = Settings(control=[nobody], node="n", state=str(folder), workers=1, **settings)
        self.live_fd = os.memfd_create("live")
        os.ftruncate(self.live_fd, Live.bytes(1, given.max_clusters, given.max_endpoints))
        live = Live(self.live_fd, create=(1, given.max_clusters, given.max_endpoints))
        self.workers = NoWorkers()
        self.resolver = Resolver(lambda: None)
        orders = Orders(live)
        telemetry = Telemetry("n")
        self.publisher = Publisher(
            given, cast(Any, self.workers), Listeners(), self.resolver, telemetry, live, orders
        )
        self.subscriber = Subscriber(given, self.publisher, telemetry, orders)
        self.rows = Rows()

    def changes(self, tables: Tables) -> Changes:
        """What leads to these tables; the rows follow."""
        changes = changes_between(self.rows, tables)
        self.rows.apply(changes)
        return changes

    async def do(self, *actions: ApplierAction) -> list[tuple[type, int, str]]:
        """Kind, version and error of each result."""
        results = await self.subscriber.carry_out(actions, self.rows)
        for _, done in results:
            assert done.us >= done.compile_us
        return [(kind, done.version, done.error) for kind, done in results]

    def serves(self) -> Tables:
        assert self.publisher.current
        return self.publisher.current.tables


@asynccontextmanager
async def started(folder: Path, **settings: Any) -> AsyncIterator[Agent]:
    agent = Agent(folder, **settings)
    starting = asyncio.create_task(agent.subscriber.start())
    await asyncio.sleep(0)
    try:
        yield agent
    finally:
        starting.cancel()
        await agent.subscriber.close()
        await agent.resolver.close()
        agent.publisher.listeners.close_all()
        agent.publisher.close()
        os.close(agent.live_fd)


def run(body: Callable[[Path], Coroutine[Any, Any, None]], folder: Path) -> None:
    uvloop.run(body(folder))


A, B, C = routes(("*", 201)), routes(("*", 202)), routes(("*", 203), ("b", 204))
NOWHERE = routes(("*", 209))
NOWHERE["routes"]["nowhere *"] = NOWHERE["routes"]["mesh *"]


def apply(version: int, changes: Changes | None) -> Apply:
    return Apply(version, bytes([version]) * 32, changes)


def settle(version: int) -> Settle:
    return Settle(version, bytes([version]) * 32)


def test_a_version_is_served_with_its_own_rows(tmp_path: Path) -> None:
    """What comes behind it changes them before its turn has come."""

    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            agent.changes(A)
            first = agent.subscriber.carry_out([apply(1, None)], agent.rows)
            agent.changes(B)
            ((_, done),) = await first
            assert (done.version, done.error) == (1, "")
            assert agent.serves()["routes"] == A["routes"]

    run(body, tmp_path)


def prepare(version: int, changes: Changes) -> Prepare:
    return Prepare(version, bytes([version]) * 32, changes)


def test_a_link_that_fails_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subscriber, "LINK_AGAIN", 0.01)
    real, runs = Link.run, 0

    async def fails_once(link: Link) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("a mistake of ours")
        await real(link)

    monkeypatch.setattr(Link, "run", fails_once)

    async def body(folder: Path) -> None:
        rows = Rows.pack(A)
        kept = LastGood(folder, "n", Attributes.of("default", {}, False).view)
        kept.keep(Kept(4, 7, rows.hash, rows.tables))
        kept.close()
        async with started(folder) as agent:
            while not agent.publisher.current:  # by the second link, which got the rows of the first
                await asyncio.sleep(0.01)
            assert agent.serves() == A and agent.subscriber.describe()["control"]["serving"] == 7

    run(body, tmp_path)
    assert runs == 2
    assert "the link to the control plane failed: RuntimeError: a mistake" in capsys.readouterr().err


def test_of_versions_that_wait_only_the_last_is_compiled(tmp_path: Path) -> None:
    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            one, two, three = (apply(n, agent.changes(t)) for n, t in ((1, A), (2, B), (3, C)))
            assert await agent.do(one, two, three) == [(Apply, 3, "")]
            assert agent.serves() == C and len(agent.workers.served) == 1

    run(body, tmp_path)


def test_where_the_last_cannot_serve_the_one_before_it_does(tmp_path: Path) -> None:
    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            one, two, three = (apply(n, agent.changes(t)) for n, t in ((1, A), (2, B), (3, NOWHERE)))
            (refused, served) = await agent.do(one, two, three)
            assert refused[:2] == (Apply, 3) and "which does not exist" in refused[2]
            assert served == (Apply, 2, "") and agent.serves() == B
            assert await agent.do(apply(4, agent.changes(C))) == [(Apply, 4, "")]
            assert agent.serves() == C

    run(body, tmp_path)


def test_a_row_that_is_no_msgpack_is_healed_by_what_follows(tmp_path: Path) -> None:
    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            assert await agent.do(apply(1, agent.changes(A))) == [(Apply, 1, "")]
            bad = Changes({"routes": {"mesh *": b"\xc1", "mesh b": pack_row(C["routes"]["mesh b"])}})
            agent.rows.apply(bad)
            ((kind, version, error),) = await agent.do(apply(2, bad))
            assert (kind, version) == (Apply, 2) and "routes[mesh *] is not msgpack" in error
            assert agent.serves() == A
            good = Changes({"routes": {"mesh *": pack_row(C["routes"]["mesh *"])}})
            agent.rows.apply(good)
            assert await agent.do(apply(3, good)) == [(Apply, 3, "")]
            assert agent.serves() == C  # and not only what changed last

    run(body, tmp_path)


def test_a_whole_snapshot_that_is_faulty_is_healed_too(tmp_path: Path) -> None:
    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            agent.changes(C)
            agent.rows.tables["routes"]["mesh *"] = b"\xc1"
            ((_, _, error),) = await agent.do(apply(5, None))
            assert "not msgpack" in error and agent.publisher.current is None
            good = Changes({"routes": {"mesh *": pack_row(C["routes"]["mesh *"])}})
            agent.rows.tables["routes"]["mesh *"] = good.puts["routes"]["mesh *"]
            assert await agent.do(apply(6, good)) == [(Apply, 6, "")]
            assert agent.serves() == C

    run(body, tmp_path)


def test_the_candidate_is_compiled_once_and_held(tmp_path: Path) -> None:
    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            await agent.do(apply(1, agent.changes(A)))
            assert await agent.do(prepare(2, changes_between(agent.rows, B))) == [(Prepare, 2, "")]
            assert agent.serves() == A
            ((_, done),) = await agent.subscriber.carry_out([Flip(2)], agent.rows)
            assert (done.version, done.error, done.compile_us, done.swap_us) == (2, "", 0, 7)
            assert agent.serves() == B and agent.workers.served == [1, 2]
            agent.changes(B)
            assert await agent.do(settle(2)) == [(Settle, 2, "")]
            assert agent.workers.served == [1, 2]  # it served already
            assert await agent.do(apply(3, agent.changes(C))) == [(Apply, 3, "")]
            assert agent.serves() == C

    run(body, tmp_path)


def plans() -> int:
    """Sealed blocks that are open here."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += "fastproxy-plan" in os.readlink(fd)
    return found


def test_a_dropped_candidate_leaves_the_base_and_no_descriptor(tmp_path: Path) -> None:
    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            await agent.do(apply(1, agent.changes(A)))
            assert plans() == 1
            for number in range(2, 6):
                candidate = prepare(number, changes_between(agent.rows, B))
                assert await agent.do(candidate) == [(Prepare, number, "")]
                if number % 2:
                    assert await agent.do(Flip(number)) == [(Flip, number, "")]
                    assert await agent.do(Drop(number)) == [(Drop, 1, "")]
                else:
                    assert plans() == 2
                    assert await agent.do(Drop(number)) == []
                assert agent.serves() == A
            assert await agent.do(prepare(6, changes_between(agent.rows, B)), Drop(6)) == []
            await agent.do(prepare(7, changes_between(agent.rows, B)))
            await agent.do(apply(8, agent.changes(C)))  # the candidate is gone with what it was made from
            assert await agent.do(Flip(7)) == [(Flip, 7, "it was never prepared here")]
            assert agent.serves() == C
            assert plans() == 1

    run(body, tmp_path)


def test_a_candidate_that_is_passed_over_leaves_no_plan(tmp_path: Path) -> None:
    """It was settled in the batch that brought the next version: its plan stayed for ever, with its slots."""

    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            await agent.do(apply(1, agent.changes(A)))
            for number in range(2, 8, 2):
                await agent.do(prepare(number, changes_between(agent.rows, B)))
                agent.changes(B)
                behind = apply(number + 1, agent.changes(C))
                assert await agent.do(Flip(number), settle(number), behind) == [(Apply, number + 1, "")]
                assert agent.serves() == C
                assert plans() == 1 and not agent.publisher._prepared
                agent.changes(A)
                await agent.do(apply(number + 1, None))

    run(body, tmp_path)


def to_endpoint(port: int) -> Tables:
    tables = routes(("*", 201))
    tables["endpoints"]["s|80"] = [{"address": "127.0.0.1", "port": port, "weight": 1, "labels": {}}]
    tables["clusters"]["outbound|80||s"] = {
        "service": "s",
        "port": 80,
        "endpoints": "s|80",
        "labels": {},
        "lb": "RANDOM",
        "resolution": "STATIC",
    }
    return tables


def test_what_serves_keeps_its_slots_while_candidates_come_and_go(tmp_path: Path) -> None:
    """A plan that is made later retires names; its compile must not free what still counts traffic."""

    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            await agent.do(apply(1, agent.changes(to_endpoint(1))))
            assert agent.publisher.current
            (taken,) = agent.publisher.current.endpoints.values()
            for number in range(2, 8):
                await agent.do(prepare(number, changes_between(agent.rows, to_endpoint(number))))
                (prepared,) = agent.publisher._prepared
                assert list(prepared.made.endpoints) == [f"s|127.0.0.1:{number}"]
                assert taken not in prepared.made.endpoints.values()
                await agent.do(Drop(number))
            await agent.do(apply(9, agent.changes(to_endpoint(9))))
            await agent.do(apply(10, agent.changes(to_endpoint(10))))
            assert max(agent.publisher.current.endpoints.values()) <= 3  # and those of the dropped are free

    run(body, tmp_path)


def test_a_plan_that_a_worker_rejects_is_taken_back(tmp_path: Path) -> None:
    async def body(folder: Path) -> None:
        async with started(folder, listen=f"unix://{folder}/s") as agent:
            await agent.do(apply(1, agent.changes(A)))
            assert agent.workers.names == ["mesh"]
            agent.workers.reject = {2}
            tables = cast(Tables, {**B, "listeners": {"x": {**listener(folder / "x")}}})
            ((_, _, error),) = await agent.do(apply(2, agent.changes(tables)))
            assert error == "worker 0 rejected the plan: not today"
            assert agent.workers.served == [1, 2, 1] and agent.workers.names == ["mesh"]
            assert "x" not in agent.publisher.listeners.open
            assert await agent.do(apply(3, agent.changes(tables))) == [(Apply, 3, "")]
            assert sorted(agent.workers.names) == ["mesh", "x"]

    run(body, tmp_path)


def test_a_first_plan_that_is_rejected_does_not_count_as_served(tmp_path: Path) -> None:
    """With no plan to go back to, the control plane was told that it serves."""

    async def body(folder: Path) -> None:
        async with started(folder, listen=f"unix://{folder}/s") as agent:
            agent.workers.reject = {1}
            ((_, _, error),) = await agent.do(apply(1, agent.changes(A)))
            assert error == "worker 0 rejected the plan: not today"
            assert agent.publisher.current is None and plans() == 0
            assert agent.workers.withdrawn == 1 and not agent.publisher.listeners.open
            assert await agent.do(apply(1, None)) == [(Apply, 1, "")]
            assert agent.workers.served == [1, 2] and agent.workers.names == ["mesh"]

    run(body, tmp_path)


def listener(path: Path) -> Any:
    return {"address": f"unix://{path}", "port": 0, "protocol": "HTTP"}


def test_an_order_is_obeyed_without_a_new_plan(tmp_path: Path) -> None:
    async def body(folder: Path) -> None:
        tables, name = to_endpoint(1), "outbound|80||s"
        until = int(time.time() * 1000) + 60_000
        ordered = cast(
            Tables,
            {**tables, "breakers": {name: {"order": {"state": "open", "until": until, "for": 60_000}}}},
        )
        async with started(folder) as agent:
            await agent.do(apply(1, agent.changes(tables)))
            assert await agent.do(apply(2, agent.changes(ordered))) == [(Apply, 2, "")]
            assert agent.workers.served == [1] and agent.serves() == ordered
            (row,) = agent.subscriber.report()["breakers"]
            assert row[:4] == [name, "CLOSED", "open", until]
            assert await agent.do(apply(3, agent.changes(tables))) == [(Apply, 3, "")]
            assert agent.subscriber.report()["breakers"] == [] and agent.workers.served == [1]

    run(body, tmp_path)


def test_an_order_that_came_before_the_first_heartbeat_ends_by_the_publishers_clock(tmp_path: Path) -> None:
    """Ours is an hour ahead of it: until a heartbeat told so, the order seemed to have lapsed."""

    async def body(folder: Path) -> None:
        tables, name = to_endpoint(1), "outbound|80||s"
        until = int(time.time() * 1000) - 3_600_000 + 60_000
        tables["breakers"][name] = {"order": {"state": "open", "until": until, "for": 60_000}}
        async with started(folder) as agent:
            await agent.do(apply(1, agent.changes(tables)))
            assert agent.subscriber.report()["breakers"] == []
            agent.subscriber._link.clock_offset_ms = -3_600_000  # a heartbeat
            running = asyncio.create_task(agent.subscriber.run())
            while not agent.subscriber.report()["breakers"]:
                await asyncio.sleep(0.01)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            assert agent.subscriber.report()["breakers"] == [[name, "CLOSED", "open", until, 0]]

    run(body, tmp_path)


def test_ten_thousand_routes_do_not_hold_up_the_loop(tmp_path: Path) -> None:
    """The admin API answers from it: no turn may take long while a snapshot is taken and compiled."""

    async def body(folder: Path) -> None:
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                longest = max(longest, time.monotonic() - before)

        async with started(folder, listen=f"unix://{folder}/s") as agent:
            agent.changes(routes(*((f"h{n}.example", 200 + n % 300) for n in range(10_000))))
            watching = asyncio.create_task(watch())
            assert await agent.do(apply(1, None)) == [(Apply, 1, "")]
            watching.cancel()
            assert len(agent.serves()["routes"]) == 10_000
            assert longest < 0.25, longest

    run(body, tmp_path)


def test_one_endpoint_of_many_does_not_hold_up_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All endpoints of a service were checked again on the loop, where one of them had changed: 225 ms."""

    def many(weight: int) -> Tables:
        tables = to_endpoint(1)
        tables["endpoints"]["s|80"] = [
            {"address": f"10.0.{n >> 8}.{n & 255}", "port": 80, "weight": 1 + weight * (n == 7), "labels": {}}
            for n in range(20_000)
        ]
        return tables

    async def body(folder: Path) -> None:
        async with started(folder) as agent:
            agent.changes(many(0))
            assert await agent.do(apply(1, None)) == [(Apply, 1, "")]
            changes = agent.changes(many(1))
            assert len(changes) == 1
            checked: list[str] = []
            real = subscriber.check_endpoint

            def counted(key: str, row: object) -> None:
                checked.append(key)
                real(key, row)

            monkeypatch.setattr(subscriber, "check_endpoint", counted)
            assert await agent.do(apply(2, changes)) == [(Apply, 2, "")]
            assert checked == ["s|80 10.0.0.7:80"]
            assert agent.serves()["endpoints"]["s|80"] == agent.rows.unpack()["endpoints"]["s|80"]

    run(body, tmp_path)


@pytest.mark.parametrize(
    ("key", "endpoint", "says"),
    [
        ("s|80 1.2.3.4:5", {"address": "1.2.3.4", "port": 6}, "is the endpoint '1.2.3.4:6'"),
        ("s|80 1.2.3.4:55", {"address": "1.2.3.4", "port": 5}, "is the endpoint '1.2.3.4:5'"),
        (" 1.2.3.4:5", {"address": "1.2.3.4", "port": 5}, "is the endpoint '1.2.3.4:5'"),
        ("s|80 1.2.3.4:5", {"address": "1.2.3.4", "port": 70_000}, "70000 is not between 0 and 65535"),
        ("s|80\n 1.2.3.4:5", {"address": "1.2.3.4", "port": 5}, "line break"),
        ("s|80 1.2.3.4:5", {"address": "1.2.3.4", "port": 5}, ""),
        ("s|80 1.2.3.4:5#2", {"address": "1.2.3.4", "port": 5}, ""),
    ],
)
def test_an_endpoint_under_a_false_name_is_refused(key: str, endpoint: dict[str, Any], says: str) -> None:
    """It could not be found again by the delete of its key."""
    changes = Changes({"endpoints": {key: pack_row({**endpoint, "weight": 1, "labels": {}})}})
    if says:
        with pytest.raises(ValueError, match=re.escape(says)):
            decoded(empty(), changes)
    else:
        assert len(decoded(empty(), changes)["endpoints"]["s|80"]) == 1


def test_steps_that_are_joined_are_one_step() -> None:
    """Whatever comes and goes between, the tables are those of doing it one by one."""
    rng = random.Random(7)
    for _ in range(200):
        rows, one_by_one, all_at_once = Rows(), empty(), Changes()
        for _ in range(rng.randrange(1, 6)):
            tables = routes(
                *((rng.choice("abcdef"), rng.randrange(200, 210)) for _ in range(rng.randrange(5)))
            )
            for name in rng.sample("xyz", rng.randrange(4)):
                tables["endpoints"][f"{name}|80"] = [
                    {"address": f"10.0.0.{n}", "port": 1, "weight": rng.randrange(3), "labels": {}}
                    for n in range(rng.randrange(1, 4))
                ]
            changes = changes_between(rows, tables)
            rows.apply(changes)
            one_by_one = decoded(one_by_one, changes)
            all_at_once = joined(all_at_once, changes)
            assert one_by_one == decoded(empty(), all_at_once) == rows.unpack() == tables
