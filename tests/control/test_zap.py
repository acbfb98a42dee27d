"""The authority: every handshake is asked about, a change of the list counts at once, refusals are told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from ctrl import keys, zap
from ctrl.zap import Authority, user_of
from fastproxy.keys import Curve, KeyError_, new_curve
from fastproxy.sockets import make_context, open_socket
from tests.control.wired import key_of, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.init(tmp_path / "keys")
    return tmp_path / "keys"


class Gathering:
    """A bound ROUTER that asks an authority, and those who try to get in."""

    def __init__(self, folder: Path) -> None:
        self.refused: list[tuple[str, str, str]] = []
        self.context, self.theirs = make_context(), zmq.Context()
        self.authority = Authority(folder / "allow", lambda *told: self.refused.append(told))
        self.authority.start(self.context)
        server = keys.server_key(folder).curve
        self.socket = open_socket(self.context, zmq.ROUTER, curve=server, zap_domain=self.authority.domain)
        self.socket.bind("tcp://127.0.0.1:0")
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.authority.protect(self.socket)
        self.clients: list[Any] = []

    def client(self, curve: Curve | None) -> Any:
        socket = open_socket(self.theirs, zmq.DEALER, curve=curve)
        socket.connect(self.address)
        socket.send(b"hello")
        self.clients.append(socket)
        return socket

    def read(self) -> bool:
        """ZeroMQ ends a connection only when its owner looks at the socket, as owners do."""
        for socket in (self.socket, *self.clients):
            socket.poll(0)
        return True

    async def heard(self) -> zmq.Frame:
        await until(lambda: self.socket.poll(0), what="nothing was heard")
        return self.socket.recv_multipart(copy=False)[-1]

    def close(self) -> None:
        self.authority.close()
        self.authority.close()
        for socket in (self.socket, *self.clients):
            socket.close()
        self.context.term()
        self.theirs.term()


@contextlib.contextmanager
def gathering(folder: Path) -> Iterator[Gathering]:
    made = Gathering(folder)
    try:
        yield made
    finally:
        made.close()


def test_who_is_allowed_is_known_by_name_in_every_message(folder: Path) -> None:
    key, relay = key_of(folder, "node-a"), key_of(folder, "hop", "relay")

    async def run() -> None:
        with gathering(folder) as place:
            for curve, known in ((key.curve, ("node-a", "node")), (relay.curve, ("hop", "relay"))):
                place.client(curve)
                frame = await place.heard()
                assert user_of(frame) == curve.public.decode()
                assert place.authority.name_of(user_of(frame)) == known
                assert place.authority.name_of(user_of(frame).encode()) == known
            assert place.refused == []

    asyncio.run(run())


@pytest.mark.parametrize("who", ["unknown", "operator", "plain", "wrong-server"])
def test_who_is_not_allowed_is_not_heard_and_is_told_of(folder: Path, who: str) -> None:
    curve = new_curve(keys.server_key(folder).curve.public)
    reasons = {
        "unknown": "never allowed, or it was revoked",
        "operator": "the key of boss is of role operator, which uses the HTTP API",
        "plain": "it broke off the handshake",
        "wrong-server": "it has another key for this server",
    }
    if who == "operator":
        keys.allow(folder, "boss", curve.public.decode(), "operator")
    elif who == "wrong-server":
        keys.allow(folder, "node-a", curve.public.decode())
        curve = Curve(curve.public, curve.secret, new_curve().public)

    async def run() -> None:
        with gathering(folder) as place:
            place.client(None if who == "plain" else curve)
            await until(lambda: place.refused, what="no refusal was told")
            address, name, why = place.refused[0]
            assert reasons[who] in why
            assert address.startswith("127.0.0.1") or (not name and address == "unknown address")
            assert name == (curve.public.decode() if who in ("unknown", "operator") else "")
            assert place.authority.refused == len(place.refused)
            assert not place.socket.poll(100)
            assert place.authority.name_of(curve.public) is None or who == "wrong-server"

    asyncio.run(run())


def test_a_socket_that_nobody_answers_for_lets_nobody_in(folder: Path) -> None:
    key = key_of(folder, "node-a")

    async def run() -> None:
        with gathering(folder) as place:
            place.authority.close()
            place.client(key.curve)
            assert not place.socket.poll(300)

    asyncio.run(run())


def test_allowed_while_it_runs(folder: Path) -> None:
    async def run() -> None:
        with gathering(folder) as place:
            place.client(key_of(folder, "late").curve)
            assert place.authority.name_of(user_of(await place.heard())) == ("late", "node")

    asyncio.run(run())


def test_revoked_while_it_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages mean nothing at once; its connection is cut, that of others only for a moment."""
    monkeypatch.setattr(zap, "LOOK", 0.05)
    bad, good = key_of(folder, "bad"), key_of(folder, "good")

    async def run() -> None:
        with gathering(folder) as place:
            first, second = place.client(bad.curve), place.client(good.curve)
            for _ in range(2):
                await place.heard()
            keys.revoke(folder, "bad")
            await until(lambda: place.authority.name_of(bad.curve.public) is None)
            assert place.authority.name_of(good.curve.public) == ("good", "node")
            await until(lambda: place.read() and place.refused, what="it was not cut, or came in again")
            assert place.refused[0][1] == bad.curve.public.decode()
            with contextlib.suppress(zmq.Again):  # once refused, it has nowhere to send to
                first.send(b"I am still here", zmq.NOBLOCK)
            second.send(b"so am I")
            frame = await place.heard()
            assert (frame.bytes, user_of(frame)) == (b"so am I", good.curve.public.decode())
            assert not place.socket.poll(100)

    asyncio.run(run())


