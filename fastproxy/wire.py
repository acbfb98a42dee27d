"""Messages of the control protocol: what they mean, how they are written, what is refused.

docs/control-protocol.md tells it for a second implementation. Three lanes of ZeroMQ sockets::

    publish    XPUB ──► SUB        Announce · Heartbeat · Update         by topic, to all that subscribed
    snapshot   ROUTER ◄─► DEALER   Ask ─► Snapshot | Update | Heartbeat | Refused
    answer     ROUTER ◄─► DEALER   Answers · Report ─► Refused           what proxies did, and how they are

A message is two or three frames: on the publish lane its topic first, then a header (a msgpack map whose
``t`` names the type), then for tables a body. On the snapshot and answer lanes there is no topic. Unknown
keys of a header are ignored, so that fields can be added; an unknown ``t`` is refused.

Everything here comes from the network: :func:`decode` bounds sizes before it unpacks, checks every type, and
raises WireError, nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, cast

import msgpack
import zstandard

from fastproxy.bodies import MAX_BODY as MAX_BODY
from fastproxy.bodies import WireError as WireError
from fastproxy.bodies import inflate, pack_body, unpack_changes, unpack_rows
from fastproxy.rows import HASH_BYTES, Changes, Packed
from fastproxy.tables import FORMAT

PROTOCOL = 1
MAX_HEADER = 64 * 1024
MAX_ANSWERS = 4_000  # in one message: a relay sends those of many proxies
MAX_BREAKERS = 1_000  # rows in one report
MAX_REPORT = 1024 * 1024
MAX_TEXT = 4096  # of a name or a reason
COMPRESS_FROM = 1024  # smaller bodies are not worth it
WHOLE = 1 << 32  # the share that is everybody
MAX_INT = 1 << 63
VIEW_BYTES = 8


# --- words ---


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a proxy says of itself, and all that decides which rows it needs: see ``ctrl.views``.

    Proxies with equal attributes share a view: the same rows, the same hash.
    """

    namespace: str = "default"
    labels: tuple[tuple[str, str], ...] = ()  # sorted
    mesh: bool = False  # it has a mesh listener (``--listen``)

    @classmethod
    def of(cls, namespace: str, labels: Mapping[str, str], mesh: bool) -> Attributes:
        return cls(namespace, tuple(sorted(labels.items())), mesh)

    @property
    def view(self) -> str:
        """16 hexadecimal digits: the topic that these proxies subscribe to."""
        packed = msgpack.packb([self.namespace, [list(pair) for pair in self.labels], self.mesh])
        return hashlib.blake2b(packed, digest_size=VIEW_BYTES).hexdigest()

    def to_wire(self) -> list[Any]:
        return [self.namespace, [list(pair) for pair in self.labels], self.mesh]

    @classmethod
    def from_wire(cls, value: Any) -> Attributes:
        """Raises WireError."""
        if not isinstance(value, list) or len(value) != 3:
            raise WireError("attributes: [namespace, labels, mesh] are wanted")
        namespace, labels, mesh = value
        if not isinstance(labels, list) or len(labels) > 256 or not isinstance(mesh, bool):
            raise WireError("attributes: labels are a list of at most 256 pairs, mesh is a boolean")
        for pair in labels:
            if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_text, pair)):
                raise WireError("attributes: a label is a pair of strings")
        if not _is_text(namespace):
            raise WireError("attributes: namespace is a string")
        pairs = tuple((key, text) for key, text in labels)
        if list(pairs) != sorted(dict(pairs).items()):
            raise WireError("attributes: labels are sorted and each has one value")
        return cls(namespace, pairs, mesh)


def lot(node: str, epoch: int, version: int) -> int:
    """Where a proxy stands in the order in which a candidate version is rolled out: below ``share``, it
    serves it.

    Evenly spread over 0 to 2**32 - 1, and drawn anew for every version.
    """
    drawn = hashlib.blake2b(f"{epoch} {version} {node}".encode(), digest_size=4).digest()
    return int.from_bytes(drawn, "big")


def view_topic(view: str) -> bytes:
    return b"v/" + view.encode()


def probe_topic(nonce: bytes) -> bytes:
    """``nonce``: 16 random bytes of one socket. Who sees a subscription to it publishes an Announce there:
    only the subscriber gets it, and then knows that the subscriptions it made before are in force."""
    return b"p/" + nonce


