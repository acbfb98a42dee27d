"""The README's first command: the demo answers, reloads what is edited, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
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


def ports(text: str) -> tuple[int, int]:
    edge = re.search(r"listens on http://127\.0\.0\.1:(\d+)", text)
    admin = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", text)
    assert edge and admin, text
    return int(edge.group(1)), int(admin.group(1))


def service(port: int, client: str | None) -> str:
    status, body = demo.ask(port, "/items?page=2", client)
    assert status == 200, body
    seen = json.loads(body)
    assert seen["path"] == "/items?page=2"
    return str(seen["service"])


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def test_once_asks_the_three_questions() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastproxy.demo", "--once"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    answered = re.findall(r'"service": "(\w+)"', done.stdout)
    assert answered == ["android", "ios", "anyone"]
    assert done.stdout.count("$ curl ") == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_it_ends_cleanly(running: subprocess.Popen[str], number: signal.Signals) -> None:
    text = printed(running)
    edge, admin = ports(text)
    assert [service(edge, client) for client in ("Android", "IOS", None, "Symbian")] == [
        "android",
        "ios",
        "anyone",
        "anyone",
    ]
    for line in (demo.curl_line(edge, client) for client, _ in demo.CLIENTS):
        assert line in text
    folder = re.search(r"(\S+)/mesh\.yaml", text)
    assert folder
    os.killpg(running.pid, number)  # as a terminal does: the whole foreground group
    out, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    assert out == "demo: ended\n"
    assert "Traceback" not in err
    assert refused(edge) and refused(admin)
    assert not Path(folder.group(1)).exists()


def test_an_edit_of_its_file_takes_effect(running: subprocess.Popen[str]) -> None:
    text = printed(running)
    edge, _ = ports(text)
    found = re.search(r"(\S+/mesh\.yaml)", text)
    assert found
    config = Path(found.group(1))
    config.write_text(config.read_text().replace("exact: Android", "exact: Symbian"))
    deadline = time.monotonic() + 20
    while service(edge, "Symbian") != "android":
        assert time.monotonic() < deadline, "the edit was not taken"
        time.sleep(0.05)
    assert service(edge, "Android") == "anyone"