def test_a_revoked_subscriber_hears_nothing_any_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zap, "LOOK", 0.05)
    bad, good = key_of(folder, "bad"), key_of(folder, "good")

    async def run() -> None:
        with gathering(folder) as place:
            curve = keys.server_key(folder).curve
            publish = open_socket(place.context, zmq.XPUB, curve=curve, zap_domain=place.authority.domain)
            publish.setsockopt(zmq.XPUB_VERBOSE, 1)
            publish.bind("tcp://127.0.0.1:0")
            place.authority.protect(publish)
            place.clients.append(publish)
            ends = []
            for key in (bad, good):
                end = open_socket(place.theirs, zmq.SUB, curve=key.curve)
                end.subscribe(b"v/")
                place.clients.append(end)
                end.connect(publish.getsockopt_string(zmq.LAST_ENDPOINT))
                ends.append(end)
                await until(lambda: publish.poll(0))
                assert publish.recv() == b"\1v/"
                publish.send(b"v/1")
                await until(lambda end=end: end.poll(0))
            await asyncio.sleep(0.1)  # what is on its way arrives
            for end in ends:
                while end.poll(0):
                    end.recv()
            keys.revoke(folder, "bad")
            await until(lambda: place.read() and place.refused)
            while ends[1].poll(0):
                ends[1].recv()

            def again() -> bool:
                while publish.poll(0):
                    publish.recv()
                publish.send(b"v/2")
                return bool(ends[1].poll(0))

            await until(again, what="who is allowed did not come back")
            assert ends[0].poll(100) == 0

    asyncio.run(run())


def test_half_an_edit_locks_nobody_out_and_keeps_nobody_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zap, "LOOK_FOR_MESSAGES", 0.0)
    a, b = key_of(folder, "a").curve.public, key_of(folder, "b").curve.public
    authority = Authority(folder / "allow")
    (folder / "allow").write_text(f"node a {a.decode()}\nnode half")
    assert authority.name_of(a) == ("a", "node")
    assert authority.name_of(b) is None
    assert authority.problems == [f"{folder}/allow:2: a line is: role name public-key"]
    os.unlink(folder / "allow")
    assert authority.name_of(a) == ("a", "node")
    assert "the list as it was before goes on" in authority.problems[0]
    (folder / "allow").write_text("")
    assert authority.name_of(a) is None
    assert authority.problems == []


def test_a_list_that_is_not_there_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(KeyError_, match="allow list .*: No such file"):
        Authority(tmp_path / "allow")


@pytest.mark.parametrize(
    "request_",
    [
        [b""],
        [b"1.0", b"7"],
        [b"1.0", b"7", b"fastproxy", b"127.0.0.1", b"", b"NULL"],
        [b"1.0", b"7", b"fastproxy", b"127.0.0.1", b"", b"PLAIN", b"user", b"password"],
        [b"1.0", b"7", b"other", b"127.0.0.1", b"", b"CURVE", b"k" * 32],
        [b"9.0", b"7", b"fastproxy", b"\xff", b"", b"CURVE", b"k" * 32],
        [b"1.0", b"7", b"fastproxy", b"127.0.0.1", b"", b"CURVE", b"short"],
        [b"x"] * 40,
    ],
    ids=len,
)
def test_every_request_is_answered_and_none_of_these_with_yes(folder: Path, request_: list[bytes]) -> None:
    async def run() -> None:
        with gathering(folder) as place:
            asker = place.context.socket(zmq.REQ)
            asker.linger = 0
            asker.connect(zap.ENDPOINT)
            asker.send_multipart(request_)
            await until(lambda: asker.poll(0), what="no answer")
            answer = asker.recv_multipart()
            asker.close()
            assert answer[0] == b"1.0" and answer[2] == b"400" and answer[4] == b"" and len(answer) == 6
            assert len(place.refused) == 1

    asyncio.run(run())


def test_a_context_has_one_authority(folder: Path) -> None:
    async def run() -> None:
        with gathering(folder) as place, pytest.raises(zmq.ZMQError):
            Authority(folder / "allow").start(place.context)

    asyncio.run(run())


def test_the_log_of_refusals_is_bounded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(folder / "allow")
    with caplog.at_level(logging.WARNING):
        for i in range(5000):
            authority.refuse(f"127.0.0.1:{i}", "", "it came again")
        assert len(caplog.records) == 1
        for i in range(5000):
            authority.refuse(f"10.0.{i // 250}.{i % 250}:1", z85.encode(os.urandom(32)).decode(), "unknown")
        assert len(caplog.records) <= zap.LINES_A_MINUTE + 1
    assert authority.refused == 10_000
    assert len(authority._said) <= zap.MAX_SAID


def test_what_zeromq_made_itself_has_no_user() -> None:
    assert user_of(zmq.Frame(b"x")) == ""
