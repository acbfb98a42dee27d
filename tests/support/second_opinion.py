"""What two other parsers say about a message: llhttp (through httptools) and h11.

A verdict is ``take``, ``refuse`` or ``more`` (bytes are missing), with what was read where it was taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import h11
import httptools

TAKE, REFUSE, MORE = "take", "refuse", "more"
# bodies are shown to the peers behind this head
CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Opinion:
    """A verdict, and of a message that was taken: its method or status, fields and content."""

    verdict: str
    start: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    content: bytes = b""


class _Listener:
    """What httptools calls."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.content = b""
        self.head = self.whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.head = True

    def on_body(self, data: bytes) -> None:
        self.content += data

    def on_message_complete(self) -> None:
        self.whole = True


def _start(parser: httptools.HttpRequestParser | httptools.HttpResponseParser) -> bytes:
    if isinstance(parser, httptools.HttpRequestParser):
        return bytes(parser.get_method())
    return str(parser.get_status_code()).encode()


def llhttp(kind: str, data: bytes) -> Opinion:
    """httptools on a ``request``, ``response`` (heads; a body may be missing) or ``chunked`` body."""
    listener = _Listener()
    parser = (httptools.HttpResponseParser if kind == "response" else httptools.HttpRequestParser)(listener)
    try:
        parser.feed_data((CHUNKED_HEAD if kind == "chunked" else b"") + data)
    except httptools.HttpParserUpgrade:
        listener.whole = True
    except httptools.HttpParserError:
        if not listener.whole:  # an error after the end is about the next message
            return Opinion(REFUSE)
    if kind == "chunked":
        return Opinion(TAKE if listener.whole else MORE, content=listener.content)
    if not listener.head:
        return Opinion(MORE)
    return Opinion(TAKE, _start(parser), listener.fields)


def h11_(kind: str, data: bytes, to: bytes = b"GET") -> Opinion:
    """h11 on the same; ``to`` is the method of the request that a response answers."""
    if not data:
        return Opinion(MORE)  # to h11 no bytes are the end of the connection
    client = kind == "response"
    connection = h11.Connection(h11.CLIENT if client else h11.SERVER, max_incomplete_event_size=1 << 17)
    if client:
        connection.send(
            h11.Request(method=to, target="a:1" if to == b"CONNECT" else "/", headers=[("Host", "a")])
        )
        connection.send(h11.EndOfMessage())
    try:
        connection.receive_data((CHUNKED_HEAD if kind == "chunked" else b"") + data)
        event = connection.next_event()
        if event is h11.NEED_DATA:
            return Opinion(MORE)
        assert isinstance(event, (h11.Request, h11.Response, h11.InformationalResponse)), event
        if kind != "chunked":
            start = event.method if isinstance(event, h11.Request) else str(event.status_code).encode()
            return Opinion(TAKE, start, [(bytes(n), bytes(v)) for n, v in event.headers])
        content = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                return Opinion(MORE, content=content)
            if isinstance(event, h11.EndOfMessage):
                return Opinion(TAKE, content=content)
            assert isinstance(event, h11.Data), event
            content += event.data
    except h11.RemoteProtocolError:
        return Opinion(REFUSE)
