"""The SQLite store when things go wrong: killed, disk full, failed or read only, file damaged or not ours."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import durability
from ctrl.model import StoreError
from ctrl.store.sqlite import SqliteStore
from ctrl.store.sqlite_file import open_file
from tests.control.stores import draft, on_loop, put, texts

ROOT = Path(__file__).resolve().parents[2]


def store_at(path: Path) -> SqliteStore:
    return SqliteStore(f"sqlite:///{path}")


async def filled(path: Path, versions: int = 3) -> SqliteStore:
    store = store_at(path)
    await store.open()
    for version in range(versions):
        await store.commit(version, draft(put(f"d{version}", "x" * 3000)))
    return store


def in_child(program: str, *wrap: str, path: Path) -> dict[str, object]:
    """What a program prints last, as JSON. It finds a store's ``path`` and the words of these tests."""
    head = (
        "import asyncio, json, os, sys\n"
        "from pathlib import Path\n"
        "from ctrl.model import *\n"
        "from tests.control.stores import *\n"
        "from tests.control.test_store_sqlite import filled, store_at\n"
        "path = Path(sys.argv[1])\n"
    )
    command = [*wrap, sys.executable, "-c", head + program, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


# --- killed ---


def test_no_version_is_lost_or_half_there_after_kill_9(tmp_path: Path) -> None:
    result = durability.run(20, seed=random.randrange(1 << 30), folder=tmp_path)
    assert result.problems == []
    assert result.acknowledged > 20, "they were killed before they wrote: nothing was proven"


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        ("UPDATE resources SET text = 'other' WHERE name = 'd1'", "half there"),
        ("DELETE FROM changes WHERE name = 'd2'", "half there"),
        ("DELETE FROM history WHERE version = 3", "gaps"),
        ("UPDATE head SET decided = 4, version = 4", "lost"),
        ("UPDATE head SET epoch = epoch + 1", "epoch"),
    ],
)
def test_the_judge_of_that_sees_damage(tmp_path: Path, damage: str, seen: str) -> None:
    async def judged() -> list[str]:
        result = durability.Result(1, 5)
        file = durability._File(tmp_path / "store.db", 5, result)
        store = store_at(file.path)
        await store.open()
        for version in range(6):
            await store.commit(version, durability.draft_of(5, version + 1))
        said = [["epoch", str((await store.head()).epoch)], ["done", "6"]]
        await store.close()
        await file.check(said, random.Random(1))
        assert result.problems == []
        with sqlite3.connect(file.path) as connection:
            connection.execute(damage)
        connection.close()
        for chance in range(20):  # it looks at one older version each time
            await file.check(said, random.Random(chance))
        return result.problems

    assert any(seen in problem for problem in asyncio.run(judged()))


# --- the disk ---


@pytest.fixture
def small_disk() -> list[str]:
    """A command that runs a program with a file system of 1 MiB of its own at /mnt."""
    mount = 'mount -t tmpfs -o size=1m none /mnt && exec "$@"'
    for flags in ("-m", "-Urm"):
        wrap = ["unshare", flags, "sh", "-c", mount, "sh"]
        if shutil.which("unshare") and subprocess.run([*wrap, "true"], capture_output=True).returncode == 0:
            return wrap
    pytest.skip("this user may not mount a file system")


def test_a_full_disk_refuses_writes_says_so_and_reads_go_on(small_disk: list[str]) -> None:
    program = """
async def main():
    other = Path("/mnt/other")
    other.write_bytes(bytes(200_000))
    store = await filled(path)
    before, chance, error = await texts(store), __import__("random").Random(1), ""
    version = 3
    while not error:
        try:
            await store.commit(version, draft(put("big", chance.randbytes(40_000).hex())))
            version += 1
        except StoreError as full:
            error = str(full)
    again = ""
    try:
        await store.propose(version, draft(put("big", chance.randbytes(400_000).hex())), "me")
    except StoreError as full:
        again = str(full)
    now = await store.head()
    contents, history = await texts(store), await store.history()
    candidate = await store.candidate()
    await store.close()
    store = store_at(path)
    await store.open()
    reopened = await texts(store) == contents and await store.head() == now
    kept = await store.contents(3)
    other.unlink()
    await store.commit(version, draft(put("small")))
    await store.close()
    print(json.dumps({"error": error, "again": again, "version": version, "head": now.version,
        "there": all(contents[name] == text for name, text in before.items()), "entries": len(history),
        "candidate": candidate is not None, "reopened": reopened, "kept": len(kept)}))
asyncio.run(main())
"""
    seen = in_child(program, *small_disk, path=Path("/mnt/store.db"))
    for error in (seen["error"], seen["again"]):
        assert "the disk is full: free some space; nothing was changed, reads go on" in str(error)
    version = seen["version"]
    assert isinstance(version, int) and version > 3
    del seen["error"], seen["again"]
    assert seen == {
        "version": version,
        "head": version,
        "there": True,
        "entries": version,
        "candidate": False,
        "reopened": True,
        "kept": 3,
    }


