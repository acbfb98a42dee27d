"""The words of the store: resources, changes, versions. Plain data, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

Identity = tuple[str, str, str]  # kind, namespace, name

CREATED, CONFIGURED, DELETED = "created", "configured", "deleted"


class StoreError(Exception):
    """The store cannot do this now: unreachable, full, damaged. Nothing was changed; the text says what to
    do."""


class Conflict(StoreError):
    """Somebody else has written since the draft was made: make it again on the new head."""


class Unsure(StoreError):
    """The store stopped answering after the change was sent: it is there whole, or not at all. Look at the
    head when the store answers again."""


class Compacted(StoreError):
    """That version is older than the history that is kept."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One document as it was applied. ``file`` and ``line``: where its author had it, for messages.

    created: version that brought it first and its place in that version: documents are compiled in this
    order. (0, 0) in a change: the store gives it; else it is restored, so that a rollback gives the old order
    back. version: of its last change.
    """

    kind: str
    namespace: str
    name: str
    text: str
    file: str = ""
    line: int = 1
    created: tuple[int, int] = (0, 0)
    version: int = 0

    @property
    def identity(self) -> Identity:
        return (self.kind, self.namespace, self.name)

    @property
    def source(self) -> str:
        """``VirtualService default/catalog``"""
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Change:
    """One document put (``resource``) or deleted (None)."""

    identity: Identity
    resource: Resource | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A version before it is one. hash: hexadecimal, of the rows of all (``views.ALL``) that it compiles
    to."""

    who: str
    what: str  # "apply", "delete", "rollback 40", "breaker open catalog", …
    changes: tuple[Change, ...]
    hash: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """version 0: nothing was ever applied. decided: the highest number that was given out and is settled;
    numbers of candidates that were aborted are void and never used again."""

    epoch: int
    version: int = 0
    decided: int = 0
    hash: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that is being rolled out. share: see ``wire.Heartbeat``; what it will hold is in
    ``draft``."""

    version: int
    draft: Draft
    share: int = 0
    owner: str = ""  # the control plane that drives it
    beat_ms: int = 0  # when the owner last said that it lives; who finds it old may void it


@dataclass(frozen=True, slots=True)
class Entry:
    """One version in the history. verbs: (created | configured | deleted, kind, namespace, name)."""

    version: int
    epoch: int
    at_ms: int
    who: str
    what: str
    hash: str
    message: str = ""
    verbs: tuple[tuple[str, str, str, str], ...] = ()


@dataclass(slots=True)
class Contents:
    """All documents of one version, in the order in which they were created."""

    version: int = 0
    resources: dict[Identity, Resource] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Resource]:
        return iter(self.resources.values())

    def __len__(self) -> int:
        return len(self.resources)

    def after(self, version: int, changes: Iterable[Change]) -> Contents:
        """The contents of ``version``, made from these by these changes."""
        resources = dict(self.resources)
        restored = False
        for place, change in enumerate(changes):
            new, old = change.resource, resources.get(change.identity)
            if new is None:
                resources.pop(change.identity, None)
            else:
                created = old.created if old else (version, place)
                if new.created not in ((0, 0), created):
                    created, restored = new.created, True
                resources[change.identity] = Resource(
                    *new.identity, new.text, new.file, new.line, created, version
                )
        return Contents(version, resources).ordered() if restored else Contents(version, resources)

    def ordered(self) -> Contents:
        """The same, by their places of creation."""
        return Contents(self.version, dict(sorted(self.resources.items(), key=lambda item: item[1].created)))

    def to(self, other: Contents) -> tuple[Change, ...]:
        """The changes that turn these into ``other``: what rollback and diff are made of."""
        gone = [Change(i, None) for i in self.resources if i not in other.resources]
        puts = [
            Change(i, r)
            for i, r in other.resources.items()
            if (old := self.resources.get(i)) is None
            or old.text != r.text
            or r.created not in ((0, 0), old.created)
        ]
        return (*gone, *puts)


def verbs(
    before: Mapping[Identity, Resource], changes: Iterable[Change]
) -> tuple[tuple[str, str, str, str], ...]:
    """What each change does to what was there, for the history."""
    out = []
    for change in changes:
        put = CONFIGURED if change.identity in before else CREATED
        verb = DELETED if change.resource is None else put
        out.append((verb, *change.identity))
    return tuple(out)
