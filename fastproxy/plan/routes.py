"""Routes: what to do with a request once its rule is found."""

from __future__ import annotations

from collections.abc import Mapping

from fastproxy import _http1
from fastproxy.plan.patterns import Patterns
from fastproxy.plan.writer import EMPTY, NONE, PlanError, Writer
from fastproxy.tables import HeaderOps, Redirect, Route

FORWARD, REDIRECT, DIRECT = 1, 2, 3  # RouteKind
REWRITE_NONE, REWRITE_PREFIX, REWRITE_REGEX = 0, 1, 2  # RewriteKind
HAS_URI, HAS_PREFIX, HAS_PORT = 1, 2, 4  # RedirectFlag
MAX_WEIGHT = 0xFFFFFFFF

# Fields that frame the message or belong to one connection: no operation may touch them.
FRAMING = frozenset(
    [
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_CONTROLS = frozenset(range(32)) - {9} | {127}

Packed = tuple[int, int, int, int, int]  # a HeaderOps: bloom, remove, count, append
NO_OPS: Packed = (0, 0, 0, *EMPTY)


def _field_name(name: str) -> bytes:
    raw = name.encode()
    if not raw or not _TOKEN.issuperset(raw):
        raise PlanError(f"not a field name: {name!r}")
    return raw


def _plain(what: str, text: str) -> bytes:
    """A text that will stand in a head: no controls, so that it cannot end its line."""
    raw = text.encode()
    if not _CONTROLS.isdisjoint(raw):
        raise PlanError(f"control character in {what}: {text!r}")
    return raw


def _target(what: str, text: str) -> bytes:
    raw = _plain(what, text)
    if b" " in raw or b"\t" in raw or b"#" in raw:
        raise PlanError(f"space or fragment in {what}: {text!r}")
    return raw


class Routes:
    """Writes routes; equal header operations and patterns are kept once."""

    def __init__(self, out: Writer, clusters: Mapping[str, int], patterns: Patterns) -> None:
        self._out = out
        self._rows = out.rows["route"]
        self._destination_rows = out.rows["destination"]
        self._has_destinations = out.refers("route", 12, "destination")
        self._clusters = clusters
        self._patterns = patterns
        self._known: dict[tuple[object, ...], Packed] = {}

    def _ops(self, ops: HeaderOps | None, skip: str = "") -> Packed:
        """`set` is a removal and an addition; a name in ``skip`` is left to the caller."""
        if not ops:
            return NO_OPS
        key = (
            tuple(ops.get("set", {}).items()),
            tuple(ops.get("add", {}).items()),
            tuple(ops.get("remove", [])),
            skip,
        )
        if key not in self._known:
            self._known[key] = self._pack(ops, skip)
        return self._known[key]

    def _pack(self, ops: HeaderOps, skip: str) -> Packed:
        out = self._out
        sets = {name: value for name, value in ops.get("set", {}).items() if name.lower() != skip}
        lines = b""
        for name, value in (*sets.items(), *ops.get("add", {}).items()):
            lines += _field_name(name) + b": " + _plain(f"field {name}", value) + b"\r\n"
        names = dict.fromkeys(_field_name(name).lower() for name in (*sets, *ops.get("remove", [])))
        for name in (*sets, *ops.get("remove", []), *ops.get("add", {})):
            if name.lower() in FRAMING or name.lower() == "host":
                raise PlanError(f"field {name} frames or routes the message and cannot be changed")
        first = len(out.rows["remove"])
        bloom = 0
        for raw in names:
            hashed = _http1.field_hash(raw)
            bloom |= 1 << (hashed & 63)
            out.row("remove", hashed, *out.texts[raw])
        return (bloom, first, len(names), *out.texts[lines])

    def _point(self, section: str, row: int, at: int, ops: Packed) -> None:
        if ops[2]:
            self._out.refers(section, at + 8, "remove").append(row)

    def _redirect(self, redirect: Redirect) -> int:
        flags = 0
        for key, flag in (("uri", HAS_URI), ("prefix", HAS_PREFIX), ("port", HAS_PORT)):
            if key in redirect:
                flags |= flag
        scheme = redirect.get("scheme", "").lower()
        if scheme and not scheme.isalpha():
            raise PlanError(f"not a scheme: {scheme!r}")
        port = redirect.get("port", 0)
        if not 0 <= port <= 65535:
            raise PlanError(f"redirect port {port} is not 0 to 65535")
        return self._out.row(
            "redirect",
            *self._out.texts[scheme.encode()],
            *self._out.texts[_target("redirect.uri", redirect.get("uri", ""))],
            *self._out.texts[_target("redirect.prefix", redirect.get("prefix", ""))],
            flags,
            port,
        )

    def _destinations(self, route: Route) -> tuple[int, int, int]:
        """First row, count and sum of the weights."""
        rows = self._destination_rows
        destinations = route.get("destinations", [])
        if not destinations:
            raise PlanError("a route without destinations")
        first = len(rows)
        total = 0
        for destination in destinations:
            weight = destination["weight"]
            if weight < 0:
                raise PlanError(f"negative weight {weight}")
            total += 1 if len(destinations) == 1 else weight
            request = response = NO_OPS
            if headers := destination.get("headers"):
                request, response = self._ops(headers.get("request")), self._ops(headers.get("response"))
                self._point("destination", len(rows), 8, request)
                self._point("destination", len(rows), 32, response)
            cluster = self._clusters.get(destination["cluster"], NONE)
            rows.append((cluster, min(total, MAX_WEIGHT), *request, *response))
        if not 0 < total <= MAX_WEIGHT:
            raise PlanError(f"weights add up to {total}")
        return first, len(destinations), total

    def write(self, route: Route, name: str) -> int:
        """Row of this route; its number is the route's id."""
        out = self._out
        row = len(self._rows)
        authority = skip = ""
        request = response = NO_OPS
        if headers := route.get("headers"):
            sets = {key.lower(): value for key, value in headers.get("request", {}).get("set", {}).items()}
            if "host" in sets:  # Istio: setting Host is rewriting the authority
                authority, skip = sets["host"], "host"
            request, response = self._ops(headers.get("request"), skip), self._ops(headers.get("response"))
        kind, destinations, status, redirect, body = FORWARD, (0, 0, 0), 0, NONE, b""
        rewrite_kind, rewrite, program = REWRITE_NONE, b"", NONE
        if "redirect" in route:
            kind, redirect = REDIRECT, self._redirect(route["redirect"])
            status = route["redirect"].get("code", 301)
            authority = route["redirect"].get("authority", "")
        elif "direct" in route:
            kind, status, body = DIRECT, route["direct"]["status"], bytes(route["direct"]["body"])
        else:
            destinations = self._destinations(route)
            if change := route.get("rewrite"):
                authority = change.get("authority", authority)
                if "regex" in change:
                    rewrite_kind = REWRITE_REGEX
                    rewrite = _target("rewrite.uriRegexRewrite.rewrite", change["regex"][1])
                    program = self._patterns.program(change["regex"][0], change["regex"][1])
                elif change.get("uri"):
                    rewrite_kind, rewrite = REWRITE_PREFIX, _target("rewrite.uri", change["uri"])
        if kind == FORWARD:
            self._has_destinations.append(row)
        if headers:
            self._point("route", row, 80, request)
            self._point("route", row, 104, response)
        self._rows.append(
            (
                kind,
                row,
                route.get("timeout", 0),
                *destinations,
                rewrite_kind,
                *out.texts[rewrite],
                program,
                *out.texts[_target("authority", authority) if authority else b""],
                status,
                redirect,
                *out.texts[body],
                *out.texts[name.encode()],
                0,
                *request,
                *response,
            )
        )
        return row
