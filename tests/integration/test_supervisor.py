"""The supervisor with real processes: a real spawner, workers that speak the protocol and forward nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from fastproxy.agent.supervisor import Supervisor
from fastproxy.agent.workers import State
from fastproxy.settings import Settings

WORKER = "tests.unit.agent_stand_in"


class FakeMemory:
    """Descriptors where the shared memory would be."""

    def __init__(self) -> None:
        self.live_fd = os.memfd_create("live")
        self.rings: dict[int, int] = {}
        self.ended: list[int] = []

    def new_ring(self, worker: int, pid: int) -> int:
        self.end_column(worker)
        self.rings[worker] = os.memfd_create("ring")
        return self.rings[worker]

    def end_column(self, worker: int) -> None:
        if worker in self.rings:
            os.close(self.rings.pop(worker))
            self.ended.append(worker)

    def close(self) -> None:
        for worker in list(self.rings):
            self.end_column(worker)
        os.close(self.live_fd)


async def until(what: Callable[[], object], seconds: float = 5.0) -> float:
    """Wait for it; how long that took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds, "waited in vain"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


@asynccontextmanager
async def supervisor(workers: int = 2, wait: bool = True) -> AsyncIterator[Supervisor]:
    memory = FakeMemory()
    one = Supervisor(asyncio.get_running_loop(), Settings(workers=workers), memory, WORKER)
    one.start()
    try:
        if wait:
            await until(lambda: all(w.state is State.READY for w in one.workers))
        yield one
    finally:
        await one.end()
        memory.close()


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def test_replays_setup_plan_and_listeners_to_a_new_worker_in_order(log: Path) -> None:
    async def body() -> None:
        async with supervisor(1) as one:
            plan = os.memfd_create("plan")
            outcome = await one.publish(3, plan)
            assert (outcome.rejected, outcome.missing, outcome.swap_us) == ({}, [], 7)
            with socket.create_server(("127.0.0.1", 0)) as sock:
                one.listen("127.0.0.1:1", sock)
                await until(lambda: len(lines(log)) == 3)
                first = one.workers[0].pid
                os.kill(first, signal.SIGKILL)
                took = await until(lambda: one.serving() and one.workers[0].pid != first)
                assert took < 1.0
                await until(lambda: len(lines(log)) == 6)
            os.close(plan)
            told = [line.split(" ", 1)[1] for line in lines(log)]
            assert told == ["setup 0 2", "plan 3 1", "listen 127.0.0.1:1 1"] * 2

    uvloop.run(body())


def test_a_killed_worker_is_replaced_and_named(capfd: pytest.CaptureFixture[str], log: Path) -> None:
    async def body() -> None:
        async with supervisor(2) as one:
            other = one.workers[1].pid
            first = one.workers[0].pid
            os.kill(first, signal.SIGSEGV)
            await until(lambda: one.workers[0].state is State.READY and one.workers[0].pid != first)
            assert one.workers[1].pid == other
            assert one._memory.ended == [0]  # type: ignore[attr-defined]

    uvloop.run(body())
    assert "worker 0" in (err := capfd.readouterr().err) and "killed by SIGSEGV" in err


def test_a_crash_loop_backs_off_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], log: Path
) -> None:
    monkeypatch.setenv("STAND_IN", "0=crash")

    async def body() -> None:
        async with supervisor(2, wait=False) as one:
            await until(lambda: one.workers[0].deaths == 4)
            assert one.workers[0].state is State.IDLE
            assert one.workers[1].state is State.READY
            assert one.workers[0].starts == 4

    started = time.monotonic()
    uvloop.run(body())
    assert time.monotonic() - started >= 0.1 + 0.2
    err = capfd.readouterr().err
    assert "killed by SIGABRT (4 times in a row); it keeps dying: next try in 0.4 s" in err


