"""Where a request would go and why: each rule tried, the first reason it failed, and the pick.

The answer comes from the parser and the plan that the core uses; here it is only put into words and data,
for the command line and the admin API to show. Header operations are told as the tables have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastproxy import _plan
from fastproxy.errors import TABLE, Kind
from fastproxy.tables import Headers, Listener, Match, Route, Tables

MESH = "mesh"
ACTIONS = {1: "forward", 2: "redirect", 3: "direct response"}
SUBSTITUTE: Listener = {"address": "", "port": 0, "protocol": "HTTP"}


@dataclass(frozen=True, slots=True)
class Tried:
    """One rule. ``rule``: its number in the host, from 1. ``reason``: empty for the one that matched.
    ``match``: what the document calls it."""

    rule: int
    route: str
    reason: str
    match: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One destination. ``share``: of the route's requests, 0 to 1. ``endpoints``: names; none: 503 UH.
    ``missing``: no such host or subset: 503 NC."""

    cluster: str
    share: float
    missing: bool
    endpoints: list[str]
    headers: Headers = field(default_factory=Headers)


@dataclass(slots=True)
class Explanation:
    """``error``: empty, or why there is no route and what the client gets. ``sent``: path and query to
    upstream, or the Location of a redirect. ``hosts``: what was looked up, and whether it is there.
    ``elsewhere``: rules of the same documents that can not hold on this listener. ``headers``: what the
    route changes; each destination adds its own."""

    method: str
    url: str
    listener: str = ""
    listener_reason: str = ""
    host: str = ""
    hosts: list[tuple[str, bool]] = field(default_factory=list)
    virtual_host: str = ""
    source: list[str] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    route: str = ""
    action: str = ""
    status: int = 0
    timeout_ms: int = 0
    authority: str = ""
    sent: str = ""
    headers: Headers = field(default_factory=Headers)
    destinations: list[Choice] = field(default_factory=list)
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the admin API."""
        return asdict(self)


def with_mesh(tables: Tables) -> Tables:
    """Tables whose ``mesh`` listener is there, so that its routes can be asked for without ``--listen``."""
    if MESH in tables["listeners"]:
        return tables
    return {**tables, "listeners": {**tables["listeners"], MESH: SUBSTITUTE}}


def head(method: str, url: str, headers: Sequence[tuple[str, str]]) -> tuple[bytes, bool]:
    """The request head that a client would send for this URL, and whether it is https. ValueError: not a
    URL, or a method, path or field that would break its line."""
    parts = urlsplit(url if "://" in url else f"http://{url.removeprefix('//')}")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"not an http or https URL: {url}")
    authority = parts.netloc.rpartition("@")[2]
    hosts = [value for name, value in headers if name.lower() == "host"]
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {hosts[-1] if hosts else authority}"]
    lines += [f"{name}: {value}" for name, value in headers if name.lower() != "host"]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("line break in the request")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode(), parts.scheme == "https"


def choose_listener(
    tables: Tables, port: int, https: bool, wanted: str = "", host: str = ""
) -> tuple[str, str]:
    """Listener that a request to ``host`` and ``port`` (0: none in the URL) comes to, and why this one.
    LookupError: none."""
    listeners = tables["listeners"]
    if wanted:
        if wanted not in listeners:
            raise LookupError(f"no listener {wanted}; there are: {', '.join(sorted(listeners)) or 'none'}")
        return wanted, "asked for"
    given, port = port, port or (443 if https else 80)
    here = sorted(name for name, row in listeners.items() if row["port"] == port and name != MESH)
    if here:
        return here[0], f"has port {port}"
    gateways = sorted(name for name in listeners if name != MESH)
    mesh_is_open = listeners.get(MESH, SUBSTITUTE) != SUBSTITUTE
    if MESH in listeners and f"{MESH} {host}" in tables["routes"] and (given or len(gateways) > 1):
        opener = "" if mesh_is_open else "; --listen opens it"
        return MESH, f"it has {host}, and no other listener has port {port}{opener}"
    if len(gateways) == 1 and not mesh_is_open:
        return gateways[0], "the only one"
    mesh_used = any(key.startswith(f"{MESH} ") for key in tables["routes"])
    if MESH in listeners and (not gateways or (mesh_is_open and mesh_used)):
        return MESH, f"no other listener has port {port}" if gateways else "there is no other"
    if len(gateways) == 1:
        return gateways[0], "the only one"
    if not gateways:
        raise LookupError("there is no listener")
    raise LookupError(f"no listener has port {port}; name one of: {', '.join(sorted(listeners))}")


def _quoted(raw: bytes) -> str:
    return '"' + raw.decode("utf-8", "backslashreplace") + '"'


def _reason(failed: _plan.Failed) -> str:
    """What is wrong with the request from this predicate's view."""
    name = failed.name.decode("utf-8", "backslashreplace")
    what = f"{failed.subject} {name}".rstrip()
    if failed.subject == "port":
        return f"port is {(failed.found or b'0').decode()}, not {failed.number}"
    if failed.kind == "present":
        return f"{what} is there" if failed.negated else f"no {what}"
    if failed.found is None and not failed.negated:
        return f"no {what}"
    verb = {"exact": "is", "prefix": "begins with", "regex": "matches"}[failed.kind]
    without = {"exact": "is not", "prefix": "does not begin with", "regex": "does not match"}[failed.kind]
    value = (
        failed.value.decode("utf-8", "backslashreplace") if failed.kind == "regex" else _quoted(failed.value)
    )
    found = _quoted(failed.found or b"")
    if failed.negated:
        return (
            f"{what} {found} {verb} {value}, which is excluded"
            if failed.kind != "exact"
            else (f"{what} is {value}, which is excluded")
        )
    case = " (case ignored)" if failed.fold else ""
    return f"{what} {found} {without} {value}{case}"


