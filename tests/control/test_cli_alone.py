"""fastproxyctl where no server is needed, or none answers as one: errors, files, tables, keys, help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ctrl import documents, durations, kinds, show, waiting
from ctrl.commands import refused, rolling
from ctrl.imports import Import
from ctrl.keys import listed
from ctrl.show import Column
from ctrl.tokens import Tokens
from fastproxy.keys import load_client_key
from fastproxy.resources.documents import KINDS
from tests.support.proxy import ROOT, free_port

from .commands import MESH, Program


@pytest.fixture
def ctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


# --- words ---


def test_kinds_are_those_of_the_schema() -> None:
    assert set(KINDS) <= set(kinds.KINDS) | {"BreakerOrder"} and "BreakerOrder" in kinds.KINDS
    for kind, short in kinds.SHORT.items():
        assert {kinds.kind_of(word) for word in (kind, kind.upper(), short)} == {kind}
    assert kinds.kind_of("serviceentries") == kinds.kind_of("se") and kinds.kind_of("gateways") == "Gateway"
    with pytest.raises(ValueError, match="unknown kind 'virtualservce' .did you mean VirtualService"):
        kinds.kind_of("virtualservce")


@pytest.mark.parametrize(
    ("text", "wanted"), [("10m", 600_000), ("1h30m", 5_400_000), ("500ms", 500), ("1.5s", 1500), ("0", 0)]
)
def test_durations_are_those_of_resources(text: str, wanted: int) -> None:
    assert durations.milliseconds(text) == wanted


@pytest.mark.parametrize("text", ["", "10", "m", "-1s", "1 s", "1d", "1us", "9999999h", "1s\n"])
def test_what_is_no_duration_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a duration|less than|more than"):
        durations.milliseconds(text)


def test_times_are_short() -> None:
    assert [durations.spell(us) for us in (0, 850, 6_000, 31_000, 1_250_000)] == [
        "0 µs",
        "850 µs",
        "6.0 ms",
        "31 ms",
        "1.2 s",
    ]
    minute = 60_000
    ages = [durations.age(1, 1 + ms) for ms in (0, 4_000, 12 * minute, 190 * minute, 30 * 60 * minute, 9**9)]
    assert ages == ["0s", "4s", "12m", "3h10m", "30h", "4d"]
    assert durations.age(5000, 1) == "0s" and durations.age(0) == "–"


# --- errors ---


def test_a_server_that_is_not_there_is_one_sentence(ctl: Program) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = ctl("status", "--api", url)
    assert (done.code, done.out) == (1, "")
    assert (
        done.err.count("\n") == 1 and url in done.err and "is fastproxyctl serve running there?" in done.err
    )
    assert ctl("--api", url, "status") == done
    assert ctl("diff", "-f", "/dev/null", "--api", url).code == 2


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Something that answers every request so."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "not JSON: is this fastproxyctl serve?"),
        (200, b"[" * 100_000, "not JSON"),
        (200, b"[1]", "does not answer as the API"),
        (404, b"not found", "answers 404 Not Found: is this fastproxyctl serve?"),
        (401, b'{"error": "a token is needed"}', "--token-file FILE or FASTPROXY_TOKEN"),
        (500, b'{"error": "bad \x1b[31m\\u001b[31m\\n"}', "error: "),
        (
            503,
            b'{"error": "the disk is full \\u001b[2J", "problems": [1, {"message": 5}]}',
            "the disk is full",
        ),
    ],
)
def test_whatever_answers_is_told_and_cannot_write_on_the_terminal(
    ctl: Program, status: int, body: bytes, said: str
) -> None:
    with answering(status, body) as url:
        done = ctl("status", "--api", url)
    assert done.code == 1 and said in done.err and "Traceback" not in done.err
    assert "\x1b" not in done.err + done.out


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"proxies": 7, "head": [], "refused": {}},
        {
            "head": {"version": "x", "hash": 9},
            "proxies": [None, {}, {"node": "a\x1b[2J", "lag": "no"}],
            "refused": [{}],
        },
    ],
)
def test_answers_of_another_shape_do_no_harm(ctl: Program, body: object) -> None:
    with answering(200, json.dumps(body).encode()) as url:
        for command in (
            ["status"],
            ["get"],
            ["history"],
            ["verify"],
            ["rollout", "status"],
            ["breaker", "list"],
        ):
            done = ctl(*command, "--api", url)
            assert "\x1b" not in done.out + done.err and "Traceback" not in done.err


def test_status_tells_of_the_store_and_of_what_is_left_out(ctl: Program) -> None:
    problem = {"file": "a.yaml", "line": 3, "field": "spec.hosts", "message": "taken"}
    head = {"version": 7, "trouble": "disk full", "problems": [problem]}
    with answering(200, json.dumps({"head": head}).encode()) as url:
        done = ctl("status", "--api", url)
    assert "the store cannot be reached, nothing can be changed: disk full" in done.out
    assert done.err == "a.yaml:3: error: spec.hosts: taken\n"


def test_refusals_of_one_host_are_one_line(ctl: Program) -> None:
    wrong = [
        {"atMs": 1000 + i, "address": f"10.0.0.7:{40000 + i}", "name": "", "reason": "another server key"}
        for i in range(300)
    ]
    revoked = {"atMs": 900, "address": "10.0.0.8:1", "name": "edge-8", "reason": "not on the list"}
    others = [{"atMs": i, "address": f"10.1.0.{i}", "reason": "no key"} for i in range(1, 31)]
    with answering(200, json.dumps({"refused": [*others, revoked, *wrong]}).encode()) as url:
        done = ctl("status", "--api", url)
    lines = done.out.split("REFUSED")[1].splitlines()[1:]
    assert len(lines) == 20 and done.err == "and 12 more: fastproxyctl status -o json\n"
    assert lines[0].split("ago ")[1].split()[:2] == ["300", "10.0.0.7"]
    assert lines[1].split("ago ")[1].split()[:3] == ["1", "10.0.0.8", "edge-8"]


def test_addresses_lose_their_port() -> None:
    given = ["tcp://10.0.0.7:4", "[::1]:80", "[::1]", "::1", "fe80::1:22", "host:1", "host", ""]
    wanted = ["10.0.0.7", "[::1]", "[::1]", "::1", "fe80::1:22", "host", "host", ""]
    assert [refused.host(address) for address in given] == wanted


def test_holds_is_explained_where_it_is_shown(ctl: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"head": {"version": 1}, "proxies": [{"node": "a", "state": "LIVE", "version": 1, "hash": "ab"}]}
    with answering(200, json.dumps(body).encode()) as url:
        assert "HOLDS: the hash of what" in ctl("status", "--api", url).err


@pytest.mark.parametrize(
    ("rate", "said"), [(1.0, "100 %"), (0.999, "99.9 %"), (0.0031, "0.31 %"), (0, "0 %"), (None, "–")]
)
def test_rates_are_plain_numbers(rate: float | None, said: str) -> None:
    seen = {"expected": 1, "serving": 1, "requests": 40, "errorRate": rate}
    answer = {"version": 3, "state": "committed", "observed": seen}
    assert rolling.describe(answer).endswith(f"  40 requests with it, {said} errors")


def test_busy_names_the_command_too(ctl: Program) -> None:
    said = {"error": "version 3 is being rolled out: wait for it, or abort it (DELETE /v1/rollout)"}
    with answering(409, json.dumps(said).encode()) as url:
        done = ctl("status", "--api", url)
    assert done.code == 1 and "fastproxyctl rollout abort" in done.err


@pytest.mark.parametrize(
    ("conditions", "judged", "told"),
    [
        (["error_rate > 2x"], 0, True),
        (["error_rate > 2x"], 19, True),
        (["error_rate > 2x"], 20, False),
        (["error_rate > 2x"], None, False),
        (["rejected > 0"], 0, False),
        ([], 0, False),
    ],
)
def test_conditions_that_were_never_judged_are_told(
    conditions: list[str], judged: int | None, told: bool
) -> None:
    outcome = waiting.Outcome(True, {}, judged=judged)
    assert ("never judged" in waiting.unjudged(outcome, conditions)) is told
    assert waiting.unjudged(outcome._replace(aborted="by ann"), conditions) == ""


@pytest.mark.parametrize("api", ["127.0.0.1:9900", "ftp://x", "http://", "http://x:99999", "http://a:b@c"])
def test_an_api_that_is_no_url_is_usage(ctl: Program, api: str) -> None:
    done = ctl("status", "--api", api)
    assert done.code == 2 and done.err.startswith("fastproxyctl: error: --api: ")


def test_a_token_file_is_read_or_told(ctl: Program, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for path, why in ((tmp_path / "none", "No such file"), (empty, "is empty"), (tmp_path, "Is a directory")):
        done = ctl("status", "--token-file", str(path))
        assert done.code == 2 and why in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["apply"],
        ["apply", "-f", "/none.yaml"],
        ["apply", "-f", "{empty}"],
        ["apply", "-f", "{mesh}", "--stage", "1", "--bake", "long"],
        ["apply", "-f", "{mesh}", "--bake", "1s"],
        ["apply", "-f", "{mesh}", "--abort-if", "error_rate > 2x"],
        ["apply", "-f", "{mesh}", "--timeout", "x"],
        ["delete"],
        ["delete", "vs"],
        ["delete", "vs/"],
        ["delete", "vs/a", "-f", "{mesh}"],
        ["delete", "thing", "a"],
        ["get", "vs/a", "b"],
        ["get", "-A", "-n", "x"],
        ["edit", "vs"],
        ["rollback", "one"],
        ["watch", "-o", "yaml"],
        ["publish"],
        ["breaker", "open", "a", "--for", "0s"],
        ["serve", "--heartbeat", "0"],
        ["serve", "--api", "0.0.0.0:0", "--store", "sqlite:///{empty}/x.db"],
        ["serve", "--store", "mysql://x", "--api", "127.0.0.1:0"],
        ["relay", "--control", "tcp://127.0.0.1:1", "--key", "x"],
        ["frobnicate"],
        ["status", "--wat"],
    ],
    ids=" ".join,
)
def test_usage_errors_end_with_2_and_one_line(ctl: Program, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "mesh.yaml").write_text(MESH)
    (tmp_path / "empty").mkdir()
    given = [w.format(mesh=tmp_path / "mesh.yaml", empty=tmp_path / "empty") for w in words]
    done = ctl(*given)
    assert (done.code, done.out) == (2, ""), done
    assert done.err.startswith("fastproxyctl: error: ") and done.err.count("\n") == 1


# --- files ---


def test_files_are_read_in_order_and_only_documents(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("b: 1")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "note.txt").write_text("no")
    (tmp_path / ".hidden.yaml").write_text("no: 1")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.yml").write_text("c: 1")
    names = [Path(name).name for name, _ in documents.read([str(tmp_path)])]
    assert names == ["a.json", "b.yaml"]
    assert [Path(name).name for name, _ in documents.read([str(tmp_path)], recursive=True)] == [
        *names,
        "c.yml",
    ]
    (tmp_path / "b.yaml").write_bytes(b"x: 1\ny: \xff\n")
    with pytest.raises(documents.DocumentsError, match=r"b\.yaml:2: not UTF-8"):
        documents.read([str(tmp_path)])


def test_a_list_is_its_items(tmp_path: Path) -> None:
    items = "- {kind: A, metadata: {name: x}}\n- {kind: B, metadata: {name: y, namespace: z}}\n"
    found = list(documents.found([("f", f"kind: List\nitems:\n{items}"), ("g", MESH)]))
    assert [documents.identity(d.value) for d in found] == [
        ("A", "default", "x"),
        ("B", "z", "y"),
        ("ServiceEntry", "default", "catalog"),
        ("VirtualService", "default", "catalog"),
    ]
    assert [(d.line, d.item) for d in found[:2]] == [(3, 0), (4, 1)]


# --- import ---

KUBERNETES = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  ports: [{name: http-web, port: 9080, targetPort: web}, {name: mysql, port: 3306}]
---
apiVersion: v1
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {ports: [{name: https, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: lonely}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}
"""
SLICES = """\
apiVersion: v1
kind: List
items:
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: r-1, namespace: shop, labels: {kubernetes.io/service-name: reviews}}
  ports: [{name: http-web, port: 8080}, {name: mysql, port: 3306}]
  endpoints:
  - {addresses: [10.0.0.5]}
  - {addresses: [10.0.0.6], conditions: {ready: false}}
- apiVersion: v1
  kind: Endpoints
  metadata: {name: reviews, namespace: shop}
  subsets: [{addresses: [{ip: 10.0.0.5}, {ip: 10.0.0.7}], ports: [{name: http-web, port: 8080}]}]
- apiVersion: networking.istio.io/v1
  kind: DestinationRule
  metadata: {name: reviews}
  spec: {host: reviews}
"""


