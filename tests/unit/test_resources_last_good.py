"""What stays when documents turn bad, and the short-lived process that the agent asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from fastproxy.resources import Loaded, Row, load_texts, merge_last_good, settle
from fastproxy.resources.__main__ import answer


def virtual(name: str, http: str, hosts: str = "") -> str:
    head = f"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\n"
    return f"{head}spec:\n  hosts: [{hosts or name}]\n  http: [{http}]\n"


def status(code: int) -> str:
    return f"{{directResponse: {{status: {code}}}}}"


BAD = "{directResponse: {status: 200}, fault: {}}"


def load_one(text: str, file: str = "a.yaml") -> Loaded:
    return load_texts([(file, text.encode())])


def rows(text: str, file: str = "a.yaml") -> list[Row]:
    loaded = load_one(text, file)
    assert loaded.problems == []
    return [d.row for d in loaded.documents]


def served(documents: Any) -> dict[str, int]:
    """host -> status, of what the documents answer on the mesh"""
    tables, _, _ = settle(documents)
    return {k.removeprefix("mesh "): v["routes"][0]["direct"]["status"] for k, v in tables["routes"].items()}


BEFORE = "---\n".join(virtual(name, status(200)) for name in "abc")


@pytest.mark.parametrize(
    ("text", "after"),
    [
        # a faulty document keeps its last good version, the others apply
        (["a 201", "b bad", "c 201"], {"a": 201, "b": 200, "c": 201}),
        # what is gone is gone
        (["a 201", "b bad"], {"a": 201, "b": 200}),
        (["a 201"], {"a": 201}),
        # a new document that is bad has nothing to fall back on
        (["a 201", "b 201", "c 201", "d bad"], {"a": 201, "b": 201, "c": 201}),
        # a syntax error says not whose it is: nothing of that file is taken for deleted
        (["a 201", "syntax"], {"a": 201, "b": 200, "c": 200}),
        # a document given twice: the first one counts, and which one went missing is not known
        (["a 201", "a 202", "c 201"], {"a": 201, "b": 200, "c": 201}),
    ],
)
def test_last_good(text: list[str], after: dict[str, int]) -> None:
    parts = []
    for word in text:
        name, _, what = word.partition(" ")
        parts.append(
            "kind: [\n" if name == "syntax" else virtual(name, BAD if what == "bad" else status(int(what)))
        )
    new = load_one("---\n".join(parts))
    assert served(merge_last_good(new, rows(BEFORE)).documents) == after


def test_a_syntax_error_brings_nothing_back_from_other_files() -> None:
    previous = rows(virtual("a", status(200)), "a.yaml") + rows(virtual("b", status(200)), "b.yaml")
    assert served(merge_last_good(load_one("kind: [", "a.yaml"), previous).documents) == {"a": 200}


def test_an_unreadable_folder_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BEFORE)
    first = answer({"path": str(tmp_path)})
    (tmp_path / "a.yaml").unlink()
    second = answer({"path": str(tmp_path), "previous": first["documents"]})
    assert [p["message"] for p in second["problems"]] == ["no .yaml, .yml, .json file in this folder"]
    assert second["tables"] == first["tables"]


SERVICE = """apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: s}
spec:
  hosts: [s]
  ports: [%s]
  resolution: STATIC
