"""Documents and their errors: ``# error: field: message`` in a case stands on the line it must name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastproxy.check import check

CASES = Path(__file__).resolve().parents[1] / "cases" / "resources"
SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "samples" / "istio-bookinfo"


def expected(text: str) -> list[tuple[int, str]]:
    """(line, ``field: message``) of each mark; several of one line are parted by ``|``."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        _, mark, rest = line.partition("# error: ")
        found += [(number, one.strip()) for one in rest.split(" | ")] if mark else []
    return found


@pytest.mark.parametrize("case", sorted(CASES.glob("*.yaml")), ids=lambda p: p.stem)
def test_case(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    problems = check(case.name)
    got = [(p.line, str(p).removeprefix(f"{case.name}:{p.line}: ")) for p in problems]
    assert sorted(got) == sorted(expected(case.read_text()))


def test_cases_are_there() -> None:
    names = {p.stem for p in CASES.glob("*.yaml")}
    assert {"bookinfo", "later", "unknown", "together"} <= names


@pytest.mark.parametrize("end", ["\r\n", "\n"], ids=["crlf", "lf"])
def test_line_ends_do_not_move_errors(end: str, tmp_path: Path) -> None:
    text = (CASES / "later.yaml").read_text()
    (tmp_path / "a.yaml").write_bytes(text.replace("\n", end).encode())
    got = {p.line for p in check(str(tmp_path / "a.yaml"))}
    assert got == {line for line, _ in expected(text)}


def _samples() -> list[Path]:
    return sorted(SAMPLES.glob("*.yaml")) or [SAMPLES]


@pytest.mark.parametrize("sample", _samples(), ids=lambda p: p.stem)
def test_istio_samples(sample: Path) -> None:
    """Real documents: read unchanged, and where they inject faults, told so with the line."""
    if not sample.is_file():
        pytest.skip(f"needs {SAMPLES}, which is not part of this project")
    problems = check(str(sample))
    lines = sample.read_text().split("\n")
    faults = [i for i, line in enumerate(lines, 1) if line.strip(" -") == "fault:"]
    assert [p.line for p in problems] == faults
    for problem in problems:
        assert problem.field == "spec.http[0].fault"
        assert problem.message == "known but not supported yet"


def test_istio_samples_in_one_folder(tmp_path: Path) -> None:
    """The variants of one document lie side by side there: the first is taken, the others are named."""
    if not SAMPLES.is_dir():
        pytest.skip(f"needs {SAMPLES}, which is not part of this project")
    for sample in SAMPLES.glob("*.yaml"):
        shutil.copy(sample, tmp_path)
    messages = [p.message for p in check(str(tmp_path))]
    assert messages.count("known but not supported yet") == 3
    assert all("is defined twice" in m or "supported yet" in m for m in messages)
