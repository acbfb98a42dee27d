"""The link, against a publisher that is a few lines and does what the test says."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket as system
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from fastproxy.keys import new_curve
from fastproxy.link import LINES, Link
from fastproxy.sockets import (
    bound_port,
    make_context,
)
from fastproxy.sync import State
from fastproxy.wire import (
    Attributes,
    Refused,
    Report,
    encode,
)
from tests.control.lives import HERE, TOPIC, Applier, Life, Server, pair, run, until
from tests.control.told import rows


def test_outside_this_machine_needs_keys() -> None:
    with pytest.raises(ValueError, match="tcp://10.0.0.1:9910 is not on this machine: a key file is needed"):
        Link("node", HERE, ["tcp://10.0.0.1:9910"], None)  # type: ignore[arg-type]
    Link("node", HERE, ["tcp://10.0.0.1:9910"], None, curve=new_curve(b"x" * 40))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no address"):
        Link("node", HERE, [], None)  # type: ignore[arg-type]


def test_a_name_that_no_publisher_would_take_is_refused_here() -> None:
    for node, attributes in (
        ("a\x1bb", HERE),
        ("a" * 5000, HERE),
        ("node", Attributes.of("default", {"k": "\x00"}, False)),
        ("node", Attributes.of("default", {f"{i}": "x" * 4000 for i in range(100)}, False)),
    ):
        with pytest.raises(ValueError, match="cannot be told to a publisher"):
            Link(node, attributes, ["tcp://127.0.0.1:1"], None)  # type: ignore[arg-type]


# --- the link ---


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_from_nothing_to_live_and_on(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with pair(f"ipc://{tmp_path}/p" if kind == "ipc" else "tcp://127.0.0.1:*") as (server, life):
            await until(lambda: life.live(1))
            server.move()
            server.move()
            await until(lambda: life.live(3))
            await until(lambda: (3, "serving") in server.results())
            await until(lambda: any(report.serving == 3 for report in server.of(Report)))
            report = server.of(Report)[-1]
            assert (report.node, report.release, report.requests, report.state) == ("node", "9.9", 7, "LIVE")
            assert (report.version, report.hash) == (3, rows(3).hash)
            assert life.sync.snapshots == 1
            assert life.sync.gaps == 0

    run(test)


def test_the_clock_of_the_publisher() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            server.publish(server.head(now_ms=time.time_ns() // 1_000_000 + 3_600_000))
            await until(lambda: life.link.clock_offset_ms)
            assert abs(life.link.clock_offset_ms - 3_600_000) < 2000

    run(test)


def test_a_thousand_that_began_together_do_not_report_together() -> None:
    async def test() -> None:
        async with pair() as (_, life):
            await until(lambda: life.live(1))
            end = life.link._ends[0]
            first = sorted(end.interval(anew=True) for _ in range(1000))
            later = sorted(end.interval() for _ in range(1000))
            whole = end.report_ms / 1000
            assert first[0] < 0.15 * whole < 0.95 * whole < first[-1] <= whole
            assert 0.9 * whole <= later[0] < later[-1] <= 1.1 * whole

    run(test)


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_link_without_descriptors_ends_and_can_be_run_again(
    nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket of that number cannot be made. Nothing stays open, or the end of the context would hang."""

    async def test() -> None:
        context = make_context()
        server = Server(context, "tcp://127.0.0.1:*")
        link = Link("node", HERE, [server.address, "tcp://127.0.0.1:1"], Applier())
        made, real = 0, zmq.Context.socket

        def socket(self: Any, *args: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == nth:
                raise zmq.ZMQError(errno.EMFILE)
            return real(self, *args, **options)

        monkeypatch.setattr(zmq.Context, "socket", socket)
        with pytest.raises(zmq.ZMQError):
            await link.run()
        running = asyncio.create_task(link.run())
        await until(lambda: link.sync.state is State.LIVE)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        monkeypatch.undo()
        server.close()
        context.term()

    run(test)


def test_lanes_that_could_not_be_made_are_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastproxy.link.PROBE_AGAIN", 0.3)

    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            end = life.link._ends[0]
            real, failed = end.open, 0

            def fails(kind: int, *more: Any) -> Any:
                nonlocal failed
                failed += 1
                if failed <= 3:
                    raise zmq.ZMQError(errno.EMFILE)
                return real(kind, *more)

            end.open = fails  # type: ignore[method-assign]
            end.fresh = True
            end.probe()
            told: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
            await until(lambda: failed >= 5)
            await until(lambda: end.asks and end.answers)
            assert len(told) == 3
            server.move()
            await until(lambda: (2, "serving") in server.results())

    run(test)


def test_an_interval_that_changes_all_the_time_puts_no_report_off() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            end = life.link._ends[0]
            end.report_every(60_000)
            due = end.report_at
            for milliseconds in range(60_001, 60_100):
                end.report_every(milliseconds)
                assert end.report_at <= due
                due = end.report_at
            end.report_every(200)
            before = len(server.of(Report))
            await until(lambda: len(server.of(Report)) > before)

    run(test)


def test_garbage_on_every_lane_is_counted_and_harmless() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            await until(lambda: server.identity)
            noise = random.Random(4)
            publish, snapshots, answers = server.ends
            asked: list[bytes] = []
            snapshots._on_frames = lambda frames: asked.append(frames[0])
            server.version += 1
            server.publish(server.head())
            await until(lambda: asked)
            for _ in range(50):
                junk = [noise.randbytes(noise.randrange(60)) for _ in range(noise.randrange(4))]
                publish.send([TOPIC, *junk])
                snapshots.send([asked[0], *junk, b""])
                answers.send([server.identity, *junk, b""])
            await until(lambda: life.sync.garbage >= 150)
            snapshots._on_frames = server.on_ask
            await until(lambda: life.live(2))
            assert len(life.said) <= LINES + 10, "the log is not flooded"

    run(test)


def test_a_publisher_comes_back_elsewhere_and_is_asked_again() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: life.live(1))
            port = bound_port(server.ends[0].socket)
            server.close()
            await until(lambda: life.sync.state is State.STALE)
            await until(lambda: "has closed the connection" in life.text)
            context = make_context()
            again = Server(context, "tcp://127.0.0.1:*")
            again.ends[0].socket.bind(f"tcp://127.0.0.1:{port}")
            again.version = 5
            await until(lambda: life.live(5))
            assert again.ports != server.ports
            again.close()
            context.term()

    run(test)


