"""HTTP/1.1 parsing as Python sees it: for tests, fuzzing and ``explain``. The core uses the map.

A result that is an ``int`` is ``0`` (need more bytes) or minus a number of ``BAD`` (refused). RFC 9112.
"""

from typing import Literal, NamedTuple

from _typeshed import ReadableBuffer as Buffer

BAD: dict[str, int]  # numbers of fastproxy.errors.Kind
KNOWN: dict[str, int]  # lower-case field name -> number in Line.known
KNOWN_NAMES: tuple[bytes, ...]
NOMINATED: int  # Line.known of a field that Connection names
NO_TRAILERS: tuple[bytes, ...]  # names refused in a trailer section
FRAMING: tuple[str, ...]
FORM: tuple[str, ...]
FLAGS: dict[str, int]
SLASHES: dict[str, int]
WIDE: bool  # built with SSE2 or NEON

class Line(NamedTuple):
    """One field line. ``known`` is a number of ``KNOWN``, ``NOMINATED`` or 0."""

    name: bytes
    value: bytes
    known: int
    hash: int

class Request(NamedTuple):
    """A request head. ``query`` is None without '?'; ``first[known]`` is index + 1 in ``fields``, or 0."""

    length: int
    method: bytes
    method_id: int
    target: bytes
    form: str
    minor: int
    https: bool
    authority: bytes
    host: bytes
    path: bytes
    query: bytes | None
    framing: str
    content_length: int | None
    flags: frozenset[str]
    fields: list[Line]
    first: tuple[int, ...]

class Response(NamedTuple):
    """A response head."""

    length: int
    status: int
    reason: bytes
    minor: int
    framing: str
    content_length: int | None
    flags: frozenset[str]
    fields: list[Line]
    first: tuple[int, ...]

def parse_request(
    data: Buffer, *, head: int = 61440, fields: int = 100, target: int = 16384, portable: bool = False
) -> Request | int:
    """Read a request head. Limits: bytes of the head, number of fields (at most 256), bytes of the target."""

def parse_response(
    data: Buffer,
    *,
    to_head: bool = False,
    to_connect: bool = False,
    head: int = 61440,
    fields: int = 100,
    portable: bool = False,
) -> Response | int:
    """Read a response head; ``to_head`` and ``to_connect`` say what it answers, which decides its framing."""

class ChunkedReader:
    """The chunked coding of one body, fed in any pieces (RFC 9112 section 7.1)."""

    def skip(self, data: Buffer) -> int:
        """Bytes of ``data`` that belong to this body, or minus a Bad."""

    def feed(self, data: Buffer) -> tuple[int, bytes]:
        """Bytes of ``data`` that belong to this body, or minus a Bad; and the content in them."""

    @property
    def done(self) -> bool: ...
    @property
    def bad(self) -> int: ...
    @property
    def state(self) -> tuple[int, int, int, int, int]: ...

def normalise_path(
    path: Buffer, *, slashes: Literal["keep", "reject", "decode"] = "keep", merge: bool = True
) -> bytes | int:
    """Dot segments resolved, slashes merged, escapes in normal form (RFC 3986 6.2.2); or minus BAD["PATH"].

    ``slashes`` says what ``%2F``, ``%5C`` and ``\\`` mean: left alone, refused, or ``/``.
    """

def is_plain_path(path: Buffer, *, portable: bool = False) -> bool:
    """True when the path has no '//', '%', '\\' and no dot segment, so it is its own normal form."""

def field_hash(name: bytes) -> int:
    """32-bit hash of a field name without regard to case, never 0. The plan is built with it."""

def same_name(name: bytes, lower: bytes) -> bool:
    """Whether two field names are one; ``lower`` is lower case."""
