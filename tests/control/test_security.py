"""Who may speak to a control plane, end to end: real publishers and links, and both say what they refuse."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctrl import keys, zap
from ctrl.fleet import Fleet
from ctrl.publisher import Publisher
from fastproxy.keys import Curve, new_curve
from fastproxy.link import Link
from fastproxy.sync import State
from fastproxy.wire import Attributes
from tests.control.wired import Fixed, Node, Served, key_of, nodes, published, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(zap, "LOOK", 0.1)
    keys.init(tmp_path / "keys")
    return tmp_path / "keys"


def refusals(publisher: Publisher) -> str:
    return "\n".join(f"{r.address} {r.name} {r.reason}" for r in publisher.fleet.refused)


def said(node: Node) -> str:
    return "\n".join(node.said)


def test_the_right_key_is_served(folder: Path) -> None:
    key = key_of(folder, "node-a")

    async def run() -> None:
        source = Fixed()
        async with published(source, folder=folder) as publisher:
            node = Node("node-a", [publisher.address], curve=key.curve)
            async with nodes(node):
                await until(lambda: node.served.version == 1)
                source.version = 2
                await publisher.advance()
                await until(lambda: node.served.version == 2)
                await until(lambda: [p.node for p in publisher.fleet.proxies()] == ["node-a"])
                assert refusals(publisher) == ""
                assert "refuse" not in said(node)

    asyncio.run(run())


def strangers(folder: Path) -> dict[str, tuple[Curve | None, str, str]]:
    """Who is not let in: its keys, what the publisher lists, what the node says."""
    server = keys.server_key(folder).curve.public
    operator = new_curve(server)
    keys.allow(folder, "boss", operator.public.decode(), "operator")
    known = new_curve(new_curve().public)
    keys.allow(folder, "known", known.public.decode())
    return {
        "no-key": (None, "it has no key", "one side uses CURVE keys and the other does not"),
        "wrong-server-key": (known, "it has another key for this server", "its key is another than the one"),
        "unknown-key": (new_curve(server), "never allowed", "not on the allow list"),
        "operator": (operator, "role operator, which uses the HTTP API", "not on the allow list"),
    }


@pytest.mark.parametrize("who", ["no-key", "wrong-server-key", "unknown-key", "operator"])
def test_strangers_are_refused_and_both_ends_say_so(folder: Path, who: str) -> None:
    curve, theirs, ours = strangers(folder)[who]

    async def run() -> None:
        async with published(Fixed(), folder=folder) as publisher:
            node = Node("node-a", [publisher.address], curve=curve)
            async with nodes(node):
                await until(lambda: theirs in refusals(publisher), what="the publisher lists it")
                await until(lambda: ours in said(node), what=f"the node says it, not {said(node)}")
                assert node.served.version == 0
                assert node.state is not State.LIVE
                assert publisher.fleet.proxies() == []

    asyncio.run(run())


def test_a_node_with_keys_takes_nothing_from_a_publisher_without(folder: Path) -> None:
    key = key_of(folder, "node-a")

    async def run() -> None:
        async with published(Fixed()) as publisher:
            node = Node("node-a", [publisher.address], curve=key.curve)
            async with nodes(node):
                await until(lambda: "refused" in said(node))
                assert node.served.version == 0

    asyncio.run(run())


def test_a_key_that_is_allowed_later_gets_in_without_a_new_start(folder: Path) -> None:
    curve = new_curve(keys.server_key(folder).curve.public)

    async def run() -> None:
        async with published(Fixed(), folder=folder) as publisher:
            node = Node("node-a", [publisher.address], curve=curve)
            async with nodes(node):
                await until(lambda: "not on the allow list" in said(node))
                keys.allow(folder, "node-a", curve.public.decode())
                await until(lambda: node.served.version == 1, 30)

    asyncio.run(run())


def test_a_node_does_not_speak_for_another(folder: Path) -> None:
    key_of(folder, "node-b")
    key = key_of(folder, "node-a")

    async def run() -> None:
        async with published(Fixed(), folder=folder) as publisher:
            node = Node("node-b", [publisher.address], curve=key.curve)
            async with nodes(node):
                why = "the key of node-a does not own the name 'node-b'"
                await until(lambda: why in refusals(publisher))
                await until(lambda: why in said(node))
                assert publisher.fleet.proxies() == []
                assert node.served.version == 0

    asyncio.run(run())


def test_a_revoked_node_is_put_out_and_the_others_miss_nothing(folder: Path) -> None:
    bad_key, good_key = key_of(folder, "bad"), key_of(folder, "good")

    async def run() -> None:
        source = Fixed()
        async with published(source, folder=folder) as publisher:
            bad = Node("bad", [publisher.address], curve=bad_key.curve)
            good = Node("good", [publisher.address], curve=good_key.curve)
            async with nodes(bad, good):
                await until(lambda: bad.served.version == good.served.version == 1)
                await until(lambda: len(publisher.fleet) == 2)
                keys.revoke(folder, "bad")
                await until(lambda: bad_key.curve.public.decode() in refusals(publisher))
                source.version = 2
                await publisher.advance()
                await until(lambda: good.served.version == 2, 20)
                await until(lambda: good.state is State.LIVE)
                await until(lambda: "not on the allow list" in said(bad), 20)
                assert bad.served.version == 1  # the last good one serves on
                await until(lambda: bad.state is State.STALE)

    asyncio.run(run())


# --- without keys: this machine only ---


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.0.2.1:9910", "tcp://[::]:0"])
def test_publishing_beyond_this_machine_needs_keys(address: str) -> None:
    with pytest.raises(ValueError, match="can be reached from outside this machine: that needs keys"):
        Publisher(Fixed(), Fleet(), bind=address)


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:9910", "tcp://control.example:9910"])
def test_a_link_beyond_this_machine_needs_keys(address: str) -> None:
    async def run() -> None:
        with pytest.raises(ValueError, match="not on this machine: a key file is needed"):
            Link("node-a", Attributes(), [address], Served())

    asyncio.run(run())


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            "fastproxyctl serve --publish tcp://0.0.0.0:0 --api 127.0.0.1:0 --store sqlite:///s.db",
            "needs keys",
        ),
        ("fastproxyctl serve --publish tcp://127.0.0.1:0 --api 0.0.0.0:0 --store sqlite:///s.db", "--tokens"),
        ("fastproxyctl publish -f mesh.yaml --publish tcp://0.0.0.0:0", "needs keys"),
        ("fastproxyctl relay --control tcp://127.0.0.1:1 --publish tcp://0.0.0.0:0", "needs keys"),
        ("fastproxyctl relay --control tcp://192.0.2.1:1 --publish tcp://127.0.0.1:0", "key"),
        ("fastproxy run --control tcp://192.0.2.1:9910", "needs --control-key"),
        ("fastproxy run --control tcp://192.0.2.1:9910 --control-key keys/server.key", "keys node NAME"),
        ("fastproxy run --control tcp://127.0.0.1:9910 --control-key readable.key", "chmod 600 readable.key"),
    ],
)
def test_every_program_refuses_at_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, why: str
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("mesh.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: "
        "{hosts: [a], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC}\n"
    )
    Path("readable.key").write_bytes((folder / "server.key").read_bytes())
    Path("readable.key").chmod(0o644)
    program, *words = line.split()
    module = {"fastproxy": "fastproxy", "fastproxyctl": "ctrl"}[program]
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (1, 2), done.stderr
    assert why in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr


def test_keys_without_an_allow_list_are_no_start(folder: Path) -> None:
    more: Any = {"curve": keys.server_key(folder).curve}
    with pytest.raises(ValueError, match="belong together"):
        Publisher(Fixed(), Fleet(), **more)
