"""One contract, three keepers: every test here runs against memory, SQLite and a real etcd."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ctrl.model import CONFIGURED, CREATED, DELETED, Compacted, Conflict, Head, StoreError
from ctrl.store import Store, open_store
from fastproxy.wire import WHOLE
from tests.control.stores import draft, gone, on_loop, put, texts
from tests.support import etcd


@pytest.fixture(scope="module")
def etcd_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with etcd.cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster.url()


class Keeper:
    """A place for one store, to be opened by any number of control planes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._memory = open_store(url) if url == "memory:" else None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        store = self._memory or open_store(self.url)
        await store.open()
        try:
            yield store
        finally:
            if not self._memory:
                await store.close()


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def keeper(request: pytest.FixtureRequest, tmp_path: Path) -> Keeper:
    if request.param == "etcd":
        return Keeper(request.getfixturevalue("etcd_url") + tmp_path.name)
    return Keeper("memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/store.db")


@on_loop
async def test_a_new_store_is_empty_and_has_an_epoch(keeper: Keeper) -> None:
    before = time.time_ns() // 1_000_000
    async with keeper.opened() as store:
        head = await store.head()
        assert head == Head(head.epoch)
        assert before <= head.epoch <= time.time_ns() // 1_000_000
        assert await store.candidate() is None
        assert await store.history() == []
        assert len(await store.contents()) == len(await store.contents(0)) == 0
    async with keeper.opened() as store:
        assert await store.head() == head, "the epoch is made once"


@on_loop
async def test_a_commit_is_there_whole_with_its_history(keeper: Keeper) -> None:
    async with keeper.opened() as store:
        entry = await store.commit(0, draft(put("a"), put("b"), hash_="11", message="first"))
        assert (entry.version, entry.who, entry.what, entry.hash) == (1, "ann", "apply", "11")
        assert (entry.message, entry.epoch) == ("first", (await store.head()).epoch)
        assert abs(entry.at_ms - time.time() * 1000) < 10_000
        second = await store.commit(1, draft(put("b", "new"), gone("a"), put("c"), hash_="22"))
        kind, place = "VirtualService", "default"
        assert second.verbs == (
            (CONFIGURED, kind, place, "b"),
            (DELETED, kind, place, "a"),
            (CREATED, kind, place, "c"),
        )
    async with keeper.opened() as store:
        assert await store.history() == [second, entry]
        assert await store.entry(1) == entry
        head = await store.head()
        assert (head.version, head.decided, head.hash) == (2, 2, "22")
        contents = await store.contents()
        assert contents.version == 2
        assert [(r.name, r.text, r.created, r.version, r.file, r.line) for r in contents] == [
            ("b", "new", (1, 1), 2, "b.yaml", 3),
            ("c", "text of c", (2, 2), 2, "c.yaml", 3),
        ]


@on_loop
async def test_older_contents_are_exact(keeper: Keeper) -> None:
    async with keeper.opened() as store:
        steps = [
            draft(put("a"), put("b")),
            draft(gone("a"), put("c")),
            draft(put("a", "again"), put("b", "two")),
            draft(gone("b"), gone("c"), gone("never there")),
        ]
        expected = [await store.contents()]
        for number, step in enumerate(steps):
            await store.commit(number, step)
            expected.append(await store.contents())
        assert await texts(store, 3) == {"b": "two", "c": "text of c", "a": "again"}
    async with keeper.opened() as store:
        for version, contents in enumerate(expected):
            found = await store.contents(version)
            assert found == contents
            assert list(found.resources) == list(contents.resources), "in the order of creation"


@on_loop
async def test_a_rollback_gives_the_old_order_back(keeper: Keeper) -> None:
    async with keeper.opened() as store:
        await store.commit(0, draft(put("a"), put("b"), put("c")))
        await store.commit(1, draft(gone("a"), put("b", "two")))
        await store.commit(2, draft(put("a", "text of a")))
        old, new = await store.contents(1), await store.contents()
        await store.commit(3, draft(*new.to(old), what="rollback 1"))
        back = await store.contents()
        assert list(back.resources) == list(old.resources)
        assert [(r.text, r.created) for r in back] == [(r.text, r.created) for r in old]
        assert back.to(old) == ()