def test_import_takes_what_is_ours_and_says_what_is_not() -> None:
    made = Import("shop").take([("app.yaml", KUBERNETES), ("slices.yaml", SLICES)])
    told = "\n".join(made.told())
    assert "2 documents taken, 2 made from Services" in told
    assert "1 Deployment" in told and "1 Service of the cluster itself" in told
    assert "app.yaml:15: Service shop/lonely is left out: its endpoints are not here" in told
    assert "ports that do not speak HTTP are left out: mysql" in told
    found = {documents.identity(d.value): d.value for d in documents.found(made.files)}
    assert sorted(found) == [
        ("DestinationRule", "shop", "reviews"),
        ("ServiceEntry", "shop", "outside"),
        ("ServiceEntry", "shop", "reviews"),
        ("VirtualService", "shop", "reviews"),
    ]
    spec = found[("ServiceEntry", "shop", "reviews")]["spec"]
    assert spec["hosts"] == ["reviews.shop.svc.cluster.local"] and spec["resolution"] == "STATIC"
    assert spec["ports"] == [{"number": 9080, "name": "http-web", "protocol": "HTTP"}]
    assert spec["endpoints"] == [
        {"address": ip, "ports": {"http-web": 8080}} for ip in ("10.0.0.5", "10.0.0.7")
    ]
    outside = found[("ServiceEntry", "shop", "outside")]["spec"]
    assert (outside["resolution"], outside["endpoints"]) == ("DNS", [{"address": "example.com"}])


