"""One view: its rows at the head, the way that led there, and what is sent to the proxies that share it. No
sockets, no clock.

The journal remembers per version which keys the step from it touched and whether they were there before, not
their bytes: whoever stands on any version in it gets one merged step to the head. Who stands elsewhere gets a
snapshot, one shared bytes object per head, made when it is first asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from fastproxy.rows import Changes, Rows, changes_between, digest, merged
from fastproxy.tables import NAMES, Tables
from fastproxy.wire import Ask, Attributes, Heartbeat, Snapshot, Update, encode, view_topic

JOURNAL_STEPS = 4096
JOURNAL_LEAST, JOURNAL_ROWS = 10_000, 4  # keys that it remembers: so many, or so many times the rows
RANGES = 64  # different ranges to one head whose bytes are kept
LARGE = 500  # rows from which packing is work for a thread
SMALL = 64  # so many touched keys are a range, however few rows there are


class Shared:
    """A message whose body is the same object for everybody; its header differs by a few fields."""

    __slots__ = ("body", "header")

    def __init__(self, message: Update | Snapshot) -> None:
        header, self.body = encode(message)
        self.header: dict[str, Any] = msgpack.unpackb(header)

    def frames(self, **fields: int) -> list[bytes]:
        return [msgpack.packb({**self.header, **fields}), self.body]


@dataclass(frozen=True, slots=True)
class Step:
    """The step that was made from this version: (table, key) -> was it there before."""

    version: int
    hash: bytes
    touched: Mapping[tuple[str, str], bool]


@dataclass(slots=True)
class Open:
    """The candidate above the head."""

    version: int
    hash: bytes
    changes: Changes
    total: int
    share: int
    tables: Tables | None
    update: Shared


class Feed:
    """See the module. ``decided``: as in wire.Heartbeat. version 0: nothing was ever applied."""

    def __init__(
        self,
        attributes: Attributes,
        epoch: int = 0,
        version: int = 0,
        tables: Tables | None = None,
        decided: int = 0,
    ) -> None:
        self.attributes = attributes
        self.view = attributes.view
        self.topic = view_topic(self.view)
        self.epoch = epoch
        self.version = version
        self.decided = max(decided, version)
        self.rows = Rows.pack(tables) if tables is not None else Rows()
        self.hash = self.rows.hash
        self.candidate: Open | None = None
        self.snapshots = 0  # that were packed; the tests of restarts count them
        self._tables = tables
        self._journal: deque[Step] = deque()
        self._keys = 0
        self._made: dict[int, Shared] = {}  # from version (0: snapshot) -> to the head

    def __repr__(self) -> str:
        above = f", candidate {self.candidate.version}" if self.candidate else ""
        return f"<Feed {self.view}: {self.epoch}.{self.version} {self.hash.hex()[:8]}{above}>"

    # --- the head moves ---

    def advance(
        self,
        version: int,
        tables: Tables,
        epoch: int | None = None,
        *,
        decided: int = 0,
        sent_us: int = 0,
        changes: Changes | None = None,
    ) -> list[bytes]:
        """The frames of the Update to this version, with its topic; none for a new epoch, whose proxies ask.

        ``tables`` are never changed after this call: rows that are the same object as before are not packed.
        ``changes``: what :meth:`changes` gave for them.
        """
        if (epoch or self.epoch) != self.epoch or not self.version or version <= self.version:
            self.reset(self.epoch if epoch is None else epoch, version, Rows.pack(tables), decided=decided)
            self._tables = tables
            return []
        changes = self.changes(tables) if changes is None else changes
        frames = self.step(version, changes, decided=decided, sent_us=sent_us)
        self._tables = tables
        return frames

    def step(
        self,
        version: int,
        changes: Changes,
        total: int | None = None,
        *,
        decided: int = 0,
        sent_us: int = 0,
    ) -> list[bytes]:
        """As :meth:`advance`, by changes. Raises RowsError when they do not fit; then nothing has changed."""
        total = self.rows.total_after(changes) if total is None else total
        before, base = self.version, self.hash
        self._move(version, changes, total, decided)
        update = Update(
            epoch=self.epoch,
            version=version,
            hash=self.hash,
            prev_version=before,
            prev_hash=base,
            sent_us=sent_us,
            changes=changes,
        )
        return [self.topic, *encode(update)]

    def reset(self, epoch: int, version: int, rows: Rows, *, decided: int = 0) -> None:
        """Another history begins: nobody can resume from what was before."""
        self.epoch, self.version, self.rows, self.hash = epoch, version, rows, rows.hash
        self.decided = max(decided, version)
        self.candidate = None
        self._tables = None
        self._journal.clear()
        self._keys = 0
        self._made = {}

    # --- a candidate ---

    def propose(
        self,
        version: int,
        tables: Tables,
        *,
        share: int = 0,
        decided: int = 0,
        sent_us: int = 0,
        changes: Changes | None = None,
    ) -> list[bytes]:
        """A candidate above the head; the frames of its Update, with its topic."""
        changes = self.changes(tables) if changes is None else changes
        return self.propose_changes(
            version, changes, share=share, decided=decided, sent_us=sent_us, tables=tables
        )

    def propose_changes(
        self,
        version: int,
        changes: Changes,
        total: int | None = None,
        *,
        share: int = 0,
        decided: int = 0,
        sent_us: int = 0,
        tables: Tables | None = None,
    ) -> list[bytes]:
        """As :meth:`propose`, by changes. Raises RowsError when they do not fit; then nothing has changed."""
        total = self.rows.total_after(changes) if total is None else total
        update = Shared(
            Update(
                epoch=self.epoch,
                version=version,
                hash=digest(total),
                prev_version=self.version,
                prev_hash=self.hash,
                candidate=True,
                share=share,
                sent_us=sent_us,
                changes=changes,
            )
        )
        self.decided = max(self.decided, decided)
        self.candidate = Open(version, digest(total), changes, total, share, tables, update)
        return [self.topic, *update.frames(share=share)]

    def stage(self, share: int) -> None:
        """The candidate's share from now on."""
        if self.candidate:
            self.candidate.share = share

    def settle(self, *, decided: int = 0) -> None:
        """The candidate is the head; heartbeats tell it."""
        candidate = self.candidate
        assert candidate, "there is no candidate"
        self._move(candidate.version, candidate.changes, candidate.total, decided)
        self._tables = candidate.tables

    def drop(self, *, decided: int = 0) -> None:
        """The candidate was aborted; heartbeats tell it."""
        if self.candidate:
            self.decided = max(self.decided, self.candidate.version, decided)
            self.candidate = None

    def changes(self, tables: Tables) -> Changes:
        """As rows.changes_between, without packing values that are the same objects as at the head.

        May run in a thread, while nobody moves the feed.
        """
        if self._tables is None:
            return changes_between(self.rows, tables)
        old, new = _differing(self._tables, tables), _differing(tables, self._tables)
        known = Rows()
        for name, rows in changes_between(Rows(), old).puts.items():
            known.tables[name] = {key: self.rows.tables[name][key] for key in rows}
        return changes_between(known, new)

    # --- what is sent ---

    def heartbeat(self, *, now_ms: int, report_ms: int, spread_ms: int = 0, id: int = 0) -> list[bytes]:
        """The frames of the Heartbeat, without topic."""
        candidate = self.candidate
        return encode(
            Heartbeat(
                epoch=self.epoch,
                version=self.version,
                hash=self.hash,
                decided=self.decided,
                candidate=candidate.version if candidate else 0,
                candidate_hash=candidate.hash if candidate else b"",
                share=candidate.share if candidate else 0,
                now_ms=now_ms,
                report_ms=report_ms,
                spread_ms=spread_ms,
                id=id,
            )
        )

    def work(self, ask: Ask) -> Callable[[], None] | None:
        """What is to be run in a thread before :meth:`answer`, as it packs many rows; None: nothing. When
        the head moves meanwhile, it was for nothing and does no harm."""
        kind = self._kind(ask)
        if kind is None or kind in self._made:
            return None
        made = self._made
        if kind:
            touched = self._touched(kind)
            if len(touched) < LARGE:
                return None
            changes = merged(self.rows, touched)
            update = self._range(kind, ask.hash, changes)
            return lambda: self._keep(made, kind, Shared(update))
        if len(self.rows) < LARGE:
            return None
        snapshot = self._snapshot()
        return lambda: self._keep(made, 0, Shared(snapshot))

    def answer(self, ask: Ask, *, now_ms: int = 0, report_ms: int = 0) -> list[list[bytes]]:
        """The messages that bring the asker to the head, and to the candidate, if one is open."""
        kind = self._kind(ask)
        if kind is None:
            out = [self.heartbeat(now_ms=now_ms, report_ms=report_ms, id=ask.id)]
            if (ask.epoch, ask.version) != (self.epoch, self.version):
                return out
        else:
            if kind not in self._made:
                if kind:
                    changes = merged(self.rows, self._touched(kind))
                    self._keep(self._made, kind, Shared(self._range(kind, ask.hash, changes)))
                else:
                    self._keep(self._made, 0, Shared(self._snapshot()))
            out = [self._made[kind].frames(id=ask.id)]
        if self.candidate:
            out.append(self.candidate.update.frames(share=self.candidate.share))
        return out

    # --- inside ---

    def _move(self, version: int, changes: Changes, total: int, decided: int) -> None:
        tables = self.rows.tables
        touched = {(table, key): key in tables[table] for table, key in [*changes.keys()]}
        self.rows.apply(changes, total)
        self._journal.append(Step(self.version, self.hash, touched))
        self._keys += len(touched)
        most = max(JOURNAL_LEAST, JOURNAL_ROWS * len(self.rows))  # more of them are a snapshot sooner
        while self._journal and (len(self._journal) > JOURNAL_STEPS or self._keys > most):
            self._keys -= len(self._journal.popleft().touched)
        self.version, self.hash = version, digest(total)
        self.decided = max(self.decided, decided, version)
        self.candidate = None
        self._tables = None
        self._made = {}

    def _kind(self, ask: Ask) -> int | None:
        """None: a Heartbeat says all. 0: a snapshot. Else the version to start a range from."""
        if not self.version:
            return None
        if not ask.version:
            return 0
        theirs, ours = (ask.epoch, ask.version), (self.epoch, self.version)
        if theirs > ours:
            return None  # they refuse us; the heartbeat lets them say so
        if theirs == ours:
            return None if ask.hash == self.hash else 0
        if ask.epoch != self.epoch:
            return 0
        if ask.version in self._made:
            return ask.version if self._find(ask.version, ask.hash) is not None else 0
        place = self._find(ask.version, ask.hash)
        if place is None:
            return 0
        limit = max(SMALL, len(self.rows) // 2)
        seen: set[tuple[str, str]] = set()
        for i in range(place, len(self._journal)):
            seen.update(self._journal[i].touched)
            if len(seen) > limit:
                return 0
        return ask.version

    def _find(self, version: int, hash: bytes | None = None) -> int | None:
        """The place of this version in the journal; versions ascend in it."""
        low, high = 0, len(self._journal)
        while low < high:
            middle = (low + high) // 2
            if self._journal[middle].version < version:
                low = middle + 1
            else:
                high = middle
        if low == len(self._journal):
            return None
        step = self._journal[low]
        return low if step.version == version and (hash is None or step.hash == hash) else None

    def _touched(self, version: int) -> dict[tuple[str, str], bool]:
        place = self._find(version)
        assert place is not None
        touched: dict[tuple[str, str], bool] = {}
        for i in range(place, len(self._journal)):
            for key, known in self._journal[i].touched.items():
                touched.setdefault(key, known)
        return touched

    def _range(self, version: int, hash: bytes, changes: Changes) -> Update:
        return Update(
            epoch=self.epoch,
            version=self.version,
            hash=self.hash,
            prev_version=version,
            prev_hash=hash,
            changes=changes,
        )

    def _snapshot(self) -> Snapshot:
        # shallow copies: it is packed in a thread while the head may move
        rows = {name: dict(rows) for name, rows in self.rows.tables.items()}
        return Snapshot(epoch=self.epoch, version=self.version, hash=self.hash, rows=rows)

    def _keep(self, made: dict[int, Shared], kind: int, message: Shared) -> None:
        if not kind:
            self.snapshots += 1
        elif len(made) > RANGES:
            for old in [k for k in list(made) if k]:
                made.pop(old, None)
        made[kind] = message


def _differing(tables: Tables, other: Tables) -> Tables:
    """The part of ``tables`` whose values are not the very objects of ``other``."""
    out: dict[str, Any] = {"format": tables["format"]}
    for name in NAMES:
        theirs: Mapping[str, Any] = other[name]  # type: ignore[literal-required]
        ours: Mapping[str, Any] = tables[name]  # type: ignore[literal-required]
        out[name] = {key: value for key, value in ours.items() if theirs.get(key) is not value}
    return cast(Tables, out)
