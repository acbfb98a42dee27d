"""Where resources and their history are kept: one contract, three keepers.

memory     of ``fastproxyctl publish`` and of tests; gone with the process
sqlite     one machine: ``sqlite:///PATH``, WAL, survives kill -9 at any point
etcd       several control planes: ``etcd://HOST:PORT[,HOST:PORT…]``, the revision orders writers
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ctrl.model import Candidate, Contents, Draft, Entry, Head


class Store(Protocol):
    """One writer wins: every change names the number it expects to be the highest given out (``expect``), and
    Conflict tells the others. A change is there whole or not at all, and once it is returned it is never
    lost.

    Every method raises StoreError when the store cannot be reached or written, with what to do about it; then
    nothing was changed, but for Unsure (etcd): whole or not at all.
    """

    url: str

    async def open(self) -> None:
        """Connect; a new store is made, with an epoch above that of every store made before (Unix ms)."""

    async def close(self) -> None: ...

    async def head(self) -> Head: ...

    async def contents(self, version: int | None = None) -> Contents:
        """Of the head, or of an older version; of 0 they are empty. KeyError: there never was one, or it was
        aborted. Compacted: its history is no longer kept."""
        ...

    async def commit(self, expect: int, draft: Draft) -> Entry:
        """Make ``draft`` version ``expect + 1`` and the head, when ``expect`` is decided and nothing is open.
        Conflict otherwise."""
        ...

    async def propose(self, expect: int, draft: Draft, owner: str) -> Candidate:
        """Open ``draft`` as candidate ``expect + 1`` with share 0; contents and head stay. Conflict: see
        commit."""
        ...

    async def candidate(self) -> Candidate | None: ...

    async def step(self, version: int, share: int) -> Candidate:
        """Set the share of the open candidate and renew its beat. Conflict: it is not open any more."""
        ...

    async def settle(self, version: int) -> Entry:
        """The open candidate becomes the head. Conflict: it is not open any more."""
        ...

    async def void(self, version: int, reason: str) -> Head:
        """The open candidate is aborted: its number is decided and never used again; the history says so.
        Conflict: it is not open any more."""
        ...

    async def history(self, limit: int = 50, before: int | None = None) -> list[Entry]:
        """Newest first, voided candidates with what = "aborted …"."""
        ...

    async def entry(self, version: int) -> Entry:
        """KeyError: there never was one. Compacted: it is not kept."""
        ...

    def watch(self) -> AsyncIterator[None]:
        """Yields at once, and whenever head or candidate may have changed, by whomever. Ends when the store
        is closed; raises StoreError when the link is lost: begin anew then, nothing is missed."""
        ...

    async def compact(self, keep: int) -> int:
        """Forget what is needed only for versions older than the newest ``keep``; how many went."""
        ...

    async def new_epoch(self) -> Head:
        """Raise the epoch, after a store was restored from a backup: proxies then take older versions again.
        A candidate that is open is voided: who drove it belongs to the time before."""
        ...


def open_store(url: str) -> Store:
    """The store of that URL, not opened yet. Raises ValueError with what can be written."""
    if url == "memory:":
        from ctrl.store.memory import MemoryStore

        return MemoryStore()
    if url.startswith("sqlite:///"):
        from ctrl.store.sqlite import SqliteStore

        return SqliteStore(url)
    if url.startswith("etcd://"):
        from ctrl.store.etcd import EtcdStore

        return EtcdStore(url)
    raise ValueError(f"{url!r}: write sqlite:///PATH or etcd://HOST:PORT[,HOST:PORT]")
