"""``fastproxyctl serve`` as a process: how it starts, what it says, how it ends, what outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import Response

from ctrl import keys
from ctrl.api import create_api
from ctrl.plane import Plane
from ctrl.serve import Options, _serve, listen, serve
from ctrl.store.memory import MemoryStore
from ctrl.tokens import add_token
from tests.support.proxy import ROOT
from tests.support.server import Server, host

HALF = b"POST /v1/apply HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"


def refused(*words: str, code: int) -> str:
    """What it says when it does not start; one line, and that exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "ctrl", "serve", "--store", "memory:", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_one_line_says_what_serves_where() -> None:
    with Server() as server:
        (line,) = server.lines
        assert line == (
            f"fastproxyctl: API at {server.url}, proxies at {server.address}, store {server.store}, version 0"
        )
        assert server.get("/v1/head")["store"] == server.store


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_also_while_others_wait(number: int) -> None:
    with Server() as server:
        server.apply(host("one"))
        with httpx.Client(trust_env=False, timeout=30) as client:
            answers: list[int] = []

            def wait() -> None:
                answers.append(client.get(f"{server.url}/v1/progress?wait=60&seen=0").status_code)

            waiting = threading.Thread(target=wait)
            waiting.start()
            with client.stream("GET", f"{server.url}/v1/watch") as watching:
                lines = watching.iter_lines()
                assert json.loads(next(lines))["version"] == 1
                began = time.monotonic()
                server.process.send_signal(number)
                assert [line for line in lines if line.strip()] == [], "the stream ends in order"
            waiting.join(10)
            assert answers == [200]
            assert server.stop(number) == 0
            assert time.monotonic() - began < 4
        assert len(server.lines) == 1, server.stderr


def test_what_was_applied_survives_a_kill_and_the_history_goes_on() -> None:
    with Server() as server:
        server.apply(host("one"))
        head = server.get("/v1/head")
        server.kill()
        server.start()
        assert server.get("/v1/head") == head
        assert server.apply(host("two"))["version"] == 2
        assert [r["name"] for r in server.get("/v1/resources")["resources"]] == ["one", "two"]


