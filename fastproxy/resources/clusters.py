"""Services and DestinationRules to the tables ``clusters`` and ``endpoints``, and policies of breakers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastproxy.resources.breakers import policy_row
from fastproxy.resources.documents import Document
from fastproxy.resources.exports import meet
from fastproxy.resources.hosts import covering
from fastproxy.resources.problem import Problem
from fastproxy.resources.registry import Registry, Service
from fastproxy.resources.traffic import DestinationRuleSpec, Subset, TrafficPolicy
from fastproxy.tables import Cluster, Tables


def cluster_key(host: str, port: int, subset: str = "") -> str:
    """Envoy's name of an Istio cluster."""
    return f"outbound|{port}|{subset}|{host}"


class Rules:
    """DestinationRules by host. Several of one host add up; one of the exact host wins over a wildcard's.

    What two say that no proxy sees together is no error; the first stands in tables for all namespaces.
    """

    def __init__(self, documents: Iterable[Document], registry: Registry, problems: list[Problem]) -> None:
        self._policy: dict[str, tuple[TrafficPolicy, Document]] = {}
        self._subsets: dict[str, dict[str, tuple[Subset, Document]]] = {}
        for document in documents:
            if document.row.kind == "DestinationRule":
                self._add(document, registry, problems)

    def _add(self, document: Document, registry: Registry, problems: list[Problem]) -> None:
        spec: DestinationRuleSpec = document.resource.spec
        service = registry.lookup(spec.host, document.namespace)
        host = service.host if service is not None else spec.host
        if spec.trafficPolicy is not None:
            _, other = self._policy.setdefault(host, (spec.trafficPolicy, document))
            if other is not document and meet(other, document):
                message = f"{other.source} already gives {host} a policy"
                problems.append(document.problem(("spec", "trafficPolicy"), message))
        subsets = self._subsets.setdefault(host, {})
        for i, subset in enumerate(spec.subsets):
            _, other = subsets.setdefault(subset.name, (subset, document))
            if other is not document and meet(other, document):
                message = f"{other.source} already gives {host} a subset {subset.name}"
                problems.append(document.problem(("spec", "subsets", i, "name"), message))

    def of(self, host: str) -> tuple[TrafficPolicy | None, list[Subset]]:
        """The policy and the subsets of a service: those of its own rule, else of the longest wildcard."""
        for name in covering(host):
            if name in self._subsets:
                policy = self._policy.get(name)
                return policy[0] if policy else None, [s for s, _ in self._subsets[name].values()]
        return None, []


def _policy(*policies: TrafficPolicy | None) -> dict[str, Any]:
    """lb, connect_timeout and breaker; a subset's policy replaces the rule's, field by field."""
    out: dict[str, Any] = {"lb": "LEAST_REQUEST"}
    for policy in policies:
        if policy is None:
            continue
        if policy.loadBalancer is not None:
            out["lb"] = policy.loadBalancer.simple
        if policy.connectionPool is not None:
            tcp = policy.connectionPool.tcp
            out.pop("connect_timeout", None)
            if tcp is not None and tcp.connectTimeout is not None:
                out["connect_timeout"] = tcp.connectTimeout
        if policy.circuitBreaker is not None:
            out["breaker"] = policy_row(policy.circuitBreaker)
    return out


def add_clusters(tables: Tables, registry: Registry, rules: Rules) -> None:
    """One cluster for each port of each service, and one for each subset of it."""
    for service in registry.services.values():
        rule_policy, subsets = rules.of(service.host)
        for port in service.ports:
            tables["endpoints"][f"{service.host}|{port.number}"] = service.endpoints(port)
            _add(tables, service, port.number, "", {}, _policy(rule_policy))
            for subset in subsets:
                policy = _policy(rule_policy, subset.trafficPolicy)
                _add(tables, service, port.number, subset.name, dict(sorted(subset.labels.items())), policy)


def _add(
    tables: Tables, service: Service, port: int, subset: str, labels: dict[str, str], policy: dict[str, Any]
) -> None:
    key = cluster_key(service.host, port, subset)
    row: Cluster = {
        "service": service.host,
        "port": port,
        "endpoints": f"{service.host}|{port}",
        "labels": labels,
        "resolution": "DNS" if service.resolution == "DNS" else "STATIC",
        "lb": policy["lb"],
    }
    if "connect_timeout" in policy:
        row["connect_timeout"] = policy["connect_timeout"]
    tables["clusters"][key] = row
    if "breaker" in policy:
        tables["breakers"][key] = {"policy": policy["breaker"]}
