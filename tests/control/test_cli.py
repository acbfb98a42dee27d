"""fastproxyctl against a real server and links that play proxies: what is printed, and the exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.mesh import Serve
from tests.support.proxy import ROOT

from .commands import BAD, MESH, Program, Proxies

NAMES = ("proxy-1", "proxy-2", "proxy-3")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    with Serve(f"sqlite:///{tmp_path_factory.mktemp('store')}/control.db") as running:
        yield running


@pytest.fixture(scope="module")
def proxies(serve: Serve) -> Iterator[Proxies]:
    with Proxies(serve.publish, NAMES) as running:
        yield running


@pytest.fixture
def ctl(serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """The program, on a control plane that holds nothing."""
    program = Program(monkeypatch, capsys, serve.url)
    rows = json.loads(program.good("get", "-A", "-o", "json"))["items"]
    if rows:
        program.good("delete", "-f", "-", stdin=json.dumps({"kind": "List", "items": rows}))
    return program


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    file = tmp_path / "mesh.yaml"
    file.write_text(MESH)
    return file


def connected(serve: Serve, ctl: Program) -> None:
    """All three are there: said by the long poll, not by sleeping."""
    head = httpx.get(f"{serve.url}/v1/head").json()["version"]
    seen: Any = None
    for _ in range(100):
        params = {"version": head, "wait": 5} | ({"seen": seen} if seen is not None else {})
        answer = httpx.get(f"{serve.url}/v1/progress", params=params, timeout=20).json()
        if answer["total"] == len(NAMES):
            return
        seen = answer["seen"]
    raise AssertionError("the proxies did not come")


def version_of(out: str) -> int:
    found = re.search(r"version (\d+)", out)
    assert found, out
    return int(found.group(1))


# --- documents ---


def test_what_is_applied_can_be_seen_changed_and_deleted(ctl: Program, mesh: Path) -> None:
    out = ctl.good("apply", "-f", str(mesh), "-m", "the first")
    assert out.splitlines()[:2] == [
        "ServiceEntry default/catalog created",
        "VirtualService default/catalog created",
    ]
    version = version_of(out)
    assert ctl.good("apply", "-f", str(mesh)) == f"nothing changed: version {version} holds all of it\n"
    assert [line.split() for line in ctl.good("get").splitlines()] == [
        ["KIND", "NAME", "VERSION", "FROM"],
        ["ServiceEntry", "catalog", str(version), f"{mesh}:1"],
        ["VirtualService", "catalog", str(version), f"{mesh}:11"],
    ]
    text = ctl.good("get", "vs/catalog", "-o", "yaml")
    assert "# as agreed" in text and yaml.safe_load(text)["spec"]["http"][0]["timeout"] == "3s"
    assert json.loads(ctl.good("get", "vs", "catalog", "-o", "json"))["kind"] == "VirtualService"
    assert ctl.good("get", "virtualservices", "-o", "name") == "VirtualService/catalog\n"
    assert ctl.good("delete", "vs", "catalog").startswith("VirtualService default/catalog deleted\n")
    assert ctl("get", "vs/catalog").code == 1
    entry = json.loads(ctl.good("history", "-o", "json"))["entries"][1]
    assert (entry["what"], entry["message"], len(entry["changes"])) == ("apply", "the first", 2)


def test_what_get_prints_can_be_applied_again(ctl: Program, mesh: Path) -> None:
    ctl.good("apply", "-f", str(mesh))
    for form in ("yaml", "json"):
        saved = ctl.good("get", "-A", "-o", form)
        ctl.good("delete", "-f", str(mesh))
        assert "2 changes" in ctl.good("apply", "-f", "-", stdin=saved)


def test_a_bad_document_is_told_and_the_good_ones_apply(ctl: Program, mesh: Path) -> None:
    mesh.write_text(MESH + BAD)
    strict = ctl("apply", "-f", str(mesh), "--strict")
    line = MESH.count("\n") + 7
    told = f"{mesh}:{line}: error: spec.htp: unknown field (did you mean http?)"
    assert strict.code == 2 and told in strict.err and "nothing was applied" in strict.err and not strict.out
    done = ctl("apply", "-f", str(mesh))
    assert done.code == 2 and told in done.err and "2 changes" in done.out
    mesh.write_text(BAD)
    assert ctl("apply", "-f", str(mesh)).code == 2


def test_a_dry_run_changes_nothing(ctl: Program, mesh: Path) -> None:
    out = ctl.good("apply", "-f", str(mesh), "--dry-run", "--diff")
    assert "VirtualService default/catalog created (dry run)" in out and "+  hosts: [catalog]" in out
    assert "2 documents would change" in out
    assert ctl("get").out == ""


def test_diff_has_the_exit_codes_of_diff(ctl: Program, mesh: Path) -> None:
    ctl.good("apply", "-f", str(mesh))
    assert ctl("diff", "-f", str(mesh)) == (0, "", "")
    mesh.write_text(MESH.replace("3s ", "4s "))
    done = ctl("diff", "-f", str(mesh))
    assert (done.code, done.err) == (1, "")
    changed = [line for line in done.out.splitlines() if line[0] in "+-"]
    assert changed == [
        "--- now: VirtualService default/catalog",
        "+++ then: VirtualService default/catalog",
        "-  - timeout: 3s                     # as agreed",
        "+  - timeout: 4s                     # as agreed",
    ]
    mesh.write_text(BAD)
    assert ctl("diff", "-f", str(mesh)).code == 2
    assert ctl("diff", "-f", str(mesh.parent / "none.yaml")).code == 2


def test_an_older_version_comes_back(ctl: Program, mesh: Path) -> None:
    first = version_of(ctl.good("apply", "-f", str(mesh)))
    mesh.write_text(MESH.replace("3s ", "4s "))
    ctl.good("apply", "-f", str(mesh))
    shown = ctl.good("show", str(first))
    assert f"version  {first} (epoch " in shown and "VirtualService default/catalog created" in shown
    assert "catalog" in ctl.good("show", str(first), "--documents")
    out = ctl.good("rollback", str(first), "--diff")
    assert "+  - timeout: 3s" in out and "VirtualService default/catalog configured" in out
    assert "3s" in ctl.good("get", "vs/catalog", "-o", "yaml")
    assert ctl.good("history", "--limit", "1").splitlines()[1].split()[4:6] == ["rollback", str(first)]
    done = ctl("show", "99999")
    assert done.code == 1 and "there is no version 99999" in done.err


def test_what_is_not_there_cannot_be_deleted(ctl: Program) -> None:
    done = ctl("delete", "vs/none")
    assert (done.code, done.err) == (1, "VirtualService default/none is not there\n")
    assert ctl("delete", "vs/none", "--ignore-not-found").code == 0


# --- edit ---


def editor(tmp_path: Path, *lines: str) -> str:
    """A program that is called with the file."""
    file = tmp_path / "editor.py"
    body = "".join(f"{line}\n" for line in lines)
    file.write_text(
        f"import sys\npath = sys.argv[1]\ntext = open(path).read()\n{body}open(path, 'w').write(text)\n"
    )
    return f"{sys.executable} {file}"


def test_edit_applies_what_was_saved(
    ctl: Program, mesh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "edits"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "edits").mkdir()
    ctl.good("apply", "-f", str(mesh))
    monkeypatch.setenv("EDITOR", editor(tmp_path, "text = text.replace('3s ', '5s ')"))
    assert "VirtualService default/catalog configured" in ctl.good("edit", "vs/catalog")
    text = ctl.good("get", "vs/catalog", "-o", "yaml")
    assert "5s" in text and "# as agreed" in text and "Edit the document" not in text
    monkeypatch.setenv("EDITOR", "true")
    assert ctl.good("edit", "vs", "catalog") == "edit cancelled: nothing was changed\n"
    assert list((tmp_path / "edits").iterdir()) == []


def test_edit_comes_back_with_the_reasons_and_loses_nothing(
    ctl: Program, mesh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "edits"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "edits").mkdir()
    ctl.good("apply", "-f", str(mesh))
    twice = "words = ('tmeout', 'timeout') if 'refused: ' in text else ('timeout', 'tmeout')"
    change = "text = text.replace(*words).replace('3s ', '6s ')"
    monkeypatch.setenv("EDITOR", editor(tmp_path, twice, change))
    ctl.good("edit", "vs/catalog")
    assert "6s" in ctl.good("get", "vs/catalog", "-o", "yaml")
    for spoil, reason in (
        (
            "text = text.replace('timeout', 'tmeout')",
            "spec.http[0].tmeout: unknown field (did you mean timeout?)",
        ),
        ("text = text.replace('{name: catalog}', '{name: other}')", "must stay the one document"),
        ("text = text + '  bad: ['", "not YAML"),
    ):
        monkeypatch.setenv("EDITOR", editor(tmp_path, "sys.exit(0) if 'refused: ' in text else None", spoil))
        done = ctl("edit", "vs/catalog")
        assert done.code == 1 and "is kept in" in done.err, done
        kept = list((tmp_path / "edits").iterdir())
        assert len(kept) == 1 and reason in kept[0].read_text()
        assert reason in done.err
        kept[0].unlink()
    assert "6s" in ctl.good("get", "vs/catalog", "-o", "yaml")


def test_edit_does_not_overwrite_what_others_wrote_meanwhile(
    ctl: Program, serve: Serve, mesh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ctl.good("apply", "-f", str(mesh))
    body = json.dumps({"files": [{"name": "x", "text": MESH.replace("3s ", "7s ")}]})
    post = (
        "import urllib.request as u; "
        f"u.urlopen(u.Request({serve.url + '/v1/apply'!r}, {body!r}.encode(), "
        "{'Content-Type': 'application/json'})).read()"
    )
    monkeypatch.setenv("EDITOR", editor(tmp_path, post, "text = text.replace('3s ', '8s ')"))
    done = ctl("edit", "vs/catalog")
    assert done.code == 1 and "meanwhile" in done.err and "is kept in" in done.err
    assert "7s" in ctl.good("get", "vs/catalog", "-o", "yaml")


# --- proxies ---


def test_wait_says_when_every_proxy_serves(ctl: Program, serve: Serve, proxies: Proxies, mesh: Path) -> None:
    connected(serve, ctl)
    done = ctl("apply", "-f", str(mesh), "--wait")
    version = version_of(done.out)
    assert re.search(rf"^3/3 serving version {version}, p50 \d+ µs, max \d+ µs$", done.out, re.MULTILINE)
    assert (done.code, done.err) == (0, "")
    assert ctl.good("verify") == f"equal: 3 proxies hold version {version}\n"
    status = ctl.good("status").splitlines()
    assert status[0] == f"version {version}: 3/3 proxies serve it"
    assert [line.split()[:4] for line in status[3:]] == [[name, "LIVE", str(version), "0"] for name in NAMES]
    mesh.write_text(MESH.replace("3s ", "4s "))
    done = ctl("apply", "-f", str(mesh), "--wait", "-o", "json")
    answer = json.loads(done.out)
    assert (answer["version"], answer["progress"]["serving"]) == (version + 1, 3)


def test_who_rejects_is_named_with_the_reason(
    ctl: Program, serve: Serve, proxies: Proxies, mesh: Path
) -> None:
    connected(serve, ctl)
    version = version_of(ctl.good("apply", "-f", str(mesh), "--wait"))
    proxies.refuse("proxy-2", version + 1, "no room for it")
    mesh.write_text(MESH.replace("3s ", "4s "))
    done = ctl("apply", "-f", str(mesh), "--wait")
    assert done.code == 1
    assert f"2/3 serve version {version + 1} after" in done.err
    assert "  proxy-2 rejected it: no room for it\n" in done.err
    different = ctl("verify")
    assert different.code == 1 and "proxy-2 holds it and cannot serve it: no room for it" in different.err
    assert re.search(r"^proxy-2 +REJECTED .*no room for it$", ctl.good("status"), re.MULTILINE)
    assert ctl.good("rollback", str(version), "--wait").endswith("µs\n")


def test_an_atomic_version_is_taken_by_all_or_by_none(
    ctl: Program, serve: Serve, proxies: Proxies, mesh: Path
) -> None:
    connected(serve, ctl)
    version = version_of(ctl.good("apply", "-f", str(mesh), "--wait"))
    proxies.refuse("proxy-3", version + 1, "cannot be compiled")
    mesh.write_text(MESH.replace("3s ", "4s "))
    done = ctl("apply", "-f", str(mesh), "--atomic", "--wait", "--timeout", "10s")
    assert done.code == 1, done
    assert f"version {version + 1} was not taken" in done.err and "proxy-3" in done.err
    assert "cannot be compiled" in done.err
    assert "3s" in ctl.good("get", "vs/catalog", "-o", "yaml")
    assert "aborted" in ctl.good("rollout", "status")
    out = ctl.good("apply", "-f", str(mesh), "--atomic", "--wait")
    assert f"3/3 serving version {version + 2}" in out
    assert ctl.good("rollout", "status").startswith(f"version {version + 2}  committed")


def test_stages_are_followed_and_can_be_aborted(
    ctl: Program, serve: Serve, proxies: Proxies, mesh: Path
) -> None:
    connected(serve, ctl)
    ctl.good("apply", "-f", str(mesh), "--wait")
    mesh.write_text(MESH.replace("3s ", "4s "))
    staged = ["--stage", "1,100%", "--bake", "300ms", "--abort-if", "error_rate > 2x", "--wait"]
    done = ctl("apply", "-f", str(mesh), *staged)
    version = version_of(done.out)
    assert done.code == 0 and f"3/3 serving version {version}" in done.out
    assert "error_rate > 2x: was never judged, as no stage saw more than 0 requests" in done.err
    mesh.write_text(MESH.replace("3s ", "5s "))
    out = ctl.good(
        "apply", "-f", str(mesh), "--stage", "1,100%", "--bake", "1h", "--abort-if", "error_rate > 2x"
    )
    assert f"version {version + 1} is being rolled out" in out
    assert f"version {version + 1}" in ctl.good("rollout", "status")
    busy = ctl("delete", "vs/catalog")
    assert busy.code == 1 and "fastproxyctl rollout abort" in busy.err
    assert "aborted" in ctl.good("rollout", "abort")
    assert ctl("rollout", "abort").code == 1
    assert "4s" in ctl.good("get", "vs/catalog", "-o", "yaml")
    ctl.good("apply", "-f", str(mesh), "--stage", "1,100%", "--bake", "300ms")
    watched = ctl.good("rollout", "status", "--watch").splitlines()
    assert any("(stage 1 of 2)" in line for line in watched) and "committed  3/3 serving" in watched[-1]


def test_who_is_late_is_named_when_the_time_is_over(
    ctl: Program, serve: Serve, proxies: Proxies, mesh: Path
) -> None:
    connected(serve, ctl)
    ctl.good("apply", "-f", str(mesh), "--wait")
    mesh.write_text(MESH.replace("3s ", "4s "))
    with proxies.holding("proxy-1"):
        done = ctl("apply", "-f", str(mesh), "--wait", "--timeout", "300ms")
        version = version_of(done.out)
        assert done.code == 1
        assert re.search(rf"2/3 serve version {version} after \d+ ms; it stays applied", done.err)
        assert done.err.endswith("  proxy-1 does not serve it yet; it will when it can\n")
    assert f"3/3 serving version {version}" in ctl.good("apply", "-f", str(mesh), "--wait")


def test_ctrl_c_ends_a_wait_cleanly(ctl: Program, serve: Serve, proxies: Proxies, mesh: Path) -> None:
    connected(serve, ctl)
    ctl.good("apply", "-f", str(mesh), "--wait")
    mesh.write_text(MESH.replace("3s ", "4s "))
    words = [sys.executable, "-m", "ctrl", "apply", "-f", str(mesh), "--wait", "--api", serve.url]
    with (
        proxies.holding("proxy-1"),
        subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as waiting,
    ):
        assert waiting.stdout and waiting.stdout.readline().endswith("configured\n")
        assert waiting.stdout.readline().startswith("version ")
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=10)
        assert (waiting.returncode, err) == (130, "")


def test_a_wait_outlives_a_restart_of_the_server(
    ctl: Program, serve: Serve, proxies: Proxies, mesh: Path
) -> None:
    connected(serve, ctl)
    ctl.good("apply", "-f", str(mesh), "--wait")
    mesh.write_text(MESH.replace("3s ", "4s "))
    words = [sys.executable, "-m", "ctrl", "apply", "-f", str(mesh), "--wait", "--api", serve.url]
    with proxies.holding("proxy-1"):
        waiting = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waiting.stdout and waiting.stdout.readline().endswith("configured\n")
        assert waiting.stdout.readline().startswith("version ")
        serve.kill()
        serve.start()
    out, err = waiting.communicate(timeout=40)
    assert waiting.returncode == 0 and re.search(r"^3/3 serving version", out), (out, err)
    assert re.fullmatch(r"(version \d+: \d/\d serving\n)?", err), err  # it waits some seconds for all to come


def test_breakers_are_ordered_and_cleared(ctl: Program, serve: Serve, proxies: Proxies, mesh: Path) -> None:
    connected(serve, ctl)
    ctl.good("apply", "-f", str(mesh))
    out = ctl.good("breaker", "open", "catalog", "--for", "10m", "--reason", "on fire", "--wait")
    assert "BreakerOrder default/catalog created" in out and "3/3 serving" in out
    ctl.good("breaker", "close", "catalog", "--endpoint", "127.0.0.1:9001", "--for", "1h30m")
    rows = json.loads(ctl.good("breaker", "list", "-o", "json"))["orders"]
    assert [(row["state"], row["endpoint"], row["reason"]) for row in rows] == [
        ("open", "", "on fire"),
        ("closed", "127.0.0.1:9001", ""),
    ]
    table = ctl.good("breaker", "list").splitlines()
    assert re.match(r"catalog +open +catalog .* 9m\d\ds  on fire$", table[1])
    assert "1h29m" in table[2]
    ctl.good("breaker", "clear", "catalog", "--endpoint", "127.0.0.1:9001")
    ctl.good("breaker", "clear", "catalog")
    assert json.loads(ctl.good("breaker", "list", "-o", "json"))["orders"] == []
    assert ctl("breaker", "clear", "catalog").code == 1
    for words in (
        ("catalog",),
        ("catalog", "--for", "soon"),
        ("catalog", "--for", "400h", "--port", "99999"),
    ):
        assert ctl("breaker", "open", *words).code == 2


def test_watch_prints_what_happens(ctl: Program, serve: Serve, mesh: Path) -> None:
    environment = {**os.environ, "FASTPROXY_API": serve.url}
    words = [sys.executable, "-m", "ctrl", "watch", "-o", "json"]
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout
        first = json.loads(watching.stdout.readline())
        assert first["type"] == "version"
        version = version_of(ctl.good("apply", "-f", str(mesh)))
        event = first
        while event["type"] != "version" or event["version"] < version:
            event = json.loads(watching.stdout.readline())
        assert event["what"] == "apply"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130


def test_names_are_completed_by_the_server(ctl: Program, serve: Serve, mesh: Path) -> None:
    ctl.good("apply", "-f", str(mesh))
    words = [sys.executable, "-m", "ctrl"]
    newest = version_of(ctl.good("apply", "-f", str(mesh)))
    for typed, wanted in (
        ("get vs cat", ["catalog"]),
        ("edit se cat", ["catalog"]),
        ("get vs x", []),
        ("get vs/cat", ["vs/catalog"]),
        ("breaker open cat", ["catalog"]),
        (f"rollback {newest}", [str(newest)]),
    ):
        at = str(len(typed.split()))
        place = {"COMP_WORDS": f"fastproxyctl {typed}", "COMP_CWORD": at, "FASTPROXY_API": serve.url}
        environment = {**os.environ, **place, "_FASTPROXYCTL_COMPLETE": "complete_bash"}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == wanted, typed


def test_a_relay_hands_on_and_is_named(ctl: Program, serve: Serve, mesh: Path) -> None:
    ctl.good("apply", "-f", str(mesh))
    flags = ["--control", serve.publish, "--publish", "tcp://127.0.0.1:0", "--name", "hop"]
    with subprocess.Popen(
        [sys.executable, "-m", "ctrl", "relay", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as relay:
        assert relay.stdout
        said = re.search(r"^relay hop of \S+ at (tcp://\S+)$", relay.stdout.readline())
        assert said
        with Proxies(said.group(1), ["far-1"]):
            version = version_of(ctl.good("apply", "-f", str(mesh)))
            rows: list[dict[str, Any]] = []
            while not any((row["node"], row["version"]) == ("far-1", version) for row in rows):
                assert relay.poll() is None
                rows = json.loads(ctl.good("status", "-o", "json"))["proxies"]
            assert [row["via"] for row in rows if row["node"] == "far-1"] == ["hop"]
        relay.send_signal(signal.SIGINT)
        assert relay.wait(10) == 0