# --- messages ---
#
# None of them is changed once it is made. Those that come with every version are not frozen all the same: a
# frozen one takes three times as long to make.


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """A publisher to one new subscriber, on its probe topic. Ports are at the host that the subscriber
    reached.

    jitter_ms: wait a random time up to this before asking for a snapshot. server: who speaks, for status.
    """

    t: ClassVar[str] = "announce"
    protocol: int = PROTOCOL
    server: str
    snapshot_port: int
    answer_port: int
    heartbeat_ms: int
    report_ms: int
    jitter_ms: int = 0


@dataclass(slots=True, kw_only=True)
class Heartbeat:
    """The head of one view: what everybody should serve. Sent every ``heartbeat_ms`` and when it changes.

    epoch, version, hash: the newest decided version and its rows. decided: every version number up to it is
    either part of the history or void; a candidate above it is open. candidate: its version, 0 for none; a
    proxy whose lot is below ``share`` serves it. So commit, next stage and abort are a heartbeat, and a lost
    one is healed by the next. now_ms: the publisher's clock, Unix milliseconds. spread_ms: each proxy waits a
    random time between half of this and this before it answers a version: so a thousand answers come neither
    in one moment nor while the publisher still sends.
    id: answers the Ask with this number.
    """

    t: ClassVar[str] = "head"
    epoch: int
    version: int
    hash: bytes
    decided: int
    candidate: int = 0
    candidate_hash: bytes = b""
    share: int = 0
    now_ms: int = 0
    report_ms: int = 0
    spread_ms: int = 0
    id: int = 0


