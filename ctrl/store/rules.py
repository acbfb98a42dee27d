"""What all keepers share: who may write, what an entry says, how older contents are found. No I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ctrl.model import (
    Candidate,
    Change,
    Compacted,
    Conflict,
    Contents,
    Draft,
    Entry,
    Head,
    Identity,
    Resource,
    verbs,
)

ABORTED = "aborted "  # what an entry's ``what`` begins with when the candidate never became the head
FORMAT = 1  # of the stores on disk and in etcd

Undo = tuple[tuple[Identity, Resource | None], ...]  # what was there before a version, of all it touched


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def check_turn(head: Head, candidate: Candidate | None, expect: int) -> int:
    """The number of the version that may be made now. Raises Conflict."""
    if candidate is not None:
        raise Conflict(
            f"version {candidate.version} is being rolled out by {candidate.owner or 'another'} "
            f"({candidate.draft.what}, {candidate.draft.who}): wait for its end or abort it"
        )
    if head.decided != expect:
        raise Conflict(f"version {head.decided} is there already, this was made on {expect}: make it again")
    return expect + 1


def check_open(candidate: Candidate | None, version: int) -> Candidate:
    """The candidate, when it is that version. Raises Conflict."""
    if candidate is None or candidate.version != version:
        now = f"version {candidate.version} is" if candidate else "nothing is"
        raise Conflict(f"version {version} is not being rolled out any more, {now}")
    return candidate


def entry_of(version: int, epoch: int, draft: Draft, before: Contents) -> Entry:
    made = verbs(before.resources, draft.changes)
    return Entry(version, epoch, now_ms(), draft.who, draft.what, draft.hash, draft.message, made)


def aborted(candidate: Candidate, epoch: int, reason: str) -> Entry:
    """What the history says of a candidate that was voided."""
    draft = candidate.draft
    message = reason or draft.message
    return Entry(candidate.version, epoch, now_ms(), draft.who, ABORTED + draft.what, draft.hash, message)


def is_aborted(entry: Entry) -> bool:
    return entry.what.startswith(ABORTED)


def raised(epoch: int) -> int:
    """The next epoch: above this one and, by the clock, above those of all stores made before."""
    return max(epoch + 1, now_ms())


def touched(changes: Iterable[Change]) -> tuple[Identity, ...]:
    """Identities in the order in which they are changed first."""
    return tuple(dict.fromkeys(change.identity for change in changes))


def undo_of(before: Contents, changes: Iterable[Change]) -> Undo:
    return tuple((identity, before.resources.get(identity)) for identity in touched(changes))


def walk_back(contents: Contents, version: int, undos: Iterable[Undo]) -> Contents:
    """The contents of an older version. undos: of all versions above it, newest first."""
    resources = dict(contents.resources)
    for undo in undos:
        for identity, before in undo:
            if before is None:
                resources.pop(identity, None)
            else:
                resources[identity] = before
    return Contents(version, resources).ordered()


def missing(version: int, head: Head) -> KeyError | Compacted:
    """Why there is no entry of that version."""
    if 1 <= version <= head.decided:
        return Compacted(f"version {version} is older than the history that is kept")
    return KeyError(f"there is no version {version}, the newest is {head.decided}")


def never_applied(version: int) -> KeyError:
    return KeyError(f"version {version} was aborted: nobody ever served it")
