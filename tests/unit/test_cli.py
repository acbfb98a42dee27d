"""The command line: flags are Settings, wrong ones say what is expected, check and explain print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fastproxy import __version__
from fastproxy.flags import FLAGS, FlagError, metavar_of, parameters, settings_from
from fastproxy.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: catalog}
spec:
  hosts: [catalog]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1, ports: {http: 9001}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog}
spec:
  hosts: ["*"]
  http:
  - match: [{headers: {client: {exact: Android}}}]
    redirect: {uri: /app}
  - match: [{uri: {prefix: /x}}]
    route: [{destination: {host: catalog}}]
"""


def values(**given: Any) -> dict[str, Any]:
    """What typer hands over: defaults, and these."""
    out = {p.name: p.default for p in parameters()}
    return {**out, **given}


def fastproxy(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTPROXY_")}
    command = [sys.executable, "-m", "fastproxy", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=clean | env, check=False
    )


def test_every_setting_is_a_flag_with_help() -> None:
    assert list(FLAGS) == [f.name for f in fields(Settings)]
    assert all(flag.help.endswith(".") for flag in FLAGS.values())


def test_defaults_are_those_of_settings() -> None:
    assert settings_from(values(listen="127.0.0.1:1", to=["127.0.0.1:2"])) == Settings(
        listen="127.0.0.1:1", to=["127.0.0.1:2"]
    )


def test_lists_are_parted_by_commas_or_repeated() -> None:
    settings = settings_from(values(listen="127.0.0.1:1", to=["a:1, b:2", "c:3"], label=["app=web", "v="]))
    assert settings.to == ["a:1", "b:2", "c:3"]
    assert settings.label == {"app": "web", "v": ""}


@pytest.mark.parametrize(
    ("given", "flag", "says"),
    [
        ({}, "config", "--listen HOST:PORT --to HOST:PORT, or -c FILE"),
        ({"listen": "127.0.0.1:1"}, "listen", "needs --to"),
        ({"to": ["a:1"]}, "to", "needs --listen"),
        ({"config": "x", "to": ["a:1"]}, "to", "does not go with --config"),
        ({"listen": "127.0.0.1", "to": ["a:1"]}, "listen", "HOST:PORT"),
        ({"listen": "127.0.0.1:0", "to": ["a:1"]}, "listen", "port 1 to 65535"),
        ({"listen": "127.0.0.1:65536", "to": ["a:1"]}, "listen", "port 1 to 65535"),
        ({"listen": "localhost:9000", "to": ["a:1"]}, "listen", "write 127.0.0.1:9000"),
        ({"listen": "::1:9000", "to": ["a:1"]}, "listen", "[::1]:9000"),
        ({"listen": "127.0.0.1:1", "to": ["http://a:1/x"]}, "to", "has a scheme; write a:1"),
        ({"listen": "127.0.0.1:1", "to": ["a b:1"]}, "to", "not an IP address or a host name"),
        ({"listen": "unix:relative", "to": ["a:1"]}, "listen", "unix:///path"),
        ({"config": "x", "admin": "nowhere"}, "admin", "HOST:PORT"),
        ({"config": "x", "label": ["a"]}, "label", "'a' is not K=V"),
        ({"config": "x", "slashes": "maybe"}, "slashes", "keep, reject, decode"),
        ({"config": "x", "journal": 100_000}, "journal", "65536 and 131072"),
        ({"config": "x", "max_head": 10}, "max-head", "10 is not between 1024 and 16777216"),
        ({"config": "x", "idle_timeout": float("nan")}, "idle-timeout", "nan is not between 0.01 and"),
        ({"config": "x", "max_body": 2**62 + 1}, "max-body", "is not between 0 and"),
        ({"config": "x", "via": "a b"}, "via", "pseudonym"),
        ({"config": "x", "server": "a\r\nb: c"}, "server", "printable ASCII"),
    ],
)
def test_wrong_values_say_what_is_expected(given: dict[str, Any], flag: str, says: str) -> None:
    with pytest.raises(FlagError) as wrong:
        settings_from(values(**given))
    assert wrong.value.flag.replace("_", "-") == flag
    assert says in str(wrong.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--listne", "x"], "--listen"),
        (["rnu"], "Did you mean 'run'"),
        (["run", "--workers", "many"], "--workers"),
        (["run", "--workers", "-1"], "--workers"),
        (["run", "--max-head", "10"], "--max-head"),
        (["run"], "say what to proxy"),
        (["check"], "--config"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(words: list[str], says: str) -> None:
    done = fastproxy(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastproxy: error: ") and says in line


def test_a_variable_is_a_flag() -> None:
    done = fastproxy("run", FASTPROXY_LISTEN="127.0.0.1:99999", FASTPROXY_TO="a:1")
    assert done.returncode == 2
    assert "--listen: '127.0.0.1:99999'" in done.stderr


def test_version() -> None:
    for word in ("version", "--version"):
        done = fastproxy(word)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"fastproxy {__version__}\n", "")


def test_help_of_run_fits_eighty_columns() -> None:
    """Each flag whole, each metavar whole, no ranges in between, and room for the help."""
    shown = fastproxy("run", "--help", COLUMNS="80").stdout
    for f in fields(Settings):
        name = f.name.replace("_", "-")
        line = next(line for line in shown.splitlines() if re.match(rf"│ --{name}\s", line))
        words = line.split()
        assert f"--no-{name}" in words or f.type != "bool"
        assert (metavar_of(f.name, type(f.default)) or "<bool>") in words
        assert FLAGS[f.name].help.split()[0] in words
    assert "<=x<=" not in shown and "<int" not in shown
    assert not any(line.count("…") for line in shown.splitlines()), shown


def test_check_counts_good_documents(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD)
    done = fastproxy("check", "-c", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok: 2 documents\n", "")


ASTRAY = """\
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: astray}
spec:
  hosts: [astray]
  http:
  - route:
    - {destination: {host: catalog, subset: v9}, weight: 1}
    - {destination: {host: catalogue}, weight: 1}
    - destination:
        host: catalog
        port: {number: 81}
      weight: 1
    - {destination: {host: catalog, port: {number: 80}}, weight: 1}
"""


def test_check_warns_of_destinations_that_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + ASTRAY)
    done = fastproxy("check", "-c", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    at, end = "spec.http[0].route", "; requests sent there are answered 503 NC"
    assert done.stdout.splitlines() == [
        f"{file}:28: warning: {at}[0].destination.subset: no DestinationRule gives catalog a subset v9{end}",
        f"{file}:29: warning: {at}[1].destination.host: no ServiceEntry has the host catalogue"
        f" (did you mean catalog?){end}",
        f"{file}:32: warning: {at}[2].destination.port.number: catalog has no port 81 (it has 80){end}",
        "ok: 3 documents, 3 warnings",
    ]
    file.write_text(GOOD.replace("resolution", "resolutoin"))
    assert fastproxy("check", "-c", str(file)).stderr == "1 problem, 1 warning, 1 good document\n"


def test_check_prints_each_problem_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD.replace("resolution", "resolutoin").replace("exact:", "exakt:"))
    done = fastproxy("check", "-c", str(file))
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert f"{file}:7: spec.resolutoin: unknown field (did you mean resolution?)" in lines
    assert any(line.startswith(f"{file}:16: spec.http[0].match[0].headers") for line in lines), lines
    assert "\x1b" not in done.stdout


def test_check_of_what_is_not_there(tmp_path: Path) -> None:
    done = fastproxy("check", "-c", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "No such file" in done.stdout


def test_explain_tells_each_rule_and_the_pick(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD)
    done = fastproxy("explain", "-c", str(file), "GET http://catalog/x?y", "-H", "Client: IOS")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert 'rule 1 no catalog#0: header client "IOS" is not "Android"' in text
    assert "rule 2 yes catalog#1" in text
    assert "outbound|80||catalog, 100% of requests 127.0.0.1:9001" in text
    redirected = fastproxy("explain", "-c", str(file), "GET http://catalog/x?y", "-H", "Client: Android")
    assert "redirect 301" in redirected.stdout
    nowhere = fastproxy("explain", "-c", str(file), "GET http://catalog/other")
    assert "404 NR" in nowhere.stdout and nowhere.returncode == 0


HEADERS = """\
  - match: [{uri: {prefix: /h}}]
    headers: {request: {set: {X-Set: s}, add: {X-Add: a}, remove: [X-Rm]}}
    route:
    - destination: {host: catalog}
      headers: {request: {add: {X-Dest: d}}, response: {set: {X-Back: r}}}
"""


def test_explain_tells_what_is_done_to_fields(tmp_path: Path) -> None:
    """A field that is set is not told to be left out, and a destination's own changes are told with it."""
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + HEADERS)
    done = fastproxy("explain", "-c", str(file), "GET http://catalog/h")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    at = lines.index("request set x-set: s")
    assert lines[at + 1 : at + 3] == ["request add x-add: a", "request remove x-rm"]
    assert lines[-2:] == ["request: add x-dest: d", "response: set x-back: r"]
    assert "without" not in done.stdout


DOORS = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: doors}
spec:
  servers:
  - {port: {number: 8801, name: a, protocol: HTTP}, bind: 127.0.0.1, hosts: ["*"]}
  - {port: {number: 8802, name: b, protocol: HTTP}, bind: 127.0.0.1, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: main}
spec:
  hosts: ["*"]
  gateways: [doors, mesh]
  http:
  - match: [{uri: {prefix: /never}}]
    directResponse: {status: 201}
  - match: [{port: 8802}]
    directResponse: {status: 202}
  - match: [{name: inside, gateways: [mesh]}, {uri: {prefix: /never}}]
    directResponse: {status: 203}
  - directResponse: {status: 204}
"""


def test_explain_tells_rules_that_hold_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(DOORS)
    done = fastproxy("explain", "-c", str(file), "GET http://127.0.0.1:8801/")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    at = lines.index("rule 3 yes main#3")
    assert lines[at + 1 : at + 3] == [
        "elsewhere main#1: only on port 8802",
        "elsewhere main#2 inside: only through mesh",
    ]
    there = fastproxy("explain", "-c", str(file), "GET http://127.0.0.1:8802/").stdout
    assert "direct response 202" in there and "main#1: only" not in there


def test_explain_does_not_invent_a_listener(tmp_path: Path) -> None:
    """No run of these documents opens ``mesh`` without --listen; which of the two is meant, nobody knows."""
    file = tmp_path / "c.yaml"
    file.write_text(DOORS)
    done = fastproxy("explain", "-c", str(file), "GET http://x/")
    assert done.returncode == 2
    assert "name one of: 127.0.0.1:8801, 127.0.0.1:8802, mesh" in done.stdout
    asked = fastproxy("explain", "-c", str(file), "GET http://x/", "--listener", "mesh")
    assert asked.returncode == 0 and "direct response 203" in asked.stdout
    opened = fastproxy("explain", "-c", str(file), "GET http://x/", "--listen", "127.0.0.1:8803")
    assert "mesh (no other listener has port 80)" in opened.stdout


@pytest.mark.parametrize(
    "words", [["catalog"], ["GET ftp://x"], ["GET http://a", "-H", "x"], ["GET http://a:b/"]]
)
def test_explain_refuses_what_is_no_request(tmp_path: Path, words: list[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD)
    done = fastproxy("explain", "-c", str(file), *words)
    assert done.returncode == 2
    assert done.stderr.startswith("fastproxy: error: ") and "Traceback" not in done.stderr
    assert "cast" not in done.stderr
