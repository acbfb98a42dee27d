"""What the store keeps in etcd: its keys and their values. Pure.

::

    PREFIX/head              JSON: epoch, version, decided, hash, the open candidate
    PREFIX/head/base         JSON: the base: contents of an old version, in pieces
    PREFIX/entry/VERSION     the history: zstd of JSON
    PREFIX/log/VERSION       the changes of a version (or open candidate): msgpack {id, parent, pieces, data}
    PREFIX/pieces/ID/NUMBER  changes too large for one key, and the base: slices of packed bytes

``head`` is the key that writers compare: whoever replaces it in one transaction with the rest wins; who
compacts compares ``head/base``, so that the two do not disturb each other. Pieces are written before, under
an id of their own: nobody looks at them until a log or the base names them. The contents of a version are
those of the base and all logs after it; all is read at one revision of etcd.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass, field, replace

import msgpack

from ctrl.model import Candidate, Draft, Head, StoreError
from ctrl.store.packed import damaged, draft_words
from ctrl.store.rules import FORMAT

PIECE = 512 << 10  # bytes of one put; etcd takes requests of 1.5 MiB
INLINE = 64 << 10  # packed changes up to here live in the log itself

Found = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class Base:
    """Contents of a version in pieces. chain: id of that version's changes."""

    version: int = 0
    id: str = ""
    chain: str = ""
    pieces: int = 0

    def pack(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Open:
    """The candidate. id: of its changes."""

    version: int
    id: str
    who: str
    what: str
    hash: str
    message: str
    share: int
    owner: str
    beat_ms: int

    def candidate(self, draft: Draft | None = None) -> Candidate:
        """draft: with its changes, when they are needed."""
        draft = draft or Draft(self.who, self.what, (), self.hash, self.message)
        return Candidate(self.version, draft, self.share, self.owner, self.beat_ms)

    @classmethod
    def of(cls, id_: str, candidate: Candidate) -> Open:
        words = draft_words(candidate.draft)
        share, owner, beat_ms = candidate.share, candidate.owner, candidate.beat_ms
        return cls(candidate.version, id_, **words, share=share, owner=owner, beat_ms=beat_ms)


@dataclass(frozen=True, slots=True)
class State:
    """The values of the head's keys. id: of the head's changes. revision: etcd's, of the last change of the
    key ``head``; base_revision: of ``head/base``, 0: there is none; seen: etcd's when they were read."""

    epoch: int
    version: int = 0
    decided: int = 0
    hash: str = ""
    id: str = ""
    open: Open | None = None
    base: Base = field(default_factory=Base)
    revision: int = 0
    base_revision: int = 0
    seen: int = 0

    @property
    def head(self) -> Head:
        return Head(self.epoch, self.version, self.decided, self.hash)

    @property
    def candidate(self) -> Candidate | None:
        """Without its changes."""
        return self.open.candidate() if self.open else None

    def pack(self) -> bytes:
        fields = {"format": FORMAT} | asdict(self)
        for name in ("base", "revision", "base_revision", "seen"):
            del fields[name]
        return json.dumps(fields, separators=(",", ":")).encode()

    def settled(self, version: int, hash_: str, id_: str) -> State:
        """With that version as its head."""
        return replace(self, version=version, decided=version, hash=hash_, id=id_, open=None)

    @classmethod
    def unpack(cls, head: Found, base: Found | None, seen: int) -> State:
        """Found: value and revision of its last change. Raises StoreError."""
        try:
            d = json.loads(head[0])
            form = d.pop("format")
            if form != FORMAT:
                raise StoreError(
                    f"the store in etcd has format {form}, this fastproxyctl knows {FORMAT}: "
                    "run the release that wrote it, or name another prefix"
                )
            opened = d.pop("open")
            state = cls(**d, open=Open(**opened) if opened else None, revision=head[1], seen=seen)
            if base is None:
                return state
            return replace(state, base=Base(**json.loads(base[0])), base_revision=base[1])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged("head", error) from error


@dataclass(frozen=True, slots=True)
class Log:
    """The changes of one version. parent: id of the changes of the version that it was made on; so that what
    was restored from a backup, or cached before it was, is not mixed with it."""

    id: str
    parent: str
    pieces: int
    data: bytes

    def pack(self) -> bytes:
        return bytes(msgpack.packb(asdict(self)))

    @classmethod
    def unpack(cls, data: bytes) -> Log:
        try:
            return cls(**msgpack.unpackb(data))
        except (ValueError, TypeError) as error:
            raise damaged("log", error) from error


def new_id(version: int, base: bool = False) -> str:
    """Of the pieces for that version; see :func:`version_of`."""
    return f"{'base' if base else 'log'}-{version:016d}-{secrets.token_hex(8)}"


def version_of(id_: str) -> tuple[bool, int]:
    """(they are of a base, its version), of an id of pieces."""
    if not (found := re.fullmatch(r"(base|log)-(\d{16})-[0-9a-f]{16}", id_)):
        raise damaged("pieces", f"key {id_[:80]!r}")
    return found[1] == "base", int(found[2])


def slices(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
