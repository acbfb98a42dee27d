"""The link and its applier: what is applied when and with which rows, and what comes of failures."""

from __future__ import annotations

import asyncio

from fastproxy.link import QUEUE
from fastproxy.sync import Apply, Prepare, State
from fastproxy.wire import (
    Report,
    Update,
    encode,
)
from tests.control.lives import AtOnce, pair, run, until
from tests.control.told import rows, step


def test_an_applier_that_is_done_at_once() -> None:
    async def test() -> None:
        applier = AtOnce()
        async with pair(applier=applier) as (server, life):
            await until(lambda: life.live(1))
            for _ in range(20):
                server.move()
            await until(lambda: life.live(21))
            applied = [action.version for batch in applier.batches for action in batch]
            assert applied == list(range(1, 22)), "each once, in their order"
            assert applier.hashes == [batch[-1].hash for batch in applier.batches], "each with its own rows"  # type: ignore[union-attr]
            applier.fails = ValueError("not this one")
            server.move()
            await until(lambda: life.sync.state is State.REJECTED)
            await until(lambda: (22, "rejected") in server.results())
            assert "version 22 could not be applied: ValueError: not this one" in life.text
            applier.fails = None
            server.move()
            await until(lambda: life.live(23))

    run(test)


def test_what_was_not_begun_when_the_link_ends_is_never_begun() -> None:
    async def test() -> None:
        async with pair() as (_, life):
            await until(lambda: life.live(1))
            life.applier.batches.clear()
            life.link._waiting.append(Apply(1, life.sync.hash, None))
            life.link._apply()
            life.task.cancel()
        assert life.applier.batches == []

    run(test)


def test_what_can_be_applied_is_in_the_turn_in_which_it_comes() -> None:
    async def test() -> None:
        applier = AtOnce()
        async with pair(applier=applier) as (_, life):
            await until(lambda: life.live(1))
            life.link._heard(0, encode(step(2)), (Update,))
            assert [action.version for action in applier.batches[-1]] == [2]
            assert life.sync.serving == 1, "its answer comes behind what others of this turn apply"
            life.link._heard(0, encode(step(3)), (Update,))
            assert [action.version for action in applier.batches[-1]] == [2], "one after the other"
            await asyncio.sleep(0)
            assert [action.version for action in applier.batches[-1]] == [3]
            await until(lambda: life.sync.serving == 3)

    run(test)


def test_what_comes_in_the_turn_of_the_end_is_not_applied() -> None:
    async def test() -> None:
        applier = AtOnce()
        async with pair(applier=applier) as (_, life):
            await until(lambda: life.live(1))
            life.task.cancel()
            life.link._heard(0, encode(step(2)), (Update,))
            assert [action.version for action in applier.batches[-1]] == [1]

    run(test)


def test_all_rows_anew_stand_for_what_came_before_and_behind() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            life.applier.free.clear()
            server.move()
            await until(lambda: life.applier.batches[-1][0].version == 2)
            life.link._heard(0, encode(step(3)), (Update,))
            life.link._waiting.append(Apply(3, life.sync.hash, None))
            life.link._heard(0, encode(step(4)), (Update,))
            server.version = 4
            life.applier.free.set()
            await until(lambda: life.sync.serving == 4)
            assert life.applier.batches[-1] == [Apply(4, rows(4).hash, None)]

    run(test)


def test_what_comes_while_the_applier_works_goes_to_it_in_one_batch() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            life.applier.free.clear()
            server.move()
            await until(lambda: len(life.applier.batches) == 2)
            for _ in range(5):
                server.move()
            await until(lambda: life.sync.version == 7)
            life.applier.free.set()
            await until(lambda: life.live(7))
            assert [a.version for a in life.applier.batches[2]] == [3, 4, 5, 6, 7]

    run(test)


def test_more_than_can_wait_becomes_one_action() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            life.applier.free.clear()
            server.move()
            await until(lambda: len(life.applier.batches) == 2)
            for at in range(QUEUE + 50):
                server.move()
                if at % 20 == 0:
                    await asyncio.sleep(0)
            await until(lambda: life.sync.version == server.version)
            server.publish(step(server.version + 1, candidate=True))
            await until(lambda: life.sync.candidate)
            life.applier.free.set()
            await until(lambda: life.live(server.version))
            assert [type(action) for action in life.applier.batches[2]] == [Apply, Prepare]
            assert life.applier.batches[2][0].changes is None  # type: ignore[union-attr]

    run(test)


def test_an_applier_that_raises_rejects_the_version() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            life.applier.fails = RuntimeError("no memory")
            server.move()
            await until(lambda: (2, "rejected") in server.results())
            assert life.sync.state is State.REJECTED
            await until(lambda: any("no memory" in report.error for report in server.of(Report)))
            life.applier.fails = None
            server.move()
            await until(lambda: life.live(3))

    run(test)


def test_the_answer_about_a_candidate_is_repeated_with_reports() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            server.publish(step(2, candidate=True))
            await until(lambda: server.results().count((2, "prepared")) >= 3)

    run(test)