def test_imported_documents_keep_their_lines() -> None:
    text = (
        "kind: Pod\napiVersion: v1\n---\n# theirs\nkind: ConfigMap\n---\n"
        + MESH
        + "---\nkind: Pod\n---\n"
        + MESH
    )
    made = Import().take([("all.yaml", text)])
    wanted = [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if line in ("kind: ServiceEntry", "kind: VirtualService")
    ]
    (name, sent), *more = made.files
    assert name == "all.yaml" and not more and len(wanted) == 4
    assert [n for n, line in enumerate(sent.splitlines(), 1) if line.startswith("kind: ")] == wanted


def test_import_prints_without_a_server(ctl: Program, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "app.yaml").write_text(KUBERNETES)
    (tmp_path / "slices.yaml").write_text(SLICES)
    done = ctl("import", str(tmp_path), "--print", "-n", "shop")
    assert done.code == 0 and "1 Deployment" in done.err
    assert len(list(documents.found([("out", done.out)]))) == 4
    (tmp_path / "slices.yaml").unlink()
    (tmp_path / "deep" / "er" / "app.yaml").write_text("kind: Pod\napiVersion: v1\n")
    nothing = ctl("import", str(tmp_path))
    assert nothing.code == 2 and "1 Pod" in nothing.err


WORDS = st.sampled_from(
    [
        "kind",
        "apiVersion",
        "metadata",
        "name",
        "namespace",
        "labels",
        "kubernetes.io/service-name",
        "spec",
        "type",
        "ExternalName",
        "ports",
        "port",
        "protocol",
        "endpoints",
        "addresses",
        "subsets",
        "conditions",
        "ready",
        "ip",
        "10.0.0.1",
        "externalName",
        "appProtocol",
        "http-x",
        "items",
        "v1",
        "Service",
        "Endpoints",
        "EndpointSlice",
        "discovery.k8s.io/v1",
        "networking.istio.io/v1",
        "VirtualService",
        "List",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70_000) | WORDS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(WORDS, below, max_size=4),
    max_leaves=12,
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Service", "Endpoints", "EndpointSlice", "VirtualService", "List", "Pod"]),
            st.sampled_from(["v1", "discovery.k8s.io/v1", "networking.istio.io/v1"]),
            st.dictionaries(WORDS, VALUES, max_size=5),
        ),
        max_size=4,
    )
)
def test_import_survives_any_document(made: list[tuple[str, str, dict[str, object]]]) -> None:
    values = [{**value, "kind": kind, "apiVersion": version} for kind, version, value in made]
    text = "\n---\n".join(json.dumps(value) for value in values)
    taken = Import().take([("x.yaml", text)])
    assert len(list(documents.found(taken.files))) == len(taken.pieces) == taken.taken + taken.made
    assert all(isinstance(line, str) for line in taken.told())