def _hosts(tables: Tables, listener: str, host: str) -> list[tuple[str, bool]]:
    """What is looked up for a host, in order: itself, the longest suffix first, then "*"."""
    known = {key.rpartition(" ")[2].lower() for key in tables["routes"] if key.startswith(f"{listener} ")}
    labels = host.split(".")
    tries = [host, *(f"*.{'.'.join(labels[i:])}" for i in range(1, len(labels))), "*"]
    out = []
    for name in tries:
        out.append((name, name in known))
        if name in known:
            break
    return out


def explain(
    tables: Tables,
    view: _plan.PlanView,
    method: str,
    url: str,
    headers: Sequence[tuple[str, str]] = (),
    *,
    listener: str = "",
    slashes: int = 0,
    merge: bool = True,
) -> Explanation:
    """Explain one request against tables and the plan that was compiled from them (see :func:`with_mesh`).

    listener: its name; empty: chosen by the URL's port. ValueError: not a request. What the proxy would
    answer by itself (404 NR) is not an exception but in ``error``.
    """
    out = Explanation(method, url)
    raw, https = head(method, url, headers)
    parts = urlsplit(url if "://" in url else f"http://{url}")
    out.host = (parts.hostname or "").lower()
    try:
        port = parts.port or 0
    except ValueError:
        raise ValueError(f"the port of {url} is not a number up to 65535") from None
    try:
        out.listener, out.listener_reason = choose_listener(tables, port, https, listener, out.host)
        if out.listener not in view.listeners():
            raise LookupError(f"listener {out.listener} is not open here")
    except LookupError as wrong:
        out.listener, out.error = "", str(wrong)
        return out
    options: dict[str, Any] = {"slashes": slashes, "merge": merge, "https": https}
    try:
        steps = view.explain(out.listener, raw, **options)
    except _plan.Refused as wrong:
        entry = TABLE[Kind(wrong.kind)]
        out.error = f"{entry.status} {entry.flag}: {entry.message}"
        return out
    found = view.host(out.listener, raw, **options)
    named = [value for name, value in headers if name.lower() == "host"]
    if named:
        out.host = (urlsplit(f"http://{named[-1]}").hostname or "").lower()
    out.hosts = _hosts(tables, out.listener, out.host)
    if found is None:
        out.error = f"404 NR: no virtual host for {out.host} on {out.listener}"
        return out
    out.virtual_host = found.decode()
    if out.virtual_host.startswith((".", "-")):
        out.virtual_host = f"*{out.virtual_host}"
    row = tables["routes"][f"{out.listener} {out.virtual_host}"]
    out.source, out.elsewhere = row["source"], row.get("elsewhere", [])
    rules = _rules(row["routes"])
    for step in steps:
        name = view.route(step.route).name.decode()
        reason = "" if step.failed is None else _reason(step.failed)
        out.tried.append(Tried(step.rule + 1, name, reason, rules[step.rule][1].get("name", "")))
    target = view.match(out.listener, raw, **options)
    if target is None:
        out.error = f"404 NR: no rule of {out.virtual_host} matches"
        return out
    _describe(out, rules[target.rule][0], view, view.route(target.route))
    sent = view.rewritten(out.listener, raw, **options)
    if out.action == "redirect":
        out.sent = (sent or b"").decode("utf-8", "backslashreplace")
    elif out.action == "forward":
        query = b"?" + target.query if target.query else b""
        out.sent = ((sent or b"") + query).decode("utf-8", "backslashreplace")
    return out


def _rules(routes: list[Route]) -> list[tuple[Route, Match]]:
    """Match blocks in the order in which the plan numbers them."""
    return [(route, match) for route in routes for match in (route["matches"] or [Match()])]


def _describe(out: Explanation, row: Route, view: _plan.PlanView, route: _plan.RouteView) -> None:
    out.route = route.name.decode()
    out.action = ACTIONS[route.kind]
    out.status = route.status
    out.timeout_ms = route.timeout_ms
    out.authority = route.authority.decode()
    out.headers = row.get("headers", Headers())
    total = sum(d.weight for d in route.destinations)
    for given, destination in zip(row.get("destinations", []), route.destinations, strict=True):
        endpoints = (
            []
            if destination.cluster is None
            else [e.name for e in view.cluster(destination.cluster).endpoints]
        )
        missing, share = destination.cluster is None, destination.weight / total
        headers = given.get("headers", Headers())
        out.destinations.append(Choice(given["cluster"], share, missing, endpoints, headers))
