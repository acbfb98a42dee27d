"""Before a request of the HTTP API is looked at: who sends it, from where, and how large it is.

Without tokens only this machine is served, so a web page in a browser here must not be able to ask: requests
that browsers make for pages carry Origin, and a page that pointed a name of its own at 127.0.0.1 (DNS
rebinding) is known by Host. With tokens a request needs one, but for /live and /ready.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import unquote

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 * 1024 * 1024  # bytes; 413
MAX_BODIES = 4 * MAX_BODY  # of all requests that are being read; 503
MAX_WHO = 200
OPEN = ("/live", "/ready")
READING = ("GET", "HEAD")
OPERATOR = "operator"


class Holder(Protocol):
    """Whose token it is: of ctrl.tokens."""

    @property
    def role(self) -> str: ...

    @property
    def name(self) -> str: ...


class Knows(Protocol):
    def holder_of(self, header: str | None) -> Holder | None: ...


class Access:
    """ASGI middleware, the outermost. It leaves the asker's name in ``request.state.who``.

    ``tokens`` None: the API is on loopback only; ``ctrl.serve`` sees to that.
    """

    def __init__(self, app: ASGIApp, tokens: Knows | None = None) -> None:
        self.app = app
        self.tokens = tokens
        self._reading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _headers(scope["headers"])
        status, why = self._judge(scope, headers)
        if status:
            await _answer(send, status, why)
            return
        body = Body(self, headers.get("content-length", ""), receive)
        if body.too_large:
            await _answer(send, 413, body.said)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, body.receive, sending)
        except Exception as e:
            print(
                f"fastproxyctl: {scope['method']} {scope['path'][:200]!r} failed: {type(e).__name__}: "
                f"{str(e)[:1000]}; please report it",
                file=sys.stderr,
                flush=True,
            )
            if not started:
                await _answer(send, 500, f"{type(e).__name__}: {str(e)[:1000]}")
        finally:
            body.release()

    def _judge(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str]:
        """Status and sentence of a refusal; 0: it may come in."""
        if "origin" in headers:
            return 403, "requests from web pages are refused"
        who = "unknown"
        if self.tokens is None:
            if not _local(headers.get("host", "")):
                return 403, "without tokens this API is reached as localhost or by a loopback address"
            who = _name(headers.get("x-fastproxy-user", "")) or who
        elif scope["path"] not in OPEN:
            holder = self.tokens.holder_of(headers.get("authorization"))
            if holder is None:
                if "authorization" in headers:
                    return 401, "this token is not known here: it was revoked, or is of another server"
                return 401, "a token is needed: Authorization: Bearer TOKEN"
            if holder.role != OPERATOR and scope["method"] not in READING:
                return 403, f"{holder.name} has the role {holder.role}, which reads; this needs an operator"
            who = holder.name
        scope.setdefault("state", {})["who"] = who
        return 0, ""


class Body:
    """Of one request, counted while it comes."""

    def __init__(self, access: Access, announced: str, receive: Receive) -> None:
        self._access = access
        self._receive = receive
        self._size = 0
        digits = announced.isascii() and announced.isdigit()
        self.too_large = digits and (len(announced) > 12 or int(announced) > MAX_BODY)
        self.said = f"a body of more than {MAX_BODY >> 20} MiB"

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._size += size
            self._access._reading += size
            if self._size > MAX_BODY:
                raise HTTPException(413, self.said)
            if self._access._reading > MAX_BODIES:
                raise HTTPException(503, "too much is being sent at the same time; try again")
        return message

    def release(self) -> None:
        self._access._reading -= self._size


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}


def _local(host: str) -> bool:
    """Whether a Host field names this machine by a name that nobody else can give away."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and ":" in host else host
    if name.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _name(text: str) -> str:
    """As it may stand in the history."""
    text = unquote(text, errors="replace")[:MAX_WHO].strip()
    return text if text.isprintable() else ""


async def _answer(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error, "problems": []}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
