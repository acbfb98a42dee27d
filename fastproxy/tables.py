"""The tables: what resources compile to. Plain msgpack data, the same bytes for the same contents everywhere.

Five tables, each a mapping from key to row, so that a version can be sent as puts and deletes:

listeners  name -> Listener     a Gateway server's ``bind:port``, ``unix:///path`` or ``mesh``
routes     "<listener> <host>" -> VirtualHost     host: ``reviews``, ``*.example.com`` or ``*``, lower case
clusters   "outbound|<port>|<subset>|<host>" -> Cluster     Envoy's form of the name; subset may be empty
endpoints  "<host>|<port>" -> list of Endpoint     a service without any may be missing
breakers   cluster key -> Breaker     only clusters that have a policy or an order

Routes of ``mesh`` are there even when no listener of that name is (``explain`` asks for them).
Durations are milliseconds. Names of header fields are lower case. A missing optional key means its default.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

FORMAT = 1


class StringMatch(TypedDict, total=False):
    """Exactly one key. ``present`` is Istio's empty match: the field is there, whatever its value."""

    exact: str
    prefix: str
    regex: str
    present: Literal[True]


class Match(TypedDict, total=False):
    """One match: all that is there must hold. An empty match holds always.

    ``port``: the one in the request's authority, without one 80 (https: 443). It is left on the mesh listener
    only: a Gateway listener has one port, so there it is decided when the tables are made. ``regex`` means
    the whole value (Envoy's full match). ``name``: what the user calls it, for explain.
    """

    name: str
    path: StringMatch
    ignore_case: bool
    method: StringMatch
    scheme: StringMatch
    authority: StringMatch
    port: int
    headers: dict[str, StringMatch]
    without_headers: dict[str, StringMatch]
    query: dict[str, StringMatch]
    cookies: dict[str, StringMatch]


class HeaderOps(TypedDict, total=False):
    set: dict[str, str]
    add: dict[str, str]
    remove: list[str]


class Headers(TypedDict, total=False):
    request: HeaderOps
    response: HeaderOps


class Destination(TypedDict):
    """cluster: key into ``clusters``, or the name that could not be found (``missing``: 503 NC)."""

    cluster: str
    weight: int
    headers: NotRequired[Headers]


class Redirect(TypedDict, total=False):
    """``uri`` replaces the path, ``prefix`` only the matched prefix. ``port`` 0: taken from the request; no
    ``port``: none is written after ``authority``, and without that the request's own stays (Envoy's rule)."""

    code: int
    scheme: str
    authority: str
    port: int
    uri: str
    prefix: str


class Direct(TypedDict):
    status: int
    body: bytes


class Rewrite(TypedDict, total=False):
    uri: str
    regex: tuple[str, str]
    authority: str


class Route(TypedDict):
    """One ``http[]`` entry. ``matches`` is OR; an empty list matches always. Exactly one of
    ``destinations``, ``redirect``, ``direct``."""

    name: str
    matches: list[Match]
    destinations: NotRequired[list[Destination]]
    redirect: NotRequired[Redirect]
    direct: NotRequired[Direct]
    rewrite: NotRequired[Rewrite]
    headers: NotRequired[Headers]
    timeout: NotRequired[int]


class VirtualHost(TypedDict):
    """``source``: the documents it was made from (``VirtualService default/catalog``). ``elsewhere``, for
    explain: what of them holds on other listeners only (``catalog#2: only on port 81``)."""

    routes: list[Route]
    source: list[str]
    elsewhere: NotRequired[list[str]]


class Listener(TypedDict):
    """``address``: IPv4, IPv6 or ``unix:///path``; ``port`` 0 for a Unix socket."""

    address: str
    port: int
    protocol: Literal["HTTP"]


class Cluster(TypedDict):
    """``endpoints``: key into ``endpoints``; ``labels`` selects from them (a subset), empty takes all.
    ``port``: the service port, ``resolution``: STATIC or DNS (the agent resolves host names)."""

    service: str
    port: int
    endpoints: str
    labels: dict[str, str]
    lb: Literal["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"]
    resolution: Literal["STATIC", "DNS"]
    connect_timeout: NotRequired[int]


class Endpoint(TypedDict):
    """``address``: IP address, host name (resolution DNS) or ``unix:///path``; ``port`` 0: Unix socket."""

    address: str
    port: int
    weight: int
    labels: dict[str, str]


class BreakerPolicy(TypedDict):
    """When a breaker trips by itself, as Hystrix means it. Times in milliseconds.

    ``fleet``: whether proxies tell each other of errors.
    """

    rolling_window: int
    request_volume_threshold: int
    error_threshold_percentage: int
    slow_call_duration: int
    slow_call_threshold_percentage: int
    sleep_window: int
    half_open_requests: int
    fleet: Literal["off", "observe", "on"]


# A person's word over a breaker. until: Unix ms by the publisher's clock. for: the longest that a proxy obeys
# it from when it hears of it, ms, so that one whose clock is wrong does not obey for ever.
Order = TypedDict(
    "Order", {"state": Literal["open", "closed"], "until": int, "for": int, "reason": NotRequired[str]}
)


class Breaker(TypedDict, total=False):
    """At least one key. ``order``: of the whole cluster. ``endpoints``: of single ones, by ``address:port``
    as proxies name them (``[::1]:80``, ``unix:///path``)."""

    policy: BreakerPolicy
    order: Order
    endpoints: dict[str, Order]


class Tables(TypedDict):
    format: int
    listeners: dict[str, Listener]
    routes: dict[str, VirtualHost]
    clusters: dict[str, Cluster]
    endpoints: dict[str, list[Endpoint]]
    breakers: dict[str, Breaker]


NAMES = ("listeners", "routes", "clusters", "endpoints", "breakers")


def empty() -> Tables:
    """Tables with nothing in them: every request is 404 NR."""
    return {"format": FORMAT, "listeners": {}, "routes": {}, "clusters": {}, "endpoints": {}, "breakers": {}}
