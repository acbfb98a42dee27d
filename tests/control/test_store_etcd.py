"""The etcd store when things go wrong: members killed or paused, answers lost, writers that die."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ctrl.model import Change, Conflict, Entry, StoreError, Unsure
from ctrl.store.etcd import EtcdStore
from ctrl.store.etcd_http import b64
from tests.control.stores import draft, gone, on_loop, put, texts
from tests.support import etcd
from tests.support.proxy import free_port

PASS, REFUSE, NO_ANSWER, SILENT = "pass", "refuse", "no answer", "silent"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Cluster]:
    with etcd.cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def three(tmp_path: Path) -> Iterator[etcd.Cluster]:
    with etcd.cluster(tmp_path / "etcd", 3) as cluster:
        yield cluster


async def commit_always(store: EtcdStore, name: str, enough: asyncio.Event) -> list[int]:
    """Commits until it is enough; what was acknowledged. An end that is unsure is not."""
    won = []
    while not enough.is_set():
        try:
            head = await store.head()
            entry = await store.commit(head.decided, draft(put(f"{name}{head.decided}")))
        except StoreError:
            continue
        won.append(entry.version)
        await asyncio.sleep(0.02)  # the other one's turn: a race that one always wins shows nothing
    return won


async def check_whole(store: EtcdStore, *acknowledged: list[int]) -> None:
    """Every acknowledged version once, no gap, contents that follow from the history."""
    numbers = sum(acknowledged, [])
    assert len(set(numbers)) == len(numbers), "two writers were told of the same version"
    history = await store.history(100_000)
    head = await store.head()
    assert [entry.version for entry in history] == list(range(head.decided, 0, -1))
    assert set(numbers) <= {entry.version for entry in history}
    created = [verb[3] for entry in reversed(history) for verb in entry.verbs if verb[0] == "created"]
    assert list(await texts(store)) == created
    async with opened(store.url) as fresh:
        assert await fresh.contents() == await store.contents()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of a call cut down, where waiting for their end is not what a test is about."""
    monkeypatch.setattr("ctrl.store.etcd.WRITE_SECONDS", 1.0)
    monkeypatch.setattr("ctrl.store.etcd_keys.READ_SECONDS", 0.7)
    monkeypatch.setattr("ctrl.store.etcd_http.CALL_SECONDS", 0.4)


# --- members ---


@on_loop
async def test_no_version_is_lost_when_the_leader_dies_or_is_paused(three: etcd.Cluster) -> None:
    async with opened(three.url()) as a, opened(three.url()) as b:
        enough = asyncio.Event()
        writers = [asyncio.create_task(commit_always(store, n, enough)) for store, n in ((a, "a"), (b, "b"))]
        await _progress(a)
        leader = await asyncio.to_thread(three.leader)
        leader.kill()
        await _progress(a)  # the two that are left go on
        await asyncio.to_thread(three.start, leader)
        leader = await asyncio.to_thread(three.leader)
        leader.signal(signal.SIGSTOP)
        await _progress(a)
        leader.signal(signal.SIGCONT)
        await _progress(a)
        enough.set()
        won = await asyncio.gather(*writers)
        assert all(won), "both wrote"
        await check_whole(a, *won)


@on_loop
async def test_without_a_majority_writes_fail_and_reads_go_on(three: etcd.Cluster) -> None:
    async with opened(three.url()) as store:
        await store.commit(0, draft(put("a")))
        watcher = store.watch()
        await anext(watcher)
        lost = asyncio.ensure_future(anext(watcher))
        dead = three.members[:2]
        for member in dead:
            member.kill()
        started = time.monotonic()
        writes = asyncio.gather(
            store.commit(1, draft(put("b"))), store.step(1, 1), store.compact(1), return_exceptions=True
        )
        async with opened(three.url()) as late:
            assert await texts(late) == {"a": "text of a"}, "also of one that starts now"
        assert (await store.head()).version == 1
        assert await texts(store) == {"a": "text of a"}
        assert [entry.version for entry in await store.history()] == [1]
        for error in await writes:
            assert isinstance(error, StoreError) and not isinstance(error, Unsure)
            assert "see that most of its members run" in str(error)
        assert time.monotonic() - started < 10
        with pytest.raises(StoreError):
            await asyncio.wait_for(lost, 15)
        await asyncio.to_thread(three.start, *dead)
        decided = (await store.head()).decided
        entry = await store.commit(decided, draft(put("c")))
        await check_whole(store, [entry.version])


@on_loop
async def test_a_watcher_goes_on_with_another_member(three: etcd.Cluster) -> None:
    async with opened(three.url()) as store, opened(three.url()) as other:
        seen: list[int] = []

        async def watch() -> None:
            async for _ in store.watch():
                seen.append((await store.head()).version)

        task = asyncio.create_task(watch())
        await other.commit(0, draft(put("a")))
        for version, member in enumerate(three.members[:2], 1):
            member.kill()
            entry = await _retried(other, version)
            await _until(lambda wanted=entry.version: wanted in seen, 10)
            await asyncio.to_thread(three.start, member)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _progress(store: EtcdStore) -> None:
    """Until five more versions are there than now."""
    wanted, end = (await store.head()).decided + 5, time.monotonic() + 20
    while (await store.head()).decided < wanted:
        assert time.monotonic() < end, "nobody can write any more"
        await asyncio.sleep(0.02)


