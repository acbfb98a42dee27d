"""The README's first command: the demo shows a live change, lets itself be tried, leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastproxy import demo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def running() -> Iterator[subprocess.Popen[str]]:
    """The demo as ``make demo`` starts it; a test ends it itself."""
    with subprocess.Popen(
        [sys.executable, "-m", "fastproxy.demo"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def printed(process: subprocess.Popen[str]) -> str:
    """All that it prints before it waits."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            return "".join(lines)
    raise AssertionError("".join(lines) + process.communicate()[1])


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def ctl(api: str, *words: str) -> str:
    """What ``fastproxyctl`` says to the demo's control plane."""
    done = subprocess.run(
        [sys.executable, "-m", "ctrl", *words],
        cwd=ROOT,
        env={**os.environ, "FASTPROXY_API": api},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_once_shows_a_change_that_both_proxies_serve() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastproxy.demo", "--once"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^proxy-(\d) +(\w+) +(\w+) +(\w+)", done.stdout, re.MULTILINE)
    assert rows == [(n, *demo.BEFORE) for n in "12"] + [(n, *demo.AFTER) for n in "12"]
    for version in (1, 2):
        assert re.search(rf"^2/2 serving version {version}, p50 .+, max .+s$", done.stdout, re.MULTILINE)
    assert "-    route: [{destination: {host: catalog, subset: ios}}]" in done.stdout
    asked = re.search(r"^Meanwhile (\d+) requests: .*; none failed\.$", done.stdout, re.MULTILINE)
    assert asked and int(asked.group(1)) > 0
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_it_runs_until_it_is_ended(running: subprocess.Popen[str], number: signal.Signals) -> None:
    text = printed(running)
    edge, other = map(int, re.findall(r"http://127\.0\.0\.1:(\d+)/items    # or (\d+)", text)[0])
    admin = int(re.findall(r"http://127\.0\.0\.1:(\d+)/metrics", text)[0])
    named = re.search(r"FASTPROXY_API=(\S+)", text)  # only where the usual port was taken
    api = named.group(1) if named else "http://127.0.0.1:9900"
    folder = re.search(r"(\S+)/mesh\.yaml\n", text)
    assert folder
    if number == signal.SIGINT:
        ctl(api, "rollback", "1", "--wait")
        assert [demo.service(port, "IOS") for port in (edge, other)] == ["ios", "ios"]
        ctl(api, "breaker", "open", "catalog", "--for", "1m", "--wait")
        assert demo.ask(edge, "/items")[0] == 503
        versions = [row["version"] for row in json.loads(ctl(api, "history", "-o", "json"))["entries"]]
        assert versions == [4, 3, 2, 1]
    os.killpg(running.pid, number)  # as a terminal does: the whole foreground group
    out, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    assert out == "demo: ended\n"
    assert "Traceback" not in err
    assert refused(edge) and refused(other) and refused(admin) and refused(int(api.rpartition(":")[2]))
    assert not Path(folder.group(1)).exists()


def test_a_program_that_ends_is_told(running: subprocess.Popen[str]) -> None:
    text = printed(running)
    folder = re.search(r"(\S+)/mesh\.yaml\n", text)
    assert folder
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    control = [p for p in children if b"ctrl\0serve" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(int(control[0]), signal.SIGKILL)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 1
    assert err.startswith("demo: control ended by itself with -9\n")
    assert not Path(folder.group(1)).exists()
