"""The registry: which services exist, under which names, with which ports and endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fastproxy.resources.documents import Document
from fastproxy.resources.exports import meet, visible
from fastproxy.resources.problem import Problem
from fastproxy.resources.traffic import ServiceEntrySpec, ServicePort, WorkloadEntrySpec, wrong_address
from fastproxy.tables import Endpoint

_CLUSTER_DOMAIN = ".svc.cluster.local"


@dataclass(slots=True)
class Service:
    """One host of a ServiceEntry."""

    host: str
    document: Document
    ports: list[ServicePort]
    resolution: str
    workloads: list[tuple[WorkloadEntrySpec, dict[str, str]]]
    aliases: list[str] = field(default_factory=list)  # other hosts that clients know it by
    numbers: tuple[int, ...] = ()  # of its ports

    def port(self, number: int | None) -> ServicePort | None:
        """The port of that number; without a number the only one."""
        if number is None:
            return self.ports[0] if len(self.ports) == 1 else None
        return next((p for p in self.ports if p.number == number), None)

    def endpoints(self, port: ServicePort) -> list[Endpoint]:
        """Who serves this port: at the endpoint's own port, else targetPort, else the service's number."""
        rows: list[Endpoint] = []
        for spec, labels in self.workloads:
            unix = spec.address.startswith("unix:")
            number = 0 if unix else spec.ports.get(port.name, port.targetPort or port.number)
            row: Endpoint = {
                "address": spec.address,
                "port": number,
                "weight": spec.weight or 1,
                "labels": dict(sorted(labels.items())),
            }
            rows.append(row)
        return rows


class Registry:
    """All services by host, and the lookup of the short names that Kubernetes users write.

    Services of one host that no proxy sees together are no error. Tables for all namespaces have the first of
    them; a lookup gives each namespace its own.
    """

    def __init__(self, documents: Iterable[Document], problems: list[Problem]) -> None:
        self.services: dict[str, Service] = {}
        self._others: dict[str, list[Service]] = {}
        documents = list(documents)
        workloads = [d for d in documents if d.row.kind == "WorkloadEntry"]
        for document in documents:
            if document.row.kind == "ServiceEntry":
                self._add(document, workloads, problems)
        self._name()

    def lookup(self, host: str, namespace: str) -> Service | None:
        """The service that ``host`` means in ``namespace``: as written, else as Kubernetes expands it."""
        found = self._find(host, namespace)
        if found is None or found.host not in self._others:
            return found
        same = (found, *self._others[found.host])
        return next((s for s in same if visible(s.document, namespace)), found)

    def _find(self, host: str, namespace: str) -> Service | None:
        found = self.services.get(host)
        if found is not None:
            return found
        if "." not in host:
            return self.services.get(f"{host}.{namespace}{_CLUSTER_DOMAIN}")
        for suffix in ("", ".svc", _CLUSTER_DOMAIN):
            if host.endswith(suffix):
                name, _, space = host.removesuffix(suffix).rpartition(".")
                if not name or "." in name:
                    continue
                found = self.services.get(f"{name}.{space}{_CLUSTER_DOMAIN}")
                if found is not None:
                    return found
                found = self.services.get(name)
                if found is not None and found.document.namespace == space:
                    return found
        return None

    def _add(self, document: Document, workloads: list[Document], problems: list[Problem]) -> None:
        spec: ServiceEntrySpec = document.resource.spec
        members: list[tuple[WorkloadEntrySpec, dict[str, str]]] = [(e, e.labels) for e in spec.endpoints]
        if spec.workloadSelector is not None:
            members = _select(document, spec, workloads, problems)
        taken = [
            (i, o) for i, host in enumerate(spec.hosts) if (o := self._rival(host, document)) is not None
        ]
        for i, other in taken:
            message = f"{other.host} is already a host of {other.document.source}"
            problems.append(document.problem(("spec", "hosts", i), message))
        numbers = tuple(p.number for p in spec.ports)
        for host in spec.hosts if not taken else ():
            mine = members
            if spec.resolution == "DNS" and not spec.endpoints and spec.workloadSelector is None:
                mine = [(WorkloadEntrySpec(address=host.strip("[]")), {})]
            service = Service(
                host, document, spec.ports, spec.resolution, mine, list(spec.addresses), numbers
            )
            if self.services.setdefault(host, service) is not service:
                self._others.setdefault(host, []).append(service)

    def _rival(self, host: str, document: Document) -> Service | None:
        """Who has this host already, where a proxy sees both."""
        first = self.services.get(host)
        if first is None:
            return None
        same = (first, *self._others.get(host, ()))
        return next((s for s in same if meet(s.document, document)), None)

    def _name(self) -> None:
        """A host ``x.ns.svc.cluster.local`` is also known as x.ns.svc, x.ns and, where nobody else is, x."""
        taken = set(self.services)
        for service in self.services.values():
            if not service.host.endswith(_CLUSTER_DOMAIN) or "*" in service.host:
                continue
            qualified = service.host.removesuffix(_CLUSTER_DOMAIN)
            name, _, space = qualified.rpartition(".")
            if not name or "." in name or not space:
                continue
            for alias in (f"{qualified}.svc", qualified, name):
                if alias not in taken:
                    taken.add(alias)
                    service.aliases.append(alias)


def _select(
    document: Document, spec: ServiceEntrySpec, workloads: list[Document], problems: list[Problem]
) -> list[tuple[WorkloadEntrySpec, dict[str, str]]]:
    """The WorkloadEntries of the same namespace that carry all labels of the selector."""
    members = []
    assert spec.workloadSelector is not None
    for entry in workloads:
        # metadata wins over spec, as in Istio
        labels = {**entry.resource.spec.labels, **(entry.resource.metadata.labels or {})}
        if entry.namespace != document.namespace or not selects(spec.workloadSelector.labels, labels):
            continue
        reason = wrong_address(entry.resource.spec.address, spec.resolution)
        if reason:
            problems.append(entry.problem(("spec", "address"), f"{reason} ({document.source} selects it)"))
            continue
        members.append((entry.resource.spec, labels))
    return members


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(k) == v for k, v in selector.items())
