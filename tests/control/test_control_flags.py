"""Flags of ``fastproxy run --control``: what goes together, which addresses and names can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastproxy.flags import FlagError, parameters, settings_from
from fastproxy.keys import KeyFile, new_curve, save_key
from tests.support.proxy import ROOT

PUBLISHER = "tcp://127.0.0.1:9910"


def values(**given: Any) -> dict[str, Any]:
    return {**{p.name: p.default for p in parameters()}, **given}


def key_of(folder: Path, name: str = "node-a", role: str = "node") -> str:
    path = folder / "key.json"
    server = b"" if role == "server" else new_curve().public
    save_key(path, KeyFile(name, role, new_curve(server)))
    return str(path)


def test_addresses_are_parted_by_commas_or_repeated() -> None:
    settings = settings_from(values(control=[f"{PUBLISHER}, tcp://[::1]:1", "ipc:///run/x"], node="a"))
    assert settings.control == [PUBLISHER, "tcp://[::1]:1", "ipc:///run/x"]


def test_it_goes_with_a_mesh_listener_and_labels() -> None:
    settings = settings_from(
        values(control=[PUBLISHER], listen="127.0.0.1:1", label=["app=web"], node="a", namespace="shop")
    )
    assert (settings.listen, settings.label, settings.namespace) == ("127.0.0.1:1", {"app": "web"}, "shop")


@pytest.mark.parametrize(
    ("given", "flag", "says"),
    [
        ({"config": "x"}, "config", "does not go with --control"),
        ({"to": ["a:1"], "listen": "127.0.0.1:1"}, "to", "does not go with --control"),
        ({"control": ["127.0.0.1:9910"]}, "control", "has no scheme; write tcp://127.0.0.1:9910"),
        ({"control": ["http://a:1"]}, "control", "tcp://HOST:PORT or ipc://PATH is wanted"),
        ({"control": ["tcp://127.0.0.1"]}, "control", "tcp://HOST:PORT or ipc://PATH is wanted"),
        ({"control": ["tcp://127.0.0.1:0"]}, "control", "tcp://HOST:PORT or ipc://PATH is wanted"),
        ({"control": ["tcp://*:1"]}, "control", "tcp://HOST:PORT or ipc://PATH is wanted"),
        ({"control": ["tcp://0.0.0.0:1"]}, "control", "is no address to connect to"),
        ({"control": ["tcp://10.0.0.1:1"]}, "control", "not on this machine: that needs --control-key FILE"),
        ({"control": ["tcp://control.example:1"]}, "control", "needs --control-key FILE"),
        ({"control": [PUBLISHER, PUBLISHER]}, "control", "names an address twice"),
        ({"namespace": "A b"}, "namespace", "is no namespace"),
        ({"node": "a/b"}, "node", "'a/b' is no name"),
        ({"node": ".."}, "node", "is no name"),
        ({"node": "n" * 201}, "node", "at most 200"),
        ({"label": [f"k{n}=v" for n in range(257)]}, "label", "at most 256"),
        ({"label": ["k=a\nb"]}, "label", "printable"),
        ({"control_key": "/nowhere/key"}, "control_key", "No such file"),
    ],
)
def test_wrong_values_say_what_is_expected(given: dict[str, Any], flag: str, says: str) -> None:
    with pytest.raises(FlagError) as wrong:
        settings_from(values(**{"control": [PUBLISHER], "node": "a"} | given))
    assert wrong.value.flag == flag
    assert says in str(wrong.value)


@pytest.mark.parametrize("name", ["control_key", "state"])
def test_what_is_for_the_control_plane_is_not_ignored_without_it(name: str) -> None:
    with pytest.raises(FlagError, match="is for --control") as wrong:
        settings_from(values(config="x", **{name: "y"}))
    assert wrong.value.flag == name


def test_a_key_names_the_node_and_lets_it_leave_the_machine(tmp_path: Path) -> None:
    key = key_of(tmp_path)
    settings = settings_from(values(control=["tcp://control.example:9910"], control_key=key))
    assert settings.node == "node-a"
    with pytest.raises(FlagError, match="'node-b' is not whose key .* is: 'node-a'"):
        settings_from(values(control=[PUBLISHER], control_key=key, node="node-b"))
    with pytest.raises(FlagError, match="role operator; a proxy needs one of the role node"):
        settings_from(values(control=[PUBLISHER], control_key=key_of(tmp_path, role="operator")))
    with pytest.raises(FlagError, match="key of the control plane itself"):
        settings_from(values(control=[PUBLISHER], control_key=key_of(tmp_path, role="server")))


def test_a_key_that_cannot_be_read_is_exit_2_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text("{}")
    path.chmod(0o644)
    words = [sys.executable, "-m", "fastproxy", "run", "--control", PUBLISHER, "--control-key", str(path)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTPROXY_")}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("fastproxy: error: --control-key: ") and done.stderr.count("\n") == 1
    assert "chmod 600" in done.stderr