async def _retried(store: EtcdStore, expect: int) -> Entry:
    for _ in range(5):
        with contextlib.suppress(StoreError):
            return await store.commit(expect, draft(put(f"d{expect}")))
    raise AssertionError("no commit in five attempts")


async def _until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.02)


@pytest.mark.usefixtures("hasty")
@on_loop
async def test_when_nobody_is_there_it_is_said_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(StoreError, match="cannot connect.*see that most of its members run"):
        await EtcdStore(f"etcd://127.0.0.1:{free_port()},127.0.0.1:{free_port()}").open()
    assert time.monotonic() - started < 10


# --- answers that are lost ---


class Between:
    """A relay in front of an etcd that decides what becomes of each transaction."""

    def __init__(self, member: etcd.Member) -> None:
        self.member = member
        self.decide: Callable[[], str] = lambda: PASS
        self.server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Between:
        self.server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        verdict = [PASS]
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.member.client)
        answers = asyncio.create_task(self._answers(up_reader, writer, verdict))
        try:
            while data := await reader.read(65536):
                if b"POST /v3/kv/txn" in data:
                    verdict[0] = self.decide()
                if verdict[0] == REFUSE:
                    break
                up_writer.write(data)
                await up_writer.drain()
            if verdict[0] in (NO_ANSWER, SILENT):
                await answers
        except OSError:
            pass
        finally:
            answers.cancel()
            up_writer.close()
            writer.close()
            self._tasks.discard(task)

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, verdict: list[str]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if verdict[0] == NO_ANSWER:
                    writer.transport.abort()
                elif verdict[0] != SILENT:
                    writer.write(data)


def in_turn(*verdicts: str) -> Callable[[], str]:
    """One after the other, the last one for ever."""
    left = list(verdicts)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize("lost", [NO_ANSWER, SILENT])
@pytest.mark.usefixtures("hasty")
@on_loop
async def test_a_change_whose_answer_is_lost_is_made_once_and_told(
    one: etcd.Cluster, tmp_path: Path, lost: str
) -> None:
    """It is sent again; then it finds itself and is no conflict."""
    async with (
        Between(one.members[0]) as between,
        opened(f"etcd://{between.address}/{tmp_path.name}") as store,
    ):
        between.decide = in_turn(lost, PASS)
        entry = await store.commit(0, draft(put("a")))
        assert entry.version == 1
        between.decide = in_turn(lost, PASS)
        candidate = await store.propose(1, draft(put("b")), "me")
        between.decide = in_turn(lost, PASS)
        assert (await store.step(2, 7)).share == 7
        between.decide = in_turn(lost, PASS)
        assert (await store.settle(candidate.version)).version == 2
        await store.propose(2, draft(put("c")), "me")
        between.decide = in_turn(lost, PASS)
        assert (await store.void(3, "no")).decided == 3
        between.decide = in_turn(lost, PASS)
        epoch = (await store.head()).epoch
        assert (await store.new_epoch()).epoch > epoch
        await check_whole(store, [1, 2, 3])


@pytest.mark.usefixtures("hasty")
@on_loop
async def test_a_change_that_nobody_can_tell_of_is_unsure(one: etcd.Cluster, tmp_path: Path) -> None:
    async with (
        Between(one.members[0]) as between,
        opened(f"etcd://{between.address}/{tmp_path.name}") as store,
    ):
        between.decide = in_turn(NO_ANSWER)
        started = time.monotonic()
        with pytest.raises(Unsure, match="the history will tell"):
            await store.commit(0, draft(put("a")))
        assert time.monotonic() - started < 10
        between.decide = in_turn(PASS)
        assert (await store.head()).version == 1, "it is there, whole"
        await check_whole(store, [1])


@pytest.mark.usefixtures("hasty")
@on_loop
async def test_a_change_that_never_arrived_is_not_there(one: etcd.Cluster, tmp_path: Path) -> None:
    async with (
        Between(one.members[0]) as between,
        opened(f"etcd://{between.address}/{tmp_path.name}") as store,
    ):
        between.decide = in_turn(REFUSE)
        with pytest.raises(StoreError):
            await store.commit(0, draft(put("a")))
        between.decide = in_turn(PASS)
        assert (await store.head()).decided == 0
        assert (await store.commit(0, draft(put("b")))).version == 1
        assert list(await texts(store)) == ["b"]


# --- writers that die ---


def _large(name: str, count: int = 3000) -> list[Change]:
    chance = random.Random(name)
    return [put(f"{name}{number}", chance.randbytes(500).hex()) for number in range(count)]


