"""What the HTTP API takes and gives, as OpenAPI shows it: camelCase keys, nothing unknown taken."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from ctrl.durations import milliseconds

MAX_FILES = 10_000
Whole = Annotated[int, Field(ge=0, lt=1 << 63)]
Name = Annotated[str, Field(max_length=253)]


def _duration(text: str) -> str:
    milliseconds(text)
    return text


Duration = Annotated[
    str,
    AfterValidator(_duration),
    Field(max_length=40, description="as in resources: 500ms, 30s, 1h30m", examples=["30s"]),
]


class Taken(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class Given(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


# --- taken ---


class File(Taken):
    """YAML or JSON documents; the name stands for the file in problems."""

    name: Annotated[str, Field(max_length=1000)] = ""
    text: str


class Identity(Taken):
    kind: Name
    namespace: Name = "default"
    name: Name


class Rolling(Taken):
    """How a version gets to the proxies; without stages and atomic: to all at once."""

    dry_run: bool = False
    strict: Annotated[bool, Field(description="any problem: nothing is applied")] = False
    message: Annotated[str, Field(max_length=1000)] = ""
    atomic: Annotated[bool, Field(description="all proxies prepare first; one rejection aborts")] = False
    stages: Annotated[list[Annotated[str, Field(max_length=20)]], Field(max_length=20)] = []
    bake: Duration = "30s"
    abort_if: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=20)] = []
    timeout: Duration = "30s"


class ApplyRequest(Rolling):
    files: Annotated[list[File], Field(max_length=MAX_FILES)]


class DeleteRequest(Taken):
    identities: Annotated[list[Identity], Field(max_length=100_000)]
    dry_run: bool = False
    message: Annotated[str, Field(max_length=1000)] = ""


class RollbackRequest(Rolling):
    pass


class OrderRequest(Taken):
    """Open or close the breakers of a cluster, or of one endpoint, for a time."""

    host: Name
    subset: Name = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    endpoint: Annotated[str, Field(max_length=300, description="ADDRESS:PORT")] = ""
    state: Literal["open", "closed"]
    for_: Annotated[Duration, Field(alias="for")]
    reason: Annotated[str, Field(max_length=500)] = ""
    namespace: Name = "default"


# --- given ---


class ProblemRow(Given):
    file: str
    line: int
    field: str
    message: str
    kind: str
    namespace: str
    name: str


class Refusal(Given):
    """Why it was not done."""

    error: str
    problems: list[ProblemRow] = []


class CandidateRow(Given):
    version: int
    share: Annotated[float, Field(description="part of the proxies that serve it, 0 to 1")]
    owner: str
    beat_ms: int
    who: str
    what: str
    hash: str
    message: str


class HeadAnswer(Given):
    server: str
    epoch: int
    version: int
    decided: int
    hash: str
    candidate: CandidateRow | None = None
    problems: list[ProblemRow]
    proxies: int
    store: str
    trouble: Annotated[str, Field(description="why the store cannot be reached; empty: it can")]


class ResourceRow(Given):
    kind: str
    namespace: str
    name: str
    text: str
    file: str
    line: int
    created_version: int
    version: int


class ResourcesAnswer(Given):
    version: int
    resources: list[ResourceRow]


class ChangeRow(Given):
    verb: str
    kind: str
    namespace: str
    name: str


class DiffRow(Given):
    kind: str
    namespace: str
    name: str
    before: str
    after: str


class ChangeAnswer(Given):
    epoch: int
    version: Annotated[int, Field(description="made by this change; the head's when nothing changed")]
    hash: str
    changes: list[ChangeRow]
    diff: list[DiffRow]
    problems: list[ProblemRow]
    warnings: list[ProblemRow]
    dry_run: bool
    rollout: bool


class EntryRow(Given):
    version: int
    epoch: int
    at_ms: int
    who: str
    what: str
    message: str
    hash: str
    changes: list[ChangeRow]


class HistoryAnswer(Given):
    entries: list[EntryRow]


class ProxyRow(Given):
    node: str
    state: str
    address: str
    via: str
    namespace: str
    labels: dict[str, str]
    mesh: bool
    epoch: int
    version: Annotated[int, Field(description="that it serves")]
    held: Annotated[int, Field(description="that it holds, of which hash is")]
    hash: str
    lag: Annotated[int, Field(description="versions behind the head")]
    error: str
    since_ms: int
    us: int
    admin: str
    release: str
    started_ms: int
    requests: int
    errors: int


class RelayRow(Given):
    node: str
    state: str
    address: str
    via: Annotated[str, Field(description="the relays above it")]
    epoch: int
    version: int
    release: str
    started_ms: int
    proxies: Annotated[int, Field(description="that are present and reached through it, also by others")]
    error: str


class RefusedRow(Given):
    at_ms: int
    address: str
    name: str
    reason: str


class StatusAnswer(Given):
    head: HeadAnswer
    candidate: CandidateRow | None = None
    proxies: list[ProxyRow]
    relays: list[RelayRow]
    refused: list[RefusedRow]


class RejectedRow(Given):
    node: str
    error: str


class ProgressAnswer(Given):
    version: int
    total: int
    serving: int
    prepared: int
    rejected: list[RejectedRow]
    problems: Annotated[list[RejectedRow], Field(description="it serves there, and not all of it")]
    laggards: list[str]
    lost: Annotated[list[str], Field(description="were there and are silent: not counted")]
    p50_us: Annotated[int, Field(alias="p50Us")]
    p99_us: Annotated[int, Field(alias="p99Us")]
    max_us: int
    seen: Annotated[int, Field(description="give it back to wait for the next change")]
    gathering: Annotated[bool, Field(description="just started: proxies that were there may come back")]


class VerifiedProxy(Given):
    node: str
    version: int
    hash: str
    equal: bool


class VerifiedView(Given):
    view: str
    namespace: str
    labels: dict[str, str]
    mesh: bool
    hash: str
    proxies: list[VerifiedProxy]


class VerifyAnswer(Given):
    equal: bool
    epoch: int
    version: int
    views: list[VerifiedView]
    lost: Annotated[list[str], Field(description="were there and are silent: what they serve is not known")]


class RolloutAnswer(Given):
    version: int = 0
    state: Literal["preparing", "baking", "committed", "aborted", "none"]
    stage: Annotated[int, Field(description="place in stages from 1; 0: all prepare")] = 0
    stages: list[str] = []
    atomic: bool = False
    share: float = 0.0
    reason: str = ""
    observed: dict[str, Any] = {}


class OrderRow(Given):
    name: str
    namespace: str
    host: str
    subset: str
    port: int
    endpoint: str
    state: str
    until_ms: int
    reason: str
    version: int


class BreakerNode(Given):
    node: str
    breaker: str
    state: str
    order: str
    until_ms: int
    rejected: int


class ClusterRow(Given):
    """``nodes``: the first hundred that are not simply closed."""

    cluster: str
    open: int = 0
    closed: int = 0
    half_open: int = 0
    ordered: int = 0
    rejected: int = 0
    nodes: list[BreakerNode] = []


class BreakersAnswer(Given):
    orders: list[OrderRow]
    clusters: list[ClusterRow]
