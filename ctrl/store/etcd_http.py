"""Calls to the members of an etcd cluster, by the JSON gateway of its v3 API. No documents here, only keys.

Every call has an end: a member that does not answer is left for the next one, until the time is up. So a call
may be carried out twice: callers send only what may be (compare and set, or the same put again).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx

from ctrl.model import StoreError

CALL_SECONDS = 1.5  # one member has for one answer; its elections take one to two
PAUSE_SECONDS = 0.1  # after all members were asked in vain
MAX_ANSWER = 64 << 20  # bytes: callers ask in pages far below it

_RETRY = {1, 2, 4, 13, 14}  # gRPC: cancelled, unknown, deadline, internal, unavailable: may have been done
_BUSY = "too many requests"
_BEHIND = "future revision"  # a member that lags: another has it


class Refused(StoreError):
    """etcd said no; nothing was changed."""


class Unreached(StoreError):
    """No member answered in time. sent: one of them may have carried it out."""

    def __init__(self, text: str, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class _Next(Exception):
    """This member cannot: ask another."""

    def __init__(self, why: str, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


def b64(key: str | bytes) -> str:
    return base64.b64encode(key.encode() if isinstance(key, str) else key).decode()


def un64(text: str) -> bytes:
    return base64.b64decode(text)


class Members:
    """The members of one cluster. The one that answered last is asked first."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self._at = 0
        self._client: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"<Members {', '.join(self.addresses)}; asking {self.addresses[self._at]}>"

    def open(self) -> None:
        if self._client is None:
            limits = httpx.Limits(max_connections=32, max_keepalive_connections=8)
            self._client = httpx.AsyncClient(trust_env=False, limits=limits)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def call(self, path: str, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer of the first member that has one. Raises Refused or Unreached."""
        deadline = time.monotonic() + seconds
        sent, asked, at, data = False, 0, self._at, json.dumps(body).encode()
        while True:
            address, left = self.addresses[at], deadline - time.monotonic()
            try:
                answer = await self._ask(address, path, data, max(0.05, min(CALL_SECONDS, left)))
            except _Next as error:
                sent, why = sent or error.sent, f"{address}: {error}"
                at, asked = (at + 1) % len(self.addresses), asked + 1
            else:
                self._at = at
                return answer
            if asked % len(self.addresses) == 0:
                await asyncio.sleep(PAUSE_SECONDS)
            if time.monotonic() >= deadline and asked >= len(self.addresses):
                raise Unreached(f"etcd did not answer ({why}): see that most of its members run", sent)

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, body: dict[str, Any], silence: float
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The results of a streaming call on one member. Raises httpx.HTTPError when it is silent for that
        many seconds or gone; then the next member is asked first."""
        client, url = self._opened(), f"http://{self.addresses[self._at]}{path}"
        timeout = httpx.Timeout(CALL_SECONDS, read=silence)
        at = self._at
        try:
            async with (
                client.stream("POST", url, json=body, timeout=timeout) as response,
                contextlib.aclosing(_results(response)) as results,
            ):
                yield results
        except httpx.ReadTimeout:
            raise
        except httpx.HTTPError:
            if at == self._at:
                self._at = (at + 1) % len(self.addresses)
            raise

    async def _ask(self, address: str, path: str, data: bytes, seconds: float) -> dict[str, Any]:
        url = f"http://{address}{path}"
        try:
            async with asyncio.timeout(seconds):
                status, answer = await self._post(url, data, seconds)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise _Next(f"cannot connect ({error})", sent=False) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise _Next(f"no answer in {seconds:.1f} s ({type(error).__name__})", sent=True) from error
        try:
            value = json.loads(answer)
        except ValueError as error:
            raise _Next(f"status {status} without JSON: is this etcd?", sent=True) from error
        if not isinstance(value, dict):
            raise _Next("its answer is no JSON object: is this etcd?", sent=True)
        if status == 200:
            return value
        message = str(value.get("message") or value.get("error") or value)
        code = value.get("code")
        if code in _RETRY:
            raise _Next(message, sent=True)
        if _BUSY in message or _BEHIND in message:
            raise _Next(message, sent=False)
        if "space exceeded" in message:
            message += ": compact and defragment etcd, or raise its quota; then disarm its alarm"
        if "too large" in message:
            message += ": apply fewer documents at once"
        raise Refused(f"etcd at {address} refused: {message}")

    async def _post(self, url: str, data: bytes, seconds: float) -> tuple[int, bytes]:
        client = self._opened()
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", url, content=data, headers=headers, timeout=seconds) as response:
            answer = bytearray()
            async for piece in response.aiter_bytes():
                answer += piece
                if len(answer) > MAX_ANSWER:
                    raise Refused(f"{url}: answers with more than {MAX_ANSWER} bytes: is this etcd?")
            return response.status_code, bytes(answer)

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            raise StoreError("the store is not open")
        return self._client


async def _results(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """Each line of the gateway's stream is one result."""
    async for line in response.aiter_lines():
        try:
            value = json.loads(line)
            result = value["result"]
        except (ValueError, TypeError, KeyError) as error:
            raise httpx.RemoteProtocolError(f"no result of a stream: {line[:200]!r}") from error
        if not isinstance(result, dict):
            raise httpx.RemoteProtocolError("a result that is no object")
        yield result
