"""docs/operations.md: its commands are those that there are, and its keys open what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ctrl.cli import app as control
from fastproxy.cli import app as proxy
from fastproxy.keys import load_client_key

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()


def commands() -> list[str]:
    """Every command line of ours: in the blocks of shell, and those in the text that are whole."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
    spans = re.findall(r"`(fastproxy(?:ctl)? [a-z][^`]*)`", TEXT.replace("\n", " "))
    lines = [*blocks.splitlines(), *spans]
    return sorted({line.split("#")[0].strip() for line in lines if line.startswith("fastproxy")})


@pytest.mark.parametrize("line", commands())
def test_the_command_is_there_with_these_options(line: str) -> None:
    program, *words = shlex.split(line.replace("rollback VERSION", "rollback 1"))
    command: Any = typer.main.get_command({"fastproxy": proxy, "fastproxyctl": control}[program])
    while getattr(command, "commands", None):
        assert words and words[0] in command.commands, f"there is no {words[:1]} of {line}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    assert [word for word in words if word.startswith("-") and word not in known] == []


def test_there_are_commands() -> None:
    assert len(commands()) > 15


def test_keys_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> str:
        assert line in TEXT
        done = CliRunner().invoke(control, shlex.split(line)[1:])
        assert done.exit_code == 0, done.output
        return done.output

    run("fastproxyctl keys init keys")
    run("fastproxyctl keys node edge-1 --keys keys")
    assert re.search(r"^[\w-]{43}$", run("fastproxyctl keys token alice --tokens tokens"), re.MULTILINE)
    assert load_client_key("keys/edge-1.key").name == "edge-1"
    run("fastproxyctl keys node hop-1 --relay --keys keys")
    run("fastproxyctl keys node edge-7 --below hop-1 --keys keys")
    assert load_client_key("keys/edge-7.key").curve.server == load_client_key("keys/hop-1.key").curve.public
    assert "edge-7" in run("fastproxyctl keys list --keys keys")
    run("fastproxyctl keys revoke edge-1 --keys keys")
    assert "edge-1" not in run("fastproxyctl keys list --keys keys")
