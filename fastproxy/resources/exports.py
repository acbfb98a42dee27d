"""exportTo: which namespaces see a document."""

from __future__ import annotations

from fastproxy.resources.documents import Document

NOWHERE: frozenset[str] = frozenset()


def audience(document: Document) -> frozenset[str] | None:
    """The namespaces whose proxies see a document; None: all do.

    Istio's rule: ``*`` or nothing means all, ``.`` the document's own, ``~`` none.
    """
    exports: list[str] = getattr(document.resource.spec, "exportTo", None) or ["*"]
    if exports == ["*"]:
        return None
    if exports == ["~"]:
        return NOWHERE
    return frozenset(document.namespace if name == "." else name for name in exports)


def visible(document: Document, namespace: str) -> bool:
    names = audience(document)
    return names is None or namespace in names


def meet(one: Document, other: Document) -> bool:
    """Whether a namespace sees both: only then can they be in each other's way."""
    mine, theirs = audience(one), audience(other)
    if mine is None or theirs is None:
        return mine != NOWHERE and theirs != NOWHERE
    return not mine.isdisjoint(theirs)
