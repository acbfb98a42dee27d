"""The keys of one store in etcd: get, put, delete, compare and set, watch. Knows no documents."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx

from ctrl.model import StoreError
from ctrl.store.etcd_http import Members, Refused, Unreached, b64, un64

READ_SECONDS = 3.0
WEAK_SECONDS = 5.0  # after the majority was missing, reads ask single members for so long
PAGE = 64  # logs or entries in one answer; each is far below 1 MiB
PIECES = 16  # in one answer

RANGE, TXN, WATCH, COMPACTION = "/v3/kv/range", "/v3/kv/txn", "/v3/watch", "/v3/kv/compaction"

Op = dict[str, Any]
Found = tuple[bytes, int]  # value and revision of its last change


class Keys:
    def __init__(self, addresses: list[str], prefix: str) -> None:
        self.members = Members(addresses)
        self.prefix = prefix
        self._weak_until = 0.0

    def __repr__(self) -> str:
        return f"{self.members!r} {self.prefix}"

    # --- reads ---

    async def get(self, key: str, revision: int = 0, strong: bool = False) -> bytes | None:
        kvs = (await self._range(self._of(key, revision), strong)).get("kvs", [])
        return un64(kvs[0].get("value", "")) if kvs else None

    async def head(self, strong: bool, seconds: float) -> tuple[dict[str, Found], int, bool]:
        """(``head`` and what is below it, etcd's revision now, it is certainly the newest). strong: that, or
        Unreached."""
        body = self._of("head") | {"range_end": self._key("head0")}
        answer = await self._range(body, strong, seconds if strong else READ_SECONDS)
        certain = strong or time.monotonic() >= self._weak_until
        found = {
            un64(kv["key"]).decode()[len(self.prefix) :]: (un64(kv.get("value", "")), int(kv["mod_revision"]))
            for kv in answer.get("kvs", [])
        }
        return found, int(answer["header"]["revision"]), certain

    async def versions(
        self,
        what: str,
        first: int,
        last: int,
        *,
        limit: int | None = None,
        newest_first: bool = False,
        revision: int = 0,
    ) -> list[tuple[int, bytes]]:
        """The values of ``what``/first to last, and their versions."""
        out: list[tuple[int, bytes]] = []
        while first <= last and (limit is None or len(out) < limit):
            page = PAGE if limit is None else min(PAGE, limit - len(out))
            answer = await self._range(
                self._span(what, first, last, revision, newest_first) | {"limit": page}
            )
            kvs = answer.get("kvs", [])
            out += [(int(un64(kv["key"])[-16:]), un64(kv.get("value", ""))) for kv in kvs]
            if not answer.get("more"):
                break
            first, last = (first, out[-1][0] - 1) if newest_first else (out[-1][0] + 1, last)
        return out

    async def count(self, what: str, first: int, last: int, revision: int) -> int:
        if first > last:
            return 0
        answer = await self._range(self._span(what, first, last, revision) | {"count_only": True})
        return int(answer.get("count", 0))

    async def pieces(self, id_: str, count: int, revision: int) -> bytes:
        out = bytearray()
        for first in range(0, count, PIECES):
            last = min(first + PIECES, count)
            keys = (f"pieces/{id_}/{first:06d}", f"pieces/{id_}/{last:06d}")
            answer = await self._range(self._of(keys[0], revision) | {"range_end": self._key(keys[1])})
            kvs = answer.get("kvs", [])
            if len(kvs) != last - first:
                raise StoreError(f"pieces {id_} in etcd are not all there: restore a backup of the store")
            for kv in kvs:
                out += un64(kv.get("value", ""))
        return bytes(out)

    async def piece_ids(self, revision: int) -> list[str]:
        ids: list[str] = []
        start = "pieces/"
        while True:
            body = self._of(start, revision) | {
                "range_end": self._key("pieces0"),
                "limit": 1,
                "keys_only": True,
            }
            kvs = (await self._range(body)).get("kvs", [])
            if not kvs:
                return ids
            ids.append(un64(kvs[0]["key"]).decode()[len(self.prefix) :].split("/")[1])
            start = f"pieces/{ids[-1]}0"  # after all pieces of it: "0" follows "/"

    @contextlib.asynccontextmanager
    async def watch(
        self, key: str, since: int, silence: float, closing: asyncio.Event
    ) -> AsyncIterator[AsyncIterator[int]]:
        """Revisions of the changes of a key, from one on. Ends when etcd ends it or the store is closing;
        raises httpx.HTTPError: silent for so long, or gone."""
        body = {"create_request": {"key": self._key(key), "start_revision": str(since)}}
        async with (
            self.members.stream(WATCH, body, silence) as results,
            contextlib.aclosing(_revisions(results, closing)) as news,
        ):
            yield news

    # --- writes: what may be sent twice ---

    async def transaction(
        self, same: dict[str, int], ops: list[Op], seconds: float, there: list[str] | None = None
    ) -> bool:
        """All of them, when these keys were last changed at these revisions (0: are not there) and the keys
        ``there`` exist."""
        compare = [
            {"key": self._key(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
            for key, revision in same.items()
        ]
        for key in there or ():
            one = {"key": self._key(key), "target": "CREATE", "result": "GREATER", "create_revision": "0"}
            compare.append(one)
        answer = await self.members.call(TXN, {"compare": compare, "success": ops}, seconds)
        self._weak_until = 0.0
        return bool(answer.get("succeeded"))

    async def put_pieces(self, id_: str, pieces: list[bytes], seconds: float) -> None:
        """The first one first: as long as it is there, all that were written are."""
        for number, piece in enumerate(pieces):
            body = {"success": [self.put(f"pieces/{id_}/{number:06d}", piece)]}
            await self.members.call(TXN, body, seconds)

    async def forget_revisions(self, revision: int, seconds: float) -> None:
        with contextlib.suppress(Refused):  # another control plane was quicker
            await self.members.call(COMPACTION, {"revision": str(revision)}, seconds)

    def put(self, key: str, value: bytes) -> Op:
        return {"request_put": {"key": self._key(key), "value": b64(value)}}

    def delete_versions(self, what: str, first: int, last: int) -> Op:
        span = (f"{what}/{max(first, 0):016d}", f"{what}/{max(last + 1, 0):016d}")
        return self._delete(*span)

    def delete_pieces(self, id_: str) -> Op:
        return self._delete(f"pieces/{id_}/", f"pieces/{id_}0")

    # --- words of etcd ---

    def _key(self, key: str) -> str:
        return b64(self.prefix + key)

    def _of(self, key: str, revision: int = 0) -> dict[str, Any]:
        return {"key": self._key(key), "revision": str(revision)}

    def _span(
        self, what: str, first: int, last: int, revision: int, newest_first: bool = False
    ) -> dict[str, Any]:
        body = self._of(f"{what}/{max(first, 0):016d}", revision)
        order = {"sort_target": "KEY", "sort_order": "DESCEND"} if newest_first else {}
        return body | {"range_end": self._key(f"{what}/{last + 1:016d}")} | order

    def _delete(self, first: str, end: str) -> Op:
        return {"request_delete_range": {"key": self._key(first), "range_end": self._key(end)}}

    async def _range(
        self, body: dict[str, Any], strong: bool = False, seconds: float = READ_SECONDS
    ) -> dict[str, Any]:
        """By the majority; when there is none, and it need not be strong, by any member."""
        if strong or time.monotonic() >= self._weak_until:
            try:
                answer = await self.members.call(RANGE, body, seconds)
                self._weak_until = 0.0
                return answer
            except Unreached:
                if strong:
                    raise
        weak = await self.members.call(RANGE, body | {"serializable": True}, seconds)
        if self._weak_until <= time.monotonic():
            self._weak_until = time.monotonic() + WEAK_SECONDS
        return weak


async def _revisions(
    results: AsyncIterator[dict[str, Any]], closing: asyncio.Event
) -> AsyncGenerator[int, None]:
    ended = asyncio.ensure_future(closing.wait())
    try:
        while True:
            line = asyncio.ensure_future(anext(results, None))
            try:
                await asyncio.wait({ended, line}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not line.done():
                    line.cancel()
                    with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
                        await line
            result = None if line.cancelled() else line.result()
            if result is None or result.get("canceled"):
                return
            if revisions := [int(event["kv"]["mod_revision"]) for event in result.get("events", ())]:
                yield max(revisions)
    finally:
        ended.cancel()
