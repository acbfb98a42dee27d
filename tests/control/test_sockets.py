"""Sockets on the loop: nothing is missed, nothing blocks; addresses."""

from __future__ import annotations

import asyncio
import socket as system
from collections import Counter
from typing import Any

import pytest
import zmq

from fastproxy.sockets import (
    BATCH,
    MAX_FRAMES,
    Readable,
    bound_port,
    check_address,
    lane_address,
    loopback,
    make_context,
    open_socket,
)
from tests.control.lives import run, until

# --- readable ---


def test_everything_is_read_a_batch_at_a_turn() -> None:
    async def test() -> None:
        context, loop = make_context(), asyncio.get_running_loop()
        left, right = (
            open_socket(context, zmq.DEALER, queue=5000),
            open_socket(context, zmq.DEALER, queue=5000),
        )
        left.bind("inproc://x")
        right.connect("inproc://x")
        turns: Counter[int] = Counter()
        turn = 0

        def count() -> None:
            nonlocal turn
            turn += 1
            if sum(turns.values()) < 3000:
                loop.call_soon(count)

        count()
        one = Readable(loop, left, lambda frames: turns.update([turn]))
        other = Readable(loop, right, lambda frames: None)
        for i in range(3000):
            assert other.send([b"%d" % i])
        await until(lambda: sum(turns.values()) == 3000)
        assert max(turns.values()) <= BATCH
        one.close()
        one.close()
        other.close()
        context.term()

    run(test)


def test_a_word_that_a_send_took_away_is_not_lost() -> None:
    """Both sides answer each other at once; an edge that is missed would stop them for ever."""

    async def test() -> None:
        context, loop = make_context(), asyncio.get_running_loop()
        left, right = open_socket(context, zmq.DEALER), open_socket(context, zmq.DEALER)
        left.bind("tcp://127.0.0.1:*")
        right.connect(f"tcp://127.0.0.1:{bound_port(left)}")
        seen = 0

        def back(frames: list[bytes]) -> None:
            nonlocal seen
            seen += 1
            if seen < 5000:
                one.send(frames)

        one = Readable(loop, left, back)
        other = Readable(loop, right, lambda frames: other.send(frames) and None)
        for _ in range(20):
            other.send([b"ball"])
        await until(lambda: seen >= 5000)
        one.close()
        other.close()
        context.term()

    run(test)


def test_a_message_of_too_many_frames_is_cut_and_the_next_is_whole() -> None:
    async def test() -> None:
        context, loop = make_context(), asyncio.get_running_loop()
        left, right = open_socket(context, zmq.DEALER), open_socket(context, zmq.DEALER)
        left.bind("inproc://x")
        right.connect("inproc://x")
        got: list[list[bytes]] = []
        one = Readable(loop, left, got.append)
        right.send_multipart([b"x"] * 500)
        right.send_multipart([b"a", b"b"])
        await until(lambda: len(got) == 2)
        assert got == [[b"x"] * (MAX_FRAMES + 1), [b"a", b"b"]]
        one.close()
        right.close()
        context.term()

    run(test)


def test_a_full_queue_takes_nothing_and_blocks_nobody() -> None:
    async def test() -> None:
        context = make_context()
        end = Readable(asyncio.get_running_loop(), open_socket(context, zmq.DEALER, queue=3), lambda _: None)
        with system.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            end.socket.connect(f"tcp://127.0.0.1:{nobody.getsockname()[1]}")
            taken = [end.send([b"x"]) for _ in range(10)]
        assert taken == [True] * 3 + [False] * 7
        end.close()
        context.term()

    run(test)


def test_an_error_while_reading_stops_nobody() -> None:
    async def test() -> None:
        context, loop = make_context(), asyncio.get_running_loop()
        left, right = open_socket(context, zmq.DEALER), open_socket(context, zmq.DEALER)
        left.bind("inproc://x")
        right.connect("inproc://x")
        got: list[bytes] = []
        raised: list[Any] = []
        loop.set_exception_handler(lambda _, context: raised.append(context))

        def take(frames: list[bytes]) -> None:
            got.append(frames[0])
            if frames[0] == b"bad":
                raise ValueError("bad")

        one = Readable(loop, left, take)
        for frame in (b"good", b"bad", b"good"):
            right.send(frame)
        await until(lambda: len(got) == 3)
        assert len(raised) == 1
        one.close()
        right.close()
        context.term()

    run(test)


# --- addresses ---


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.9.9.9:1", True),
        ("tcp://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://[::ffff:127.0.0.1]:1", True),
        ("ipc:///run/x", True),
        ("tcp://10.0.0.1:1", False),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://127.0.0.1.example.com:1", False),
        ("tcp://ctrl:1", False),
        ("tcp://*:1", False),
        ("pgm://127.0.0.1:1", False),
        ("", False),
    ],
)
def test_loopback(address: str, near: bool) -> None:
    assert loopback(address) is near


@pytest.mark.parametrize(
    "address", ["", "ctrl:1", "tcp://ctrl", "tcp://*:1", "tcp://a:*", "tcp://a:0", "ipc://"]
)
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(ValueError, match="is no address of a publisher"):
        check_address(address)


def test_lanes_are_at_the_host_of_the_publish_address() -> None:
    assert lane_address("tcp://ctrl:1", 7) == "tcp://ctrl:7"
    assert lane_address("tcp://[::1]:1", 7) == "tcp://[::1]:7"
    assert lane_address("ipc:///run/x", 7) == "ipc:///run/x.7"
