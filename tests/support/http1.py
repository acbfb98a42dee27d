"""A strict, blocking reader of HTTP/1.1 messages for both ends of a test. It forgives nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*(.*?)[ \t]*", re.DOTALL)
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")

Fields = list[tuple[bytes, bytes]]


class Malformed(Exception):
    """The peer sent bytes that are not HTTP/1.1."""


class Eof(Exception):
    """The connection ended; ``seen`` is what had come of the message."""

    def __init__(self, seen: bytes = b"") -> None:
        super().__init__(f"connection ended after {seen[:200]!r} ({len(seen)} bytes)")
        self.seen = seen


@dataclass
class Message:
    """What requests and responses share. Field names and values are the original bytes, in order."""

    fields: Fields
    minor: int
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    raw_head: bytes = b""
    framing: str = "none"  # length, chunked or close once the body was read whole

    def all(self, name: str) -> list[bytes]:
        """Every value of that field, in order."""
        wanted = name.lower().encode()
        return [v for n, v in self.fields if n.lower() == wanted]

    def get(self, name: str) -> str | None:
        """The value of that field, which must be there at most once."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0].decode("latin-1") if values else None

    def tokens(self, name: str) -> list[str]:
        """The members of a comma-separated list field, lower case."""
        joined = b",".join(self.all(name)).decode("latin-1")
        return [t.strip().lower() for t in joined.split(",") if t.strip()]


@dataclass
class Request(Message):
    method: str = ""
    target: str = ""


@dataclass
class Response(Message):
    status: int = 0
    reason: str = ""
    interim: list[Response] = field(default_factory=list)


def parse_fields(lines: list[bytes]) -> Fields:
    """Field lines as (name, value); anything but ``token: value`` is an error."""
    found: Fields = []
    for line in lines:
        match = FIELD_LINE.fullmatch(line)
        if match is None or re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", line):
            raise Malformed(f"field line {line!r}")
        found.append((match[1], match[2]))
    return found


class Reader:
    """Messages out of a byte source. ``receive`` returns b"" at the end of the stream."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self.buffer = bytearray()

    def _more(self) -> bool:
        data = self._receive()
        self.buffer += data
        return bool(data)

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        while len(self.buffer) < size:
            if not self._more():
                raise Eof(bytes(self.buffer))
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def until(self, mark: bytes, limit: int = 1 << 20) -> bytes:
        """Bytes up to and without ``mark``, which is consumed."""
        start = 0
        while (at := self.buffer.find(mark, start)) < 0:
            start = max(0, len(self.buffer) - len(mark))
            if len(self.buffer) > limit:
                raise Malformed(f"no {mark!r} in {limit} bytes")
            if not self._more():
                raise Eof(bytes(self.buffer))
        data = bytes(self.buffer[:at])
        del self.buffer[: at + len(mark)]
        return data

    def rest(self) -> bytes:
        """Everything to the end of the stream."""
        while self._more():
            pass
        data = bytes(self.buffer)
        self.buffer.clear()
        return data

    def _head(self) -> tuple[bytes, list[bytes], bytes]:
        raw = self.until(b"\r\n\r\n")
        lines = raw.split(b"\r\n")
        if any(b"\r" in line or b"\n" in line for line in lines):
            raise Malformed(f"bare CR or LF in {raw!r}")
        return lines[0], lines[1:], raw + b"\r\n\r\n"

    def chunked(self) -> tuple[bytes, Fields]:
        """The data and the trailers of a chunked body (RFC 9112 §7.1)."""
        parts = []
        while True:
            line = self.until(b"\r\n")
            size, _, extension = line.partition(b";")
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}", size) or b"\n" in extension or b"\r" in extension:
                raise Malformed(f"chunk size {line!r}")
            count = int(size, 16)
            if count == 0:
                break
            parts.append(self.take(count))
            if self.take(2) != b"\r\n":
                raise Malformed("chunk not ended by CRLF")
        trailers = []
        while line := self.until(b"\r\n"):
            trailers.append(line)
        return b"".join(parts), parse_fields(trailers)

    def _lengths(self, message: Message) -> None:
        lengths, codings = message.all("content-length"), message.all("transfer-encoding")
        if lengths and codings:
            raise Malformed("Content-Length and Transfer-Encoding")
        if len(lengths) > 1 or (lengths and not re.fullmatch(rb"[0-9]{1,18}", lengths[0])):
            raise Malformed(f"Content-Length {lengths}")
        if codings and codings != [b"chunked"]:
            raise Malformed(f"Transfer-Encoding {codings}")

    def _body(self, message: Message, may_close: bool) -> None:
        if message.all("transfer-encoding"):
            message.body, message.trailers = self.chunked()
            message.framing = "chunked"
        elif lengths := message.all("content-length"):
            message.body = self.take(int(lengths[0]))
            message.framing = "length"
        elif may_close:
            message.body = self.rest()
            message.framing = "close"

    def request_head(self) -> Request:
        """The head of a request; its body is left in the stream."""
        line, lines, raw = self._head()
        match = REQUEST_LINE.fullmatch(line)
        if match is None:
            raise Malformed(f"request line {line!r}")
        request = Request(
            fields=parse_fields(lines),
            minor=int(match[3]),
            raw_head=raw,
            method=match[1].decode(),
            target=match[2].decode("latin-1"),
        )
        if request.minor == 1 and len(request.all("host")) != 1:
            raise Malformed(f"Host {request.all('host')}")
        self._lengths(request)
        return request

    def body_of(self, request: Request) -> Request:
        """The same request with its body read."""
        self._body(request, may_close=False)
        return request

    def request(self) -> Request:
        """One whole request."""
        return self.body_of(self.request_head())

    def response_head(self) -> Response:
        """The head of a response, interim ones too; its body is left in the stream."""
        line, lines, raw = self._head()
        match = STATUS_LINE.fullmatch(line)
        if match is None:
            raise Malformed(f"status line {line!r}")
        response = Response(
            fields=parse_fields(lines),
            minor=int(match[1]),
            raw_head=raw,
            status=int(match[2]),
            reason=match[3].decode("latin-1"),
        )
        self._lengths(response)
        return response

    def response(self, method: str = "GET") -> Response:
        """One whole response to ``method``, with the interim ones before it (RFC 9110 §15.2)."""
        interim: list[Response] = []
        while True:
            response = self.response_head()
            if response.status >= 200 or response.status == 101:
                break
            interim.append(response)
        response.interim = interim
        bodiless = method == "HEAD" or response.status in (101, 204, 304)
        if response.status in (101, 204) and (
            response.all("content-length") or response.all("transfer-encoding")
        ):
            raise Malformed(f"{response.status} with a length")  # RFC 9110 §8.6, RFC 9112 §6.1
        if not bodiless and not (method == "CONNECT" and response.status < 300):
            self._body(response, may_close=True)
        return response