@on_loop
async def test_who_is_behind_gets_a_conflict(keeper: Keeper) -> None:
    async with keeper.opened() as one, keeper.opened() as two:
        await one.commit(0, draft(put("a")))
        with pytest.raises(Conflict, match="version 1 is there already"):
            await two.commit(0, draft(put("b")))
        with pytest.raises(Conflict):
            await two.propose(0, draft(put("b")), "two")
        with pytest.raises(Conflict):
            await two.commit(7, draft(put("b")))
        assert await texts(two) == {"a": "text of a"}
        await two.commit(1, draft(put("b")))
        assert list(await texts(one)) == ["a", "b"]


@on_loop
async def test_of_racing_writers_one_wins_and_no_version_is_lost(keeper: Keeper) -> None:
    async def writer(name: str, store: Store, rounds: int) -> list[int]:
        won = []
        while len(won) < rounds:
            try:
                entry = await store.commit((await store.head()).decided, draft(put(f"{name}{len(won)}")))
            except Conflict:
                continue
            won.append(entry.version)
        return won

    async with keeper.opened() as one, keeper.opened() as two:
        first = await asyncio.gather(
            one.commit(0, draft(put("one"))), two.commit(0, draft(put("two"))), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in first) == ["Conflict", "Entry"]
        won = await asyncio.gather(writer("a", one, 8), writer("b", two, 8))
        assert sorted(sum(won, [])) == list(range(2, 18)), "every number was given out once"
        history = await two.history()
        assert [entry.version for entry in history] == list(range(17, 0, -1))
        assert {name for name in await texts(one) if name[0] in "ab"} == {
            f"{name}{number}" for name in "ab" for number in range(8)
        }
        assert await one.contents() == await two.contents()


