"""Key files and the folder of keys: what is written can be read, and nothing else is taken for a key."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from ctrl import keys
from fastproxy.keys import (
    NODE,
    RELAY,
    SERVER,
    Curve,
    KeyError_,
    KeyFile,
    check_name,
    check_public,
    load_client_key,
    load_key,
    new_curve,
    save_key,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.init(tmp_path / "keys")
    return tmp_path / "keys"


# --- key files ---


def test_a_key_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    key = KeyFile("node-a", NODE, new_curve(new_curve().public))
    save_key(path, key)
    assert load_key(path) == load_client_key(path) == key
    assert mode(path) == 0o600


def test_the_secret_is_not_printed() -> None:
    curve = new_curve()
    assert curve.secret.decode() not in repr(KeyFile("a", SERVER, curve))


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o666])
def test_a_secret_that_others_can_reach_is_refused_with_the_remedy(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "a.key"
    save_key(path, KeyFile("a", SERVER, new_curve()))
    path.chmod(bits)
    with pytest.raises(KeyError_, match=rf"others can read it; chmod 600 {path}"):
        load_key(path)


def test_a_fifo_or_folder_is_no_key_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(KeyError_, match="not a file|directory"):
            load_key(path)


def test_a_file_that_is_too_long_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.touch(0o600)
    os.truncate(path, 1 << 40)
    with pytest.raises(KeyError_, match="more than 65536 bytes"):
        load_key(path)


def broken() -> list[tuple[str, object, str]]:
    a, b = new_curve(), new_curve()
    good = {"name": "a", "role": "node", "public": a.public.decode(), "secret": a.secret.decode()}
    good["server"] = b.public.decode()
    return [
        ("no-object", [good], "a JSON object is wanted"),
        ("no-secret", {k: v for k, v in good.items() if k != "secret"}, "'secret' is missing"),
        ("number", {**good, "public": 7}, "'public' is missing, or not a string"),
        ("short", {**good, "secret": "abc"}, "'secret' is not a CURVE key"),
        ("too-big-group", {**good, "server": "#" * 40}, "'server' is not a CURVE key"),
        ("other-pair", {**good, "public": b.public.decode()}, "'public' does not belong to 'secret'"),
        ("role", {**good, "role": "king"}, "role 'king' is not one of"),
        ("name", {**good, "name": "../x"}, "is no name of a party"),
        ("no-server", {**good, "server": ""}, "the server's public key. is missing"),
        ("server-of-server", {**good, "role": "server"}, "is a server's and has no place here"),
    ]


@pytest.mark.parametrize(("value", "why"), [case[1:] for case in broken()], ids=[c[0] for c in broken()])
def test_a_file_that_is_no_key_says_why(tmp_path: Path, value: object, why: str) -> None:
    path = tmp_path / "a.key"
    path.touch(0o600)
    path.write_text(json.dumps(value))
    with pytest.raises(KeyError_, match=why) as caught:
        load_key(path)
    assert str(caught.value).startswith(str(path))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("k") / "a.key"
    path.touch(0o600)
    path.write_bytes(data)
    with pytest.raises(KeyError_):
        load_key(path)


def test_a_node_does_not_run_with_the_key_of_the_server(folder: Path) -> None:
    with pytest.raises(KeyError_, match="fastproxyctl keys node"):
        load_client_key(folder / "server.key")


def test_writing_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    key = KeyFile("a", SERVER, new_curve())
    save_key(path, key)
    with pytest.raises(UnicodeEncodeError):
        keys.write_whole(path, "half \ud800")
    assert load_key(path) == key
    assert os.listdir(tmp_path) == ["a.key"]


def test_what_may_be_a_public_key_is_what_zeromq_takes() -> None:
    assert check_public(zmq.curve_keypair()[0])
    for bad in ("", "a" * 39, "a" * 41, "é" * 40, "~" * 40, "#" * 40):
        with pytest.raises(KeyError_):
            check_public(bad)


@pytest.mark.parametrize("name", ["", ".", "../a", "a/b", "a b", "a\n", "-a", "ä", "a" * 201])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(KeyError_):
        check_name(name)


# --- the folder ---


def test_init_makes_a_folder_of_our_own(folder: Path) -> None:
    assert mode(folder) == 0o700
    assert mode(folder / "server.key") == 0o600
    assert keys.server_key(folder).role == SERVER
    assert keys.listed(folder) == []
    with pytest.raises(KeyError_, match="has a server.key already"):
        keys.init(folder)


def test_one_file_is_all_that_a_node_needs(folder: Path) -> None:
    path = keys.add_node(folder, "node-a")
    key = load_client_key(path)
    assert (key.name, key.role) == ("node-a", NODE)
    assert key.curve.server == keys.server_key(folder).curve.public
    assert mode(path) == 0o600
    assert keys.listed(folder) == [keys.Allowed(NODE, "node-a", key.curve.public.decode())]
    with pytest.raises(KeyError_, match="node-a has a key already"):
        keys.add_node(folder, "node-a", RELAY)


def test_below_a_relay_a_node_knows_the_relays_key(folder: Path) -> None:
    relay = load_key(keys.add_node(folder, "hop", RELAY))
    node = load_key(keys.add_node(folder, "node-a", below="hop"))
    assert node.curve.server == relay.curve.public
    for wrong in ("node-a", "nobody"):
        with pytest.raises(KeyError_, match=f"{wrong} has 0 relay keys"):
            keys.add_node(folder, "node-b", below=wrong)


@pytest.mark.parametrize(("name", "role"), [("server", NODE), ("a", "operator"), ("../a", NODE)])
def test_what_cannot_be_a_node(folder: Path, name: str, role: str) -> None:
    with pytest.raises(KeyError_):
        keys.add_node(folder, name, role)
    assert sorted(os.listdir(folder)) == ["allow", "server.key"]


def test_a_key_made_elsewhere_is_allowed_by_its_public_half(folder: Path) -> None:
    mine, other = new_curve().public.decode(), new_curve().public.decode()
    keys.allow(folder, "a", mine)
    keys.allow(folder, "a", other)  # two keys for a while: how one is replaced
    with pytest.raises(KeyError_, match="allowed already, as node a"):
        keys.allow(folder, "b", mine)
    with pytest.raises(KeyError_, match="a is a node already"):
        keys.allow(folder, "a", new_curve().public.decode(), RELAY)
    assert [entry.public for entry in keys.listed(folder)] == [mine, other]


def test_revoke_takes_all_keys_of_a_name_and_leaves_comments(folder: Path) -> None:
    for name in ("a", "b"):
        keys.add_node(folder, name)
    keys.allow(folder, "a", new_curve().public.decode())
    with open(folder / "allow", "a") as file:
        file.write("# a word about a\n")
    assert {entry.name for entry in keys.revoke(folder, "a")} == {"a"}
    assert [entry.name for entry in keys.listed(folder)] == ["b"]
    assert "# a word about a" in (folder / "allow").read_text()
    assert not (folder / "a.key").exists()
    with pytest.raises(KeyError_, match="a is not in"):
        keys.revoke(folder, "a")
    keys.add_node(folder, "a")


def test_lines_that_cannot_be_read_allow_nobody(folder: Path) -> None:
    good = new_curve().public.decode()
    text = f"\n# c\nnode a {good} # spare\nnode b\nking c {good}\nnode d {good}\nnode e {'x' * 41}\n"
    (folder / "allow").write_text(text + f"relay a {new_curve().public.decode()}\n")
    entries, problems = keys.read_allow(folder / "allow")
    assert entries == [keys.Allowed(NODE, "a", good)]
    assert [problem.split(": ")[0].rpartition(":")[2] for problem in problems] == ["4", "5", "6", "7", "8"]
    with pytest.raises(KeyError_, match="allow:4: a line is: role name public-key"):
        keys.listed(folder)


def test_a_list_that_others_can_write_is_refused(folder: Path) -> None:
    (folder / "allow").chmod(0o664)
    with pytest.raises(KeyError_, match="others can write it; chmod go-w"):
        keys.listed(folder)


@given(st.binary(max_size=100))
def test_no_bytes_break_the_list(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("k") / "allow"
    path.touch(0o644)
    path.write_bytes(data)
    try:
        entries, _ = keys.read_allow(path)
        assert entries == []
    except KeyError_ as e:
        assert "UTF-8" in str(e)


def test_two_at_once_lose_nothing(folder: Path) -> None:
    def add(first: int) -> None:
        for i in range(first, first + 10):
            keys.add_node(folder, f"n{i}")

    threads = [threading.Thread(target=add, args=(start,)) for start in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.name for entry in keys.listed(folder)} == {f"n{i}" for i in range(30)}


def test_a_folder_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KeyError_, match="fastproxyctl keys init"):
        keys.add_node(tmp_path / "none", "a")


def test_a_curve_of_a_server_names_no_server() -> None:
    assert Curve(b"p", b"s").server == b""
