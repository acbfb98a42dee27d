"""What a subscriber can be and can decide: its states, their table, and the actions that follow.

:mod:`fastproxy.sync` decides, :mod:`fastproxy.link` carries out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fastproxy.rows import Changes
from fastproxy.wire import Answers, Ask


class State(Enum):
    """What a proxy can say of its configuration. It serves the last good one in all of them."""

    SYNCING = "SYNCING"  # since the start no publisher has confirmed what we hold
    LIVE = "LIVE"  # we hold the head, and it serves or is about to
    GAP = "GAP"  # something is missing, it has been asked for
    STALE = "STALE"  # no publisher speaks, or all that speak are older than what we hold
    REJECTED = "REJECTED"  # we hold the head and cannot serve it; an older version goes on

    __hash__ = object.__hash__  # there is one of each; Enum's own hashes their names


class Event(Enum):
    CURRENT = "a publisher's head is what we hold"
    BEHIND = "a publisher's head is newer"
    SILENT = "no publisher that is up to date speaks"
    UNFIT = "the version we hold cannot be served"
    TAKEN = "the version we hold serves"

    __hash__ = object.__hash__


NEXT = {
    (State.SYNCING, Event.CURRENT): State.LIVE,
    (State.SYNCING, Event.SILENT): State.STALE,
    (State.LIVE, Event.BEHIND): State.GAP,
    (State.LIVE, Event.SILENT): State.STALE,
    (State.LIVE, Event.UNFIT): State.REJECTED,
    (State.GAP, Event.CURRENT): State.LIVE,
    (State.GAP, Event.SILENT): State.STALE,
    (State.STALE, Event.CURRENT): State.LIVE,
    (State.STALE, Event.BEHIND): State.GAP,
    (State.REJECTED, Event.BEHIND): State.GAP,
    (State.REJECTED, Event.SILENT): State.STALE,
    (State.REJECTED, Event.TAKEN): State.LIVE,
}


# --- actions ---
#
# Frozen, but for the two that every version needs: see the messages of fastproxy.wire.


@dataclass(slots=True)
class Apply:
    """Serve this version from now on; a candidate that is held is forgotten, whether or not it serves.

    changes: from the base before, even where that could not be served. None: all of ``Sync.rows`` anew.
    """

    version: int
    hash: bytes
    changes: Changes | None
    sent_us: int = 0


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make the candidate ready, base and ``changes``, and hold it without serving it."""

    version: int
    hash: bytes
    changes: Changes
    sent_us: int = 0


@dataclass(frozen=True, slots=True)
class Flip:
    """Serve the candidate that is held; the base stays what it is."""

    version: int


@dataclass(frozen=True, slots=True)
class Settle:
    """The candidate is the base from now on; serve it, if it does not serve already. It fails where its
    Prepare, still under way when this was decided, failed."""

    version: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget the candidate; where it serves, serve the base again."""

    version: int


@dataclass(slots=True)
class Send:
    """To one publisher: an Ask on the snapshot lane, Answers on the answer lane."""

    peer: int
    message: Ask | Answers


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a report; ``peer`` -1: to all publishers."""

    peer: int = -1


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the log. ``error``: something is wrong, else it is all right again."""

    text: str
    error: bool = True


Action = Apply | Prepare | Flip | Settle | Drop | Send | Tell | Say


@dataclass(slots=True)
class Done:
    """How an action went: ``version`` serves now (after Prepare: is held; after Drop it is the base's), or
    could not for ``error``. Times in microseconds, as in :class:`fastproxy.wire.Answer`. epoch: the link's
    business; 0: that of today. note: it serves, and yet something of it does not."""

    version: int
    hash: bytes
    error: str = ""
    us: int = 0
    compile_us: int = 0
    swap_us: int = 0
    epoch: int = 0
    note: str = ""
