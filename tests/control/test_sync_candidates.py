"""The subscriber and candidates: versions that are rolled out in stages, settled or aborted."""

from __future__ import annotations

from dataclasses import replace

from fastproxy.actions import State
from fastproxy.rows import Changes
from fastproxy.sync import (
    LEASE,
    SEEK_AGAIN,
    Apply,
    Drop,
    Flip,
    Prepare,
    Settle,
)
from fastproxy.wire import (
    WHOLE,
    lot,
)
from tests.control.told import HELLO, Rig, head, rows, step


def test_prepared_stepped_and_settled() -> None:
    rig = Rig()
    share = lot("node", 1, 6)
    rig.propose(6)
    assert rig.of(Prepare) == [Prepare(6, rows(6).hash, step(6).changes)]
    rig.prepared(6)
    assert rig.answers[-1].result == "prepared"
    rig.hear(head(5, candidate=6, candidate_hash=rows(6).hash, share=share))
    assert not rig.of(Flip), "its lot is not below the share"
    rig.hear(head(5, candidate=6, candidate_hash=rows(6).hash, share=share + 1))
    assert rig.of(Flip) == [Flip(6)]
    rig.did(6)
    assert (rig.sync.serving, rig.sync.version) == (6, 5)
    rig.hear(head(6))
    assert rig.of(Settle) == [Settle(6, rows(6).hash)]
    rig.holds(6)
    assert not rig.asks


def test_a_share_that_comes_before_the_candidate_is_ready() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    assert not rig.of(Flip)
    assert rig.prepared(6)[-1] == Flip(6)
    rig.hear(head(5, candidate=6, candidate_hash=rows(6).hash, share=WHOLE))
    assert len(rig.of(Flip)) == 1


def test_an_abort_drops_it_and_it_never_comes_back() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    rig.prepared(6)
    rig.hear(head(5, decided=6))
    assert rig.of(Drop) == [Drop(6)]
    rig.log.clear()
    rig.propose(6, share=WHOLE)
    rig.hear(head(5, candidate=6, candidate_hash=rows(6).hash, share=WHOLE))
    rig.wait(SEEK_AGAIN)
    assert rig.sync.candidate is None
    assert not rig.of(Prepare)
    assert not rig.asks
    rig.hear(step(7, prev_version=5, prev_hash=rows(5).hash))
    rig.holds(7)


def test_abort_before_it_was_prepared() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    rig.hear(head(5, decided=6))
    assert rig.prepared(6) == []
    assert not rig.of(Flip)


def test_a_candidate_whose_update_was_lost_is_asked_for() -> None:
    rig = Rig()
    named = head(5, candidate=6, candidate_hash=rows(6).hash)
    rig.hear(named)
    assert len(rig.asks) == 1
    rig.hear(replace(named, id=rig.ask.id))
    assert len(rig.asks) == 1, "what it brings comes right behind"
    rig.beat(named, SEEK_AGAIN + 1)
    assert len(rig.asks) == 2, "that was lost as well"
    rig.propose(6)
    assert rig.sync.candidate


def test_a_candidate_that_is_lost_in_a_gap_is_found() -> None:
    rig = Rig()
    rig.hear(step(7, prev_version=6, prev_hash=rows(6).hash, candidate=True))
    assert not rig.of(Prepare), "it is not made of what we hold"
    rig.hear(head(6, candidate=7, candidate_hash=rows(7).hash))
    rig.hear(step(6, id=rig.ask.id))
    rig.holds(6)
    rig.hear(head(6, candidate=7, candidate_hash=rows(7).hash))
    assert len(rig.asks) == 2
    rig.propose(7)
    assert rig.of(Prepare)


def test_a_candidate_that_is_rejected_here_and_dropped() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    rig.prepared(6, "no room")
    assert (rig.answers[-1].result, rig.answers[-1].error) == ("rejected", "no room")
    rig.hear(head(5, candidate=6, candidate_hash=rows(6).hash, share=WHOLE))
    assert not rig.of(Flip)
    rig.hear(head(5, decided=6))
    assert rig.of(Drop) == [Drop(6)]
    assert rig.sync.state is State.LIVE


def test_a_candidate_that_is_rejected_here_and_settled_anyway() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    rig.prepared(6, "no room")
    rig.hear(head(6))
    assert rig.of(Apply) == [Apply(6, rows(6).hash, step(6).changes)]
    assert not rig.of(Settle)
    rig.holds(6)
    rig.did(6, "no room")
    assert rig.sync.state is State.REJECTED
    assert rig.sync.error == "no room"
    assert rig.sync.serving == 5


def test_a_candidate_nobody_names_any_more_is_void() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    rig.prepared(6)
    rig.beat(head(5), LEASE)
    assert not rig.of(Drop)
    rig.beat(head(5), 2)
    assert rig.of(Drop) == [Drop(6)]


def test_a_candidate_goes_on_while_nobody_speaks() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    rig.prepared(6)
    rig.did(6)
    for _ in range(100):
        rig.wait(1.0)
    assert rig.sync.state is State.STALE
    assert not rig.of(Drop)
    assert rig.sync.serving == 6


def test_a_number_that_was_given_twice() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    rig.hear(head(5, candidate=6, candidate_hash=rows(99).hash))
    assert rig.of(Drop) == [Drop(6)]
    assert rig.asks


def test_a_new_base_in_one_breath_with_the_abort() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    rig.prepared(6)
    rig.did(6)
    rig.hear(step(7, prev_version=5, prev_hash=rows(5).hash))
    assert not rig.of(Drop), "what serves the candidate goes straight to the new base"
    assert rig.of(Apply)[-1].version == 7
    assert rig.sync.candidate is None
    assert not rig.prepared(6)


def test_a_candidate_whose_rows_lie_is_no_gap() -> None:
    rig = Rig()
    rig.hear(step(6, candidate=True, changes=Changes({"routes": {"moves": b"lie"}})))
    assert rig.sync.candidate is None
    assert rig.sync.garbage == 1
    assert rig.sync.state is State.LIVE
    assert not rig.asks


def test_an_answer_that_names_a_candidate_is_not_asked_about() -> None:
    rig = Rig()
    rig.hear(HELLO)
    rig.hear(head(5, candidate=6, candidate_hash=rows(6).hash, id=rig.ask.id))
    assert len(rig.asks) == 1, "its update comes right behind"
    rig.propose(6)
    rig.hear(head(5, candidate=6, candidate_hash=rows(6).hash))
    assert len(rig.asks) == 1


def test_a_candidate_that_cannot_be_flipped_and_is_settled_anyway() -> None:
    rig = Rig()
    rig.propose(6, share=WHOLE)
    rig.prepared(6)
    rig.did(6, "a worker died")
    assert rig.answers[-1].result == "rejected"
    assert rig.sync.state is State.LIVE, "the base serves"
    rig.hear(head(6))
    assert rig.of(Apply) == [Apply(6, rows(6).hash, step(6).changes)]


def test_another_candidate_of_the_same_number_does_not_step_the_one_that_is_held() -> None:
    """Of two publishers that gave one number to two candidates, heartbeats say which is open."""
    rig = Rig()
    rig.propose(6)
    rig.prepared(6)
    other = replace(step(6, candidate=True, share=WHOLE), hash=rows(99).hash, changes=step(99).changes)
    rig.hear(other)
    assert not rig.of(Flip)
    assert rig.sync.candidate is not None
    assert rig.sync.candidate.hash == rows(6).hash