# --- tables ---


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_table_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        show, "out", lambda: Console(width=width, force_terminal=True, color_system=None, highlight=False)
    )
    columns = [
        Column("PROXY"),
        Column("HASH", rank=2),
        Column("ADMIN", rank=3),
        Column("ERROR", rank=1, fold=True),
    ]
    show.table(columns, [["proxy-1", "a" * 12, "127.0.0.1:9901", "x " * 60], ["proxy-2", "b" * 12, "–", "–"]])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "PROXY" in lines[0] and ("ADMIN" in lines[0]) == (width >= 80)


def test_a_table_in_a_pipe_is_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    show.table([Column("A"), Column("B", rank=9, fold=True)], [["x", "long " * 100], ["y\n\x1b[2J", 2]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[1].endswith("long") and lines[2].startswith("y\\n\\x1b[2J")


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("a\nb\n", "a\nc\n", ["--- now: n", "+++ then: n", "@@ -1,2 +1,2 @@", " a", "-b", "+c"]),
        ("", "a\n", ["--- /dev/null", "+++ then: n", "@@ -0,0 +1 @@", "+a"]),
        ("a\n", "", ["--- now: n", "+++ /dev/null", "@@ -1 +0,0 @@", "-a"]),
        ("a", "a", []),
    ],
)
def test_differences_are_unified(before: str, after: str, wanted: list[str]) -> None:
    assert [line.plain for line in show.unified(before, after, "n")] == wanted