@dataclass(slots=True, kw_only=True)
class Update:
    """One step from (prev_version, prev_hash) to (version, hash). Whoever does not stand on prev has a gap.

    candidate: it is to be prepared (compiled and held); heartbeats say who serves it. share as in Heartbeat.
    size: bytes of the body after decompression. zstd: it is compressed. sent_us: Unix time of publishing.
    """

    t: ClassVar[str] = "update"
    epoch: int
    version: int
    hash: bytes
    prev_version: int
    prev_hash: bytes
    format: int = FORMAT
    candidate: bool = False
    share: int = 0
    size: int = field(default=0, compare=False)
    zstd: bool = field(default=False, compare=False)
    sent_us: int = 0
    id: int = 0
    changes: Changes = field(default_factory=Changes, metadata={"body": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All rows of a view at its head."""

    t: ClassVar[str] = "snapshot"
    epoch: int
    version: int
    hash: bytes
    format: int = FORMAT
    size: int = field(default=0, compare=False)
    zstd: bool = field(default=False, compare=False)
    id: int = 0
    rows: Packed = field(default_factory=dict, metadata={"body": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A proxy: bring me to the head of my view. version 0: I have nothing, or nothing I trust.

    The answers: Heartbeat (you are there), Update (the range in one step), Snapshot, Refused; then, when a
    candidate is open, its Update. id: repeated in the answers, so that a late one is known.
    """

    t: ClassVar[str] = "ask"
    protocol: int = PROTOCOL
    node: str
    attributes: Attributes
    id: int
    epoch: int = 0
    version: int = 0
    hash: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why an Ask or Answers were not taken: another protocol, a name that the key does not own, no role."""

    t: ClassVar[str] = "refused"
    reason: str
    id: int = 0


PREPARED, SERVING, REJECTED = "prepared", "serving", "rejected"
RESULTS = (PREPARED, SERVING, REJECTED)


@dataclass(slots=True)
class Answer:
    """What one proxy did with one version. Times in microseconds: from the message's arrival to now, of this
    the compile, and the longest swap of a worker. ``error``: why it was rejected, or what of a version that
    serves does not (a listener that cannot be opened)."""

    node: str
    epoch: int
    version: int
    hash: bytes
    result: str
    us: int = 0
    compile_us: int = 0
    swap_us: int = 0
    error: str = ""

    def to_wire(self) -> list[Any]:
        return [getattr(self, name) for name in self.__slots__]

    @classmethod
    def from_wire(cls, value: Any) -> Answer:
        """Raises WireError."""
        kinds = (str, int, int, bytes, str, int, int, int, str)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise WireError(f"an answer has {len(kinds)} items")
        for name, item, kind in zip(cls.__slots__, value, kinds, strict=True):
            _want(item, kind, f"answer.{name}")
        if value[4] not in RESULTS:
            raise WireError(f"answer.result is one of {', '.join(RESULTS)}")
        if len(value[3]) != HASH_BYTES:
            raise WireError(f"answer.hash has {HASH_BYTES} bytes")
        return cls(*value)


@dataclass(slots=True, kw_only=True)
class Answers:
    """Of one proxy, or through a relay of many."""

    t: ClassVar[str] = "answers"
    answers: list[Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a proxy is: at once when it connects, then every report_ms, and when its state changes.

    state: of fastproxy.sync.State. serving: the version that serves, 0: none of this epoch. requests,
    errors: exchanges ended since the start, and those of them answered 5xx. breakers: rows [name, state,
    order, until_ms, rejected], those that are not CLOSED or have an order first. started_ms: Unix time.
    admin: address of its admin API.
    """

    t: ClassVar[str] = "report"
    node: str
    attributes: Attributes
    state: str
    epoch: int = 0
    version: int = 0
    hash: bytes = b""
    serving: int = 0
    error: str = ""
    started_ms: int = 0
    admin: str = ""
    release: str = ""
    requests: int = 0
    errors: int = 0
    breakers: list[Any] = field(default_factory=list)
    via: str = ""  # the relay that handed it on


Message = Announce | Heartbeat | Update | Snapshot | Ask | Refused | Answers | Report
TYPES: dict[str, type[Any]] = {
    kind.t: kind for kind in (Announce, Heartbeat, Update, Snapshot, Ask, Refused, Answers, Report)
}
_KINDS = {"int": int, "str": str, "bytes": bytes, "bool": bool}


def encode(message: Message) -> list[bytes]:
    """Header and, for tables, body. The topic is the caller's."""
    header: dict[str, Any] = {"t": message.t}
    body: bytes | None = None
    shape = _SHAPES[type(message)]
    if shape.body:
        body = pack_body(getattr(message, shape.body))
    for f in shape.fields.values():
        value = getattr(message, f.name)
        if isinstance(value, Attributes):
            header[f.name] = value.to_wire()
        elif isinstance(message, Answers):
            header[f.name] = [item.to_wire() for item in value]
        elif f.needed or value != f.default:
            header[f.name] = value
    if body is None:
        return [msgpack.packb(header)]
    header["size"] = len(body)
    header.pop("zstd", None)
    if len(body) >= COMPRESS_FROM:
        packed = zstandard.ZstdCompressor(level=3).compress(body)
        if len(packed) < len(body) * 9 // 10:
            body, header["zstd"] = packed, True
    return [msgpack.packb(header), body]


def decode(frames: Sequence[bytes], allowed: Sequence[type[Any]] = ()) -> Message:
    """The message in these frames, without topic. ``allowed``: types that may come here; none given: all.

    Raises WireError.
    """
    if not 1 <= len(frames) <= 2:
        raise WireError(f"{len(frames)} frames where one or two belong")
    header = unpack_header(frames[0])
    kind = TYPES.get(header["t"])
    if kind is None or (allowed and kind not in allowed):
        raise WireError(f"a message of type {header['t'][:40]!r} does not belong here")
    shape = _SHAPES[kind]
    values: dict[str, Any] = {}
    for name, value in header.items():
        f = shape.fields.get(name)
        if f is not None:  # else it is t, or of a release that is newer than this
            if f.number and type(value) is int and 0 <= value < MAX_INT:
                pass  # what comes most is told from the rest at once
            elif not f.hash or type(value) is not bytes or len(value) != HASH_BYTES:
                value = _field(value, f, f"{kind.t}.{name}")
            values[name] = value
    if not values.keys() >= shape.needed:
        missing = sorted(shape.needed - values.keys())
        raise WireError(f"{kind.t}.{missing[0]} is missing")
    if bool(shape.body) != (len(frames) == 2):
        raise WireError(f"{kind.t}: a body is {'missing' if shape.body else 'not wanted'}")
    if shape.body:
        if values.get("format", FORMAT) != FORMAT:
            raise WireError(f"{kind.t}.format is {values['format']}, this build reads {FORMAT}")
        body = inflate(frames[1], values.get("size", 0), values.get("zstd", False))
        values[shape.body] = (unpack_changes if kind is Update else unpack_rows)(body)
    return cast(Message, kind(**values))


def unpack_header(frame: bytes) -> dict[str, Any]:
    """Raises WireError."""
    limit = MAX_REPORT if len(frame) > MAX_HEADER else MAX_HEADER
    if len(frame) > limit:
        raise WireError(f"a header of {len(frame)} bytes; the limit is {limit}")
    header = _unpack(frame, min(len(frame), MAX_ANSWERS))
    if not isinstance(header, dict) or not isinstance(header.get("t"), str):
        raise WireError("a header is a map with a type t")
    if len(frame) > MAX_HEADER and header["t"] not in (Answers.t, Report.t):
        raise WireError(f"a header of {len(frame)} bytes; the limit is {MAX_HEADER}")
    return header


# --- checks ---


def _unpack(frame: bytes, most: int) -> Any:
    try:
        return msgpack.unpackb(frame, max_map_len=256, max_array_len=most, strict_map_key=True)
    except Exception as e:  # msgpack raises what it likes for hostile bytes
        raise WireError(f"the header is not msgpack: {type(e).__name__} {e}") from None


def _field(value: Any, f: _Field, where: str) -> Any:
    if f.kind is None:
        return f.read(value, where)
    _want(value, f.kind, where)
    if f.hash and len(value) not in (0, HASH_BYTES):
        raise WireError(f"{where} has {HASH_BYTES} bytes")
    if f.port and not 0 < value < 65536:
        raise WireError(f"{where} is no port")
    return value


def _answers(value: Any, where: str) -> list[Answer]:
    if not isinstance(value, list) or len(value) > MAX_ANSWERS:
        raise WireError(f"{where} is a list of at most {MAX_ANSWERS}")
    return [Answer.from_wire(item) for item in value]


def _breakers(value: Any, where: str) -> list[Any]:
    kinds = (str, str, str, int, int)
    if not isinstance(value, list) or len(value) > MAX_BREAKERS:
        raise WireError(f"{where} is a list of at most {MAX_BREAKERS}")
    for row in value:
        if not isinstance(row, list) or len(row) != len(kinds):
            raise WireError(f"{where}: a row is [name, state, order, until_ms, rejected]")
        for item, kind in zip(row, kinds, strict=True):
            _want(item, kind, where)
    return value


@dataclass(frozen=True, slots=True)
class _Field:
    """How one field of a message is written. kind None: by ``read``."""

    name: str
    kind: type | None
    needed: bool
    default: Any
    number: bool  # nothing but the range of numbers is to be checked
    hash: bool
    port: bool
    read: Callable[[Any, str], Any]

    @classmethod
    def of(cls, f: Any) -> _Field:
        reads: dict[str, Callable[[Any, str], Any]] = {
            "Attributes": lambda value, _: Attributes.from_wire(value),
            "list[Answer]": _answers,
            "list[Any]": _breakers,
        }
        port = "port" in f.name.split("_")
        return cls(
            name=f.name,
            kind=_KINDS.get(f.type),
            needed=f.default is MISSING and f.default_factory is MISSING,
            default=f.default,
            number=f.type == "int" and not port,
            hash="hash" in f.name,
            port=port,
            read=reads.get(f.type, lambda value, _: value),
        )


class _Shape:
    """The fields of a kind of message: those of its header by name, and the one that is its body."""

    def __init__(self, kind: type[Any]) -> None:
        self.fields = {f.name: _Field.of(f) for f in fields(kind) if "body" not in f.metadata}
        self.needed = frozenset(f.name for f in self.fields.values() if f.needed)
        self.body = next((f.name for f in fields(kind) if "body" in f.metadata), "")


_SHAPES = {kind: _Shape(kind) for kind in TYPES.values()}


def _want(value: Any, kind: type, where: str) -> None:
    if type(value) is not kind:
        raise WireError(f"{where} is not {kind.__name__}")
    if isinstance(value, int) and not 0 <= value < MAX_INT:
        raise WireError(f"{where} is out of range")
    if kind is str and not _is_text(value):
        raise WireError(f"{where} is longer than {MAX_TEXT} characters, or holds control characters")


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return False
    return value.isprintable() or value.replace("\n", "").isprintable()


def clean(text: str, most: int = 2000) -> str:
    """What is left of a text when it must be one that the protocol takes: for errors that others worded."""
    if text.isprintable() and len(text) <= most:
        return text
    return "".join(c if c == "\n" or c.isprintable() else "?" for c in text[:most])