@pytest.mark.usefixtures("hasty")
@on_loop
async def test_what_a_dead_writer_left_is_never_seen_and_swept(one: etcd.Cluster, tmp_path: Path) -> None:
    async with (
        Between(one.members[0]) as between,
        opened(f"etcd://{between.address}/{tmp_path.name}") as dying,
        opened(one.url(tmp_path.name)) as store,
    ):
        between.decide = in_turn(PASS, PASS, REFUSE)
        with pytest.raises(StoreError):
            await dying.commit(0, draft(*_large("lost")))
        assert len(await store._keys.piece_ids(0)) == 1, "it had begun to write"
        assert (await store.head()).decided == len(await store.contents()) == 0
        await store.commit(0, draft(*_large("a")))
        await store.propose(1, draft(*_large("b")), "me")
        assert len(await store._keys.piece_ids(0)) == 3
        await store.compact(1)
        assert len(await store._keys.piece_ids(0)) == 2, "of the head and of the candidate"
        await store.void(2, "no")
        assert len(await store._keys.piece_ids(0)) == 1
        assert len(await store.contents()) == 3000
        await store.commit(2, draft(gone("a0")))
        await store.compact(1)
        assert [id_[:4] for id_ in await store._keys.piece_ids(0)] == ["base"]
        async with opened(store.url) as fresh:
            assert len(await fresh.contents()) == 2999


@on_loop
async def test_compaction_and_writers_do_not_disturb_each_other(one: etcd.Cluster, tmp_path: Path) -> None:
    url = one.url(tmp_path.name)
    async with opened(url) as a, opened(url) as b, opened(url) as c:
        enough = asyncio.Event()
        writer = asyncio.create_task(commit_always(a, "a", enough))
        for _ in range(20):
            await asyncio.gather(b.compact(5), c.compact(3))
            head = await c.head()
            assert len(await b.contents()) >= head.version
        enough.set()
        won = await writer
        assert won == list(range(1, len(won) + 1)), "the only writer never loses"
        async with opened(url) as fresh:
            assert await fresh.contents() == await a.contents()
            assert len(await fresh.contents()) == len(won)


# --- what is found ---


@on_loop
async def test_contents_of_before_a_restore_are_not_mixed_with_those_after(
    one: etcd.Cluster, tmp_path: Path
) -> None:
    url = one.url(tmp_path.name)
    async with opened(url) as old, opened(url) as new:
        await old.commit(0, draft(put("a")))
        keys = new._keys
        everything = {"key": b64(keys.prefix), "range_end": b64(keys.prefix[:-1] + "0")}
        saved = (await keys.members.call("/v3/kv/range", everything, 3))["kvs"]
        await old.commit(1, draft(put("b")))
        await old.commit(2, draft(put("c")))
        puts = [{"request_put": {"key": kv["key"], "value": kv["value"]}} for kv in saved]
        await keys.members.call("/v3/kv/deleterange", everything, 3)
        await keys.members.call("/v3/kv/txn", {"success": puts}, 3)
        epoch = (await new.new_epoch()).epoch
        await new.commit(1, draft(put("x")))
        await new.commit(2, draft(put("y")))
        await new.commit(3, draft(put("z")))
        assert list(await texts(old)) == ["a", "x", "y", "z"]
        assert (await old.head()).epoch == epoch
        with pytest.raises(Conflict):
            await old.commit(3, draft(put("d")))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b'{"format": 2}', "format 2, this fastproxyctl knows 1"),
        (b"", "the head in the store are damaged.*restore a backup"),
        (b"[]", "damaged"),
        (b'{"format": 1, "epoch": 1, "open": {"x": 1}}', "damaged"),
    ],
)
@on_loop
async def test_a_head_that_cannot_be_read_is_said(
    one: etcd.Cluster, tmp_path: Path, value: bytes, said: str
) -> None:
    async with opened(one.url(tmp_path.name)) as store:
        ops = [store._keys.put("head", value)]
        await store._keys.members.call("/v3/kv/txn", {"success": ops}, 3)
        for call in (store.head, store.contents, store.candidate):
            with pytest.raises(StoreError, match=said):
                await call()
        with pytest.raises(StoreError, match=said):
            await store.commit(0, draft(put("a")))
        with pytest.raises(StoreError, match=said):
            await EtcdStore(store.url).open()


@pytest.mark.usefixtures("hasty")
@on_loop
async def test_another_server_at_that_address_is_said() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        with pytest.raises(StoreError, match="is this etcd"):
            await EtcdStore(f"etcd://127.0.0.1:{server.sockets[0].getsockname()[1]}").open()


def test_an_etcd_without_space_says_what_to_do(tmp_path: Path) -> None:
    async def fill(url: str) -> None:
        async with opened(url) as store:
            with pytest.raises(StoreError, match="compact and defragment etcd, or raise its quota"):
                for version in range(200):
                    await store.commit(version, draft(*_large(f"d{version}-", 1000)))
            head = await store.head()
            assert head.version > 0
            assert len(await store.contents()) == head.version * 1000, "reads go on"

    with etcd.cluster(tmp_path / "etcd", 1, "--quota-backend-bytes", str(4 << 20)) as cluster:
        asyncio.run(fill(cluster.url()))
