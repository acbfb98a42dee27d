"""The resolver on a lookup that the test writes: changes, failures, time to live; and /etc/hosts."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from fastproxy.agent import dns
from fastproxy.agent.dns import AresLookup, ResolveError, Resolver, names_of
from fastproxy.oneline import one_line


class Script:
    """Answers of a name, one after another; the last one stays."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str) -> tuple[list[str], float]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, list):
            return answer, 0.0
        raise ResolveError(str(answer))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "TTL_MIN", 0.02)
    monkeypatch.setattr(dns, "RETRY", 0.02)


async def until(what: object, get: object) -> None:
    for _ in range(500):
        if get() == what:  # type: ignore[operator]
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{get()} and never {what}")  # type: ignore[operator]


def test_names_are_those_of_dns_clusters() -> None:
    assert names_of(one_line("127.0.0.1:1", ["127.0.0.1:2"])) == set()
    assert names_of(one_line("127.0.0.1:1", ["b.test:2", "a.test:2"])) == {"a.test", "b.test"}


def test_follows_changes_and_forgets_names() -> None:
    async def body() -> None:
        changes: list[int] = []
        script = Script(["10.0.0.2", "10.0.0.1"], ["10.0.0.1", "10.0.0.2"], ["10.0.0.3"])
        resolver = Resolver(lambda: changes.append(1), script)
        await resolver.follow(["a.test"], 1)
        assert resolver.resolved == {"a.test": ["10.0.0.1", "10.0.0.2"]}
        assert changes == []  # the caller waited for these
        await until({"a.test": ["10.0.0.3"]}, lambda: resolver.resolved)
        assert changes == [1]  # another order is no change
        await resolver.follow([], 1)
        assert resolver.resolved == {}
        asked = script.asked
        await asyncio.sleep(0.1)
        assert script.asked == asked
        await resolver.close()

    uvloop.run(body())


def test_a_failure_keeps_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        changes: list[int] = []
        script = Script(["10.0.0.1"], "no such name", "no such name", ["10.0.0.9"])
        resolver = Resolver(lambda: changes.append(1), script)
        await resolver.follow(["a.test"], 1)
        await until("no such name", lambda: resolver.names["a.test"].error)
        assert resolver.resolved == {"a.test": ["10.0.0.1"]}
        await until({"a.test": ["10.0.0.9"]}, lambda: resolver.resolved)
        assert changes == [1] and resolver.names["a.test"].error == ""
        await resolver.close()

    uvloop.run(body())
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "fastproxy: warning: a.test does not resolve: no such name; keeping 1 known addresses",
        "fastproxy: info: a.test resolves again",
    ]


def test_one_slow_name_does_not_hold_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(host: str) -> tuple[list[str], float]:
        if host == "slow.test":
            await asyncio.sleep(0.3)
        return ["10.0.0.1"], 60.0

    async def body() -> None:
        changes: list[int] = []
        resolver = Resolver(lambda: changes.append(1), slow)
        await resolver.follow(["slow.test", "quick.test"], 0.1)
        assert resolver.resolved == {"slow.test": [], "quick.test": ["10.0.0.1"]}
        await until([1], lambda: changes)
        assert resolver.resolved["slow.test"] == ["10.0.0.1"]
        await resolver.close()

    uvloop.run(body())


def test_lookups_are_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0

    async def busy(host: str) -> tuple[list[str], float]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return ["10.0.0.1"], 60.0

    async def never(host: str) -> tuple[list[str], float]:
        await asyncio.sleep(60)
        raise AssertionError

    async def body() -> None:
        resolver = Resolver(lambda: None, busy)
        await resolver.follow([f"{n}.test" for n in range(200)], 5)
        assert most == dns.CONCURRENT
        assert all(resolver.resolved.values())
        await resolver.close()
        monkeypatch.setattr(dns, "TIMEOUT", 0.05)
        stuck = Resolver(lambda: None, never)
        await stuck.follow(["a.test"], 1)
        assert "no answer in 0.05 s" in stuck.names["a.test"].error
        await stuck.close()

    uvloop.run(body())


def test_localhost_is_found_without_a_name_server() -> None:
    async def body() -> None:
        found, _ttl = await AresLookup()("localhost")
        assert "127.0.0.1" in found
        with pytest.raises(ResolveError):
            await AresLookup()("no-such-name.invalid")

    uvloop.run(body())
