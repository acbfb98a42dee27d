"""Small parts of the agent, each alone: back-off, state table, log lines, watch, shape, channel, sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import uvloop

from fastproxy.agent import log
from fastproxy.agent.channel import Channel
from fastproxy.agent.listeners import ListenError, Listeners, listen_tcp, listen_unix
from fastproxy.agent.program import command, environment
from fastproxy.agent.publisher import seal
from fastproxy.agent.shape import ShapeError, check_shape
from fastproxy.agent.spawner_link import backoff, describe
from fastproxy.agent.watch import Watch, fingerprint
from fastproxy.agent.workers import NEXT, Event, State, Worker
from fastproxy.oneline import one_line
from fastproxy.tables import Listener


def test_backoff_doubles_from_a_tenth_to_ten_seconds() -> None:
    assert [backoff(n) for n in range(10)] == [0, 0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10]
    assert backoff(10_000) == 10


def test_wait_statuses_in_words() -> None:
    assert describe(11) == "killed by SIGSEGV"
    assert describe(3 << 8) == "ended with status 3"
    assert describe(63) == "killed by signal 63"


def test_every_pair_of_state_and_event() -> None:
    """What the table has is done; every other pair changes nothing."""
    for state, event in product(State, Event):
        worker = Worker.__new__(Worker)
        worker.state = state
        assert worker.step(event) is ((state, event) in NEXT)
        assert worker.state is NEXT.get((state, event), state)
    reached = {State.IDLE}
    while more := {NEXT[p] for p in NEXT if p[0] in reached} - reached:
        reached |= more
    assert reached == set(State)


def test_a_log_line_stays_one_line() -> None:
    assert log.line("error", "what", "where", "do this") == "fastproxy: error: what (where); do this"
    assert "\n" not in log.line("error", "a\nfastproxy: info: forged\x1b[0m")


def test_watch_sees_what_people_do_to_files(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    seen = [fingerprint(str(file)), fingerprint(str(tmp_path))]

    def changed() -> None:
        for number, path in enumerate((file, tmp_path)):
            now = fingerprint(str(path))
            assert now != seen[number]
            seen[number] = now

    file.write_text("a")
    changed()
    (tmp_path / ".new").write_text("b")
    os.replace(tmp_path / ".new", file)
    changed()
    with file.open("a") as f:
        f.write("more")
    changed()
    os.utime(file, ns=(1, 1))
    changed()
    file.unlink()
    changed()
    assert fingerprint(str(tmp_path)) == seen[1]
    (tmp_path / "notes.txt").write_text("not ours")
    assert fingerprint(str(tmp_path))[1:] == seen[1][1:]


def test_watch_waits_until_writing_pauses(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a")

    async def body() -> None:
        watch = Watch(str(file))
        waiting = asyncio.ensure_future(watch.changed())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        file.write_text("ab")
        await asyncio.wait_for(waiting, 2)
        watch.mark()
        again = asyncio.ensure_future(watch.changed())
        await asyncio.sleep(0.3)
        assert not again.done()
        again.cancel()

    uvloop.run(body())


def tables() -> dict[str, Any]:
    return dict(one_line("127.0.0.1:1", ["127.0.0.1:2", "unix:///x"]))


def test_shape_of_good_tables() -> None:
    assert check_shape(tables()) == tables()


CLUSTER = "outbound|2||upstream"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["format"], 99, "this build reads"),
        (["format"], True, "format"),
        (["listeners"], [], "tables.listeners: [] is not a dict"),
        (
            ["listeners", "mesh", "port"],
            65536,
            "tables.listeners[mesh].port: 65536 is not between 0 and 65535",
        ),
        (["listeners", "mesh", "port"], "80", "is not a int"),
        (["listeners", "mesh", "protocol"], "TCP", "is not one of HTTP"),
        (["listeners", "mesh", "extra"], 1, "unknown field 'extra'"),
        (["routes", "mesh *", "routes"], [{"name": "x"}], "matches is missing"),
        (["routes", "mesh *", "routes"], [{"name": "x", "matches": []}], "needs one action"),
        (["routes", "mesh *", "source"], ["a\r\nb"], "line break"),
        (["routes"], {b"x": {}}, "tables.routes, key: b'x' is not a str"),
        (
            ["routes", "mesh *", "routes", 0, "destinations", 0, "weight"],
            -1,
            "].routes[0].destinations[0].weight: -1",
        ),
        (
            ["routes", "mesh *", "routes", 0, "matches"],
            [{}, {"ignore_case": 1}],
            "].matches[1].ignore_case: 1",
        ),
        (
            ["routes", "mesh *", "routes", 0, "matches"],
            [{"headers": {"a": {"exact": "\0"}}}],
            ".headers[a].exact: ",
        ),
        (["routes", "mesh *", "routes", 0, "rewrite"], {"regex": ["a"]}, "rewrite.regex: 2 items are wanted"),
        (
            ["routes", "mesh *", "routes", 0, "direct"],
            {"status": 200, "body": "x"},
            "direct.body: 'x' is not a bytes",
        ),
        (["breakers"], None, "breakers"),
    ],
)
def test_shape_names_the_place(path: list[str], value: Any, says: str) -> None:
    data = tables()
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ShapeError, match=r".") as wrong:
        check_shape(data)
    assert says in str(wrong.value)


@pytest.mark.parametrize("data", [None, 1, [], {}, {"format": 1}, "x"])
def test_shape_of_something_else(data: Any) -> None:
    with pytest.raises(ShapeError):
        check_shape(data)


def test_a_sealed_block_cannot_be_changed() -> None:
    fd = seal(b"plan")
    try:
        assert os.pread(fd, 10, 0) == b"plan"
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 1),
            lambda: os.ftruncate(fd, 9),
        ):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)


def test_channel_keeps_order_when_the_other_side_is_slow() -> None:
    async def body() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        ended: list[bool] = []
        channel = Channel(
            asyncio.get_running_loop(), ours, lambda text, fds: None, lambda: ended.append(True)
        )
        passed = os.memfd_create("passed")
        sent = [f"{n} {'x' * 1000}" for n in range(2000)]
        for text in sent:
            channel.send(text, [passed])
        os.close(passed)  # waiting packets hold their own
        got = []
        while len(got) < len(sent):
            try:
                data, fds, _flags, _address = socket.recv_fds(theirs, 4096, 4)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            got.append(data.decode())
            assert len(fds) == 1
            os.close(fds[0])
        assert got == sent
        theirs.close()
        channel.send("into the void")
        await asyncio.sleep(0.01)
        assert ended == [True] and channel.closed
        channel.close()

    before = sorted(os.listdir("/proc/self/fd"))
    uvloop.run(body())
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_listening_sockets_are_set_up_for_traffic() -> None:
    with listen_tcp("127.0.0.1", 0) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not sock.getblocking() and not os.get_inheritable(sock.fileno())
        with socket.create_connection(sock.getsockname()), sock.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_why_a_socket_cannot_be_opened(tmp_path: Path) -> None:
    with listen_tcp("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1:{port} is in use by another program; stop it"):
            listen_tcp("127.0.0.1", port)
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:1 is not an address of this machine"):
        listen_tcp("192.0.2.1", 1)
    with pytest.raises(ListenError, match="cannot be bound"):
        listen_tcp("not an address", 1)
    with pytest.raises(ListenError, match="is not a socket path"):
        listen_unix("/" + "x" * 200)
    (tmp_path / "file").write_text("")
    with pytest.raises(ListenError, match="exists and is not a socket"):
        listen_unix(str(tmp_path / "file"))
    with pytest.raises(ListenError, match="cannot be bound: No such file"):
        listen_unix(str(tmp_path / "no" / "folder"))


def row(address: str, port: int = 0) -> Listener:
    return {"address": address, "port": port, "protocol": "HTTP"}


def test_listeners_follow_the_table(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listeners = Listeners()
    table = {"a": row(f"unix://{path}"), "bad": row("192.0.2.1", 1)}
    assert list(listeners.add(table)) == ["a"]
    assert list(listeners.errors) == ["bad"]
    assert stat.S_ISSOCK(path.stat().st_mode) and path.stat().st_mode & 0o777 == 0o666
    assert listeners.add(table) == {}
    assert listeners.leaving(table) == []
    assert listeners.leaving({}) == ["a"]
    assert listeners.leaving({"a": row(f"unix://{path}2")}) == ["a"]
    path.unlink()
    path.write_text("somebody else's by now")
    listeners.close_all()
    assert path.exists()


def test_programs_do_not_look_in_the_working_folder(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "msgpack.py").write_text("raise SystemExit('taken over')")
    done = subprocess.run(
        [*command("fastproxy.resources")],
        input=b"",
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"")