def test_a_rollout_whose_owner_was_killed_is_voided() -> None:
    with Server(heartbeat="100ms") as server:
        server.apply(host("one"))
        server.apply(host("two"), stages=["1"], bake="10m")
        server.kill()
        server.start()
        assert server.get("/v1/head")["candidate"]["version"] == 2
        deadline = time.monotonic() + 30
        while server.get("/v1/head")["candidate"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.get("/v1/rollout")["state"] == "aborted"
        assert server.apply(host("three"))["version"] == 3


def test_it_may_open_as_many_files_as_the_system_lets_it() -> None:
    """Three connections for each proxy: with the usual 1,024 the 340th had no place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with Server(store="memory:") as server:
            assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_new_epoch_is_higher() -> None:
    with Server() as server:
        server.apply(host("one"))
        before = server.get("/v1/head")
        server.stop()
        server.start("--new-epoch")
        after = server.get("/v1/head")
        assert after["epoch"] > before["epoch"]
        assert after["version"] == before["version"]


def test_tokens_and_keys_let_it_listen_elsewhere(tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens", "eve", "operator")
    keys.init(tmp_path / "keys")
    with Server(
        api="0.0.0.0:0", publish="tcp://0.0.0.0:0", tokens=tmp_path / "tokens", keys=tmp_path / "keys"
    ) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{url}/v1/head").status_code == 401
            answer = client.get(f"{url}/v1/head", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 200


def test_addresses_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("--api", f"127.0.0.1:{port}", "--publish", "tcp://127.0.0.1:0", code=1)
        assert f"--api 127.0.0.1:{port}" in said and "in use" in said
        said = refused("--api", "127.0.0.1:0", "--publish", f"tcp://127.0.0.1:{port}", code=1)
        assert f"--publish tcp://127.0.0.1:{port}" in said and "in use" in said


def test_a_store_that_cannot_be_opened_is_one_sentence() -> None:
    said = refused("--store", "sqlite:////nowhere/at/all/store.db", "--api", "127.0.0.1:0", code=1)
    assert "/nowhere/at/all" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"api": "0.0.0.0:0"}, "--tokens"),
        ({"api": "[::]:0"}, "--tokens"),
        ({"api": "nowhere"}, "IP:PORT"),
        ({"api": "127.0.0.1:99999"}, "IP:PORT"),
        ({"publish": "tcp://0.0.0.0:0"}, "keys"),
        ({"publish": "udp://x"}, "udp://x"),
        ({"store": "mysql://x"}, "sqlite:///"),
        ({"tokens": "/nowhere/tokens"}, "/nowhere/tokens"),
        ({"keys": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_cannot_be_is_a_sentence(given: dict[str, str], said: str) -> None:
    """ValueError, which the command line makes exit code 2 of."""
    usual = Options(store="memory:", publish="tcp://127.0.0.1:0", api="127.0.0.1:0")
    options = replace(usual, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError) as told:
        asyncio.run(serve(options))
    assert said in str(told.value)


def test_half_a_request_does_not_stay_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, to make the time short."""
    monkeypatch.setattr("ctrl.serve.RECEIVE_SECONDS", 0.2)

    async def main() -> None:
        plane = Plane(MemoryStore(), bind="tcp://127.0.0.1:0")
        await plane.start()
        with listen("127.0.0.1:0", False) as listener:
            port = listener.getsockname()[1]
            serving = asyncio.create_task(_serve(create_api(plane), listener, plane))
            for said in (
                b"",
                b"GET /live HT",
                b"POST /v1/apply HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(said)
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), 5) == b""
                writer.close()
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.get(f"http://127.0.0.1:{port}/live")).text == "live\n"
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(serving, 10)
        await plane.close()

    asyncio.run(main())


def test_who_reads_nothing_of_its_answer_is_cut_off_and_who_reads_slowly_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer waits in memory for whoever asked. In this process, to make the time short."""
    monkeypatch.setattr("ctrl.serve.SEND_SECONDS", 0.3)
    monkeypatch.setattr("ctrl.api.MAX_WATCHERS", 1)
    size = 8 << 20

    async def main() -> None:
        plane = Plane(MemoryStore(), bind="tcp://127.0.0.1:0")
        await plane.start()
        app = create_api(plane)
        app.add_api_route("/large", lambda: Response(bytes(size)))
        with listen("127.0.0.1:0", False) as listener:
            port = listener.getsockname()[1]
            serving = asyncio.create_task(_serve(app, listener, plane))
            mute, slow, watcher = [
                await asyncio.open_connection("127.0.0.1", port, limit=65536) for _ in range(3)
            ]
            for _, writer in (mute, slow):
                writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            read = 0
            while read < size // 2:  # for longer than it takes to be called mute
                read += len(await slow[0].readexactly(size // 16))
                await asyncio.sleep(0.1)
            whole = await asyncio.wait_for(slow[0].readexactly(size - read), 5)
            assert read + len(whole) == size
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while data := await asyncio.wait_for(mute[0].read(1 << 20), 5):
                    got += len(data)
            assert got < size  # what the kernel had taken

            watcher[1].write(b"GET /v1/watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await watcher[0].readuntil(b"\r\n\r\n")
            async with httpx.AsyncClient(trust_env=False) as client:
                while not plane.watchers:
                    await asyncio.sleep(0.01)
                assert (await client.get(f"http://127.0.0.1:{port}/v1/watch")).status_code == 503
                watcher[1].close()
                while plane.watchers:
                    await asyncio.sleep(0.01)
            for _, writer in (mute, slow):
                writer.close()
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(serving, 10)
        await plane.close()

    asyncio.run(main())