@on_loop
async def test_a_candidate_becomes_the_head_when_it_is_settled(keeper: Keeper) -> None:
    async with keeper.opened() as store, keeper.opened() as other:
        await store.commit(0, draft(put("a"), hash_="11"))
        proposal = draft(put("a", "new"), gone("b"), hash_="22", message="m")
        candidate = await store.propose(1, proposal, "plane-1")
        assert (candidate.version, candidate.draft, candidate.share, candidate.owner) == (
            2,
            proposal,
            0,
            "plane-1",
        )
        assert await other.candidate() == candidate
        head = await other.head()
        assert (head.version, head.decided, head.hash) == (1, 1, "11")
        assert await texts(other) == {"a": "text of a"}
        with pytest.raises(Conflict, match="being rolled out by plane-1"):
            await other.commit(1, draft(put("x")))
        with pytest.raises(Conflict):
            await other.propose(1, draft(put("x")), "plane-2")
        with pytest.raises(KeyError):
            await other.entry(2)
        with pytest.raises(KeyError):
            await other.contents(2)
        stepped = await other.step(2, WHOLE // 10)
        assert stepped.share == WHOLE // 10
        assert stepped.beat_ms >= candidate.beat_ms
        assert await store.candidate() == stepped
        entry = await other.settle(2)
        assert (entry.version, entry.hash, entry.message) == (2, "22", "m")
        assert entry.verbs[0][:1] + entry.verbs[0][3:] == (CONFIGURED, "a")
        assert await store.candidate() is None
        head = await store.head()
        assert (head.version, head.decided, head.hash) == (2, 2, "22")
        assert await texts(store) == {"a": "new"}
        for late in (store.settle(2), store.void(2, "late")):
            with pytest.raises(Conflict, match="not being rolled out"):
                await late
        with pytest.raises(Conflict):
            await store.step(2, 1)
        assert await store.history() == [entry, await store.entry(1)]


@on_loop
async def test_the_number_of_a_voided_candidate_is_burnt(keeper: Keeper) -> None:
    async with keeper.opened() as store:
        await store.commit(0, draft(put("a")))
        await store.propose(1, draft(put("a", "bad"), hash_="bad"), "plane-1")
        head = await store.void(2, "error_rate > 2x")
        assert (head.version, head.decided) == (1, 2)
        assert head == await store.head()
        assert await store.candidate() is None
        entry = await store.entry(2)
        assert (entry.what, entry.message, entry.who) == ("aborted apply", "error_rate > 2x", "ann")
        with pytest.raises(Conflict):
            await store.commit(1, draft(put("b")))
        assert (await store.commit(2, draft(put("b")))).version == 3
        assert await texts(store) == {"a": "text of a", "b": "text of b"}
        assert await texts(store, 1) == {"a": "text of a"}
        with pytest.raises(KeyError, match="aborted"):
            await store.contents(2)
        assert [entry.version for entry in await store.history()] == [3, 2, 1]


@on_loop
async def test_of_two_that_end_a_candidate_one_wins(keeper: Keeper) -> None:
    async with keeper.opened() as one, keeper.opened() as two:
        for version in range(1, 5):
            await one.propose(version - 1, draft(put(f"d{version}")), "plane-1")
            ends = (one.settle(version), two.void(version, "no"))
            results = await asyncio.gather(*ends, return_exceptions=True)
            assert sum(isinstance(result, Conflict) for result in results) == 1, results
            entry, head = await one.entry(version), await two.head()
            assert head.decided == version
            settled = not entry.what.startswith("aborted")
            assert settled == (head.version == version) == (f"d{version}" in await texts(two))


@on_loop
async def test_history_comes_in_pages(keeper: Keeper) -> None:
    async with keeper.opened() as store:
        for version in range(7):
            await store.commit(version, draft(put("a", f"text {version}")))
        assert [entry.version for entry in await store.history(3)] == [7, 6, 5]
        assert [entry.version for entry in await store.history(3, before=5)] == [4, 3, 2]
        assert [entry.version for entry in await store.history(3, before=1)] == []
        assert await store.history(0) == []
        for unknown in (0, 8, -1, 1 << 40):
            with pytest.raises(KeyError):
                await store.entry(unknown)
        for unknown in (8, -1):
            with pytest.raises(KeyError):
                await store.contents(unknown)


@on_loop
async def test_compaction_forgets_what_is_old_only(keeper: Keeper) -> None:
    async with keeper.opened() as store, keeper.opened() as other:
        for version in range(10):
            await store.commit(version, draft(put(f"d{version % 3}", f"text {version}")))
        kept = {version: await store.contents(version) for version in range(7, 11)}
        assert await store.compact(20) == 0
        assert await store.compact(4) == 6
        assert await store.compact(4) == 0
        assert [entry.version for entry in await other.history()] == [10, 9, 8, 7]
        for version, contents in kept.items():
            assert await other.contents(version) == contents
        for version in (1, 6):
            with pytest.raises(Compacted):
                await other.entry(version)
            with pytest.raises(Compacted):
                await other.contents(version)
        assert (await other.commit(10, draft(gone("d1")))).version == 11
    async with keeper.opened() as store:
        assert list(await texts(store)) == ["d0", "d2"]
        assert await store.contents(9) == kept[9]


@on_loop
async def test_compaction_keeps_the_head_below_many_aborts(keeper: Keeper) -> None:
    async with keeper.opened() as store:
        for version in range(3):
            await store.commit(version, draft(put(f"d{version}")))
        for version in range(4, 9):
            await store.propose(version - 1, draft(put("x", f"{version}")), "plane-1")
            await store.void(version, "no")
        await store.propose(8, draft(put("open")), "plane-1")
        contents = await store.contents()
        assert await store.compact(2) == 5
        assert [entry.version for entry in await store.history()] == [8, 7, 3]
        assert await store.contents() == await store.contents(3) == contents
        candidate = await store.candidate()
        assert candidate is not None
        assert candidate.draft.changes == (put("open"),)
    async with keeper.opened() as store:
        assert await store.contents() == contents
        await store.settle(9)
        assert list(await texts(store)) == ["d0", "d1", "d2", "open"]


@on_loop
async def test_ten_thousand_documents_are_one_version(keeper: Keeper) -> None:
    chance = random.Random(1)  # so that they do not compress to nothing
    many = [put(f"d{number}", f"{number}: {chance.randbytes(150).hex()}") for number in range(10_000)]
    async with keeper.opened() as store, keeper.opened() as other:
        await store.commit(0, draft(put("a")))
        entry = await store.commit(1, draft(*many))
        assert len(entry.verbs) == 10_000
        assert len(await other.contents()) == 10_001
        await other.propose(2, draft(*(gone(f"d{number}") for number in range(9_999))), "plane-2")
        await store.settle(3)
        assert list(await texts(other)) == ["a", "d9999"]
        assert len(await other.contents(2)) == 10_001
        await other.compact(1)
        assert await texts(store) == {"a": "text of a", "d9999": many[-1].resource.text}  # type: ignore[union-attr]


@on_loop
async def test_text_comes_back_as_it_was(keeper: Keeper) -> None:
    odd = 'a: "\0\n\r\t é 漢 🦊"\n' + "x" * 3_000_000
    async with keeper.opened() as store:
        await store.commit(0, draft(put("odd name/with: things", odd), message="é\0\n"))
    async with keeper.opened() as store:
        assert await texts(store) == {"odd name/with: things": odd}
        assert (await store.entry(1)).message == "é\0\n"


@on_loop
async def test_a_new_epoch_is_higher_and_voids_what_was_open(keeper: Keeper) -> None:
    async with keeper.opened() as store, keeper.opened() as other:
        await store.commit(0, draft(put("a")))
        epoch = (await store.head()).epoch
        head = await store.new_epoch()
        assert head.epoch > epoch
        assert (head.version, head.decided) == (1, 1)
        assert await other.head() == head
        await store.propose(1, draft(put("b")), "plane-1")
        again = await other.new_epoch()
        assert again.epoch > head.epoch
        assert (again.version, again.decided) == (1, 2)
        assert await store.candidate() is None
        assert (await store.entry(2)).what == "aborted apply"
        assert (await store.commit(2, draft(put("c")))).epoch == again.epoch


@on_loop
async def test_watchers_see_every_kind_of_change_by_whomever(keeper: Keeper) -> None:
    async with keeper.opened() as store, keeper.opened() as other:
        seen: asyncio.Queue[tuple[int, int, int]] = asyncio.Queue()

        async def watch() -> None:
            async for _ in store.watch():
                candidate, head = await store.candidate(), await store.head()
                share = candidate.share if candidate else -1
                seen.put_nowait((head.epoch - epoch, head.decided, share))

        async def until(epochs: bool, decided: int, share: int) -> None:
            while True:
                raised, *rest = await asyncio.wait_for(seen.get(), 5)
                if (raised > 0, rest) == (epochs, [decided, share]):
                    return

        epoch = (await store.head()).epoch
        task = asyncio.create_task(watch())
        try:
            await until(False, 0, -1)  # at once
            for writer in (other, store):
                decided = (await writer.head()).decided
                await writer.commit(decided, draft(put("a", f"{decided}")))
                await until(False, decided + 1, -1)
                await writer.propose(decided + 1, draft(put("b", f"{decided}")), "plane")
                await until(False, decided + 1, 0)
                await writer.step(decided + 2, 5)
                await until(False, decided + 1, 5)
                await writer.settle(decided + 2)
                await until(False, decided + 2, -1)
            await other.new_epoch()
            await until(True, 4, -1)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@on_loop
async def test_watchers_end_with_the_store(keeper: Keeper) -> None:
    store = open_store(keeper.url)
    await store.open()
    watcher = store.watch()
    await anext(watcher)
    waiting = asyncio.ensure_future(anext(watcher, "ended"))
    await asyncio.sleep(0.1)
    await store.close()
    assert await asyncio.wait_for(waiting, 2) == "ended"


@on_loop
async def test_a_store_that_is_not_open_says_so(keeper: Keeper) -> None:
    store = open_store(keeper.url)
    for call in (store.head, store.contents, store.history, store.candidate):
        with pytest.raises(StoreError, match="not open"):
            await call()
    with pytest.raises(StoreError, match="not open"):
        await store.commit(0, draft(put("a")))
    await store.close()


def test_urls_that_name_no_store_say_what_to_write() -> None:
    for url in ("", "sqlite://x", "sqlite:///", "postgres://x", "etcd://", "etcd://host", "etcd://a:1,b"):
        with pytest.raises(ValueError, match=r"write (sqlite|etcd)://"):
            open_store(url)