"""
ONE = "{number: 80, name: http, protocol: HTTP}"
TWO = ONE + ", {number: 81, name: admin, protocol: HTTP}"


def test_a_document_that_no_longer_fits_its_neighbours_keeps_its_last_good_version() -> None:
    to_s = "{route: [{destination: {host: s}}]}"
    with_port = "{route: [{destination: {host: s, port: {number: 81}}}]}"
    first = load_one(SERVICE % TWO + "---\n" + virtual("v", with_port))
    tables, documents, problems = settle(first.documents)
    assert problems == []
    second = load_one(SERVICE % TWO + "---\n" + virtual("v", to_s))
    after, kept, problems = settle(second.documents, [d.row for d in documents])
    assert after == tables
    assert [d.row for d in kept] == [d.row for d in documents]
    assert [(p.field, p.identity) for p in problems] == [
        ("spec.http[0].route[0].destination", ("VirtualService", "default", "v"))
    ]
    # the last good version does not fit the new neighbours either: it is left out, told once
    changed = load_one(SERVICE % TWO + "---\n" + virtual("v", to_s))
    _, kept, problems = settle(changed.documents, rows(SERVICE % ONE + "---\n" + virtual("v", to_s)))
    assert [d.row.name for d in kept] == ["s"]
    assert len(problems) == 1


def test_kept_documents_are_kept_again_and_again() -> None:
    previous = rows(BEFORE)
    for _ in range(3):
        merged = merge_last_good(load_one(BEFORE.replace("status: 200", "status: 99")), previous)
        assert served(merged.documents) == {"a": 200, "b": 200, "c": 200}
        previous = [d.row for d in merged.documents]
    assert served(merge_last_good(load_one(BEFORE), previous).documents) == {"a": 200, "b": 200, "c": 200}


def test_an_item_of_a_list_is_kept_alone() -> None:
    items = "".join(
        f"- {{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: {name}}},"
        f" spec: {{hosts: [{name}], http: [{status(200)}]}}}}\n"
        for name in "ab"
    )
    text = f"apiVersion: v1\nkind: List\nitems:\n{items}"
    previous = rows(text)
    broken = load_one(text.replace("hosts: [a]", "hosts: []"))
    assert [p.line for p in broken.problems] == [4]
    assert served(merge_last_good(broken, previous).documents) == {"a": 200, "b": 200}


def ask(request: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", "fastproxy.resources"]
    done = subprocess.run(command, input=msgpack.packb(request), capture_output=True, timeout=60, check=False)
    assert done.stderr == b""
    assert done.returncode == 0
    return msgpack.unpackb(done.stdout)


def test_process(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(BEFORE)
    first = ask({"path": str(file), "labels": {}, "listen": "127.0.0.1:8000", "to": ["127.0.0.1:9001"]})
    assert set(first) == {"tables", "problems", "warnings", "documents"}
    assert first["problems"] == []
    assert set(first["tables"]["routes"]) == {"mesh a", "mesh b", "mesh c", "mesh *"}
    assert [row[:3] for row in first["documents"]] == [["VirtualService", "default", n] for n in "abc"]
    request = {"path": str(file), "texts": [["POST /config", b"kind: ["]], "previous": first["documents"]}
    second = ask(request)
    assert second["problems"] == [
        {
            "file": "POST /config",
            "line": 1,
            "field": "",
            "message": "not YAML: did not find expected node content, while parsing a flow node",
            "kind": "",
            "namespace": "",
            "name": "",
        }
    ]
    assert second["documents"] == first["documents"]
    assert ask({"listen": "nonsense"}) == {
        "error": "'nonsense' is not HOST:PORT (port 1 to 65535) or unix:///path"
    }


def test_process_answers_request_by_request() -> None:
    """It stays while its standard input is open, so that a burst of changes pays for one start."""
    command = [sys.executable, "-m", "fastproxy.resources"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        answers = msgpack.Unpacker()
        for code in (200, 201):
            child.stdin.write(msgpack.packb({"texts": [["f", virtual("v", status(code)).encode()]]}))
            child.stdin.flush()
            got = None
            while got is None:
                data = os.read(child.stdout.fileno(), 1 << 16)
                assert data
                answers.feed(data)
                got = next(iter(answers), None)
            assert got["tables"]["routes"]["mesh v"]["routes"][0]["direct"]["status"] == code
        child.stdin.close()
        assert child.wait(timeout=30) == 0


def test_path_and_texts_share_one_name_space(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(virtual("v", status(200)))
    got = answer({"path": str(tmp_path), "texts": [["b", virtual("v", status(201)).encode()]]})
    assert got["tables"]["routes"]["mesh v"]["routes"][0]["direct"]["status"] == 200
    assert [p["message"] for p in got["problems"]] == [
        f"VirtualService default/v is defined twice, first at {tmp_path}/a.yaml:3"
    ]


def test_ten_thousand_routes_in_a_few_seconds(tmp_path: Path) -> None:
    routes = "".join(
        f"  - match:\n    - uri:\n        prefix: /api/{i}\n"
        f"      headers:\n        tenant:\n          exact: t{i}\n"
        "    route:\n    - destination:\n        host: s\n"
        for i in range(10_000)
    )
    text = SERVICE % ONE + "---\n" + virtual("v", "x").replace("  http: [x]\n", "  http:\n") + routes
    (tmp_path / "a.yaml").write_text(text)
    got = ask({"path": str(tmp_path)})
    assert got["problems"] == []
    assert len(got["tables"]["routes"]["mesh v"]["routes"]) == 10_000
