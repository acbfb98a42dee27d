"""Messages: their exact bytes, and what is refused.

``vectors/wire.json`` holds the bytes of every type. They are read here a second time by a reader that was
written from docs/control-protocol.md and shares no code with :mod:`fastproxy.wire`.
"""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fastproxy import wire
from fastproxy.rows import Changes, Rows
from fastproxy.wire import (
    Announce,
    Answer,
    Answers,
    Ask,
    Attributes,
    Heartbeat,
    Refused,
    Report,
    Snapshot,
    Update,
    WireError,
    decode,
    encode,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "control-protocol.md"
VECTORS = Path(__file__).parent / "vectors" / "wire.json"
HERE = Attributes.of("shop", {"os": "android", "app": "catalog"}, True)
H1, H2 = bytes(range(32)), bytes(range(32, 64))

MESSAGES: dict[str, wire.Message] = {
    "announce": Announce(
        server="ctrl-1",
        snapshot_port=9911,
        answer_port=9912,
        heartbeat_ms=1000,
        report_ms=5000,
        jitter_ms=250,
    ),
    "head": Heartbeat(epoch=1, version=42, hash=H1, decided=42, now_ms=1_700_000_000_000, report_ms=5000),
    "head with a candidate": Heartbeat(
        epoch=1, version=42, hash=H1, decided=42, candidate=43, candidate_hash=H2, share=1 << 30
    ),
    "head of nothing": Heartbeat(epoch=1, version=0, hash=b"", decided=0, id=7),
    "update": Update(
        epoch=1,
        version=43,
        hash=H2,
        prev_version=42,
        prev_hash=H1,
        sent_us=1_700_000_000_000_000,
        changes=Changes(
            {"routes": {"mesh reviews": msgpack.packb({"routes": []})}, "clusters": {"c": b"\x80"}},
            {"endpoints": ["reviews|80"]},
        ),
    ),
    "update of a candidate": Update(
        epoch=1, version=43, hash=H2, prev_version=42, prev_hash=H1, candidate=True, share=5, id=3
    ),
    "update, compressed": Update(
        epoch=1,
        version=43,
        hash=H2,
        prev_version=42,
        prev_hash=H1,
        changes=Changes({"endpoints": {f"service-{i}|80": b"\x90" for i in range(100)}}),
    ),
    "snapshot": Snapshot(epoch=2, version=9, hash=H1, id=1, rows={"listeners": {"mesh": b"\x80"}}),
    "ask": Ask(node="proxy-1", attributes=HERE, id=1, epoch=1, version=42, hash=H1),
    "ask for all": Ask(node="proxy-1", attributes=Attributes(), id=2),
    "refused": Refused(reason="the key of proxy-2 does not own the name 'proxy-1'", id=2),
    "answers": Answers(
        answers=[
            Answer("proxy-1", 1, 43, H2, "serving", 6000, 4000, 120, ""),
            Answer("proxy-2", 1, 43, H2, "rejected", 10, 0, 0, "no room"),
        ]
    ),
    "report": Report(
        node="proxy-1",
        attributes=HERE,
        state="LIVE",
        epoch=1,
        version=43,
        hash=H2,
        serving=43,
        started_ms=1_700_000_000_000,
        admin="127.0.0.1:9901",
        release="0.1.0",
        requests=1000,
        errors=3,
        breakers=[["outbound|80||reviews", "OPEN", "open", 1_700_000_060_000, 12]],
        via="relay-1",
    ),
}


def golden() -> dict[str, list[str]]:
    return {name: [frame.hex() for frame in encode(message)] for name, message in MESSAGES.items()}


def test_bytes_are_those_of_the_vectors() -> None:
    kept = json.loads(VECTORS.read_text())
    compressed = {name for name, message in MESSAGES.items() if "compressed" in name}
    made = golden()
    assert made.keys() == kept.keys()
    for name in made:
        if name not in compressed:  # what a compressor makes is its own affair; what it reads is not
            assert made[name] == kept[name], name
        assert decode([bytes.fromhex(frame) for frame in kept[name]]) == MESSAGES[name]


def second_reader(frames: list[bytes]) -> dict[str, Any]:
    """By the document: header, defaults, body."""
    header = msgpack.unpackb(frames[0])
    defaults = {
        "announce": {"protocol": 1, "jitter_ms": 0},
        "head": {
            "candidate": 0,
            "candidate_hash": b"",
            "share": 0,
            "now_ms": 0,
            "report_ms": 0,
            "spread_ms": 0,
            "id": 0,
        },
        "update": {"format": 1, "candidate": False, "share": 0, "zstd": False, "sent_us": 0, "id": 0},
        "snapshot": {"format": 1, "zstd": False, "id": 0},
        "ask": {"protocol": 1, "epoch": 0, "version": 0, "hash": b""},
        "refused": {"id": 0},
        "answers": {},
        "report": {
            **dict.fromkeys(("epoch", "version", "serving", "started_ms", "requests", "errors"), 0),
            **dict.fromkeys(("error", "admin", "release", "via"), ""),
            "hash": b"",
            "breakers": [],
        },
    }
    out = {**defaults[header["t"]], **header}
    if len(frames) == 2:
        body = frames[1]
        if out["zstd"]:
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=out["size"])
        assert len(body) == out["size"]
        out["body"] = msgpack.unpackb(body)
    return out


