"""exportTo: which documents a proxy of a namespace has, and what is told of those it has not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastproxy.resources import load_texts, settle
from fastproxy.resources.__main__ import answer
from fastproxy.resources.documents import Document
from fastproxy.resources.exports import meet, visible

NAMESPACES = ("default", "shop", "far")


def document(kind: str, name: str, spec: str, namespace: str = "default", export: str = "") -> str:
    export = f"  exportTo: [{export}]\n" if export else ""
    head = f"apiVersion: networking.istio.io/v1\nkind: {kind}\n"
    return f"{head}metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}{export}---\n"


def entry(host: str, namespace: str = "default", export: str = "", ports: str = "80") -> str:
    listed = ", ".join(f"{{number: {p}, name: p{p}}}" for p in ports.split())
    spec = f"  hosts: [{host}]\n  ports: [{listed}]\n  resolution: STATIC\n"
    return document("ServiceEntry", host, spec, namespace, export)


def virtual(host: str, to: str, namespace: str = "default", export: str = "") -> str:
    spec = f"  hosts: [{host}]\n  http: [{{route: [{{destination: {{host: {to}}}}}]}}]\n"
    return document("VirtualService", host, spec, namespace, export)


def rule(host: str, subset: str, namespace: str = "default", export: str = "") -> str:
    return document(
        "DestinationRule",
        f"{host}-{subset}",
        f"  host: {host}\n  subsets: [{{name: {subset}}}]\n",
        namespace,
        export,
    )


def load(text: str) -> list[Document]:
    loaded = load_texts([("a.yaml", text.encode())])
    assert loaded.problems == []
    return loaded.documents


@pytest.mark.parametrize(
    ("export", "seen"),
    [
        ("", NAMESPACES),
        ("'*'", NAMESPACES),
        ("'.'", ("shop",)),
        ("'~'", ()),
        ("far", ("far",)),
        ("'.', far", ("shop", "far")),
    ],
)
def test_who_sees_a_document(export: str, seen: tuple[str, ...]) -> None:
    text = entry("catalog", "shop", export) + virtual("www", "catalog", "shop", export)
    text += rule("catalog", "v1", "shop", export)
    documents = load(text)
    for namespace in NAMESPACES:
        assert [visible(d, namespace) for d in documents] == [namespace in seen] * 3
        tables, kept, problems = settle(documents, namespace=namespace)
        assert ("mesh www" in tables["routes"]) is (namespace in seen)
        assert ("outbound|80|v1|catalog" in tables["clusters"]) is (namespace in seen)
        assert kept == documents and problems == []
    assert "mesh www" in settle(documents)[0]["routes"], "without a namespace there is no filter"


def test_one_host_in_two_namespaces_is_an_error_only_where_both_are_seen() -> None:
    apart = entry("catalog", "shop", "'.'") + entry("catalog", "far", "'.'", "81")
    tables, _, problems = settle(load(apart))
    assert problems == [] and list(tables["clusters"]) == ["outbound|80||catalog"]
    for namespace, key in (("shop", "outbound|80||catalog"), ("far", "outbound|81||catalog")):
        assert list(settle(load(apart), namespace=namespace)[0]["clusters"]) == [key]
    third = entry("catalog", "default", "far")
    told = settle(load(apart + third))[2]
    assert [(p.namespace, p.message) for p in told] == [
        ("default", "catalog is already a host of ServiceEntry far/catalog")
    ]


def test_without_a_filter_each_namespace_looks_up_its_own_service() -> None:
    # two ports and none chosen is an error: it must not come from the service of somebody else
    text = entry("catalog", "shop", "'.'", "80 81") + entry("catalog", "far", "'.'")
    text += virtual("www", "catalog", "far", "'.'")
    assert settle(load(text))[2] == []


def test_two_rules_of_one_host_are_an_error_only_where_both_are_seen() -> None:
    text = entry("catalog") + rule("catalog", "v1", "shop", "'.'")
    again = rule("catalog", "v1", "far", "%s").replace("name: catalog-v1", "name: again")
    assert settle(load(text + again % "'.'"))[2] == []
    told = settle(load(text + again % "shop"))[2]
    assert [p.message for p in told] == ["DestinationRule shop/catalog-v1 already gives catalog a subset v1"]


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("'*'", "'*'", True),
        ("'*'", "shop", True),
        ("'*'", "'~'", False),
        ("'~'", "'~'", False),
        ("shop", "far", False),
        ("shop, far", "far", True),
    ],
)
def test_documents_meet(one: str, other: str, together: bool) -> None:
    a, b = load(entry("a", export=one) + entry("b", export=other))
    assert meet(a, b) is meet(b, a) is together


def test_the_reader_takes_the_namespace_of_the_proxy(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(entry("catalog", "shop", "'.'") + virtual("www", "catalog"))
    mine = answer({"path": str(path), "namespace": "shop"})
    assert list(mine["tables"]["clusters"]) == ["outbound|80||catalog"]
    assert mine["warnings"] == []
    for other in (answer({"path": str(path)}), answer({"path": str(path), "namespace": "default"})):
        assert other["tables"]["clusters"] == {} and other["problems"] == []
        assert len(other["documents"]) == 2, "what is not seen is kept: its last good version may be needed"
        assert [w["message"] for w in other["warnings"]] == [
            "ServiceEntry shop/catalog has the host catalog, and is not exported to here;"
            " requests sent there are answered 503 NC"
        ]


def test_all_namespaces_at_once_are_told_what_nobody_can_reach() -> None:
    text = entry("catalog", "shop", "'.'") + virtual("www", "catalog", "far", "far")
    told = answer({"texts": [("a.yaml", text.encode())], "namespace": None})["warnings"]
    assert [w["message"] for w in told] == [
        "ServiceEntry shop/catalog is not exported to where this is; requests sent there are answered 503 NC"
    ]
