"""Tokens of the HTTP API: kept as hashes, compared in constant time, read again when the file changes."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl import tokens
from ctrl.tokens import Tokens, add_token, revoke_token
from fastproxy.keys import KeyError_


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_a_token_is_shown_once_and_kept_as_its_hash(path: Path) -> None:
    token = add_token(path, "alice", "operator")
    assert len(token) == 43
    assert token not in path.read_text()
    assert hashlib.sha256(token.encode()).hexdigest() in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(KeyError_, match="alice has a token already"):
        add_token(path, "alice", "node")


def test_the_field_names_its_holder(path: Path) -> None:
    alice, node = add_token(path, "alice", "operator"), add_token(path, "ci", "node")
    known = Tokens.load(path)
    assert known.role_of(f"Bearer {alice}") == "operator"
    assert known.role_of(f"bearer  {node}") == "node"
    holder = known.holder_of(f"Bearer {node}")
    assert holder and holder.name == "ci"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic {}",
        "{}",
        "Bearer {} x",
        "Bearer {}x",
        "Bearer {}\n",
        "Bearer,{}",
    ],
)
def test_fields_that_are_nobodys(path: Path, header: str | None) -> None:
    token = add_token(path, "alice", "operator")
    assert Tokens.load(path).role_of(header and header.format(token)) is None


def test_one_wrong_character_and_a_field_without_end(path: Path) -> None:
    token = add_token(path, "alice", "operator")
    known = Tokens.load(path)
    assert known.role_of("Bearer " + ("A" if token[0] != "A" else "B") + token[1:]) is None
    assert known.role_of("Bearer " + " " * 10_000_000 + token) is None


@given(st.text(max_size=100))
def test_no_text_is_a_token(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("t") / "tokens"
    add_token(path, "alice", "operator")
    known = Tokens.load(path)
    assert known.role_of(text) is None
    assert known.role_of(f"Bearer {text}") is None


def test_a_change_of_the_file_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LOOK", 0.0)
    alice = add_token(path, "alice", "operator")
    known = Tokens.load(path)
    bob = add_token(path, "bob", "operator")
    assert known.role_of(f"Bearer {bob}") == "operator"
    revoke_token(path, "alice")
    assert known.role_of(f"Bearer {alice}") is None
    with pytest.raises(KeyError_, match="alice has no token"):
        revoke_token(path, "alice")


def test_half_an_edit_locks_nobody_out_and_keeps_nobody_in(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "LOOK", 0.0)
    alice, bob = add_token(path, "alice", "operator"), add_token(path, "bob", "operator")
    known = Tokens.load(path)
    lines = [line for line in path.read_text().splitlines() if " alice " not in line]
    path.write_text("\n".join([*lines, "operator carol"]))
    assert known.role_of(f"Bearer {bob}") == "operator"
    assert known.role_of(f"Bearer {alice}") is None
    assert "tokens:3: a line is: operator|node name sha256" in known.problems[0]
    path.chmod(0o644)
    path.write_text("")
    assert known.role_of(f"Bearer {bob}") == "operator"
    assert "chmod 600" in known.problems[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("operator a", "tokens:1: a line is"),
        ("\nking a " + "0" * 64, "tokens:2: a line is"),
        ("node ../a " + "0" * 64, "is no name of a party"),
        ("node a " + "0" * 63 + "g", "tokens:1: a line is"),
    ],
)
def test_a_wrong_line_is_named_at_the_start(path: Path, text: str, why: str) -> None:
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(KeyError_, match=why):
        Tokens.load(path)


def test_a_file_that_others_can_read_is_refused(path: Path) -> None:
    add_token(path, "alice", "operator")
    path.chmod(0o640)
    with pytest.raises(KeyError_, match=f"chmod 600 {path}"):
        Tokens.load(path)
    with pytest.raises(KeyError_, match="no file|No such file"):
        Tokens.load(path.with_name("none"))


def test_roles_and_names_are_checked(path: Path) -> None:
    for name, role in (("a", "relay"), ("a b", "operator")):
        with pytest.raises(KeyError_):
            add_token(path, name, role)
    assert not path.exists()
