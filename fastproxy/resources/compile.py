"""Documents to tables: the one place where all kinds meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from fastproxy.oneline import add_mesh, add_upstream
from fastproxy.resources.breakers import add_orders
from fastproxy.resources.clusters import Rules, add_clusters, cluster_key
from fastproxy.resources.documents import Document, Identity, Row
from fastproxy.resources.exports import visible
from fastproxy.resources.hosts import covering, covers
from fastproxy.resources.listeners import Opening, address_key, openings
from fastproxy.resources.load import reread
from fastproxy.resources.problem import Problem
from fastproxy.resources.registry import Registry, Service
from fastproxy.resources.routes import MESH, Translator, gateway_name
from fastproxy.tables import NAMES, Match, Route, Tables, VirtualHost, empty


class Share(NamedTuple):
    """What one VirtualService gives to one host of one listener, and what it keeps for others."""

    document: Document
    routes: list[Route]
    elsewhere: list[str]


def settle(
    documents: Sequence[Document],
    previous: Iterable[Row] = (),
    *,
    labels: Mapping[str, str] | None = None,
    namespace: str | None = None,
    listen: str = "",
    to: Sequence[str] = (),
    mesh: bool = True,
) -> tuple[Tables, list[Document], list[Problem]]:
    """Tables of the documents that agree with each other, those documents, and what was wrong with the rest.

    A document that does not fit its neighbours is replaced by its last good version from ``previous``, once,
    and left out after that. ``namespace``: of the proxy; what is not exported to it is not compiled, yet kept
    among the documents. None: all is compiled. ``mesh``: whether there are routes of the mesh. Raises
    ValueError when ``listen`` or ``to`` is not an address.
    """
    last = {row.identity: row for row in previous}
    chosen = {d.identity: d for d in documents}
    told: dict[Identity, None] = {}
    problems: list[Problem] = []
    while True:
        seen = [d for d in chosen.values() if namespace is None or visible(d, namespace)]
        tables, wrong = _compile(seen, labels or {}, listen, to, mesh)
        if not wrong:
            return tables, list(chosen.values()), problems
        for identity in dict.fromkeys(p.identity for p in wrong):
            if identity not in told:
                told[identity] = None
                problems += [p for p in wrong if p.identity == identity]
            row = last.pop(identity, None)
            older = reread(row) if row is not None and row != chosen[identity].row else None
            if older is not None:
                chosen[identity] = older
            else:
                del chosen[identity]


def compile_tables(
    documents: Sequence[Document],
    *,
    labels: Mapping[str, str] | None = None,
    namespace: str | None = None,
    listen: str = "",
    to: Sequence[str] = (),
) -> tuple[Tables, list[Problem]]:
    """Tables of the good documents, and the problems of those left out. Raises as :func:`settle` does."""
    tables, _, problems = settle(documents, labels=labels, namespace=namespace, listen=listen, to=to)
    return tables, problems


def _compile(
    documents: list[Document], labels: Mapping[str, str], listen: str, to: Sequence[str], mesh: bool
) -> tuple[Tables, list[Problem]]:
    problems: list[Problem] = []
    tables = empty()
    registry = Registry(documents, problems)
    add_clusters(tables, registry, Rules(documents, registry, problems))
    add_orders(tables, documents, registry)
    if listen:
        add_mesh(tables, listen)
    services = [d for d in documents if d.row.kind == "VirtualService"]
    for opening in openings(documents, labels).values():
        if listen and opening.key == address_key(*_address(tables)):
            message = f"{opening.key} is the address of --listen"
            problems.append(opening.document.problem(("spec", "servers"), message))
            continue
        tables["listeners"][opening.key] = opening.row
        _add_hosts(tables, opening.key, _gateway_shares(opening, services, registry, problems))
    if mesh:
        _add_hosts(tables, MESH, _mesh_shares(services, registry, problems))
        _add_defaults(tables, services, registry)
    add_upstream(tables, to)
    rows = cast(dict[str, Any], tables)
    for name in NAMES:
        rows[name] = dict(sorted(rows[name].items()))
    return tables, problems


def _address(tables: Tables) -> tuple[str, int]:
    row = tables["listeners"][MESH]
    return row["address"], row["port"]


def bound_to(document: Document) -> set[str]:
    """The gateways of a VirtualService, as ns/name, or the mesh."""
    given = document.resource.spec.gateways
    return {MESH} if given is None else {gateway_name(g, document.namespace) for g in given}


def _gateway_shares(
    opening: Opening, services: list[Document], registry: Registry, problems: list[Problem]
) -> dict[str, list[Share]]:
    """By host: what the VirtualServices bound to a listener's gateways say there, in their order."""
    translators: dict[frozenset[str], Translator] = {}
    out: dict[str, list[Share]] = {}
    for document in services:
        bound = bound_to(document)
        hosts: dict[str, set[str]] = {}
        for mine in document.resource.spec.hosts if bound & opening.gateways else ():
            for entry in opening.answering(mine):
                if entry.gateway in bound and entry.namespace in ("*", document.namespace):
                    # of two patterns that overlap, one covers the other: the narrower is what both mean
                    narrow = mine if covers(entry.host, mine) else entry.host
                    hosts.setdefault(narrow, set()).add(entry.gateway)
        for host, through in hosts.items():
            gateways = frozenset(through)
            if gateways not in translators:
                translators[gateways] = Translator(registry, problems, gateways, opening.number)
            out.setdefault(host, []).append(_share(document, translators[gateways]))
    return out


