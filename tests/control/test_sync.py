"""The subscriber's state machine, one fault at a time; test_sync_model.py has them all together."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from fastproxy.actions import NEXT, Event, State
from fastproxy.peers import BEATS, RETRY_MAX, RETRY_MIN
from fastproxy.rows import Changes
from fastproxy.sync import (
    ASK_TIMEOUT,
    PATIENCE,
    UNFIT_MIN,
    Apply,
    Flip,
    Prepare,
    Send,
    Sync,
    Tell,
)
from fastproxy.wire import (
    PROTOCOL,
    WHOLE,
    Answer,
    Attributes,
    Heartbeat,
    Refused,
    Report,
    Snapshot,
)
from tests.control.told import HELLO, Rig, head, rows, snapshot, step

# --- the table ---


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_state_and_event(state: State, event: Event) -> None:
    rig = Rig()
    rig.sync.state = state
    changed = rig.sync._event(event)
    assert rig.sync.state is NEXT.get((state, event), state)
    assert changed == (rig.sync.state is not state)


def test_what_the_table_says() -> None:
    for state in State:
        if state is not State.SYNCING:
            assert state in NEXT.values(), "it can be reached"
            assert NEXT.get((state, Event.SILENT), State.STALE) is State.STALE, "silence always shows"
    assert State.SYNCING not in NEXT.values(), "it is the beginning only"
    assert [s for s, e in NEXT if e is Event.UNFIT] == [State.LIVE], (
        "only what we hold at the head can be unfit"
    )
    assert (State.REJECTED, Event.CURRENT) not in NEXT, "the head is what we cannot serve"


# --- the usual ---


def test_begins_with_nothing() -> None:
    rig = Rig(start=0)
    assert rig.sync.state is State.SYNCING
    rig.hear(HELLO)
    assert rig.of(Tell) == [Tell(0)]
    assert (rig.ask.version, rig.ask.epoch, rig.ask.hash) == (0, 0, b"")
    rig.hear(snapshot(7, rig.ask.id))
    assert rig.sync.state is State.LIVE
    rig.holds(7)
    assert rig.of(Apply) == [Apply(7, rows(7).hash, None)]
    rig.did(7, us=5)
    assert rig.answers == [Answer("node", 1, 7, rows(7).hash, "serving", 5)]


def test_updates_are_taken_one_by_one() -> None:
    rig = Rig()
    rig.hear(step(6, sent_us=9))
    rig.hear(step(7))
    assert rig.of(Apply) == [
        Apply(6, rows(6).hash, step(6).changes, 9),
        Apply(7, rows(7).hash, step(7).changes),
    ]
    assert not rig.asks
    rig.holds(7)


def test_the_last_good_version_is_confirmed_by_a_heartbeat() -> None:
    rig = Rig(start=0)
    assert rig.keep(rig.sync.restore(1, 5, rows(5))) == [Apply(5, rows(5).hash, None)]
    rig.hear(HELLO)
    assert (rig.ask.epoch, rig.ask.version, rig.ask.hash) == (1, 5, rows(5).hash)
    assert rig.sync.state is State.SYNCING
    rig.hear(head(5, id=rig.ask.id))
    assert rig.sync.state is State.LIVE
    assert rig.sync.snapshots == 0


# --- gaps ---


def test_a_lost_update_shows_by_the_next_one() -> None:
    rig = Rig()
    rig.hear(step(7))
    assert rig.sync.state is State.GAP
    assert (rig.ask.version, rig.ask.hash) == (5, rows(5).hash)
    whole = step(7, prev_version=5, prev_hash=rows(5).hash, id=rig.ask.id)
    rig.hear(whole)
    assert rig.sync.state is State.LIVE
    rig.holds(7)
    assert rig.sync.gaps == 1


def test_a_lost_last_update_shows_by_the_heartbeat() -> None:
    rig = Rig()
    rig.hear(head(6))
    assert rig.sync.state is State.GAP
    assert rig.ask.version == 5
    rig.hear(head(6))
    rig.hear(step(8))
    assert len(rig.asks) == 1, "one question is open at a time"


def test_updates_that_come_twice_or_late_change_nothing() -> None:
    rig = Rig()
    rig.hear(step(6))
    rig.log.clear()
    rig.hear(step(6))
    rig.hear(step(5))
    assert rig.log == []
    rig.holds(6)


def test_a_late_snapshot_is_not_taken() -> None:
    rig = Rig()
    rig.hear(step(7))
    late = rig.ask
    rig.hear(step(6))
    rig.hear(step(7))
    rig.hear(step(8))
    rig.log.clear()
    rig.hear(snapshot(7, late.id))
    rig.holds(8)
    assert not rig.of(Apply)
    rig.hear(snapshot(9, late.id))
    rig.holds(8)
    assert rig.sync.snapshots == 1


def test_an_update_whose_rows_lie_is_not_taken_and_all_rows_are_asked_for() -> None:
    for lie in (
        Changes({"routes": {"moves": b"lie"}}),
        Changes({}, {"routes": ["none"]}),
        Changes({"secrets": {"a": b"b"}}),
    ):
        rig = Rig()
        rig.hear(step(6, changes=lie))
        rig.holds(5)
        assert rig.sync.garbage == 1
        assert rig.sync.state is State.GAP
        assert "do not give its hash" in rig.said
        rig.wait(RETRY_MIN)
        assert rig.ask.version == 0
        rig.hear(snapshot(6, rig.ask.id))
        rig.holds(6)


def test_a_snapshot_that_lies_is_asked_for_less_and_less_often() -> None:
    rig = Rig(start=0)
    rig.hear(HELLO)
    times: list[float] = []
    for _ in range(400):
        rig.hear(head(5))
        if len(rig.asks) > len(times):
            times.append(rig.now)
            rig.hear(replace(snapshot(5, rig.ask.id), rows={"routes": {"moves": b"lie"}}))
        rig.wait(0.25)
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert len(times) < 15
    assert RETRY_MIN / 2 <= waits[0] <= RETRY_MIN + 0.5
    assert all(wait <= RETRY_MAX + 0.5 for wait in waits)
    assert waits[-1] > RETRY_MAX / 2 - 0.5
    assert not rig.of(Apply)


# --- publishers that are older, wrong, silent ---


def test_a_lower_epoch_is_refused_at_once_and_shown() -> None:
    rig = Rig()
    rig.keep(rig.sync.restore(3, 5, rows(5)))
    rig.hear(head(9, epoch=2))
    rig.holds(5, epoch=3)
    assert "is older: epoch 2 version 9, we hold epoch 3 version 5; refused" in rig.said
    assert rig.sync.state is State.STALE
    assert "is older" in rig.sync.trouble()
    rig.hear(step(10, epoch=2))
    rig.hear(Snapshot(epoch=2, version=9, hash=rows(9).hash, id=1, rows=rows(9).tables))
    rig.holds(5, epoch=3)


def test_a_higher_epoch_is_asked_for() -> None:
    rig = Rig()
    rig.hear(head(2, epoch=2))
    assert rig.sync.state is State.GAP
    rig.hear(snapshot(2, rig.ask.id, epoch=2))
    rig.holds(2, epoch=2)
    assert rig.sync.decided == 2, "that of the epoch before is forgotten"


def test_a_replica_may_lag_for_a_moment() -> None:
    rig = Rig(publishers=2)
    rig.hear(step(6), 0)
    rig.hear(head(5), 1)
    rig.wait(1.0)
    rig.hear(head(6), 1)
    assert rig.said == ""
    assert rig.sync.state is State.LIVE


def test_a_publisher_that_stays_older_is_refused_and_shown() -> None:
    rig = Rig()
    rig.hear(step(6))
    rig.beat(head(5), BEATS + 2)
    assert "is older: epoch 1 version 5, we hold epoch 1 version 6; refused" in rig.said
    assert rig.sync.state is State.STALE
    rig.holds(6)
    rig.hear(head(6))
    assert rig.sync.state is State.LIVE
    assert "is all right again" in rig.said


def test_a_publisher_without_configuration_is_not_followed() -> None:
    rig = Rig()
    empty = Heartbeat(epoch=2, version=0, hash=b"", decided=0)
    rig.beat(empty, 6)
    rig.holds(5)
    assert rig.sync.state is State.STALE
    assert "has no configuration yet" in rig.said


def test_silence_makes_stale_and_a_word_makes_live() -> None:
    rig = Rig()
    rig.wait(BEATS - 0.1)
    assert rig.sync.state is State.LIVE
    rig.wait(0.2)
    assert rig.sync.state is State.STALE
    assert "no publisher is up to date: tcp://p0 is silent" in rig.said
    rig.hear(head(5))
    assert rig.sync.state is State.LIVE


def test_nobody_there_at_the_start() -> None:
    rig = Rig(start=0)
    rig.wait(PATIENCE - 0.1)
    assert rig.sync.state is State.SYNCING
    rig.keep(rig.sync.on_unreachable(0, "cannot be reached"))
    rig.wait(0.2)
    assert rig.sync.state is State.STALE
    assert "tcp://p0 cannot be reached" in rig.said


def test_equal_version_with_other_rows_is_refused() -> None:
    """Another history under the same epoch, as a restored store has: taking it would hide that."""
    rig = Rig()
    rig.beat(head(5, hash=rows(99).hash), 8)
    assert "has other rows than we for version 5; refused" in rig.said
    assert not rig.asks
    rig.holds(5)
    assert rig.sync.state is State.STALE
    rig.hear(head(5))
    assert rig.sync.state is State.LIVE


def test_equal_version_with_other_rows_does_not_matter_beside_one_that_agrees() -> None:
    rig = Rig(publishers=2)
    rig.hear(head(5), 0)
    rig.hear(head(5, hash=rows(99).hash), 1)
    assert "tcp://p1 has other rows than we for version 5; refused" in rig.said
    assert not rig.asks
    rig.holds(5)
    assert rig.sync.state is State.LIVE


def test_garbage_is_counted_said_once_and_changes_nothing() -> None:
    rig = Rig()
    for _ in range(3):
        rig.keep(rig.sync.on_garbage(0, "header is not msgpack", rig.now))
    assert rig.sync.garbage == 3
    assert rig.said == "tcp://p0 header is not msgpack"
    assert rig.sync.state is State.LIVE
    rig.hear(Report(node="a", attributes=Attributes(), state="LIVE"))
    assert rig.sync.garbage == 4


def test_a_publisher_of_another_protocol_is_not_listened_to() -> None:
    rig = Rig(start=0)
    rig.hear(replace(HELLO, protocol=PROTOCOL + 1))
    assert f"speaks protocol {PROTOCOL + 1}, this build {PROTOCOL}" in rig.said
    rig.hear(head(5))
    rig.hear(step(6))
    assert not rig.asks
    assert rig.sync.version == 0


def test_what_a_publisher_announces_is_bounded() -> None:
    rig = Rig(start=0)
    huge = (1 << 63) - 1
    rig.hear(replace(HELLO, heartbeat_ms=huge, jitter_ms=huge, report_ms=huge))
    assert rig.sync.next_tick(rig.now) <= rig.now + 1
    rig.beat(head(5), 61)
    assert rig.asks
    rig.hear(replace(HELLO, heartbeat_ms=0))
    assert rig.sync.next_tick(rig.now) > rig.now


# --- asking ---


def test_an_ask_without_answer_is_repeated_later_elsewhere() -> None:
    rig = Rig(publishers=2)
    rig.hear(head(6), 0)
    assert rig.asks[-1][0] == 0
    for _ in range(int(ASK_TIMEOUT) + 1):
        rig.wait(1.0)
        for peer in (0, 1):
            rig.hear(head(6), peer)
    assert "has not answered an ask for 10 s" in rig.said
    assert rig.asks[-1][0] == 1
    assert rig.asks[-1][1].id != rig.asks[-2][1].id


def test_who_falls_silent_is_not_waited_for_when_another_can_help() -> None:
    rig = Rig(publishers=2)
    rig.hear(head(6), 0)
    for _ in range(5):
        rig.wait(1.0)
        rig.hear(head(6), 1)
    assert [peer for peer, _ in rig.asks] == [0, 1]


def test_jitter_is_within_what_was_announced_and_spread() -> None:
    waits = []
    for seed in range(200):
        sync = Sync("node", Attributes(), ["a"], 0.0, random.Random(seed))
        sync.on_message(0, replace(HELLO, jitter_ms=2000), 0.0)
        due = sync.next_tick(0.0) if sync.next_tick(0.0) < 1.0 else None
        for i in range(2001):
            now = i / 1000
            if any(isinstance(a, Send) for a in sync.tick(now)):
                waits.append(now)
                assert due is None or abs(due - now) < 0.002
                break
    assert len(waits) == 200
    assert max(waits) <= 2.0
    assert min(waits) < 0.1
    assert 0.8 < sum(waits) / 200 < 1.2


def test_a_gap_is_asked_for_without_jitter() -> None:
    rig = Rig(start=0)
    rig.hear(replace(HELLO, jitter_ms=2000))
    rig.wait(2.0)
    rig.hear(snapshot(5, rig.ask.id))
    rig.log.clear()
    rig.hear(head(6))
    assert rig.asks


def test_each_publisher_is_asked_once_it_announces_itself() -> None:
    """It has to learn which view we have, or it would send no heartbeats for it."""
    rig = Rig(publishers=2)
    rig.hear(HELLO, 1)
    assert [(peer, ask.version) for peer, ask in rig.asks] == [(1, 5)]
    rig.hear(head(5, id=rig.ask.id), 1)
    rig.wait(1.0)
    assert len(rig.asks) == 1


def test_a_refused_ask_is_shown_and_repeated() -> None:
    rig = Rig(start=0)
    rig.hear(HELLO)
    rig.hear(Refused(reason="this key does not own the name", id=rig.ask.id))
    assert "refuses: this key does not own the name" in rig.said
    for _ in range(3):
        rig.wait(RETRY_MIN)
        rig.hear(HELLO if not rig.asks else head(5))
    assert len(rig.asks) == 2


def test_garbage_for_an_answer_fails_the_ask_and_elsewhere_does_not() -> None:
    rig = Rig()
    rig.hear(head(6))
    rig.keep(rig.sync.on_garbage(0, "no message", rig.now))
    rig.wait(1.0)
    assert len(rig.asks) == 1
    rig.keep(rig.sync.on_garbage(0, "no message", rig.now, answer=True))
    rig.wait(1.0)
    rig.hear(head(6))
    assert len(rig.asks) == 2


def test_a_new_announce_while_an_ask_is_open_asks_again() -> None:
    rig = Rig()
    rig.hear(head(6))
    rig.hear(HELLO)
    assert len(rig.asks) == 2
    rig.hear(snapshot(6, rig.asks[0][1].id))
    rig.holds(5)


def test_who_refused_an_ask_is_asked_again() -> None:
    rig = Rig(publishers=2)
    rig.hear(HELLO, 1)
    rig.hear(Refused(reason="no role yet", id=rig.ask.id), 1)
    rig.wait(RETRY_MIN)
    rig.hear(head(5), 1)
    assert [peer for peer, _ in rig.asks] == [1, 1]


def test_an_answer_with_other_rows_is_not_taken() -> None:
    rig = Rig(publishers=2)
    rig.hear(HELLO, 1)
    other = Snapshot(epoch=1, version=5, hash=rows(99).hash, id=rig.ask.id, rows=rows(99).tables)
    rig.hear(other, 1)
    rig.holds(5)
    assert "other rows than we for version 5" in rig.said


def test_after_a_lie_that_was_cleared_up_a_range_is_enough() -> None:
    rig = Rig()
    rig.hear(step(6, changes=Changes()))
    rig.hear(head(5))
    rig.wait(RETRY_MIN)
    rig.hear(head(6))
    assert rig.ask.version == 5


# --- how it went ---


def test_a_version_that_cannot_be_served() -> None:
    rig = Rig()
    rig.hear(step(6))
    rig.did(6, "route 3: no such cluster\x1b[2J")
    assert rig.sync.state is State.REJECTED
    assert rig.sync.error == "route 3: no such cluster?[2J"
    assert rig.sync.serving == 5
    rig.hear(head(6))
    assert rig.sync.state is State.REJECTED
    rig.hear(step(7))
    rig.did(7)
    assert rig.sync.state is State.LIVE
    assert rig.sync.error == ""


def test_what_cannot_be_served_is_not_live_after_a_silence() -> None:
    rig = Rig()
    rig.hear(step(6))
    rig.did(6, "no room")
    rig.wait(BEATS + 1)
    assert rig.sync.state is State.STALE
    rig.hear(head(6))
    assert rig.sync.state is State.REJECTED


def test_a_version_that_could_not_be_served_is_tried_again() -> None:
    rig = Rig()
    rig.hear(step(6))
    rig.did(6, "no memory")
    rig.log.clear()
    rig.beat(head(6), UNFIT_MIN + 1)
    assert rig.of(Apply) == [Apply(6, rows(6).hash, None)]
    rig.beat(head(6), 100)
    assert len(rig.of(Apply)) == 1, "how that went is waited for"
    rig.did(6, "no memory")
    rig.beat(head(6), 2 * UNFIT_MIN - 1)
    assert len(rig.of(Apply)) == 1
    rig.beat(head(6), 2)
    assert len(rig.of(Apply)) == 2
    rig.did(6)
    assert rig.sync.state is State.LIVE


def test_a_new_version_is_tried_again_as_soon_as_the_first() -> None:
    rig = Rig()
    rig.hear(step(6))
    for _ in range(6):
        rig.did(6, "no memory")
    rig.hear(step(7))
    rig.did(7, "no memory")
    rig.log.clear()
    rig.beat(head(7), UNFIT_MIN + 1)
    assert rig.of(Apply) == [Apply(7, rows(7).hash, None)]


def test_what_is_told_about_an_epoch_that_is_over() -> None:
    rig = Rig()
    rig.hear(head(5, epoch=2, hash=rows(99).hash))
    rig.hear(Snapshot(epoch=2, version=5, hash=rows(99).hash, id=rig.ask.id, rows=rows(99).tables))
    rig.did(5, "no room", epoch=1)
    assert rig.sync.state is State.LIVE, "the same number, another version"
    assert rig.answers[-1].epoch == 1
    rig.did(5, epoch=1)
    assert (rig.sync.serving_epoch, rig.sync.serving) == (1, 5)


def test_anew_is_all_there_is() -> None:
    rig = Rig()
    assert Sync("n", Attributes(), ["a"], 0.0).anew() == []
    assert rig.sync.anew() == [Apply(5, rows(5).hash, None)]
    rig.propose(6, share=WHOLE)
    rig.prepared(6)
    assert rig.sync.anew() == [Apply(5, rows(5).hash, None), Prepare(6, rows(6).hash, step(6).changes)]
    assert rig.prepared(6)[-1] == Flip(6)


def test_says_what_it_is() -> None:
    assert repr(Rig(start=0).sync) == "<Sync node SYNCING: holds nothing, serves 0>"
    rig = Rig()
    assert repr(rig.sync) == f"<Sync node LIVE: holds 1.5 {rows(5).hash.hex()[:8]}, serves 5>"
    assert repr(rig.sync.peers[0]) == "<Peer tcp://p0: version 1.5 well>"
