"""Text to values: what YAML is taken, what is refused, and that nothing gets past the bounds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fastproxy.resources import Problem, load, load_texts, settle
from fastproxy.resources.problem import field_path, nearest
from fastproxy.resources.source import split
from fastproxy.resources.tree import MAX_DEPTH, Fault, line_of, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", 1),
        ("a: -12", -12),
        ("a: 0", 0),
        ("a: 1.5", 1.5),
        ("a: 1e3", 1000.0),
        ("a: .5", 0.5),
        ("a: true", True),
        ("a: False", False),
        ("a:", None),
        ("a: ~", None),
        ("a: null", None),
        # YAML 1.1 would make booleans, octals, base-60 numbers and dates of these
        ("a: on", "on"),
        ("a: No", "No"),
        ("a: y", "y"),
        ("a: 010", "010"),
        ("a: 1_000", "1_000"),
        ("a: 12:30", "12:30"),
        ("a: 0x1F", "0x1F"),
        ("a: 2026-01-01", "2026-01-01"),
        ("a: '1'", "1"),
        ("a: '-'", "-"),
        ("a: 1.2.3", "1.2.3"),
        ("a: 127.0.0.1", "127.0.0.1"),
        ("a: v1", "v1"),
        ("a: !!str 1", "1"),
        ("a: !!int '1'", 1),
        ("a: |\n  x\n  y\n", "x\ny\n"),
        ("a: &x [1, 2]", [1, 2]),
        ("{x: &x {b: 1}, a: *x}", {"b": 1}),
        ("x: &x {b: 1, c: 2}\na: {<<: *x, b: 3}", {"b": 3, "c": 2}),
        ("x: &x {b: 1}\ny: &y {b: 2, d: 4}\na: {<<: [*x, *y]}", {"b": 1, "d": 4}),
        ('{"a": {"b": [1, "2", null, true]}}', {"b": [1, "2", None, True]}),
        ('{\n\t"a": 1\n}', 1),
    ],
)
def test_values(text: str, value: Any) -> None:
    got = parse(text)[0]["a"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3", 2, "a is given twice"),
        ("x:\n  'a': 1\n  \"a\": 3", 2, "a is given twice"),
        ("a: !!python/name:os.system x", 0, "tag tag:yaml.org,2002:python/name:os.system is not allowed"),
        ("a: !x {}", 0, "tag !x is not allowed"),
        ("a: !!binary eA==", 0, "tag tag:yaml.org,2002:binary is not allowed"),
        ("!!int 1: a", 0, "tag tag:yaml.org,2002:int is not allowed on a key"),
        ("? [a]\n: b", 0, "a key must be a word, not a mapping or list"),
        ("x: &x a\n*x : b", 1, "a key must be a word, not an alias"),
        ("a: &a [*a]", 0, "alias *a names no finished anchor"),
        ("a: *b", 0, "alias *b names no finished anchor"),
        ("x: 1\na:\n  <<: 1", 3, "<< needs a mapping or a list of mappings"),
        ("a: [1\nb: 2", 1, "not YAML: did not find expected ',' or ']', while parsing a flow sequence"),
        (
            "a: 1\n\tb: 2",
            1,
            "not YAML: found a tab character that violates indentation, while scanning a plain scalar",
        ),
        ("a: 1\nb: {", 1, "not YAML: did not find expected node content, while parsing a flow node"),
        ("a: 1\nb: c\rd", 1, "U+000D ends a line for some parsers only: escape it in double quotes"),
        ("a: '\u2028'", 0, "U+2028 ends a line for some parsers only: escape it in double quotes"),
        ("a: \x01", 0, "not YAML: control characters are not allowed"),
        ("a: 1\n--- \nb: 1", 1, "a second document; part documents by a line ---"),
    ],
)
def test_refused(text: str, line: int, message: str) -> None:
    with pytest.raises(Fault) as caught:
        parse(text)
    assert (caught.value.message, caught.value.line) == (message, line)


def test_depth_is_bounded() -> None:
    parse("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    for text in (
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "[" * 100_000,
        "- " * 100_000,
        "{a: " * 100_000,
    ):
        with pytest.raises(Fault, match="nested deeper|not YAML"):
            parse(text)


def test_a_billion_laughs() -> None:
    text = "a0: &a0 [lol]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    start = time.monotonic()
    with pytest.raises(Fault, match="more than 2000000 values after aliases are expanded"):
        parse(text)
    assert time.monotonic() - start < 2


def test_laughs_that_are_few_and_long() -> None:
    """A list's items are kept as text, and there an alias is as long as what it names."""
    repeated = ", ".join(["*a"] * 3000)
    assert len(parse(f"a: &a {'x' * 10}\nb: [{repeated}]")[0]["b"]) == 3000
    for text in (f"a: &a {'x' * 100_000}\nb: [{repeated}]", f"? &a {'x' * 100_000}\n: 1\nb: [{repeated}]"):
        with pytest.raises(Fault, match="more than 2000000 values after aliases are expanded"):
            parse(text)


