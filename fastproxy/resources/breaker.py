"""Circuit breakers as documents say them: a DestinationRule's policy, and orders that override it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fastproxy.oneline import parse_address
from fastproxy.resources.fields import (
    MAX_TIME,
    Host,
    Milliseconds,
    Name,
    PortNumber,
    Text,
    UnixMs,
    fail,
    shorten,
)
from fastproxy.resources.model import Metadata, Model
from fastproxy.resources.problem import printable

MAX_REASON = 256


def _positive(value: int) -> int:
    if value == 0:
        fail("must be at least 1ms")
    return value


Span = Annotated[Milliseconds, AfterValidator(_positive)]
Percentage = Annotated[int, Field(ge=1, le=100)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class CircuitBreaker(Model):
    """Hystrix's meaning and defaults; ``{}`` takes them all."""

    rollingWindow: Span = 10_000
    requestVolumeThreshold: Count = 20
    errorThresholdPercentage: Percentage = 50
    slowCallDuration: Span = 1000
    slowCallThresholdPercentage: Percentage = 100
    sleepWindow: Span = 5000
    halfOpenRequests: Count = 1
    fleet: Literal["off", "observe", "on"] = "observe"


def _no_wildcard(host: str) -> str:
    if "*" in host:
        fail("an order has no wildcard: it names one service")
    return host


def _endpoint(value: str) -> str:
    """As proxies name it: ``10.0.0.1:80``, ``[::1]:80``, ``unix:///path``; of a DNS cluster what it resolved
    to."""
    if value.startswith(":"):
        fail(f"{shorten(value)}: one endpoint has one address")
    try:
        address, port = parse_address(value)
    except ValueError as error:
        fail(printable(str(error)))
    if address.startswith("unix:"):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class BreakerOrderSpec(Model):
    """``open`` rejects every request, ``closed`` admits every one, until a time.

    Without ``port`` and ``subset`` all clusters of the service are meant; ``endpoint`` narrows it to one
    endpoint in each.
    """

    host: Annotated[Host, AfterValidator(_no_wildcard)]
    subset: Name | None = None
    port: PortNumber | None = None
    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    state: Literal["open", "closed"]
    until: UnixMs | None = None
    duration: Span = Field(MAX_TIME, alias="for")
    reason: Annotated[Text, Field(max_length=MAX_REASON)] | None = None

    @model_validator(mode="after")
    def _ends(self) -> BreakerOrderSpec:
        if self.until is None:
            if "duration" in self.model_fields_set:
                fail("until is needed beside for: only the API of the control plane computes it", "for")
            fail("until is needed: an order ends", "until")
        return self


class BreakerOrder(Model):
    apiVersion: str
    kind: Literal["BreakerOrder"]
    metadata: Metadata
    spec: BreakerOrderSpec
    status: Any = None
