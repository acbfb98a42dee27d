"""The access log: one line of valid JSON for each exchange, whatever the bytes and whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastproxy import _accesslog, _journal
from fastproxy.agent.telemetry import Telemetry
from fastproxy.errors import Kind

ROOT = Path(__file__).resolve().parents[2]
FIELDS = [
    "start_time",
    "method",
    "path",
    "protocol",
    "response_code",
    "response_flags",
    "response_code_details",
    "bytes_received",
    "bytes_sent",
    "duration_us",
    "upstream_us",
    "request_id",
    "authority",
    "user_agent",
    "x_forwarded_for",
    "downstream_remote_address",
    "upstream_host",
    "upstream_cluster",
    "route_name",
    "plan_version",
    "worker",
    "attempts",
    "upgraded",
]


class Rig:
    def __init__(self, log: str, size: int = 1 << 22) -> None:
        self.telemetry = Telemetry("edge", log)
        fd = _journal.create(size)
        self.writer = _journal.Writer(fd)
        self.telemetry.attach(3, fd)
        os.close(fd)
        self.drain = self.telemetry._drain.step


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def rig(path: Path) -> Iterator[Rig]:
    yield Rig(str(path))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_every_field_of_a_forwarded_exchange(rig: Rig, path: Path) -> None:
    rig.telemetry.names(42, {9: "reviews#1"}, {5: "outbound|80||reviews"}, {6: "127.0.0.1:9001"}, {0: "mesh"})
    rig.writer.append(
        start_us=1_700_000_000_012_345,
        method=b"POST",
        path=b"/a?b=c",
        authority=b"reviews",
        user_agent=b"curl/8",
        forwarded_for=b"10.0.0.1",
        request_id=b"id-1",
        minor=1,
        status=201,
        upstream_status=201,
        bytes_received=10,
        bytes_sent=20,
        duration_us=3000,
        upstream_us=2500,
        plan_version=42,
        route=9,
        cluster=5,
        endpoint=6,
        client_family=int(socket.AF_INET),
        client=socket.inet_aton("192.0.2.7"),
        client_port=50000,
        attempts=2,
        worker=99,
    )
    rig.drain()
    [line] = lines(path)
    assert list(line) == FIELDS
    assert line == {
        "start_time": "2023-11-14T22:13:20.012345Z",
        "method": "POST",
        "path": "/a?b=c",
        "protocol": "HTTP/1.1",
        "response_code": 201,
        "response_flags": "-",
        "response_code_details": "via_upstream",
        "bytes_received": 10,
        "bytes_sent": 20,
        "duration_us": 3000,
        "upstream_us": 2500,
        "request_id": "id-1",
        "authority": "reviews",
        "user_agent": "curl/8",
        "x_forwarded_for": "10.0.0.1",
        "downstream_remote_address": "192.0.2.7:50000",
        "upstream_host": "127.0.0.1:9001",
        "upstream_cluster": "outbound|80||reviews",
        "route_name": "reviews#1",
        "plan_version": 42,
        "worker": 3,
        "attempts": 2,
        "upgraded": False,
    }


def test_what_is_absent_is_null(rig: Rig, path: Path) -> None:
    rig.writer.append(
        status=400, error=int(Kind.METHOD), minor=0, plan_version=7, route=1, cluster=1, endpoint=1
    )
    rig.drain()
    [line] = lines(path)
    absent = {name for name, value in line.items() if value is None}
    assert absent == {
        "method",
        "path",
        "upstream_us",
        "request_id",
        "authority",
        "user_agent",
        "x_forwarded_for",
        "downstream_remote_address",
        "upstream_host",
        "upstream_cluster",
        "route_name",
    }
    assert (line["protocol"], line["response_flags"], line["response_code_details"]) == (
        "HTTP/1.0",
        "DPE",
        "method",
    )


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ({}, "direct_response"),
        ({"upstream_status": 200}, "via_upstream"),
        ({"error": Kind.NO_ROUTE}, "no_route"),
        ({"error": Kind.UPSTREAM_PROTOCOL, "detail": Kind.CHUNK}, "upstream_protocol:chunk"),
        ({"error": 255, "detail": 255}, "unknown:unknown"),
    ],
)
def test_details(rig: Rig, path: Path, fields: dict[str, int], details: str) -> None:
    rig.writer.append(**fields)
    rig.drain()
    assert lines(path)[0]["response_code_details"] == details


@pytest.mark.parametrize(
    ("family", "client", "text"),
    [
        (socket.AF_INET, bytes(4), "0.0.0.0:8"),
        (socket.AF_INET6, socket.inet_pton(socket.AF_INET6, "2001:db8::1"), "[2001:db8::1]:8"),
        (socket.AF_UNIX, b"", "unix"),
        (77, b"x" * 16, None),
    ],
)
def test_clients(rig: Rig, path: Path, family: int, client: bytes, text: str | None) -> None:
    rig.writer.append(client_family=int(family), client=client, client_port=8)
    rig.drain()
    assert lines(path)[0]["downstream_remote_address"] == text


def test_a_made_request_id_is_a_uuid(rig: Rig, path: Path) -> None:
    rig.writer.append(uuid=bytes.fromhex("0123456789abcdef0123456789abcdef"))
    rig.drain()
    assert lines(path)[0]["request_id"] == "01234567-89ab-cdef-0123-456789abcdef"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, (1 << 64) - 1))
def test_any_time_is_rfc_3339(us: int) -> None:
    read, write = os.pipe()
    rig = Rig("off", 4096)
    rig.telemetry._drain.set_log(write, 0)
    rig.writer.append(start_us=us)
    rig.drain()
    text = json.loads(os.read(read, 4096))["start_time"]
    os.close(read)
    second = us // 1_000_000 if us < 253402300800_000_000 else 0
    expected = datetime.fromtimestamp(second, UTC).replace(microsecond=us % 1_000_000)
    assert text == expected.isoformat(timespec="microseconds").replace("+00:00", "Z")


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(st.binary(max_size=80), st.text(max_size=40).map(lambda s: s.encode("utf-8", "surrogatepass")))
)
def test_hostile_bytes_become_one_json_string(text: bytes) -> None:
    out = _accesslog.escape(text)
    assert json.loads(b'"' + out + b'"') == text.decode("utf-8", "replace")
    assert all(c >= 0x20 and c != 0x7F for c in out)
    assert not any(0x80 <= ord(c) < 0xA0 for c in out.decode())


def test_every_byte_at_every_place() -> None:
    for byte in range(256):
        for at in range(17):
            text = b"a" * at + bytes([byte]) + b"b" * (16 - at)
            assert json.loads(b'"' + _accesslog.escape(text) + b'"') == text.decode("utf-8", "replace")


def test_hostile_bytes_in_all_texts_stay_one_line(rig: Rig, path: Path) -> None:
    hostile = bytes(range(256)) * 2
    texts = ("method", "authority", "path", "user_agent", "forwarded_for", "request_id")
    rig.telemetry.names(1, {0: 'r"\n'}, {0: "c\\\x00"}, {0: "e\u2028"}, {})
    rig.writer.append(plan_version=1, route=0, cluster=0, endpoint=0, **dict.fromkeys(texts, hostile))
    rig.drain()
    [line] = lines(path)
    assert {
        line[k] for k in ("method", "authority", "path", "user_agent", "x_forwarded_for", "request_id")
    } == {hostile.decode("utf-8", "replace")}
    assert (line["route_name"], line["upstream_cluster"], line["upstream_host"]) == (
        'r"\n',
        "c\\\x00",
        "e\u2028",
    )


def test_the_longest_record_fits_and_is_cut(rig: Rig, path: Path) -> None:
    texts = ("method", "authority", "path", "user_agent", "forwarded_for", "request_id")
    rig.telemetry.names(1, {0: "\x01" * 9000}, {0: "\x01" * 9000}, {0: "\x01" * 9000}, {})
    for _ in range(3):
        rig.writer.append(
            plan_version=1, route=0, cluster=0, endpoint=0, **dict.fromkeys(texts, b"\x01" * 65535)
        )
    assert rig.drain() == 3
    for line in lines(path):
        assert len(line["path"]) == 16384
        assert len(line["route_name"]) == (4096 - 2) // 6


def test_order_and_number_over_many_writes(rig: Rig, path: Path) -> None:
    total = 0
    for _ in range(5):
        total += rig.writer.repeat(5000, 100)
        rig.drain()
    assert total == 25_000
    assert [line["bytes_sent"] for line in lines(path)] == list(range(5000)) * 5
    assert rig.telemetry._drain.log_counts() == (25_000, 0, 0)


def test_reopen_after_a_rename(rig: Rig, path: Path) -> None:
    rig.writer.append(bytes_sent=1)
    rig.drain()
    old = path.rename(path.with_suffix(".1"))
    rig.writer.append(bytes_sent=2)
    rig.drain()
    rig.telemetry.reopen()
    rig.writer.append(bytes_sent=3)
    rig.drain()
    assert [line["bytes_sent"] for line in lines(old)] == [1, 2]
    assert [line["bytes_sent"] for line in lines(path)] == [3]


def test_reopen_that_fails_keeps_the_old_file(rig: Rig, path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        rig.telemetry.reopen()


def test_many_reopens_leak_no_descriptor(rig: Rig) -> None:
    rig.drain()
    before = len(os.listdir("/proc/self/fd"))
    for i in range(50):
        rig.telemetry.reopen()
        if i % 3 == 0:
            rig.drain()
    rig.drain()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_slow_reader_loses_whole_lines_only_and_they_are_counted() -> None:
    """A pipe nobody empties: the drain goes on, lines are dropped, what arrives is whole."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    rig = Rig("off")
    rig.telemetry._drain.set_log(write, 0)
    sent = 0
    for _ in range(4):
        sent += rig.writer.repeat(2000, 50)
        assert rig.drain() == 2000
    made, dropped, _ = rig.telemetry._drain.log_counts()
    assert made + dropped == sent
    assert dropped > 0
    os.set_blocking(read, False)
    received = b""
    while True:
        try:
            received += os.read(read, 1 << 20)
        except BlockingIOError:
            if received.count(b"\n") == made:
                break
            rig.drain()
    os.close(read)
    assert [json.loads(line)["path"] for line in received.splitlines()] == ["a" * 50] * made