def plain(message: wire.Message) -> dict[str, Any]:
    """What the second reader should have found."""
    out: dict[str, Any] = {"t": message.t}
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, Attributes):
            value = [value.namespace, [list(pair) for pair in value.labels], value.mesh]
        if isinstance(value, Changes):
            tables = {*value.puts, *value.deletes}
            value = {t: [value.puts.get(t, {}), value.deletes.get(t, [])] for t in tables}
        if field.name == "answers":
            value = [[getattr(a, f.name) for f in fields(a)] for a in value]
        out["body" if field.name in ("changes", "rows") else field.name] = value
    return out


@pytest.mark.parametrize("name", MESSAGES)
def test_a_second_reader_agrees(name: str) -> None:
    frames = [bytes.fromhex(frame) for frame in json.loads(VECTORS.read_text())[name]]
    read, wanted = second_reader(frames), plain(MESSAGES[name])
    for field in ("size", "zstd"):  # of the frames, not of the message
        read.pop(field, None)
        wanted.pop(field, None)
    assert read == wanted


def test_body_tables_come_in_order() -> None:
    body = encode(MESSAGES["update"])[1]
    assert list(msgpack.unpackb(body)) == ["routes", "clusters", "endpoints"]


def test_view_and_lot_are_those_of_the_document() -> None:
    packed = msgpack.packb(["shop", [["app", "catalog"], ["os", "android"]], True])
    assert HERE.view == hashlib.blake2b(packed, digest_size=8).hexdigest() == "665659173a80c20d"
    assert wire.view_topic(HERE.view) == b"v/665659173a80c20d"
    drawn = hashlib.blake2b(b"1 43 proxy-1", digest_size=4).digest()
    assert wire.lot("proxy-1", 1, 43) == int.from_bytes(drawn, "big")


def test_lots_are_spread_evenly() -> None:
    lots = [wire.lot(f"node-{i}", 1, 43) for i in range(4000)]
    assert 900 < sum(lot < 1 << 30 for lot in lots) < 1100
    assert lots != [wire.lot(f"node-{i}", 1, 44) for i in range(4000)]


def test_small_bodies_are_not_compressed_and_large_ones_are() -> None:
    assert b"zstd" not in encode(MESSAGES["update"])[0]
    header, body = encode(MESSAGES["update, compressed"])
    assert msgpack.unpackb(header)["zstd"] is True
    assert len(body) < msgpack.unpackb(header)["size"]
    noise = Changes({"routes": {"k": hashlib.shake_128(b"x").digest(5000)}})
    header, body = encode(Update(epoch=1, version=2, hash=H1, prev_version=1, prev_hash=H2, changes=noise))
    assert "zstd" not in msgpack.unpackb(header), "it did not pay"


def test_unknown_fields_of_a_header_are_ignored() -> None:
    header = msgpack.unpackb(encode(MESSAGES["head"])[0]) | {"later": [1, {"a": 2}]}
    assert decode([msgpack.packb(header)]) == MESSAGES["head"]


def with_header(name: str, **values: Any) -> list[bytes]:
    frames = encode(MESSAGES[name])
    return [msgpack.packb(msgpack.unpackb(frames[0]) | values), *frames[1:]]


