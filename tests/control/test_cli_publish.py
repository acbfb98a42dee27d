"""fastproxyctl publish: a file straight to proxies, without a server."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctrl import keys
from fastproxy.keys import load_client_key
from fastproxy.link import Link
from fastproxy.wire import Attributes
from tests.support.proxy import ROOT, free_port

from .commands import BAD, MESH, Program, Proxies
from .links import Counting


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.yaml"
    path.write_text(MESH)
    return path


@contextmanager
def publishing(file: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """It runs; and its address."""
    words = ["publish", "-f", str(file), "--publish", "tcp://127.0.0.1:0", "--heartbeat", "200ms"]
    with subprocess.Popen(
        [sys.executable, "-m", "ctrl", *words, "--report", "500ms", *flags],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = said(process, r"publishing at (tcp://\S+);")
            yield process, line
        finally:
            process.kill()


def said(process: subprocess.Popen[str], pattern: str, stream: str = "stdout") -> str:
    """The first line that has it; its first group."""
    lines = []
    for line in getattr(process, stream):
        lines.append(line)
        if found := re.search(pattern, line):
            return found.group(found.lastindex or 0)
    raise AssertionError(f"{pattern} is not in {lines}, {process.communicate()}")


def replace(file: Path, text: str) -> None:
    """As editors do it: never half there."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def test_proxies_serve_the_file_and_its_changes(file: Path) -> None:
    with publishing(file) as (process, address), Proxies(address, ["a", "b"]) as proxies:
        said(process, r"2/2 serving version 1, p50 .* max ")
        replace(file, MESH.replace("3s ", "4s "))
        said(process, r"^version 2, .*: 2 documents")
        said(process, r"2/2 serving version 2")
        replace(file, "what: [")
        assert "mesh.yaml" in said(process, r"^.*error: .*", "stderr")
        # the service is named anew: its host is the old one's, so both must happen in one version
        replace(
            file,
            MESH.replace(
                "metadata: {name: catalog}\nspec:\n  hosts: [catalog]\n  ports",
                "metadata: {name: goods}\nspec:\n  hosts: [catalog]\n  ports",
            ),
        )
        said(process, r"^version 3, .*: 2 documents")
        said(process, r"2/2 serving version 3")
        replace(file, MESH.split("---")[0] + BAD)
        said(process, r"spec\.htp: unknown field", "stderr")
        said(process, r"VirtualService default/bad is left out: this run has had no good version", "stderr")
        said(process, r"^version 4, .*: 1 document$")
        proxies.refuse("b", 5, "too much")
        replace(file, MESH)
        said(process, r"  b rejected it: too much")
        # the route becomes bad and the service is changed: one stays, the other goes out
        replace(file, MESH.replace("timeout:", "tmeout:").replace("9001", "9002"))
        said(process, r"VirtualService default/catalog stays as in version 5", "stderr")
        said(process, r"^version 6, .*: 2 documents")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_once_ends_when_enough_serve(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ctl = Program(monkeypatch, capsys)
    address = f"tcp://127.0.0.1:{free_port()}"
    words = ["publish", "-f", str(file), "--publish", address, "--once"]
    with Proxies(address, ["a", "b"]) as proxies:
        assert "2/2 serving version 1" in ctl.good(*words, "--wait", "2")
        # a new epoch: what a second run has is taken, although its version is 1 again
        file.write_text(MESH.replace("3s ", "5s "))
        assert "2/2 serving version 1" in ctl.good(*words, "--wait", "2")
        assert proxies.appliers["a"].serves == 1
        late = ctl(*words, "--wait", "3", "--timeout", "2s")
        assert late.code == 1 and "2/3 serve version 1 after 2 s" in late.err
        # nobody here knows a good version of the one that is bad, and a proxy may: it keeps what it has
        served = proxies.appliers["a"].serves
        file.write_text(MESH + BAD)
        done = ctl(*words)
        assert done.code == 2 and "spec.htp: unknown field" in done.err
        assert "not all documents are good; proxies keep what they have" in done.err
        assert proxies.appliers["a"].serves == served
    file.write_text(BAD)
    assert ctl(*words).code == 2


def test_an_address_in_use_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ctl = Program(monkeypatch, capsys)
    with publishing(file) as (_, address):
        done = ctl("publish", "-f", str(file), "--publish", address)
    assert done.code == 1 and "in use" in done.err, done
    done = ctl("publish", "-f", str(file), "--publish", "tcp://0.0.0.0:0")
    assert done.code == 2 and "key" in done.err, done


def test_with_keys_only_who_is_allowed_gets_it(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    keys.init(folder)
    key = load_client_key(keys.add_node(folder, "a"))

    async def serve(address: str) -> int:
        applier = Counting()
        link = Link("a", Attributes(), [address], applier, curve=key.curve)
        task = asyncio.create_task(link.run())
        while not applier.serves:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return applier.serves

    with publishing(file, "--keys", str(folder)) as (process, address):
        assert asyncio.run(asyncio.wait_for(serve(address), 20)) == 1
        said(process, r"1/1 serving version 1")
