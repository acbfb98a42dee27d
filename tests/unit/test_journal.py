"""The journal's ring: nothing lost or torn while there is room, counted when there is none."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastproxy import _journal

TEXTS = ("method", "authority", "path", "user_agent", "forwarded_for", "request_id")
ROOT = Path(__file__).resolve().parents[2]
HEAD, TAIL = 64, 128  # offsets in the header


@pytest.fixture
def ring() -> Iterator[int]:
    fd = _journal.create(4096)
    yield fd
    os.close(fd)


def test_layout_is_the_map() -> None:
    assert _journal.RECORD_BYTES == 160
    assert _journal.HEADER_BYTES == 4096


@pytest.mark.parametrize("size", [0, 1, 2048, 4095, 5000, 1 << 31])
def test_a_size_that_is_no_power_of_two_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        _journal.create(size)


def test_every_field_comes_back(ring: int) -> None:
    writer, reader = _journal.Writer(ring), _journal.Reader(ring)
    numbers = {
        "status": 503,
        "start_us": 1_700_000_000_123_456,
        "duration_us": 4_000_000_000,
        "upstream_us": 17,
        "bytes_received": 1 << 40,
        "bytes_sent": (1 << 64) - 1,
        "plan_version": 1 << 50,
        "listener": 1,
        "route": 2,
        "cluster": 3,
        "endpoint": 4,
        "upstream_status": 599,
        "error": 69,
        "detail": 19,
        "minor": 0,
        "attempts": 255,
        "upgraded": 1,
        "client_family": 10,
        "client_port": 65535,
        "worker": 7,
    }
    texts = {name: name.encode() * (i + 1) for i, name in enumerate(TEXTS)}
    sent = {**numbers, **texts, "client": bytes(range(16)), "uuid": bytes(range(16, 32))}
    assert writer.append(**sent)
    assert reader.read() == [sent]
    assert reader.read() == []


def test_an_unknown_field_is_an_error_and_writes_nothing(ring: int) -> None:
    writer, reader = _journal.Writer(ring), _journal.Reader(ring)
    with pytest.raises(TypeError, match="colour"):
        writer.append(colour=1)
    assert reader.read() == []


def test_a_full_ring_drops_counts_and_takes_more_after_a_read(ring: int) -> None:
    writer, reader = _journal.Writer(ring), _journal.Reader(ring)
    fits = 4096 // 160
    for i in range(fits):
        assert writer.append(bytes_sent=i)
    assert not writer.append(bytes_sent=98)
    assert not writer.append(bytes_sent=99)
    assert writer.dropped == reader.dropped == 2
    assert [r["bytes_sent"] for r in reader.read()] == list(range(fits))
    assert writer.append(bytes_sent=100)
    assert [r["bytes_sent"] for r in reader.read()] == [100]
    assert writer.dropped == 2


def test_a_record_larger_than_the_ring_is_dropped(ring: int) -> None:
    writer, reader = _journal.Writer(ring), _journal.Reader(ring)
    assert not writer.append(path=bytes(5000))
    assert writer.dropped == 1
    assert writer.append(path=b"/")
    assert len(reader.read()) == 1


def test_wraps_at_every_offset() -> None:
    """Start with both words at each offset; records of different sizes come back whole."""
    for offset in range(0, 4096, 8):
        fd = _journal.create(4096)
        with mmap.mmap(fd, 8192) as memory:
            for word in (HEAD, TAIL):
                struct.pack_into("<Q", memory, word, (1 << 33) + offset)
        writer, reader = _journal.Writer(fd), _journal.Reader(fd)
        os.close(fd)
        for text in (b"", b"x" * 701, b"y" * 1500):
            assert writer.append(path=text, method=b"GET")
            assert [(r["path"], r["method"]) for r in reader.read()] == [(text, b"GET")], offset
        assert reader.corrupt == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1800), st.integers(0, 3)), max_size=120))
def test_any_sequence_of_sizes_and_reads(steps: list[tuple[int, int]]) -> None:
    """A model beside it: a deque, and the rule that a record goes in when it and its pad have room."""
    fd = _journal.create(4096)
    writer, reader = _journal.Writer(fd), _journal.Reader(fd)
    os.close(fd)
    waiting: deque[tuple[int, bytes]] = deque()
    head = tail = dropped = 0
    ends: deque[int] = deque()
    for number, (length, reads) in enumerate(steps):
        text = bytes([number % 251]) * length
        size = (160 + length + 7) // 8 * 8
        room = 4096 - head % 4096
        need = size if size <= room else room + size
        expected = head + need - tail <= 4096
        assert writer.append(path=text, bytes_sent=number) is expected
        if expected:
            head += need
            waiting.append((number, text))
            ends.append(head)
        else:
            dropped += 1
        for record in reader.read(reads):
            assert (record["bytes_sent"], record["path"]) == waiting.popleft()
            tail = ends.popleft()
    assert [(r["bytes_sent"], r["path"]) for r in reader.read()] == list(waiting)
    assert writer.dropped == dropped
    assert reader.corrupt == 0


WRITE = """
import sys
from fastproxy import _journal
writer = _journal.Writer(int(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    writer.repeat(1000, 37)
"""


def test_two_processes_at_full_speed_keep_the_order() -> None:
    """A child writes at full speed; what was not dropped arrives in order and whole, and all is counted."""
    fd = _journal.create(1 << 16)
    reader = _journal.Reader(fd)
    rounds = 300
    child = subprocess.Popen([sys.executable, "-c", WRITE, str(fd), str(rounds)], pass_fds=[fd], cwd=ROOT)
    os.close(fd)
    seen, falls, last, ended = 0, 0, -1, False
    while True:
        records = reader.read()
        for record in records:
            assert record["path"] == b"a" * 37
            falls += record["bytes_sent"] <= last
            last = record["bytes_sent"]
        seen += len(records)
        if not records:
            if ended:
                break
            ended = child.poll() is not None
    assert child.returncode == 0
    assert seen + reader.dropped == rounds * 1000
    assert seen > 0
    assert reader.corrupt == 0
    assert falls < rounds  # each of the child's rounds numbers its records from 0; in a round they only grow


def test_not_a_ring() -> None:
    fd = os.memfd_create("none")
    try:
        for size in (4096, 8192):
            os.ftruncate(fd, size)
            for side in (_journal.Writer, _journal.Reader):
                with pytest.raises(ValueError, match="not a journal ring"):
                    side(fd)
    finally:
        os.close(fd)


def test_a_worker_cannot_shrink_the_ring(ring: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(ring, 4096)


def test_a_record_without_commit_is_never_seen(ring: int) -> None:
    """A worker killed half way has written bytes past head; the reader does not look there."""
    writer, reader = _journal.Writer(ring), _journal.Reader(ring)
    with mmap.mmap(ring, 8192) as memory:
        writer.append(path=b"/whole")
        memory[4096 + 168 : 4096 + 400] = b"\xa5" * 232
    assert [r["path"] for r in reader.read()] == [b"/whole"]
    assert reader.corrupt == 0


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 4096 - 9), st.binary(min_size=1, max_size=8)), max_size=6),
    st.one_of(st.none(), st.integers(0, (1 << 64) - 1), st.integers(0, 8192)),
)
def test_a_corrupt_ring_never_hurts_and_heals(
    good: int, pokes: list[tuple[int, bytes]], head: int | None
) -> None:
    """Any bytes in the data, any head: reading ends, no text leaves its record, later records arrive."""
    fd = _journal.create(4096)
    writer, reader = _journal.Writer(fd), _journal.Reader(fd)
    with mmap.mmap(fd, 8192) as memory:
        os.close(fd)
        for i in range(good):
            writer.append(path=b"/%d" % i)
        for at, junk in pokes:
            memory[4096 + at : 4096 + at + len(junk)] = junk
        if head is not None:
            struct.pack_into("<Q", memory, HEAD, head)
        records = reader.read()
        assert len(records) <= 4096 // 160
        assert all(sum(len(r[name]) for name in TEXTS) <= 4096 - 160 for r in records)
        reader.read()
        assert writer.append(path=b"/after")
        assert [r["path"] for r in reader.read()] == [b"/after"]


def test_corruption_is_counted_once_and_skipped(ring: int) -> None:
    writer, reader = _journal.Writer(ring), _journal.Reader(ring)
    with mmap.mmap(ring, 8192) as memory:
        for i in range(3):
            writer.append(bytes_sent=i)
        struct.pack_into("<I", memory, 4096 + 160, 24)  # an exchange of 24 bytes
    assert [r["bytes_sent"] for r in reader.read()] == [0]
    assert reader.corrupt == 1
    assert reader.read() == []
    assert writer.append(bytes_sent=9)
    assert [r["bytes_sent"] for r in reader.read()] == [9]
    assert reader.corrupt == 1
