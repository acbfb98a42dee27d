"""The ``http`` list of a VirtualService to the routes of one listener."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from fastproxy.resources.clusters import cluster_key
from fastproxy.resources.documents import Document
from fastproxy.resources.problem import PathPart, Problem
from fastproxy.resources.registry import Registry, Service
from fastproxy.resources.virtual_service import (
    Headers,
    HTTPMatch,
    HTTPRoute,
    Redirect,
    RouteDestination,
    StringMatch,
)
from fastproxy.tables import Destination, HeaderOps, Match, Route
from fastproxy.tables import Headers as HeadersRow
from fastproxy.tables import Redirect as RedirectRow
from fastproxy.tables import Rewrite as RewriteRow
from fastproxy.tables import StringMatch as StringMatchRow

MESH = "mesh"
MAX_PLACES = 64  # for which a document keeps its translation
_HTTP = ("spec", "http")


def gateway_name(text: str, namespace: str) -> str:
    """``ns/name`` of a gateway as a resource of ``namespace`` writes it; ``mesh`` stays."""
    return text if text == MESH or "/" in text else f"{namespace}/{text}"


Fact = tuple[str, tuple[int, ...]] | None  # of a service that was looked up: its host and ports


@dataclass(slots=True)
class Translation:
    """What became of one document in one place. ``asked``: what it depends on besides the document, so it
    holds as long as the registry answers the same."""

    routes: list[Route] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    asked: dict[str, Fact] = field(default_factory=dict)  # by host


class Translator:
    """Translates VirtualServices for one place: the gateways that open a listener, or the mesh.

    A translation is kept in the document, since of ten thousand documents one changes at a time.
    """

    def __init__(
        self, registry: Registry, problems: list[Problem], gateways: frozenset[str], port: int
    ) -> None:
        self._registry = registry
        self._problems = problems
        self._gateways = gateways
        self._port = port  # of the listener; 0 on the mesh, where the request's authority says it
        self._known: dict[tuple[str, str], Translation] = {}
        self._now = Translation()  # the one that is being made

    def routes(self, document: Document) -> list[Route]:
        """The routes of a document that hold here; the same list at each call."""
        return self._translation(document).routes

    def elsewhere(self, document: Document) -> list[str]:
        """What :meth:`routes` left out, and where it holds."""
        return self._translation(document).elsewhere

    def _translation(self, document: Document) -> Translation:
        name = (document.namespace, document.row.name)
        known = self._known.get(name)
        if known is not None:
            return known
        place = (self._gateways, self._port)
        kept: Translation | None = document.memo.get(place)
        if kept is None or not self._holds(kept, document.namespace):
            kept = self._now = Translation()
            for i, http in enumerate(document.resource.spec.http):
                route = self._route(document, i, http)
                if route is not None:
                    kept.routes.append(route)
            if len(document.memo) >= MAX_PLACES:  # listeners come and go as long as a document stays
                document.memo.clear()
            document.memo[place] = kept
        self._problems += kept.problems
        self._known[name] = kept
        return kept

    def _holds(self, kept: Translation, namespace: str) -> bool:
        return all(_fact(self._registry.lookup(h, namespace)) == fact for h, fact in kept.asked.items())

    def _route(self, document: Document, index: int, http: HTTPRoute) -> Route | None:
        space = "" if document.namespace == "default" else f"{document.namespace}/"
        name = http.name or f"{space}{document.row.name}#{index}"
        matches: list[Match] = []
        for match in http.match:
            where = self._where_else(document, match)
            if where:
                what = f"{name} {match.name}" if match.name else name
                self._now.elsewhere.append(f"{what}: {where}")
            else:
                matches.append(self._match(match))
        if http.match and not matches:
            return None
        path: tuple[PathPart, ...] = (*_HTTP, index)
        # an empty match among others makes the others needless, but explain shows them all
        route: Route = {"name": name, "matches": matches}
        rewrite = _rewrite(http)
        if http.redirect is not None:
            route["redirect"] = self._redirect(http.redirect)
        elif http.directResponse is not None:
            body = http.directResponse.body
            route["direct"] = {"status": http.directResponse.status, "body": body.data if body else b""}
        else:
            route["destinations"] = [
                self._destination(document, (*path, "route", i), d, len(http.route) == 1)
                for i, d in enumerate(http.route)
            ]
            self._lift_host(document, path, http, rewrite)
        if rewrite:
            route["rewrite"] = rewrite
        headers = _headers(http.headers)
        if headers:
            route["headers"] = headers
        if http.timeout:
            route["timeout"] = http.timeout
        return route

    def _where_else(self, document: Document, match: HTTPMatch) -> str:
        """Where a match holds that can not hold on this listener; empty: it can."""
        if match.gateways is not None:
            names = {gateway_name(g, document.namespace) for g in match.gateways}
            if not names & self._gateways:
                return f"only through {', '.join(sorted(names))}"
        if match.port is not None and self._port not in (0, match.port):
            return f"only on port {match.port}"
        return ""

    def _match(self, match: HTTPMatch) -> Match:
        row: Match = {}
        if match.name is not None:
            row["name"] = match.name
        if match.uri is not None:
            row["path"] = _string(match.uri)
            if match.ignoreUriCase:
                row["ignore_case"] = True
        if match.method is not None:
            row["method"] = _string(match.method)
        if match.scheme is not None:
            row["scheme"] = _string(match.scheme)
        if match.authority is not None:
            row["authority"] = _string(match.authority)
        if match.port is not None and self._port == 0:
            row["port"] = match.port
        if match.headers:
            row["headers"] = _strings(match.headers)
        if match.withoutHeaders:
            row["without_headers"] = _strings(match.withoutHeaders)
        if match.queryParams:
            row["query"] = {k: _string(v) for k, v in sorted(match.queryParams.items())}
        if match.cookies:
            row["cookies"] = {k: _string(v) for k, v in sorted(match.cookies.items())}
        return row

    def _destination(
        self, document: Document, path: tuple[PathPart, ...], given: RouteDestination, alone: bool
    ) -> Destination:
        target = given.destination
        number = target.port.number if target.port is not None else None
        service = self._registry.lookup(target.host, document.namespace)
        self._now.asked[target.host] = _fact(service)
        host = service.host if service is not None else target.host
        if service is not None and number is None:
            port = service.port(None)
            if port is None:
                numbers = ", ".join(str(p.number) for p in service.ports)
                message = f"port is required: {host} has several ({numbers})"
                self._now.problems.append(document.problem((*path, "destination"), message))
            else:
                number = port.number
        row: Destination = {
            "cluster": cluster_key(host, number or 0, target.subset or ""),
            "weight": 1 if alone else given.weight or 0,
        }
        headers = _headers(given.headers)
        if headers:
            row["headers"] = headers
        return row

    def _lift_host(
        self, document: Document, path: tuple[PathPart, ...], http: HTTPRoute, rewrite: RewriteRow
    ) -> None:
        """``host`` among the request headers to set is a rewrite of the authority."""
        places: list[tuple[tuple[PathPart, ...], Headers | None]] = [((*path, "headers"), http.headers)]
        places += [((*path, "route", i, "headers"), d.headers) for i, d in enumerate(http.route)]
        for place, headers in places:
            value = _host_of(headers)
            if value is None:
                continue
            at = (*place, "request", "set")
            if "route" in place and len(http.route) > 1:
                message = "host for one of several destinations is known but not supported yet"
                self._now.problems.append(document.problem(at, message))
            elif rewrite.get("authority", value) != value:
                self._now.problems.append(
                    document.problem(at, "host is set here and otherwise by rewrite.authority")
                )
            else:
                rewrite["authority"] = value

    def _redirect(self, given: Redirect) -> RedirectRow:
        row: RedirectRow = {"code": given.redirectCode}
        if given.scheme is not None:
            row["scheme"] = given.scheme
        if given.authority is not None:
            row["authority"] = given.authority
        if given.port is not None:
            row["port"] = given.port
        elif given.derivePort == "FROM_REQUEST_PORT":
            row["port"] = self._port
        if given.uri is not None:
            row["uri"] = given.uri
        if given.prefixRewrite is not None:
            row["prefix"] = given.prefixRewrite
        return row


def _fact(service: Service | None) -> Fact:
    return None if service is None else (service.host, service.numbers)


def _string(match: StringMatch) -> StringMatchRow:
    for name in match.model_fields_set:
        return cast(StringMatchRow, {name: getattr(match, name)})
    return {"present": True}


def _strings(matches: Mapping[str, StringMatch]) -> dict[str, StringMatchRow]:
    return {k.lower(): _string(v) for k, v in sorted(matches.items(), key=lambda item: item[0].lower())}


def _host_of(headers: Headers | None) -> str | None:
    if headers is None or headers.request is None:
        return None
    return next((v for k, v in headers.request.set.items() if k.lower() == "host"), None)


def _headers(given: Headers | None) -> HeadersRow:
    row: HeadersRow = {}
    if given is None:
        return row
    for side, operations in (("request", given.request), ("response", given.response)):
        if operations is None:
            continue
        ops: HeaderOps = {}
        changes = {
            k.lower(): v for k, v in operations.set.items() if side == "response" or k.lower() != "host"
        }
        if changes:
            ops["set"] = dict(sorted(changes.items()))
        if operations.add:
            ops["add"] = dict(sorted((k.lower(), v) for k, v in operations.add.items()))
        if operations.remove:
            ops["remove"] = sorted({n.lower() for n in operations.remove})
        if ops:
            row["request" if side == "request" else "response"] = ops
    return row


def _rewrite(http: HTTPRoute) -> RewriteRow:
    row: RewriteRow = {}
    if http.rewrite is None:
        return row
    if http.rewrite.uri is not None:
        row["uri"] = http.rewrite.uri
    if http.rewrite.uriRegexRewrite is not None:
        row["regex"] = (http.rewrite.uriRegexRewrite.match, http.rewrite.uriRegexRewrite.rewrite)
    if http.rewrite.authority is not None:
        row["authority"] = http.rewrite.authority
    return row