def test_lines() -> None:
    text = "a:\n- b: 1\n  c:\n    d: [x,\n      y]\n- e\nx: &x\n  f: 1\nz: *x\nm:\n  <<: *x\n  g: 2\n"
    _, marks = parse(text)
    assert line_of(marks, ("a",)) == 0
    assert line_of(marks, ("a", 0, "c")) == 2
    assert line_of(marks, ("a", 0, "c", "d", 1)) == 4
    assert line_of(marks, ("a", 0, "c", "gone", 1)) == 2
    assert line_of(marks, ("a", 1)) == 5
    assert line_of(marks, ("z", "f")) == 7
    assert line_of(marks, ("m", "f")) == 7
    assert line_of(marks, ("m", "g")) == 11


def test_field_paths() -> None:
    assert field_path(("spec", "http", 0, "match", 12, "uri")) == "spec.http[0].match[12].uri"
    assert nearest("hedaers", ["headers", "uri"]) == " (did you mean headers?)"
    assert nearest("zzz", ["headers", "uri"]) == ""


def test_split() -> None:
    text = (
        "# only a comment\n---\na: 1\n--- # two\nb: |\n  text\n...\n---\n%YAML 1.2\n---\n--- {c: 1}\n----\n"
    )
    assert [(c.line, parse(c.text)[0]) for c in split("f", text) if "----" not in c.text] == [
        (2, {"a": 1}),
        (4, {"b": "text\n"}),
    ]
    assert [c.line for c in split("f", text)] == [2, 4, 11]


GOOD = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: %s}\nspec:\n  servers: [%s]\n"
SERVER = "{port: {number: 80, protocol: HTTP}, hosts: ['*']}"


def test_a_syntax_error_stays_in_its_document() -> None:
    text = f"{GOOD % ('a', SERVER)}---\nkind: [\n---\n{GOOD % ('b', SERVER)}"
    loaded = load_texts([("f", text.encode())])
    assert [d.row.name for d in loaded.documents] == ["a", "b"]
    assert [(p.line, p.identity) for p in loaded.problems] == [(8, ("", "", ""))]


def test_list_and_json() -> None:
    item = yaml.safe_load(GOOD % ("a", SERVER))
    other = {**item, "metadata": {"name": "b"}, "spec": {"server": []}}
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [item, other, 5]}, indent=2)
    loaded = load_texts([("f.json", text.encode())])
    assert [d.row.name for d in loaded.documents] == ["a"]
    line = text[: text.index('"server":')].count("\n") + 1
    assert [str(p) for p in loaded.problems] == [
        f"f.json:{line}: spec.server: unknown field (did you mean servers?)",
        f"f.json:{text.count(chr(10)) - 1}: items[2]: must be a mapping, not a number",
    ]


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text(GOOD % ("b", SERVER))
    (tmp_path / "a.yaml").write_text(GOOD % ("a", SERVER))
    (tmp_path / "c.json").write_text(json.dumps(yaml.safe_load(GOOD % ("c", SERVER))))
    (tmp_path / ".hidden.yaml").write_text("nonsense: [")
    (tmp_path / "notes.txt").write_text("nonsense: [")
    (tmp_path / "sub.yaml").mkdir()
    loaded = load(str(tmp_path))
    assert loaded.problems == []
    assert [d.row.name for d in loaded.documents] == ["a", "b", "c"]


def test_what_can_not_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD % ("a", SERVER))
    (tmp_path / "bytes.yaml").write_bytes(b"a: 1\nb: \xff\n")
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    loaded = load(str(tmp_path))
    assert [d.row.name for d in loaded.documents] == ["a"]
    assert sorted(str(p).removeprefix(f"{tmp_path}/") for p in loaded.problems) == [
        "bytes.yaml:2: not UTF-8",
        "gone.yaml: No such file or directory",
        "pipe.yaml: not a regular file",
    ]
    assert [p.message for p in load(str(tmp_path / "missing")).problems] == ["No such file or directory"]
    (tmp_path / "empty").mkdir()
    assert [p.message for p in load(str(tmp_path / "empty")).problems] == [
        "no .yaml, .yml, .json file in this folder"
    ]


def test_a_byte_order_mark_is_no_error() -> None:
    assert load_texts([("f", b"\xef\xbb\xbf" + (GOOD % ("a", SERVER)).encode())]).problems == []


