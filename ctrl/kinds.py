"""The kinds of documents, as people call them on a command line."""

from __future__ import annotations

from fastproxy.resources.problem import nearest

# Istio's short names, where it has one
SHORT = {
    "Gateway": "gw",
    "ServiceEntry": "se",
    "WorkloadEntry": "we",
    "DestinationRule": "dr",
    "VirtualService": "vs",
    "BreakerOrder": "bo",
}
KINDS = tuple(SHORT)

_NAMES = {name: kind for kind, short in SHORT.items() for name in (kind.lower(), short)}
_NAMES.update({f"{kind.lower()}s": kind for kind in KINDS})
_NAMES.update({f"{kind.lower()[:-1]}ies": kind for kind in KINDS if kind.endswith("ry")})


def kind_of(text: str) -> str:
    """``vs``, ``virtualservices``, ``VirtualService`` as ``VirtualService``. Raises ValueError."""
    kind = _NAMES.get(text.lower())
    if kind is None:
        hint = nearest(text, KINDS) or f"; there are {', '.join(KINDS)}"
        raise ValueError(f"unknown kind {text[:60]!r}{hint}")
    return kind


def one(text: str, name: str = "") -> tuple[str, str]:
    """``KIND``, ``KIND/NAME`` or ``KIND NAME`` as (kind, name), the name empty when none is given. Raises
    ValueError."""
    kind, slash, inside = text.partition("/")
    if slash and (name or not inside):
        raise ValueError(f"{text[:60]!r}: write KIND/NAME, or KIND NAME")
    return kind_of(kind), inside or name