def test_a_failing_disk_refuses_writes_says_so_and_reads_go_on(tmp_path: Path) -> None:
    """A limit of the file's size makes write() fail with EFBIG, which SQLite takes for an I/O error."""
    program = """
import resource
async def main():
    store = await filled(path)
    limit = os.path.getsize(str(path) + "-wal") + 5000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        await store.commit(3, draft(put("big", "y" * 100_000)))
        error = ""
    except StoreError as failed:
        error = str(failed)
    head, names = await store.head(), list(await texts(store))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    entry = await store.commit(3, draft(put("big", "y" * 100_000)))
    await store.close()
    print(json.dumps({"error": error, "head": head.version, "names": names, "then": entry.version}))
asyncio.run(main())
"""
    seen = in_child(program, path=tmp_path / "store.db")
    assert "the disk failed" in str(seen.pop("error"))
    assert seen == {"head": 3, "names": ["d0", "d1", "d2"], "then": 4}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user can reach, as a test's own folder is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_or_file_that_cannot_be_written_is_said(open_folder: Path) -> None:
    """As another user: root may write everywhere."""
    asyncio.run(_made(open_folder / "theirs.db"))
    program = """
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
async def said(path):
    try:
        await store_at(path).open()
    except StoreError as error:
        return str(error)
print(json.dumps({name: asyncio.run(said(path / name)) for name in ("new.db", "theirs.db", "readable.db")}))
"""
    shutil.copy(open_folder / "theirs.db", open_folder / "readable.db")
    (open_folder / "readable.db").chmod(0o444)
    (open_folder / "theirs.db").chmod(0o000)
    open_folder.chmod(0o555)
    seen = in_child(program, path=open_folder)
    open_folder.chmod(0o755)
    assert "new.db: cannot be made: Permission denied; its folder must be writable" in str(seen["new.db"])
    assert "must be able to write in its folder" in str(seen["theirs.db"])
    assert "cannot be written: give this user the right to" in str(seen["readable.db"])


async def _made(path: Path) -> None:
    await (await filled(path)).close()


# --- the file ---


@on_loop
async def test_the_file_is_for_this_user_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = await filled(tmp_path / "store.db")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        await store.close()
    finally:
        os.umask(old)
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}


@on_loop
async def test_every_commit_goes_through_to_the_disk(tmp_path: Path) -> None:
    store = await filled(tmp_path / "store.db")
    assert store._connection is not None
    ask = store._connection.execute
    assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ask("PRAGMA synchronous").fetchone() == (2,), "FULL"
    await store.close()


def _foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE invoices (number)")
    connection.commit()
    connection.close()


def _pragma(text: str) -> object:
    def change(path: Path) -> None:
        asyncio.run(_made(path))
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA {text}")
        connection.commit()
        connection.close()

    return change


def _no_head(path: Path) -> None:
    asyncio.run(_made(path))
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM head")
    connection.commit()
    connection.close()


def _overwritten(path: Path) -> None:
    asyncio.run(_made(path))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(1).randbytes(path.stat().st_size - 4096))


def _cut(path: Path) -> None:
    asyncio.run(_made(path))
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_foreign, "is the SQLite file of another program: name another file"),
        (_pragma("user_version=2"), "was written by a newer fastproxyctl.*: upgrade"),
        (_pragma("user_version=0"), "format 0 is older than this fastproxyctl reads"),
        (_pragma("application_id=7"), "of another program"),
        (lambda path: path.write_text("# no database\n" * 100), "no SQLite file: name another"),
        (_overwritten, "damaged: restore a backup"),
        (_cut, "damaged: restore a backup"),
        (_no_head, "damaged: restore a backup"),
        (lambda path: path.mkdir(), "is no file"),
    ],
)
def test_a_file_that_is_not_a_good_store_is_refused_and_left_alone(
    tmp_path: Path, make: object, said: str
) -> None:
    path = tmp_path / "store.db"
    make(path)  # type: ignore[operator]
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StoreError, match=said):
        asyncio.run(store_at(path).open())
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_folder_that_is_not_there_is_said() -> None:
    with pytest.raises(StoreError, match="there is no folder nowhere: make it first; for an absolute path"):
        asyncio.run(SqliteStore("sqlite:///nowhere/store.db").open())


