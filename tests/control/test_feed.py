"""The feed of one view: whoever asks is brought to the head by the shortest true way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrl import feed as feeds
from ctrl.feed import Feed
from fastproxy.rows import Rows, RowsError, digest
from fastproxy.wire import (
    Ask,
    Heartbeat,
    Message,
    Snapshot,
    Update,
    decode,
)
from tests.control.links import HERE, many, tables


def ask(version: int = 0, hash: bytes = b"", epoch: int = 1) -> Ask:
    return Ask(node="n", attributes=HERE, id=7, epoch=epoch if version else 0, version=version, hash=hash)


def answers(feed: Feed, question: Ask) -> list[Message]:
    return [decode(frames) for frames in feed.answer(question, now_ms=5, report_ms=6)]


def published(feed: Feed, frames: list[bytes]) -> Update:
    assert frames[0] == feed.topic
    update = decode(frames[1:], (Update,))
    assert isinstance(update, Update)
    return update


def grown(*versions: Any) -> tuple[Feed, list[tuple[int, bytes]]]:
    """A feed that went through these tables, and every (version, hash) it had."""
    feed = Feed(HERE, 1, 1, versions[0])
    stood = [(1, feed.hash)]
    for number, new in enumerate(versions[1:], 2):
        feed.advance(number, new)
        stood.append((number, feed.hash))
    return feed, stood


def test_an_update_is_the_step_from_the_version_before() -> None:
    feed, ((_, before),) = grown(tables(a=1, b=2))
    update = published(feed, feed.advance(2, tables(b=3, c=4), sent_us=99))
    assert (update.prev_version, update.prev_hash, update.version, update.hash) == (1, before, 2, feed.hash)
    assert update.sent_us == 99
    assert sorted(update.changes.puts["breakers"]) == ["b", "c"]
    assert update.changes.deletes == {"breakers": ["a"]}
    assert feed.hash == Rows.pack(tables(b=3, c=4)).hash


def test_a_version_that_does_not_touch_the_view_is_a_step_without_changes() -> None:
    feed, _ = grown(tables(a=1))
    update = published(feed, feed.advance(2, tables(a=1)))
    assert not update.changes
    assert update.hash == update.prev_hash


def test_who_stands_at_the_head_gets_a_heartbeat() -> None:
    feed, stood = grown(tables(a=1), tables(a=2))
    (head,) = answers(feed, ask(*stood[-1]))
    assert isinstance(head, Heartbeat)
    assert (head.version, head.hash, head.id, head.now_ms, head.report_ms) == (2, feed.hash, 7, 5, 6)


def test_who_lacks_versions_gets_one_step_over_them() -> None:
    feed, stood = grown(tables(a=1), tables(a=1, b=1), tables(b=2, c=1), tables(b=2))
    (update,) = answers(feed, ask(*stood[0]))
    assert isinstance(update, Update)
    assert (update.prev_version, update.version, update.id) == (1, 4, 7)
    # c came and went meanwhile
    assert list(update.changes.puts["breakers"]) == ["b"]
    assert update.changes.deletes == {"breakers": ["a"]}
    assert feed.snapshots == 0


@pytest.mark.parametrize(
    "question",
    [
        ask(),
        ask(1, b"\1" * 32),
        ask(2, b"\1" * 32),
        ask(1, digest(0), epoch=0),
    ],
    ids=["nothing", "other rows", "other rows at the head", "another epoch"],
)
def test_who_stands_nowhere_gets_a_snapshot(question: Ask) -> None:
    feed, _ = grown(tables(a=1), tables(a=2))
    (snapshot,) = answers(feed, question)
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.version, snapshot.id) == (2, 7)
    assert Rows.of(snapshot.rows).hash == snapshot.hash == feed.hash


def test_who_is_ahead_is_told_the_head() -> None:
    feed, _ = grown(tables(a=1))
    for question in (ask(2, b"\1" * 32), ask(1, b"\1" * 32, epoch=2)):
        (head,) = answers(feed, question)
        assert isinstance(head, Heartbeat)
        assert (head.epoch, head.version) == (1, 1)


def test_a_feed_without_a_version_has_heartbeats_only() -> None:
    feed = Feed(HERE, 1)
    (head,) = answers(feed, ask())
    assert isinstance(head, Heartbeat)
    assert head.version == 0
    assert feed.advance(1, tables(a=1)) == []  # nobody can take a step from nothing
    assert isinstance(answers(feed, ask())[0], Snapshot)


def test_the_body_of_a_snapshot_is_one_object_until_the_head_moves() -> None:
    feed, _ = grown(many(2000))
    bodies = {id(feed.answer(ask())[0][1]) for _ in range(100)}
    assert len(bodies) == 1
    assert feed.snapshots == 1
    feed.advance(2, many(2000, a=1))
    assert not feed._made
    feed.answer(ask())
    assert feed.snapshots == 2


def test_what_is_packed_in_a_thread_is_of_the_head_it_was_asked_for() -> None:
    feed, stood = grown(many(feeds.LARGE + 1))
    work = feed.work(ask())
    assert work
    feed.advance(2, many(feeds.LARGE + 1, a=1))
    work()
    (snapshot,) = answers(feed, ask())
    assert isinstance(snapshot, Snapshot)
    assert Rows.of(snapshot.rows).hash == feed.hash
    assert feed.work(ask()) is None
    assert feed.work(ask(*stood[0])) is None  # one row is packed at once


def test_a_long_range_is_work_for_a_thread_too() -> None:
    feed, stood = grown(many(4 * feeds.LARGE))
    new = many(4 * feeds.LARGE)
    new["breakers"].update({key: {} for key in list(new["breakers"])[: feeds.LARGE]})
    feed.advance(2, new)
    work = feed.work(ask(*stood[0]))
    assert work
    work()
    assert feed.work(ask(*stood[0])) is None
    (update,) = answers(feed, ask(*stood[0]))
    assert isinstance(update, Update)
    assert len(update.changes) == feeds.LARGE


def test_a_range_of_most_rows_is_a_snapshot() -> None:
    feed, stood = grown(many(300))
    feed.advance(2, tables())
    assert isinstance(answers(feed, ask(*stood[0]))[0], Snapshot)


def test_the_journal_is_bounded_by_steps_and_by_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "JOURNAL_STEPS", 3)
    feed, stood = grown(*[tables(a=i) for i in range(6)])
    assert [isinstance(answers(feed, ask(*at))[0], Update) for at in stood[:-1]] == [False] * 2 + [True] * 3
    monkeypatch.setattr(feeds, "JOURNAL_LEAST", 10)
    monkeypatch.setattr(feeds, "JOURNAL_ROWS", 2)
    feed, stood = grown(*[{**tables(), "breakers": {str(k): {"i": i} for k in range(4)}} for i in range(6)])
    assert [isinstance(answers(feed, ask(*at))[0], Update) for at in stood[:-1]] == [False] * 3 + [True] * 2


def test_a_new_epoch_begins_a_new_journal() -> None:
    feed, stood = grown(tables(a=1), tables(a=2))
    assert feed.advance(1, tables(a=3), epoch=2) == []
    assert (feed.epoch, feed.version, feed.decided) == (2, 1, 1)
    for at in stood:
        assert isinstance(answers(feed, ask(*at))[0], Snapshot)


def test_a_candidate_is_proposed_staged_and_settled() -> None:
    feed, stood = grown(tables(a=1))
    update = published(feed, feed.propose(2, tables(a=2)))
    assert update.candidate
    assert update.share == 0
    assert [type(m) for m in answers(feed, ask(*stood[0]))] == [Heartbeat, Update]
    feed.stage(1000)
    head, again = answers(feed, ask(*stood[0]))
    assert isinstance(head, Heartbeat)
    assert isinstance(again, Update)
    assert (head.version, head.candidate, head.candidate_hash, head.share) == (1, 2, update.hash, 1000)
    assert (again.share, again.id, again.candidate) == (1000, 0, True)
    feed.settle()
    assert (feed.version, feed.hash, feed.decided) == (2, update.hash, 2)
    assert isinstance(answers(feed, ask(*stood[0]))[0], Update)
    assert feed.hash == Rows.pack(tables(a=2)).hash


def test_a_dropped_candidate_leaves_its_number_decided() -> None:
    feed, stood = grown(tables(a=1))
    feed.propose(2, tables(a=2))
    feed.drop()
    (head,) = answers(feed, ask(*stood[0]))
    assert isinstance(head, Heartbeat)
    assert (head.version, head.decided, head.candidate) == (1, 2, 0)
    update = published(feed, feed.advance(3, tables(a=5)))
    assert (update.prev_version, update.version) == (1, 3)


def test_a_step_that_does_not_fit_changes_nothing() -> None:
    from fastproxy.rows import Changes

    feed, _ = grown(tables(a=1))
    before = repr(feed)
    with pytest.raises(RowsError):
        feed.step(2, Changes(deletes={"breakers": ["gone"]}))
    assert repr(feed) == before


ENDPOINTS = st.lists(st.integers(1, 5).map(lambda port: {"address": "10.0.0.1", "port": port}), max_size=4)
SHARED: Any = st.booleans()
ROWS = st.fixed_dictionaries(
    {
        "breakers": st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2), max_size=6),
        "endpoints": st.dictionaries(st.sampled_from(["x|80", "y|80", "z|81"]), ENDPOINTS, max_size=3),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROWS, min_size=2, max_size=12), st.data())
def test_every_way_leads_to_the_head(history: list[dict[str, Any]], data: st.DataObject) -> None:
    """Values that are the same object, and equal ones that are not; any start; the hash proves the rows."""
    versions: list[Any] = []
    for rows in history:
        new = {**tables(), **rows}
        if versions and data.draw(SHARED, "share"):
            for name in rows:
                old = versions[-1][name]
                new[name] = {k: old[k] if old.get(k) == v else v for k, v in rows[name].items()}
        versions.append(new)
    feed = Feed(HERE, 1, 1, versions[0])
    stood = [(1, feed.hash, Rows.pack(versions[0]))]
    for number, new in enumerate(versions[1:], 2):
        update = published(feed, feed.advance(number, new))
        reader = Rows.pack(versions[number - 2])
        reader.apply(update.changes)
        assert reader.hash == update.hash == Rows.pack(new).hash
        stood.append((number, feed.hash, Rows.pack(new)))
    for version, hash, reader in stood[:-1]:
        message = answers(feed, ask(version, hash))[0]
        if isinstance(message, Update):
            reader.apply(message.changes)
        else:
            assert isinstance(message, Snapshot)
            reader = Rows.of(message.rows)
        assert reader.hash == message.hash == feed.hash
