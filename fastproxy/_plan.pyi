from typing import NamedTuple

FORMAT: int
MAGIC: int
HEADER: int
SECTIONS: tuple[str, ...]
SIZES: dict[str, int]
SUBJECTS: tuple[str, ...]
KINDS: tuple[str, ...]

class Target(NamedTuple):
    """Where a request goes. ``route``: id. ``covered``: bytes of the path under the matched prefix. ``path``:
    normalised. ``steps``: nodes, words and predicates looked at; 0 without the index."""

    host_name: bytes
    rule: int
    route: int
    covered: int
    path: bytes
    query: bytes
    steps: int

class OpsView(NamedTuple):
    """Header operations: names (lower case) to remove, lines to append."""

    remove: list[bytes]
    append: bytes

class DestinationView(NamedTuple):
    """``cluster``: index in the plan, None when there is no such cluster or subset."""

    cluster: int | None
    weight: int
    request: OpsView
    response: OpsView

class RouteView(NamedTuple):
    """``kind``: 1 forward, 2 redirect, 3 direct response."""

    id: int
    kind: int
    name: bytes
    timeout_ms: int
    status: int
    body: bytes
    destinations: list[DestinationView]
    authority: bytes
    request: OpsView
    response: OpsView

class EndpointView(NamedTuple):
    name: str
    slot: int
    family: int
    port: int
    address: bytes
    path: bytes
    identity: int

class ClusterView(NamedTuple):
    name: str
    service: str
    slot: int
    lb: int
    connect_timeout_ms: int
    endpoints: list[EndpointView]
    schedule: list[int]

class Failed(NamedTuple):
    """The predicate that did not hold. ``found``: what the request has there, None: nothing."""

    subject: str
    kind: str
    negated: bool
    fold: bool
    name: bytes
    value: bytes
    number: int
    found: bytes | None

class Step(NamedTuple):
    """One rule that was tried; ``failed`` None: it is the answer."""

    rule: int
    route: int
    failed: Failed | None

class Refused(ValueError):
    """The parser refuses the request; ``kind`` says why (``fastproxy.errors.Kind``)."""

    def __init__(self, kind: int) -> None: ...
    @property
    def kind(self) -> int: ...

def name_hash(name: bytes, *, fold: bool) -> int:
    """Hash of a host name (``fold``), parameter or cookie, as the plan's tables use it."""

def checksum(data: bytes | bytearray | memoryview) -> int:
    """Of all that follows the plan's header."""

class PlanView:
    """One plan, as the workers read it. ValueError: the buffer is not a plan of this build.

    ``request`` is a whole request head; ``slashes`` and ``merge`` are those of ``path_normalise``;
    ``https`` says that it came over TLS. They raise Refused for a head or path that is malformed,
    LookupError for a listener that is not in the plan.
    """

    def __new__(cls, buffer: bytes | bytearray | memoryview | object) -> PlanView: ...
    @property
    def epoch(self) -> int: ...
    @property
    def version(self) -> int: ...
    def counts(self) -> dict[str, int]:
        """Rows of each section."""

    def check(self) -> None:
        """Verify every reference in the block once. ValueError names the section that is wrong."""

    def listeners(self) -> list[str]: ...
    def match(
        self,
        listener: str,
        request: bytes,
        *,
        slashes: int = 0,
        merge: bool = True,
        https: bool = False,
        linear: bool = False,
    ) -> Target | None:
        """Where the request goes, as the core decides it; ``linear``: without the index. None: no route."""

    def host(
        self, listener: str, request: bytes, *, slashes: int = 0, merge: bool = True, https: bool = False
    ) -> bytes | None:
        """The virtual host of a request: ``reviews``, ``.suffix`` or ``*``."""

    def explain(
        self, listener: str, request: bytes, *, slashes: int = 0, merge: bool = True, https: bool = False
    ) -> list[Step]:
        """Every rule in order up to the answer, each with the first predicate that failed."""

    def rewritten(
        self,
        listener: str,
        request: bytes,
        *,
        slashes: int = 0,
        merge: bool = True,
        https: bool = False,
        room: int = 65536,
    ) -> bytes | None:
        """The path to send upstream, or the Location of a redirect; None: no route, or longer than
        ``room``."""

    def time(self, listener: str, request: bytes, rounds: int) -> float:
        """Nanoseconds of one match, the least of five averages over ``rounds``."""

    def route(self, index: int) -> RouteView: ...
    def pick(self, route: int, random: int) -> int:
        """Number of the destination that 32 random bits choose."""

    def removes(self, route: int, name: bytes) -> bool:
        """Whether the route's request operations remove a field of that name."""

    def cluster(self, index: int) -> ClusterView: ...