@on_loop
async def test_rows_that_are_damaged_are_said(tmp_path: Path) -> None:
    store = await filled(tmp_path / "store.db")
    await store.propose(3, draft(put("a")), "me")
    connection = sqlite3.connect(tmp_path / "store.db")
    with connection:
        connection.execute("UPDATE history SET entry = substr(entry, 1, 40)")
        connection.execute("UPDATE candidate SET changes = x'28b52ffd0102'")
    connection.close()
    for read in (store.history, store.candidate):
        with pytest.raises(StoreError, match="in the store are damaged.*restore a backup"):
            await read()
    assert list(await texts(store)) == ["d0", "d1", "d2"], "what is whole can be read"
    await store.close()


# --- several processes ---


def test_a_watcher_sees_what_another_process_writes(tmp_path: Path) -> None:
    program = """
async def main():
    store = store_at(path)
    await store.open()
    await store.commit(3, draft(put("theirs")))
    await store.close()
asyncio.run(main())
print("{}")
"""

    async def watched() -> int:
        store = await filled(tmp_path / "store.db")
        watcher = store.watch()
        await anext(watcher)
        child = asyncio.to_thread(in_child, program, path=tmp_path / "store.db")
        await asyncio.wait_for(asyncio.gather(child, anext(watcher)), 30)
        version = (await store.head()).version
        await store.close()
        return version

    assert asyncio.run(watched()) == 4


@on_loop
async def test_a_file_that_another_holds_too_long_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctrl.store.sqlite_file.BUSY_SECONDS", 0.2)
    store = await filled(tmp_path / "store.db")
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process has held the file"):
        await store.commit(3, draft(put("late")))
    assert len(await texts(store)) == 3, "reads go on"
    other.execute("ROLLBACK")
    other.close()
    assert (await store.commit(3, draft(put("late")))).version == 4
    await store.close()


@on_loop
async def test_a_store_paused_in_a_write_is_whole_for_the_others(tmp_path: Path) -> None:
    """SIGSTOP instead of SIGKILL: what it holds it may still finish; the others read on meanwhile."""
    path = tmp_path / "store.db"
    await _made(path)
    program = (
        "import asyncio, sys; from pathlib import Path; from tests.control.test_store_sqlite import *\n"
        "async def main():\n"
        "    store = store_at(Path(sys.argv[1])); await store.open(); version = 3\n"
        "    print('go', flush=True)\n"
        "    for version in range(3, 2000):\n"
        "        await store.commit(version, draft(put('a', str(version) * 9000)))\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        try:
            assert writer.stdout and await asyncio.to_thread(writer.stdout.readline) == b"go\n"
            store = store_at(path)
            await store.open()
            for _ in range(10):
                await asyncio.sleep(0.01)
                writer.send_signal(signal.SIGSTOP)
                os.waitpid(writer.pid, os.WUNTRACED)  # a thread of it may go on for a moment
                head = await store.head()
                contents = await store.contents()
                assert contents.version == head.version
                if "a" in (found := {resource.name: resource.text for resource in contents}):
                    assert found["a"] == str(head.version - 1) * 9000
                writer.send_signal(signal.SIGCONT)
            await store.close()
        finally:
            writer.kill()


# --- another file in its place ---


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced", "its log deleted"])
@on_loop
async def test_a_file_that_went_is_not_written_to(how: str, tmp_path: Path) -> None:
    """A backup is put in the place of a store that is served: SQLite goes on with the file that has no name,
    says that every commit was done, and all of them are gone at the next start."""
    path, aside = tmp_path / "s.db", tmp_path / "aside.db"
    store = await filled(path)
    if how == "replaced":
        shutil.copy(path, aside)
        aside.replace(path)
    elif how == "moved":
        path.rename(aside)
    else:
        (path if how == "deleted" else Path(f"{path}-wal")).unlink()
    with pytest.raises(StoreError, match="deleted, moved or replaced while it was in use.*restart"):
        await store.commit(3, draft(put("x", "y")))
    assert (await store.head()).version == 3 and len(await store.contents()) == 3
    if how == "moved":
        aside.rename(path)
        assert (await store.commit(3, draft(put("x", "y")))).version == 4
    await store.close()


def test_several_that_open_a_new_store_at_once_open_one(tmp_path: Path) -> None:
    """Two control planes started together: one looked at the file while the other made it a store, and took
    it for the file of another program, or ended since the file was busy."""
    for number in range(20):
        path, epochs, start = tmp_path / f"{number}.db", [], threading.Barrier(4)

        def open_one(path: Path = path, epochs: list[object] = epochs, start: Any = start) -> None:
            start.wait()
            try:
                connection = open_file(path)
                epochs.append(connection.execute("SELECT epoch FROM head").fetchone())
                connection.close()
            except StoreError as error:
                epochs.append(str(error))

        threads = [threading.Thread(target=open_one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(epochs) == 4 and len(set(epochs)) == 1, epochs
