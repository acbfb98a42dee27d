"""The last good version on disk: whole or not at all, said aloud when it is of no use, never in the way."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastproxy.agent import last_good
from fastproxy.agent.last_good import HEAD, Kept, LastGood, encode, folder_of
from fastproxy.oneline import one_line
from fastproxy.rows import Rows

NODE, VIEW = "node-1", "0123456789abcdef"


def kept(version: int = 7, epoch: int = 3, port: int = 2) -> Kept:
    rows = Rows.pack(one_line("127.0.0.1:1", [f"127.0.0.1:{port}"]))
    return Kept(epoch, version, rows.hash, rows.tables)


def until(what: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_good, "INTERVAL", 0.02)
    monkeypatch.setattr(last_good, "RETRY_MIN", 0.02)


def test_what_was_kept_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    one = LastGood(folder, NODE, VIEW)
    assert one.load() is None
    one.keep(kept())
    one.close()
    assert (one.path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    again = LastGood(folder, NODE, VIEW)
    found = again.load()
    assert found
    epoch, version, rows = found
    assert (epoch, version, rows.hash, again.version) == (3, 7, kept().hash, 7)
    assert rows.unpack() == one_line("127.0.0.1:1", ["127.0.0.1:2"])
    assert sorted(path.name for path in folder.iterdir()) == [f"{NODE}.{VIEW}.last-good"]
    assert LastGood(folder, NODE, "another view").load() is None
    assert LastGood(folder, "node-2", VIEW).load() is None


def stamped(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


WHOLE = encode(NODE, VIEW, kept())
WRONG = {
    "empty": (b"", "it has 0 bytes"),
    "short head": (WHOLE[: HEAD.size - 1], "bytes"),
    "cut": (WHOLE[:-1], "bytes were written and"),
    "longer": (WHOLE + b"\0", "bytes were written and"),
    "other magic": (stamped(WHOLE, 0, b"notGOOD\n"), "another kind of file"),
    "other format": (stamped(WHOLE, 8, struct.pack("<I", 9)), "it has format 9, this build reads 1"),
    "flipped": (stamped(WHOLE, len(WHOLE) - 1, bytes([WHOLE[-1] ^ 1])), "its checksum is wrong"),
    "other view": (encode(NODE, "f" * 16, kept()), "it is of node 'node-1' and view 'ffff"),
    "other node": (encode("node-2", VIEW, kept()), "it is of node 'node-2'"),
    "other hash": (encode(NODE, VIEW, kept()._replace(hash=bytes(32))), "do not give the hash"),
    "no rows": (encode(NODE, VIEW, kept()._replace(epoch="x")), "its body cannot be unpacked"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_of_no_use_is_set_aside(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, says = WRONG[case]
    one = LastGood(tmp_path, NODE, VIEW)
    one.path.write_bytes(data)
    assert one.load() is None
    line = capsys.readouterr().err
    assert "error: the last good version is of no use" in line and says in line
    assert "started without it" in line
    aside = Path(f"{one.path}.bad")
    assert aside.read_bytes() == data and not one.path.exists()
    one.keep(kept())
    one.close()
    assert one.load()


def test_every_byte_that_changes_is_seen(tmp_path: Path) -> None:
    one = LastGood(tmp_path, NODE, VIEW)
    for at in range(len(WHOLE)):
        with pytest.raises(last_good.Damaged):
            one._read(stamped(WHOLE, at, bytes([WHOLE[at] ^ 0x55])))


def test_of_many_versions_the_newest_is_written_and_not_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[float] = []
    real = last_good.write

    def counted(path: Path, data: bytes) -> None:
        written.append(time.monotonic())
        real(path, data)

    monkeypatch.setattr(last_good, "write", counted)
    monkeypatch.setattr(last_good, "INTERVAL", 0.3)
    one = LastGood(tmp_path, NODE, VIEW)
    one.keep(kept(1))
    until(lambda: one.version == 1)
    for version in range(2, 200):
        one.keep(kept(version))
    until(lambda: one.version == 199)
    assert len(written) == 2 and written[1] - written[0] >= 0.29
    one.keep(kept(200))
    started = time.monotonic()
    one.close()  # the end does not wait for the pause
    assert one.version == 200 and time.monotonic() - started < 0.25
    found = LastGood(tmp_path, NODE, VIEW).load()
    assert found and found[1] == 200


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_nothing_is_said_once_and_tried_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = LastGood(tmp_path, NODE, VIEW)
    one.keep(kept(1))
    until(lambda: one.version == 1)
    tries: list[int] = []

    def fails(fd: int) -> None:
        tries.append(fd)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        one.keep(kept(2))
        until(lambda: len(tries) >= 3)
        assert one.error == os.strerror(number)
        one.keep(kept(3))
    until(lambda: one.version == 3)
    one.close()
    assert one.error == ""
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["warning", "info"]
    assert os.strerror(number) in lines[0] and "is written again: 3" in lines[1]
    assert [path.name for path in tmp_path.iterdir()] == [one.path.name]
    found = LastGood(tmp_path, NODE, VIEW).load()
    assert found and found[1] == 3


@pytest.mark.usefixtures("quick")
def test_a_folder_that_goes_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    one = LastGood(folder, NODE, VIEW)
    one.keep(kept(1))
    until(lambda: one.version == 1)
    one.path.unlink()
    folder.rmdir()
    one.keep(kept(2))
    until(lambda: one.version == 2)
    one.close()
    assert one.path.exists()


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(last_good, "write", lambda path, data: go.wait(10))
    monkeypatch.setattr(last_good, "CLOSE_PATIENCE", 0.1)
    one = LastGood(tmp_path, NODE, VIEW)
    started = time.monotonic()
    for version in range(100):
        one.keep(kept(version))
    one.close()
    assert time.monotonic() - started < 2
    go.set()


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    one = LastGood(tmp_path, NODE, VIEW)
    left = tmp_path / f"{one.path.name}.abc{last_good.SCRATCH}"
    other = tmp_path / f"node-2.{VIEW}.last-good.abc{last_good.SCRATCH}"
    left.write_bytes(b"half")
    other.write_bytes(b"half")
    one.load()
    assert not left.exists() and other.exists()


def test_the_folder_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert folder_of("") == tmp_path / ".local/state/fastproxy"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the specification: ignore it
    assert folder_of("") == tmp_path / ".local/state/fastproxy"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert folder_of("") == Path("/var/state/fastproxy")
    assert folder_of("x/y") == Path("x/y")