def test_the_spawner_dies_and_workers_stay(capfd: pytest.CaptureFixture[str], log: Path) -> None:
    async def body() -> None:
        async with supervisor(2) as one:
            before = [w.pid for w in one.workers]
            gone = one.spawner.pid
            os.kill(gone, signal.SIGKILL)
            await until(lambda: one.spawner.alive and one.spawner.pid != gone)
            assert [w.pid for w in one.workers] == before
            assert all(exists(pid) for pid in before)
            os.kill(before[0], signal.SIGKILL)
            took = await until(
                lambda: one.workers[0].pid not in (0, before[0]) and one.workers[0].state is State.READY
            )
            assert took < 2.0

    uvloop.run(body())
    err = capfd.readouterr().err
    assert "spawner killed by SIGKILL, its workers go on" in err and "; starting another" in err


def test_a_worker_that_dies_while_there_is_no_spawner_is_replaced_later(log: Path) -> None:
    async def body() -> None:
        async with supervisor(1) as one:
            pid = one.workers[0].pid
            os.kill(one.spawner.pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: one.workers[0].pid not in (0, pid) and one.workers[0].state is State.READY)

    uvloop.run(body())


def test_the_agent_dies_and_all_end(log: Path) -> None:
    async def body() -> tuple[int, list[int]]:
        memory = FakeMemory()
        one = Supervisor(asyncio.get_running_loop(), Settings(workers=2), memory, WORKER)
        one.start()
        await until(lambda: all(w.state is State.READY for w in one.workers))
        pids = [w.pid for w in one.workers]
        for worker in one.workers:
            worker.bury()  # closes the command socket, as the kernel would
        one._ending = True
        one.spawner.close()
        memory.close()
        return one.spawner.pid, pids

    spawner, pids = uvloop.run(body())
    deadline = time.monotonic() + 5
    while any(exists(pid) for pid in [spawner, *pids]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_rejected_plan_is_reported(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], log: Path
) -> None:
    monkeypatch.setenv("STAND_IN", "1=reject")

    async def body() -> None:
        async with supervisor(2) as one:
            plan = os.memfd_create("plan")
            outcome = await one.publish(1, plan)
            os.close(plan)
            assert outcome.rejected == {1: "not today"}
            assert not one.serving()

    uvloop.run(body())
    assert "worker 1 rejected plan 1: not today" in capfd.readouterr().err


def test_drain_waits_for_all_and_is_bounded(monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    monkeypatch.setenv("STAND_IN", "1=stubborn")

    async def body() -> None:
        async with supervisor(2) as one:
            started = time.monotonic()
            assert await one.drain(0.3) == [1]
            assert 0.28 <= time.monotonic() - started < 1.0
            assert one.workers[0].state is State.DRAINED

    uvloop.run(body())


def test_nothing_is_left_behind(log: Path) -> None:
    async def body() -> list[int]:
        async with supervisor(3) as one:
            os.kill(one.workers[2].pid, signal.SIGKILL)
            await until(lambda: one.deaths == 1 and all(w.state is State.READY for w in one.workers))
            return [one.spawner.pid, *(w.pid for w in one.workers)]

    before = sorted(os.listdir("/proc/self/fd"))
    pids = uvloop.run(body())
    assert not any(exists(pid) for pid in pids)  # gone and reaped: a zombie would still be there
    assert sorted(os.listdir("/proc/self/fd")) == before


def _held(pid: int) -> list[str]:
    """What the descriptors of a process are; one that it closes while we look is not held."""
    held = []
    for fd in _fds(pid):
        with contextlib.suppress(FileNotFoundError):
            held.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return held


def test_spawner_and_workers_hold_no_descriptor_but_their_own(log: Path) -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            async with supervisor(2) as one:
                one.listen("x", sock)
                spawner = _held(one.spawner.pid)
                assert sum(name.startswith("socket:") for name in spawner) == 1
                for worker in one.workers:
                    held = _held(worker.pid)
                    assert sum(name.startswith("socket:") for name in held) == 1, held
                    assert not any("pidfd" in name for name in held), held

    uvloop.run(body())


def _fds(pid: int) -> list[str]:
    return [fd for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2]