REFUSED: dict[str, tuple[list[bytes], str]] = {
    "no frame": ([], "0 frames"),
    "three frames": ([b"", b"", b""], "3 frames"),
    "not msgpack": ([b"\xc1"], "not msgpack"),
    "a number": ([b"\x01"], "a header is a map"),
    "no type": ([b"\x80"], "a header is a map"),
    "unknown type": ([msgpack.packb({"t": "hello"})], "'hello' does not belong"),
    "missing field": ([msgpack.packb({"t": "refused"})], "refused.reason is missing"),
    "wrong type": (with_header("head", epoch="1"), "head.epoch is not int"),
    "boolean for a number": (with_header("head", epoch=True), "head.epoch is not int"),
    "negative": (with_header("head", version=-1), "out of range"),
    "too large": (with_header("head", version=1 << 63), "out of range"),
    "float": (with_header("head", version=1.0), "head.version is not int"),
    "short hash": (with_header("head", hash=b"abc"), "head.hash has 32 bytes"),
    "text for a hash": (with_header("head", hash="a" * 32), "head.hash is not bytes"),
    "controls in text": (with_header("refused", reason="a\x1b[2J"), "control characters"),
    "controls behind a line": (with_header("refused", reason="a\n\x00"), "control characters"),
    "long text": (with_header("refused", reason="a" * 5000), "longer than"),
    "port 0": (with_header("announce", snapshot_port=0), "is no port"),
    "port too large": (with_header("announce", answer_port=70000), "is no port"),
    "large header": ([msgpack.packb({"t": "head", "x": b"a" * 70_000})], "the limit is 65536"),
    "very large report": ([b"a" * (1 << 20) + b"b"], "the limit is 1048576"),
    "body missing": (encode(MESSAGES["update"])[:1], "a body is missing"),
    "body not wanted": ([*encode(MESSAGES["head"]), b"x"], "a body is not wanted"),
    "other format": (with_header("update", format=2), "format is 2, this build reads 1"),
    "size too small": (with_header("update", size=3), "more bytes than its size"),
    "size too large": (with_header("update", size=4000), "fewer bytes than its size"),
    "size beyond the limit": (with_header("update", size=1 << 40), "the limit is"),
    "not zstd": (with_header("update", zstd=True), "cannot be decompressed"),
    "attributes no list": (with_header("ask", attributes={}), "attributes"),
    "labels unsorted": (with_header("ask", attributes=["a", [["b", "1"], ["a", "1"]], True]), "sorted"),
    "label twice": (with_header("ask", attributes=["a", [["b", "1"], ["b", "1"]], True]), "one value"),
    "too many labels": (with_header("ask", attributes=["a", [["b", "1"]] * 300, True]), "at most 256"),
    "answers no list": (with_header("answers", answers={}), "a list of at most"),
    "answer too short": (with_header("answers", answers=[["n", 1]]), "an answer has 9 items"),
    "answer of another kind": (
        with_header("answers", answers=[["n", 1, 1, H1, "maybe", 0, 0, 0, ""]]),
        "answer.result",
    ),
    "answer without a hash": (
        with_header("answers", answers=[["n", 1, 1, b"", "serving", 0, 0, 0, ""]]),
        "answer.hash",
    ),
    "breakers nested": (with_header("report", breakers=[[["a"], "b", "c", 1, 2]]), "report.breakers"),
    "breakers too many": (with_header("report", breakers=[["a", "b", "c", 1, 2]] * 1001), "at most 1000"),
    "breaker with controls": (with_header("report", breakers=[["\x1b", "b", "c", 1, 2]]), "control"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    frames, why = REFUSED[name]
    with pytest.raises(WireError, match=why.replace("[", r"\[")):
        decode(frames)


def body_of(value: Any, raw: bytes = b"") -> list[bytes]:
    body = raw or msgpack.packb(value)
    header = {"t": "update", "epoch": 1, "version": 2, "hash": H1, "prev_version": 1, "prev_hash": H2}
    return [msgpack.packb({**header, "size": len(body)}), body]


BODIES: dict[str, Any] = {
    "no map": [],
    "unknown table": {"secrets": [{}, []]},
    "table no pair": {"routes": {}},
    "pair of three": {"routes": [{}, [], []]},
    "puts no map": {"routes": [[], []]},
    "deletes no list": {"routes": [{}, {}]},
    "row no bytes": {"routes": [{"a": "text"}, []]},
    "row nested": {"routes": [{"a": {"b": b"c"}}, []]},
    "key no text": {"routes": [{b"a": b"b"}, []]},
    "key too long": {"routes": [{"a" * 5000: b"b"}, []]},
    "delete no text": {"routes": [{}, [1]]},
}


@pytest.mark.parametrize("name", BODIES)
def test_refused_bodies(name: str) -> None:
    with pytest.raises(WireError, match="body"):
        decode(body_of(BODIES[name]))


def test_a_key_or_table_twice_is_refused() -> None:
    twice = b"\x81\xa6routes\x92\x82\xa1a\xc4\x01x\xa1a\xc4\x01y\x90"
    with pytest.raises(WireError, match="twice"):
        decode(body_of(None, twice))
    tables = b"\x82" + 2 * b"\xa6routes\x92\x80\x90"
    with pytest.raises(WireError, match="twice"):
        decode(body_of(None, tables))


def test_bytes_behind_a_body_are_refused() -> None:
    with pytest.raises(WireError, match="behind its end"):
        decode(body_of(None, msgpack.packb({"routes": [{}, []]}) + b"\xc0"))


def peak(frames: list[bytes]) -> int:
    """Bytes that decoding takes at most, when these are refused."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode(frames)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bomb_costs_nothing() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20))
    assert len(bomb) < 10_000
    header = with_header("update", size=1000, zstd=True)[0]
    assert peak([header, bomb]) < 4 << 20


def test_claimed_lengths_cost_nothing() -> None:
    deep = b"\xdd\x7f\xff\xff\xff" * 1000
    assert peak(body_of(None, b"\x81\xa6routes\x92\x80" + deep)) < 1 << 20
    assert peak(body_of(None, b"\xdf\xff\xff\xff\xff")) < 1 << 20
    assert peak(body_of(None, b"\x81\xa6routes\x92\xdf\xff\xff\xff\xff\xa1a\xc4\x01x")) < 1 << 20
    assert peak([b"\x81\xa1x" + b"\xdd\x00\x00\x0f\xa0" * 1000]) < 64 << 20


def test_a_large_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = packer.compress(b"x" * 2000) + packer.flush()
    with pytest.raises(WireError, match="cannot be decompressed"):
        decode([with_header("update", size=2000, zstd=True)[0], frame])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(MESSAGES)),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3000), st.integers(0, 255)), max_size=6),
    st.integers(0, 400),
)
def test_what_is_damaged_is_refused_or_still_a_message(
    name: str, places: list[tuple[int, int, int]], cut: int
) -> None:
    frames = [bytearray(frame) for frame in encode(MESSAGES[name])]
    for frame, at, value in places:
        target = frames[frame % len(frames)]
        target[at % len(target)] = value
    if cut and cut < len(frames[-1]):
        del frames[-1][-cut:]
    only_wire_errors([bytes(frame) for frame in frames])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_noise_is_refused(frames: list[bytes]) -> None:
    only_wire_errors(frames)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_any_value_in_any_field(name: str, data: st.DataObject) -> None:
    frames = encode(MESSAGES[name])
    header = msgpack.unpackb(frames[0])
    header[data.draw(st.sampled_from(sorted(header)))] = data.draw(JUNK)
    body = [msgpack.packb(data.draw(JUNK))] if len(frames) == 2 and data.draw(st.booleans()) else frames[1:]
    only_wire_errors([msgpack.packb(header), *body])


def only_wire_errors(frames: list[bytes]) -> None:
    try:
        message = decode(frames)
    except WireError as e:
        assert str(e)
    else:
        assert decode(encode(message)) == message


def test_a_type_that_does_not_belong_here_is_refused() -> None:
    with pytest.raises(WireError, match="does not belong here"):
        decode(encode(MESSAGES["ask"]), (Heartbeat, Update))


def test_clean_text_can_be_sent() -> None:
    reason = wire.clean("a\tb\x00\nc\u2028\ud800" + "x" * 9000)
    assert reason.startswith("a?b?\nc??x")
    assert decode(encode(Refused(reason=reason))) == Refused(reason=reason)


def test_a_snapshot_comes_back_as_the_same_rows() -> None:
    rows = Rows.of({"routes": {f"mesh host-{i}": b"x" * i for i in range(300)}})
    message = Snapshot(epoch=1, version=1, hash=rows.hash, rows=rows.tables)
    read = decode(encode(message))
    assert isinstance(read, Snapshot)
    assert Rows.of(read.rows).hash == rows.hash


@pytest.mark.parametrize("kind", wire.TYPES.values(), ids=list(wire.TYPES))
def test_the_document_has_every_field(kind: type[Any]) -> None:
    text = DOCUMENT.read_text()
    section = text.split(f"\n### `{kind.t}` ")[1].split("\n### ")[0].split("\n## ")[0]
    for field in fields(kind):
        if "body" not in field.metadata:
            assert f"`{field.name}`" in section, field.name


if __name__ == "__main__":  # writes the vectors anew; their diff is a change of the protocol
    VECTORS.write_text(json.dumps(golden(), indent=1) + "\n")
