"""Folders made for kubectl: what of them fastproxy takes, what becomes of a Service, what is left out.

Istio's documents go as they are. A core Service whose endpoints lie beside it (EndpointSlice or Endpoints, as
``kubectl get -o yaml`` prints them) becomes a ServiceEntry of the host that Kubernetes gives it, so that the
short names in routes find it; one of type ExternalName becomes a name to resolve. All else is counted.
"""

from __future__ import annotations

import ipaddress
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ctrl.documents import Found, found
from ctrl.kinds import KINDS

OURS = ("networking.istio.io/", "fastproxy/")
CLUSTER_DOMAIN = "svc.cluster.local"
SLICE_OF = "kubernetes.io/service-name"  # the label by which an EndpointSlice names its Service
HTTP = ("http", "http2", "grpc", "grpc-web", "web")  # Istio's words; h2 and gRPC wait for their codec
CONTROL_PLANE = (
    "kubernetes",
    "default",
)  # the cluster's own API: in every export, and never called through us

Address = tuple[str, dict[str, int]]  # an address and its port numbers by port name


class NotSimple(Exception):
    """This Service cannot be said as a ServiceEntry; the text says why and what to do."""


class Piece(NamedTuple):
    """One document for the server; ``line`` is where its author has it in ``file``."""

    file: str
    line: int
    text: str


@dataclass
class Import:
    """What ``take`` has made of the files: ``pieces`` are for the server, ``left`` counts by kind what is no
    configuration of a proxy, ``notes`` says what could have been one and is not taken."""

    namespace: str = "default"
    pieces: list[Piece] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    taken: int = 0
    made: int = 0

    def take(self, files: Iterable[tuple[str, str]]) -> Import:
        """Read all files, then put together what belongs together. Raises DocumentsError."""
        services: list[Found] = []
        addresses: dict[tuple[str, str], list[Address]] = {}
        for document in found(files):
            value = document.value
            kind, version = _text(value.get("kind")), _text(value.get("apiVersion"))
            if version.startswith(OURS) and (kind in KINDS or not kind):
                self._as_it_is(document)
            elif (kind, version) == ("Service", "v1"):
                services.append(document)
            elif kind == "Endpoints" and version == "v1":
                addresses.setdefault(self._key(value), []).extend(_endpoints(value))
            elif kind == "EndpointSlice" and version.startswith("discovery.k8s.io/"):
                service = _text(_map(_map(value.get("metadata")).get("labels")).get(SLICE_OF))
                key = (self._key(value)[0], service)
                addresses.setdefault(key, []).extend(_slice(value))
            else:
                self.left[kind or "document without kind"] += 1
        for document in services:
            self._service(document, addresses)
        return self

    @property
    def files(self) -> list[tuple[str, str]]:
        """(name, text) for the server: each document on the lines that it has in its file."""
        by_file: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            by_file.setdefault(piece.file, []).append(piece)
        return [(file, _in_place(pieces)) for file, pieces in by_file.items()]

    def print(self) -> str:
        """All documents as one text."""
        texts = (piece.text.strip("\n").removeprefix("---").strip("\n") for piece in self.pieces)
        return "\n---\n".join(texts)

    def told(self) -> Iterator[str]:
        """Lines for the user: what was taken, what was left out and why."""
        made = f", {self.made} made from Services" if self.made else ""
        yield f"import: {self.taken} documents taken{made}"
        if self.left:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.left.items()))
            yield f"import: left out, no configuration of a proxy: {kinds}"
        yield from (f"import: {note}" for note in self.notes)

    def _key(self, value: dict[str, Any]) -> tuple[str, str]:
        metadata = _map(value.get("metadata"))
        return _text(metadata.get("namespace")) or self.namespace, _text(metadata.get("name"))

    def _as_it_is(self, document: Found) -> None:
        self.taken += 1
        metadata = document.value.get("metadata")
        moved = self.namespace != "default" and isinstance(metadata, dict) and "namespace" not in metadata
        text = document.text
        if document.item >= 0 or moved:
            value = dict(document.value)
            if moved:
                value["metadata"] = {**_map(metadata), "namespace": self.namespace}
            text = json.dumps(value, ensure_ascii=False) + "\n"
        self.pieces.append(Piece(document.file, document.line, text))

    def _service(self, document: Found, addresses: dict[tuple[str, str], list[Address]]) -> None:
        space, name = self._key(document.value)
        if (name, space) == CONTROL_PLANE:
            self.left["Service of the cluster itself"] += 1
            return
        where = f"{document.file}:{document.line}: Service {space}/{name}"
        try:
            entry, others = service_entry(name, space, document.value, addresses.get((space, name), []))
        except NotSimple as e:
            self.notes.append(f"{where} is left out: {e}")
            return
        if others:
            self.notes.append(f"{where}: its ports that do not speak HTTP are left out: {', '.join(others)}")
        self.made += 1
        import yaml

        text = f"# made from Service {space}/{name}\n" + yaml.safe_dump(entry, sort_keys=False)
        self.pieces.append(Piece(f"Service {space}/{name} of {document.file}", 1, text))