def test_reopen_in_the_middle_of_a_line_starts_the_new_file_with_a_whole_one(path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    rig = Rig("off")
    rig.telemetry._drain.set_log(write, 0)
    rig.writer.repeat(700, 50)
    rig.drain()
    made, dropped, _ = rig.telemetry._drain.log_counts()
    rig.telemetry._drain.set_log(os.open(path, os.O_CREAT | os.O_WRONLY), 0)
    rig.drain()
    old = os.read(read, 1 << 20)
    os.close(read)
    assert not old.endswith(b"\n")
    new = lines(path)
    assert old.count(b"\n") + 1 + len(new) == made
    assert new[-1]["bytes_sent"] == 699
    assert rig.telemetry._drain.log_counts()[1] == dropped + 1


def test_a_closed_pipe_drops_and_counts() -> None:
    read, write = os.pipe()
    rig = Rig("off")
    rig.telemetry._drain.set_log(write, 2)
    os.close(read)
    rig.writer.repeat(1000, 10)
    assert rig.drain() == 1000
    made, dropped, errors = rig.telemetry._drain.log_counts()
    assert made == dropped == 1000
    assert errors > 0


def test_a_full_disk_drops_and_counts() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    rig = Rig(str(full))
    for _ in range(4):
        rig.writer.repeat(2000, 50)
        assert rig.drain() == 2000
    made, dropped, errors = rig.telemetry._drain.log_counts()
    assert made + dropped == 8000
    assert dropped > 0
    assert errors > 0
    rig.telemetry.stop()
    assert rig.telemetry._drain.log_counts()[1] == 8000


def test_a_socket_takes_the_log() -> None:
    ours, theirs = socket.socketpair()
    rig = Rig("off")
    rig.telemetry._drain.set_log(theirs.detach(), 1)
    rig.writer.append(path=b"/s")
    rig.drain()
    with ours:
        assert json.loads(ours.recv(65536))["path"] == "/s"


def test_a_pipe_that_may_block_never_does() -> None:
    """Mode 2: the descriptor is blocking and shared; small pieces, only when poll says there is room."""
    read, write = os.pipe()
    rig = Rig("off")
    rig.telemetry._drain.set_log(write, 2)
    rig.writer.repeat(5000, 50)
    assert rig.drain() == 5000
    received = os.read(read, 1 << 20)
    os.close(read)
    assert len(received) >= 32768
    assert json.loads(received.splitlines()[0])["bytes_sent"] == 0


STDOUT = """
import os
from fastproxy import _journal
from fastproxy.agent.telemetry import Telemetry
telemetry = Telemetry("edge", "-")
fd = _journal.create(1 << 16)
telemetry.attach(0, fd)
telemetry.start()
_journal.Writer(fd).repeat(100, 3)
telemetry.stop()
assert os.get_blocking(1)
"""


@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
def test_standard_output(kind: str, path: Path) -> None:
    """Whatever it is, it gets the lines and stays blocking for those who share it."""
    command = [sys.executable, "-c", STDOUT]
    if kind == "pipe":
        out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    elif kind == "file":
        with path.open("wb") as file:
            subprocess.run(command, cwd=ROOT, stdout=file, check=True)
        out = path.read_bytes()
    else:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subprocess.run(command, cwd=ROOT, stdout=theirs, check=True)
            theirs.close()
            out = b"".join(iter(lambda: ours.recv(65536), b""))
    assert [json.loads(line)["bytes_sent"] for line in out.splitlines()] == list(range(100))


def test_a_path_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Telemetry("edge", str(tmp_path / "no" / "such" / "folder"))
    assert caught.value.errno == errno.ENOENT