def test_many_errors_are_cut_short() -> None:
    text = GOOD % ("a", SERVER) + "".join(f"  x{i}: 1\n" for i in range(5000))
    problems = load_texts([("f", text.encode())]).problems
    assert len(problems) == 101
    assert problems[-1].message == "and at least 900 more in this document"
    few = load_texts([("f", text[: text.index("  x120:")].encode())]).problems
    assert few[-1].message == "and 20 more in this document"


def test_hostile_names_are_printable_and_short() -> None:
    text = GOOD % ("a", SERVER) + '  "\\e[31m\\n' + "x" * 1000 + '": 1\n  "a\\nb": 1\n  "a\\nb": 1\n'
    problems = load_texts([("f", text.encode())]).problems
    assert [str(p) for p in problems] == ["f:8: a\\nb is given twice, first on line 7"]
    problems = load_texts([("f", text[: text.index('  "a')].encode())]).problems
    assert len(problems) == 1
    assert str(problems[0]).startswith("f:6: spec.\\x1b[31m\\nxxx")
    assert str(problems[0]).isprintable()
    assert len(str(problems[0])) < 200


def test_json_escapes_beyond_the_basic_plane() -> None:
    item = yaml.safe_load(GOOD % ("a", SERVER))
    item["metadata"]["annotations"] = {"smile": "\U0001f600\x7f\u2028", "not": "\\ud83d\\ude00"}
    for value in (item, {"apiVersion": "v1", "kind": "List", "items": [item]}):
        loaded = load_texts([("f.json", json.dumps(value).encode())])
        assert loaded.problems == []
        (document,) = loaded.documents
        assert document.resource.metadata.annotations == item["metadata"]["annotations"]
        again = load_texts([("f.json", document.row.text.encode())])
        assert again.documents[0].resource.metadata.annotations == item["metadata"]["annotations"]


def _run(data: bytes) -> None:
    loaded = load_texts([("f.yaml", data)])
    for problem in loaded.problems:
        assert isinstance(problem, Problem)
        assert 0 <= problem.line <= data.count(b"\n") + 1
        assert str(problem).startswith("f.yaml")
    settle(loaded.documents)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    _run(data)


@given(st.text("abk:-[]{},&*!|>'\"#%@`? \n\t~<1\x85\u2028", max_size=200))
def test_any_yaml_like_text(text: str) -> None:
    _run(text.encode())


_WORDS = [
    *("apiVersion", "kind", "metadata", "name", "namespace", "spec", "status", "items", "<<", "labels"),
    *("hosts", "http", "match", "route", "destination", "host", "weight", "uri", "exact", "prefix", "regex"),
    *("headers", "request", "set", "redirect", "directResponse", "body", "string", "gateways", "fault"),
    *("servers", "port", "number", "protocol", "bind", "endpoints", "address", "resolution", "ports"),
    *("subsets", "trafficPolicy", "loadBalancer", "simple"),
]
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["*", "/", "a", "80", "STATIC", "HTTP", "%", "unix:///x", "mesh", "1s", "default/x"]),
)
_TREES = st.recursive(
    _LEAVES,
    lambda below: st.one_of(
        st.lists(below, max_size=3), st.dictionaries(st.sampled_from(_WORDS), below, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=200)
@given(
    st.sampled_from(
        ["Gateway", "ServiceEntry", "WorkloadEntry", "DestinationRule", "VirtualService", "List"]
    ),
    st.sampled_from(["networking.istio.io/v1", "fastproxy/v1", "v1"]),
    st.dictionaries(st.sampled_from(_WORDS), _TREES, max_size=5),
    _TREES,
)
def test_any_tree_under_a_known_kind(kind: str, version: str, spec: dict[str, Any], metadata: Any) -> None:
    value = {
        "apiVersion": version,
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
        "items": [spec, metadata],
    }
    _run(json.dumps(value).encode())
    del value["items"]
    value["metadata"] = {"name": "x"}
    _run(yaml.safe_dump(value).encode())


@given(st.recursive(_LEAVES, lambda b: st.lists(b) | st.dictionaries(st.text(max_size=5), b), max_leaves=30))
def test_json_is_read_as_json(value: Any) -> None:
    """Except that numbers keep their limits, JSON and YAML agree; ``<<`` is YAML's own."""
    text = json.dumps({"a": value})
    try:
        got, _ = parse(text)
    except Fault as fault:
        assert "<<" in text or "not YAML" in fault.message or "given twice" in fault.message
        return
    if "<<" not in text and not any(len(w) > 32 for w in text.replace(",", " ").split()):
        assert got == {"a": value}