def test_nobody_there_is_said() -> None:
    async def test() -> None:
        context = make_context()
        with system.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            life = Life(context, [f"tcp://127.0.0.1:{nobody.getsockname()[1]}"])
            await until(lambda: "cannot be reached" in life.text)
            await life.close()
        context.term()

    run(test)


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [("wrong key", "keys", "its key is another"), ("", "keys", "uses CURVE"), ("keys", "", "uses CURVE")],
)
def test_a_refused_connection_is_said(ours: str, theirs: str, why: str) -> None:
    async def test() -> None:
        context = make_context()
        key = new_curve()
        server = Server(context, curve=key if theirs else None)
        mine = {"keys": new_curve(key.public), "wrong key": new_curve(new_curve().public), "": None}[ours]
        life = Life(context, [server.address], mine)
        await until(lambda: why in life.text)
        assert life.sync.version == 0
        await life.close()
        server.close()
        context.term()

    run(test)


def test_keys_that_fit() -> None:
    async def test() -> None:
        context = make_context()
        key = new_curve()
        server = Server(context, curve=key)
        life = Life(context, [server.address], new_curve(key.public))
        await until(lambda: life.live(1))
        await life.close()
        server.close()
        context.term()

    run(test)


def test_a_refusal_on_the_answer_lane_is_said() -> None:
    async def test() -> None:
        async with pair() as (server, life):
            await until(lambda: server.identity)
            server.ends[2].send([server.identity, *encode(Refused(reason="the key was revoked"))])
            await until(lambda: "refuses: the key was revoked" in life.text)

    run(test)


def test_a_lost_announce_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("fastproxy.link.PROBE_AGAIN", 0.5)
        context = make_context()
        server = Server(context)
        server.ends[0]._on_frames = lambda frames: None
        life = Life(context, [server.address])
        await until(lambda: life.link._ends and life.link._ends[0].well)
        server.ends[0]._on_frames = server.on_subscription
        await until(lambda: life.live(1))
        await life.close()
        server.close()
        context.term()

    run(test)


def test_no_descriptor_is_left() -> None:
    async def test() -> None:
        async with pair() as (_, life):
            await until(lambda: life.live(1))

    run(test)
    before = len(os.listdir("/proc/self/fd"))
    run(test)
    assert len(os.listdir("/proc/self/fd")) <= before