# --- keys and help ---


def test_keys_are_made_and_listed(ctl: Program, tmp_path: Path) -> None:
    folder = str(tmp_path / "keys")
    ctl.good("keys", "init", folder)
    out = ctl.good("keys", "node", "edge-1", "--keys", folder)
    assert f"{folder}/edge-1.key" in out
    ctl.good("keys", "node", "hop", "--relay", "--keys", folder)
    ctl.good("keys", "node", "far", "--below", "hop", "--keys", folder)
    below = load_client_key(f"{folder}/far.key").curve.server
    assert below == load_client_key(f"{folder}/hop.key").curve.public
    made = [("node", "edge-1"), ("relay", "hop"), ("node", "far")]
    assert [(e.role, e.name) for e in listed(folder)] == made
    rows = json.loads(ctl.good("keys", "list", "--keys", folder, "-o", "json"))["allowed"]
    assert [(row["role"], row["name"]) for row in rows] == made
    ctl.good("keys", "revoke", "edge-1", "--keys", folder)
    assert ctl.good("keys", "list", "--keys", folder, "-o", "name") == "hop\nfar\n"
    for words in (["init", folder], ["node", "hop"], ["revoke", "none"], ["operator", "me"]):
        done = ctl("keys", *words, *(["--keys", folder] if words[0] != "init" else []))
        assert done.code == 2 and done.err.startswith("fastproxyctl: error: ")
    file = tmp_path / "tokens"
    token = ctl.good("keys", "token", "ann", "--tokens", str(file)).strip()
    assert Tokens.load(file).role_of(f"Bearer {token}") == "operator" and token not in file.read_text()


def test_help_is_whole_in_80_columns_and_every_command_has_one(
    ctl: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    commands = re.findall(r"^│ (\w+) +\S.*$", ctl.good("--help"), re.MULTILINE)
    assert {"apply", "diff", "edit", "import", "publish", "relay", "serve", "verify"} <= set(commands)
    for command in commands:
        text = ctl.good(command, "--help")
        assert "…" not in re.sub(r"N%,…|\[,…\]|, …\)", "", text), f"{command}: cut off"


def said(*words: str, **environment: str) -> str:
    """What the program prints as a process of its own."""
    program = [sys.executable, "-m", "ctrl", *words]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTPROXY_")}
    done = subprocess.run(
        program, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_python_m_ctrl_is_the_same_program() -> None:
    assert said("--version").startswith("fastproxyctl ")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("fastproxyctl roll", ["rollback", "rollout"]),
        ("fastproxyctl get V", ["VirtualService"]),
        ("fastproxyctl get v", ["virtualservice", "vs"]),
    ],
)
def test_the_shell_completes(words: str, wanted: list[str]) -> None:
    place = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    assert said(_FASTPROXYCTL_COMPLETE="complete_bash", **place).split() == wanted
