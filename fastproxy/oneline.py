"""Addresses as people type them, and the proxy that needs no file: ``--listen ADDR --to ADDR,ADDR``.

Imports neither the schema nor YAML: the agent may.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from fastproxy.tables import Cluster, Endpoint, Listener, Tables, empty

SERVICE = "upstream"  # what the one service is called in metrics
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?\Z")


def parse_address(text: str, *, names: bool = False) -> tuple[str, int]:
    """(address, port) of ``HOST:PORT``, ``[::1]:PORT``, ``:PORT`` (all addresses), ``unix:///path`` (0).

    A host name passes only with ``names``. Raises ValueError with a sentence for the user.
    """
    if text.startswith("unix:"):
        path = text[7:]
        if not text.startswith("unix:///") or len(path.encode()) > 107 or re.search(r"[\s\x00-\x1f]", path):
            raise ValueError(f"{text!r}: a Unix socket is unix:///path, at most 107 bytes, no spaces")
        return text, 0
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} is not HOST:PORT (port 1 to 65535) or unix:///path")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address is written [{host}]:{port}")
    try:
        return str(ipaddress.ip_address(host or "0.0.0.0")), int(port)
    except ValueError:
        if names and len(host) <= 253 and _NAME.match(host):
            return host.lower().removesuffix("."), int(port)
        what = "an IP address or a host name" if names else "an IP address"
        raise ValueError(f"{text!r}: {host!r} is not {what}") from None


def add_mesh(tables: Tables, listen: str) -> None:
    """Open the mesh listener at ``listen``. Raises ValueError."""
    address, port = parse_address(listen)
    row: Listener = {"address": address, "port": port, "protocol": "HTTP"}
    tables["listeners"]["mesh"] = row


def add_upstream(tables: Tables, to: Sequence[str]) -> None:
    """Every host of the mesh listener that nothing else claims goes to these endpoints. Raises ValueError."""
    parsed = [parse_address(text, names=True) for text in to]
    if not parsed:
        return
    named = any(not a.startswith("unix:") and not _is_ip(a) for a, _ in parsed)
    if named and any(a.startswith("unix:") for a, _ in parsed):
        raise ValueError("host names and Unix sockets can not be mixed in one --to")
    port = parsed[0][1]
    rows: list[Endpoint] = [{"address": a, "port": p, "weight": 1, "labels": {}} for a, p in parsed]
    key = f"{SERVICE}|{port}"
    cluster: Cluster = {
        "service": SERVICE,
        "port": port,
        "endpoints": key,
        "labels": {},
        "resolution": "DNS" if named else "STATIC",
        "lb": "LEAST_REQUEST",
    }
    name = f"outbound|{port}||{SERVICE}"
    if name in tables["clusters"]:
        raise ValueError(f"a service is named {SERVICE} and has port {port}: --to can not stand beside it")
    tables["endpoints"][key] = rows
    tables["clusters"][name] = cluster
    tables["routes"].setdefault(
        "mesh *",
        {
            "routes": [{"name": SERVICE, "matches": [], "destinations": [{"cluster": name, "weight": 1}]}],
            "source": ["--to"],
        },
    )


def one_line(listen: str, to: Sequence[str]) -> Tables:
    """Tables of a proxy that sends everything from one listener to one set of endpoints, least request.

    Raises ValueError with a sentence for the user.
    """
    tables = empty()
    add_mesh(tables, listen)
    if not to:
        raise ValueError("--listen without resources needs --to ADDRESS[,ADDRESS]")
    add_upstream(tables, to)
    return tables


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