def _in_place(pieces: list[Piece]) -> str:
    """Documents on the lines that they have in their file, with nothing between: what the server finds wrong
    in them has the file's line."""
    parts: list[str] = []
    here = 1
    for _, line, text in pieces:
        empty = "\n" * max(line - here, 0)
        if parts and (empty or not text.startswith(("---", "..."))):
            # behind a marker, so that the empty lines are no part of the document before
            empty = "---" + (empty or "\n")
        parts += [empty, text]
        here += empty.count("\n") + text.count("\n")
    return "".join(parts)


def service_entry(
    name: str, space: str, value: dict[str, Any], addresses: list[Address]
) -> tuple[dict[str, Any], list[str]]:
    """The ServiceEntry that says what this Service and its endpoints say, and the ports that are not in it.
    Raises NotSimple."""
    spec = _map(value.get("spec"))
    if not name:
        raise NotSimple("it has no name")
    external = spec.get("type") == "ExternalName"
    ports: list[dict[str, Any]] = []
    targets: dict[str, str] = {}
    others: list[str] = []
    given = spec.get("ports")
    for row in given if isinstance(given, list) else []:
        port = _map(row)
        number, protocol = port.get("port"), _protocol(port)
        if type(number) is not int:
            raise NotSimple("a port has no number")
        if not protocol:
            others.append(_text(port.get("name")) or str(number))
            continue
        label = _text(port.get("name")) or f"http-{number}"
        ports.append({"number": number, "name": label, "protocol": protocol})
        targets[_text(port.get("name"))] = label
    if external and not ports and not given:
        ports, targets = [{"number": 80, "name": "http", "protocol": "HTTP"}], {"": "http"}
    if not ports:
        raise NotSimple(
            "it has no HTTP port (a name such as http-web, or appProtocol: http, says that one is)"
        )
    made: dict[str, Any] = {
        "hosts": [f"{name}.{space}.{CLUSTER_DOMAIN}"],
        "location": "MESH_EXTERNAL" if external else "MESH_INTERNAL",
        "ports": ports,
    }
    if external:
        target = _text(spec.get("externalName"))
        if not target:
            raise NotSimple("type ExternalName, and no externalName")
        made |= {"resolution": "DNS", "endpoints": [{"address": target}]}
    else:
        endpoints = []
        for address, numbers in addresses:
            mine = {targets[label]: number for label, number in numbers.items() if label in targets}
            if mine:
                endpoints.append({"address": address, "ports": mine})
        if not endpoints:
            raise NotSimple(
                "its endpoints are not here: export them beside it (kubectl get endpointslices -o yaml), "
                "or write a ServiceEntry"
            )
        unique = {json.dumps(endpoint, sort_keys=True): endpoint for endpoint in endpoints}
        made |= {"resolution": "STATIC", "endpoints": list(unique.values())}
    metadata = {"name": name, "namespace": space}
    envelope = {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata}
    return {**envelope, "spec": made}, others


def _protocol(port: dict[str, Any]) -> str:
    """``HTTP`` or nothing, by Istio's rule: appProtocol, else the first word of the name; a port that says
    nothing is taken for HTTP, as its automatic choice does for what speaks it."""
    if port.get("protocol", "TCP") != "TCP":
        return ""
    said = _text(port.get("appProtocol")) or _text(port.get("name")).partition("-")[0]
    if not said:
        return "HTTP"
    known = {"tcp", "tls", "https", "udp", "mongo", "mysql", "redis"}
    word = said.lower().removeprefix("kubernetes.io/")
    if word in HTTP or word.startswith("http"):
        return "" if word == "https" else "HTTP"
    return "" if word in known else "HTTP"


def _endpoints(value: dict[str, Any]) -> Iterator[Address]:
    """Ready addresses of core v1 Endpoints."""
    for subset in _maps(value.get("subsets")):
        ports = _numbers(subset.get("ports"))
        for row in _maps(subset.get("addresses")):
            if address := _ip(row.get("ip")):
                yield address, ports


def _slice(value: dict[str, Any]) -> Iterator[Address]:
    """Ready addresses of an EndpointSlice; ``ready`` that is not said means yes (the API's own rule)."""
    ports = _numbers(value.get("ports"))
    for row in _maps(value.get("endpoints")):
        if _map(row.get("conditions")).get("ready") is False:
            continue
        listed = row.get("addresses")
        # consumers take the first one only (discovery.k8s.io/v1)
        if isinstance(listed, list) and listed and (address := _ip(listed[0])):
            yield address, ports


def _numbers(value: Any) -> dict[str, int]:
    return {_text(row.get("name")): number for row in _maps(value) if type(number := row.get("port")) is int}


def _ip(value: Any) -> str:
    try:
        return str(ipaddress.ip_address(_text(value)))
    except ValueError:
        return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _maps(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
