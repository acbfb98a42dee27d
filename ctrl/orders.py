"""Orders to breakers as documents: written, found again, and cleared away when their time is over."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import yaml

from ctrl.model import Contents, Identity, Resource
from fastproxy.resources.documents import OURS

KIND = "BreakerOrder"
GRACE_MS = 60_000  # how long a lapsed order stays to be seen


@dataclass(frozen=True, slots=True)
class Order:
    """state: open or closed. seconds: how long from now. Empty subset, endpoint and port 0: all of the
    host's."""

    host: str
    state: str
    seconds: float
    subset: str = ""
    port: int = 0
    endpoint: str = ""
    reason: str = ""
    namespace: str = "default"

    @property
    def name(self) -> str:
        """The same for the same target, so that a new order replaces the old one."""
        parts = [self.host, self.subset, str(self.port or ""), self.endpoint]
        plain = "-".join(part for part in parts if part).lower()
        name = re.sub(r"[^a-z0-9.-]+", "-", plain).strip("-.")[:180] or "order"
        if name == self.host:
            return name
        mark = blake2b(json.dumps(parts).encode("utf-8", "surrogatepass"), digest_size=3).hexdigest()
        return f"{name}-{mark}"


def document(order: Order, now_ms: int) -> tuple[str, str]:
    """The order's name and its document as YAML. Whether it is good, ``Views.check`` says."""
    until = datetime.fromtimestamp((now_ms + order.seconds * 1000) / 1000, UTC)
    spec: dict[str, Any] = {"host": order.host}
    if order.subset:
        spec["subset"] = order.subset
    if order.port:
        spec["port"] = order.port
    if order.endpoint:
        spec["endpoint"] = order.endpoint
    spec["state"] = order.state
    spec["until"] = until.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    spec["for"] = f"{round(order.seconds * 1000)}ms"
    if order.reason:
        spec["reason"] = order.reason
    value = {
        "apiVersion": OURS,
        "kind": KIND,
        "metadata": {"name": order.name, "namespace": order.namespace},
        "spec": spec,
    }
    return order.name, yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


@lru_cache(4096)
def spec_of(text: str) -> dict[str, Any]:
    """The spec of an order's document that is in the store, ``until`` as ``until_ms``: Unix time."""
    try:
        value = yaml.safe_load(text)
        spec = dict(value["spec"])
        until = spec["until"]
        if isinstance(until, str):
            until = datetime.fromisoformat(until.replace("Z", "+00:00"))
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        spec["until_ms"] = int(until.timestamp() * 1000)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return {}
    return spec


def in_force(contents: Contents) -> list[tuple[Resource, dict[str, Any]]]:
    """All orders and what they say; also those that have lapsed and are not cleared away yet."""
    return [(r, spec) for r in contents if r.kind == KIND and (spec := spec_of(r.text))]


def lapsed(contents: Contents, now_ms: int) -> list[Identity]:
    """Orders that lapsed a while ago."""
    return [r.identity for r, spec in in_force(contents) if spec["until_ms"] + GRACE_MS < now_ms]
