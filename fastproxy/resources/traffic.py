"""Gateway, ServiceEntry, WorkloadEntry, DestinationRule: listeners, clusters, endpoints and their policy."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fastproxy.resources.breaker import CircuitBreaker
from fastproxy.resources.fields import (
    Address,
    Bind,
    ExportTo,
    Host,
    Label,
    Labels,
    Milliseconds,
    Name,
    PortNumber,
    ServerHost,
    Weight,
    fail,
    is_ip,
    shorten,
)
from fastproxy.resources.model import Metadata, Model, ours, words
from fastproxy.resources.problem import nearest

_PROTOCOLS = (
    *("HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "HTTP_PROXY", "HBONE"),
    *("TCP", "TLS", "UDP", "MONGO", "MYSQL", "REDIS"),
)


def _protocol(value: str) -> str:
    text = value.upper()
    if text == "HTTP":
        return text
    if text in _PROTOCOLS:
        fail(f"protocol {text} is known but not supported yet")
    return fail(f"unknown protocol {shorten(value)}" + nearest(value, _PROTOCOLS))


Protocol = Annotated[str, AfterValidator(_protocol)]
SocketPort = Annotated[int, Field(ge=0, le=65535)]


class GatewayPort(Model):
    later = words("targetPort")

    number: SocketPort
    name: Name | None = None
    protocol: Protocol


class Server(Model):
    later = words("tls defaultEndpoint")

    port: GatewayPort
    bind: Bind = "0.0.0.0"
    hosts: Annotated[list[ServerHost], Field(min_length=1)]
    name: str | None = None

    @model_validator(mode="after")
    def _number(self) -> Server:
        if not self.bind.startswith("unix:") and self.port.number == 0:
            fail("must be 1 to 65535", "port", "number")
        return self


class GatewaySpec(Model):
    servers: Annotated[list[Server], Field(min_length=1)]
    selector: Labels = {}


class Gateway(Model):
    apiVersion: str
    kind: Literal["Gateway"]
    metadata: Metadata
    spec: GatewaySpec
    status: Any = None


class ServicePort(Model):
    number: PortNumber
    name: Name
    protocol: Protocol = "HTTP"
    targetPort: PortNumber | None = None


class WorkloadEntrySpec(Model):
    """One endpoint. serviceAccount and locality have no effect without the mTLS and locality policy refused
    elsewhere."""

    later = words("network")

    address: Address
    ports: dict[Name, SocketPort] = {}
    labels: Labels = {}
    weight: Weight | None = None
    serviceAccount: str | None = None
    locality: str | None = None

    @model_validator(mode="after")
    def _socket(self) -> WorkloadEntrySpec:
        unix = self.address.startswith("unix:")
        for name, number in self.ports.items():
            if unix and number:
                fail("a Unix socket has no port, leave ports out or write 0", "ports", name)
            if not unix and not number:
                fail("must be 1 to 65535", "ports", name)
        return self


class WorkloadEntry(Model):
    apiVersion: str
    kind: Literal["WorkloadEntry"]
    metadata: Metadata
    spec: WorkloadEntrySpec
    status: Any = None


class Selector(Model):
    labels: Labels


def _resolution(value: str) -> str:
    known = ("STATIC", "DNS", "NONE", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
    if value in known[:2]:
        return value
    if value in known:
        fail(f"{value} is known but not supported yet: write STATIC or DNS")
    return fail(f"unknown resolution {shorten(value)}" + nearest(value, known))


def _vip(value: str) -> str:
    if "/" in value:
        fail("an address range is known but not supported yet")
    if not is_ip(value):
        fail(f"{shorten(value)} is not an IP address")
    return f"[{ip_address(value)}]" if ":" in value else value


class ServiceEntrySpec(Model):
    later = words("subjectAltNames")

    hosts: Annotated[list[Host], Field(min_length=1)]
    addresses: list[Annotated[str, AfterValidator(_vip)]] = []
    ports: Annotated[list[ServicePort], Field(min_length=1)]
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Annotated[str, AfterValidator(_resolution)] = "NONE"
    endpoints: list[WorkloadEntrySpec] = []
    workloadSelector: Selector | None = None
    exportTo: ExportTo = []

    @model_validator(mode="after")
    def _sense(self) -> ServiceEntrySpec:
        if self.resolution == "NONE":
            fail("NONE, Istio's default, is known but not supported yet: write STATIC or DNS", "resolution")
        if self.workloadSelector is not None and self.endpoints:
            fail("endpoints and workloadSelector exclude each other")
        names: dict[str, int] = {}
        for i, port in enumerate(self.ports):
            if port.name in names:
                fail(f"{port.name} is given twice", "ports", i, "name")
            if port.number in names.values():
                fail(f"{port.number} is given twice", "ports", i, "number")
            names[port.name] = port.number
        for i, endpoint in enumerate(self.endpoints):
            for name in endpoint.ports:
                if name not in names:
                    fail(
                        f"no port of this service has this name{nearest(name, names)}",
                        "endpoints",
                        i,
                        "ports",
                        name,
                    )
            reason = wrong_address(endpoint.address, self.resolution)
            if reason:
                fail(reason, "endpoints", i, "address")
        if self.resolution == "DNS" and not self.endpoints and self.workloadSelector is None:
            for i, host in enumerate(self.hosts):
                if "*" in host:
                    fail(f"{host} can not be resolved: give endpoints", "hosts", i)
        return self


def wrong_address(address: str, resolution: str) -> str:
    """Why an endpoint of this address can not belong to a service of this resolution; empty: it can."""
    if resolution == "DNS":
        return "a Unix socket needs resolution STATIC" if address.startswith("unix:") else ""
    if address.startswith("unix:") or is_ip(address):
        return ""
    return f"{address} is a name: write an IP address, or resolution DNS"


class ServiceEntry(Model):
    apiVersion: str
    kind: Literal["ServiceEntry"]
    metadata: Metadata
    spec: ServiceEntrySpec
    status: Any = None


_LB = ("ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "LEAST_CONN", "UNSPECIFIED", "PASSTHROUGH")


def _lb(value: str) -> str:
    if value not in _LB:
        fail(f"unknown load balancer {shorten(value)}" + nearest(value, _LB))
    if value == "PASSTHROUGH":
        fail("PASSTHROUGH is known but not supported yet")
    return "LEAST_REQUEST" if value in ("LEAST_CONN", "UNSPECIFIED") else value


class LoadBalancer(Model):
    later = words("consistentHash localityLbSetting zoneAwareLbSetting warmup warmupDurationSecs")

    simple: Annotated[str, AfterValidator(_lb)] = "LEAST_REQUEST"


class TcpPool(Model):
    later = words("maxConnections tcpKeepalive maxConnectionDuration idleTimeout")

    connectTimeout: Milliseconds | None = None

    @model_validator(mode="after")
    def _positive(self) -> TcpPool:
        if self.connectTimeout == 0:
            fail("must be at least 1ms", "connectTimeout")
        return self


class ConnectionPool(Model):
    later = words("http")

    tcp: TcpPool | None = None


class TrafficPolicy(Model):
    later = words("outlierDetection tls portLevelSettings tunnel proxyProtocol retryBudget")
    ours_later = words("healthCheck adaptiveConcurrency")

    loadBalancer: LoadBalancer | None = None
    connectionPool: ConnectionPool | None = None
    circuitBreaker: Annotated[CircuitBreaker | None, BeforeValidator(ours)] = None


class Subset(Model):
    name: Name
    labels: dict[Label, Label] = {}
    trafficPolicy: TrafficPolicy | None = None


class DestinationRuleSpec(Model):
    later = words("workloadSelector")

    host: Host
    trafficPolicy: TrafficPolicy | None = None
    subsets: list[Subset] = []
    exportTo: ExportTo = []

    @model_validator(mode="after")
    def _once(self) -> DestinationRuleSpec:
        seen: set[str] = set()
        for i, subset in enumerate(self.subsets):
            if subset.name in seen:
                fail(f"{subset.name} is given twice", "subsets", i, "name")
            seen.add(subset.name)
        return self


class DestinationRule(Model):
    apiVersion: str
    kind: Literal["DestinationRule"]
    metadata: Metadata
    spec: DestinationRuleSpec
    status: Any = None
