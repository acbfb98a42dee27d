"""The fuzzer itself: it repeats, it finds what is planted, and it survives a crash of the parser."""

from __future__ import annotations

import mmap
import os
import re
import signal
from pathlib import Path

import pytest

from tests.fuzz import run


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "WORK", tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def last() -> mmap.mmap:
    return mmap.mmap(-1, 3 + run.LARGEST)


def test_a_short_run_finds_nothing_and_repeats(last: mmap.mmap, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for _ in range(2):
        assert run.fuzz(7, 0, 1500, last) == 0
        told.append(re.sub(r"[\d.]+ s", "", capsys.readouterr().out))
    assert "1500 inputs" in told[0]
    assert told[0] == told[1]
    assert int(re.search(r"(\d+) behaviours", told[0])[1]) > 100  # type: ignore[index]


def test_a_planted_fault_is_found_and_kept(
    last: mmap.mmap, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run._http1.is_plain_path

    def wrong(path: bytes, *, portable: bool = False) -> bool:
        return plain(path, portable=portable) or (portable and bytes(path).count(b"/") > 12)

    monkeypatch.setattr(run._http1, "is_plain_path", wrong)
    assert run.fuzz(1, 60, 0, last) == 1
    assert "kept as" in capsys.readouterr().err
    (kept,) = work.iterdir()
    assert kept.suffix == ".path" and kept.read_bytes().count(b"/") > 12
    with pytest.raises(AssertionError):
        run.main(["--replay", str(kept)])


def test_a_crash_is_found_and_kept(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = run.seeds()
    check = run.check

    def deadly(kind: str, data: bytes, guard: run.Guard) -> object:
        if (kind, data) not in corpus:
            os.kill(os.getpid(), signal.SIGKILL)
        return check(kind, data, guard)

    monkeypatch.setattr(run, "check", deadly)
    assert run.main(["--seed", "3"]) == 1
    assert f"signal {int(signal.SIGKILL)}" in capfd.readouterr().err
    (kept,) = work.iterdir()
    assert kept.suffix[1:] in run.KINDS and kept.stat().st_size > 0