def _share(document: Document, translator: Translator) -> Share:
    return Share(document, translator.routes(document), translator.elsewhere(document))


def _mesh_shares(
    services: list[Document], registry: Registry, problems: list[Problem]
) -> dict[str, list[Share]]:
    """The same on the mesh, where a host that names a service answers under all names of that service."""
    translator = Translator(registry, problems, frozenset({MESH}), 0)
    out: dict[str, list[Share]] = {}
    for document in services:
        if MESH not in bound_to(document):
            continue
        hosts: dict[str, None] = {}
        for mine in document.resource.spec.hosts:
            hosts[mine] = None
            service = registry.lookup(mine, document.namespace)
            if service is not None:
                hosts |= dict.fromkeys((service.host, *service.aliases))
        for host in hosts:
            out.setdefault(host, []).append(_share(document, translator))
    # a wildcard takes the services it covers, also under their other names
    wild = {h for h in out if "*" in h}
    for service in registry.services.values():
        cover = next((w for w in covering(service.host) if w in wild), None)
        if cover is not None and service.host not in out:
            for alias in service.aliases:
                out.setdefault(alias, out[cover])
    return out


def _add_hosts(tables: Tables, listener: str, shares: Mapping[str, list[Share]]) -> None:
    for host, given in shares.items():
        row: VirtualHost = {"routes": merge(given), "source": [share.document.source for share in given]}
        elsewhere = [text for share in given for text in share.elsewhere]
        if elsewhere:
            row["elsewhere"] = elsewhere
        tables["routes"][f"{listener} {host}"] = row


def merge(shares: list[Share]) -> list[Route]:
    """The routes of several VirtualServices of one host in turn; those that match always come last.

    Istio's rule (CombineVHostRoutes): else the first document's default would hide all others.
    """
    if len(shares) == 1:
        return shares[0].routes
    first: list[Route] = []
    last: list[Route] = []
    for share in shares:
        for route in share.routes:
            narrow = [m for m in route["matches"] if not _matches_all(m)]
            if narrow:
                first.append({**route, "matches": narrow})
            if len(narrow) < len(route["matches"]) or not route["matches"]:
                wide = [m for m in route["matches"] if _matches_all(m)]
                last.append({**route, "matches": wide})
    return first + last


def _matches_all(match: Match) -> bool:
    conditions = set(match) - {"name", "ignore_case"}
    if not conditions:
        return True
    path = match.get("path", {})
    return conditions == {"path"} and (path.get("prefix") == "/" or path.get("regex") in (".*", "/.*"))


def _add_defaults(tables: Tables, services: list[Document], registry: Registry) -> None:
    """A service without a VirtualService is reached on the mesh by its names."""
    claimed = {h for d in services if MESH in bound_to(d) for h in d.resource.spec.hosts if "*" in h}
    for service in registry.services.values():
        if not claimed.isdisjoint(covering(service.host)):
            continue
        for host in (service.host, *service.aliases):
            row: VirtualHost = {"routes": _default(service), "source": [service.document.source]}
            tables["routes"].setdefault(f"{MESH} {host}", row)


def _default(service: Service) -> list[Route]:
    """By port where there are several; an unknown port goes to the first, as with only one."""
    routes: list[Route] = []
    for port in [*service.ports[1:], service.ports[0]]:
        routes.append(
            {
                "name": "default",
                "matches": [{"port": port.number}] if port is not service.ports[0] else [],
                "destinations": [{"cluster": cluster_key(service.host, port.number), "weight": 1}],
            }
        )
    return routes
