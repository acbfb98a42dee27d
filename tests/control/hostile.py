"""Somebody who speaks ZMTP 3.0 by hand and keeps to nothing: frames, messages, connections to attack with."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

from fastproxy.rows import HASH_BYTES, Changes
from fastproxy.wire import (
    PROTOCOL,
    SERVING,
    Announce,
    Answer,
    Answers,
    Ask,
    Attributes,
    Heartbeat,
    Message,
    Refused,
    Report,
    Snapshot,
    Update,
    encode,
)

GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\0" + b"NULL".ljust(20, b"\0") + b"\0" * 32
HASH = b"h" * HASH_BYTES


class Raw:
    """One connection. ``kind``: the socket type that it says it is; "": it says nothing at all."""

    def __init__(self, port: int, kind: str = "") -> None:
        self.port, self.kind = port, kind
        self.again = 0  # times that it was cut off and came again
        self._open()

    def _open(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        self.socket.settimeout(2)
        if self.kind:
            ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(self.kind)) + self.kind.encode()
            self.raw(GREETING + bytes([4, len(ready)]) + ready)

    def send(self, *messages: Sequence[bytes]) -> bool:
        """Whole messages; False: we were cut off, or nobody reads."""
        return self.raw(b"".join(map(message_bytes, messages)))

    def insist(self, frames: Sequence[bytes]) -> None:
        """Send it, on a new connection where the old one was cut."""
        if not self.send(frames):
            self.again += 1
            self.close(0)
            self._open()
            self.send(frames)

    def raw(self, data: bytes) -> bool:
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def close(self, seconds: float = 2.0) -> None:
        """Wait until all that was sent has been read: ZeroMQ forgets what waits on a connection that is
        reset."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            while self.kind and time.monotonic() < deadline and self.socket.recv(65536):
                continue
        self.socket.close()


def message_bytes(frames: Sequence[bytes]) -> bytes:
    """ZMTP 3.0: flags (1 more, 2 long), length, bytes."""
    out = []
    for place, frame in enumerate(frames):
        more = place < len(frames) - 1
        long = len(frame) > 255
        size = struct.pack(">Q", len(frame)) if long else bytes([len(frame)])
        out.append(bytes([more | long << 1]) + size + frame)
    return b"".join(out)


@contextlib.contextmanager
def raw(port: int, kind: str = "") -> Iterator[Raw]:
    connection = Raw(port, kind)
    try:
        yield connection
    finally:
        connection.close()


def every_message(node: str = "mallory") -> list[Message]:
    """One of each type, all of them well formed."""
    here = Attributes.of("default", {"a": "b"}, True)
    answer = Answer(node, 1, 1, HASH, SERVING, 1, 1, 1, "")
    more: dict[str, Any] = {"epoch": 1, "version": 9, "hash": HASH}
    return [
        Announce(server="evil", snapshot_port=1, answer_port=2, heartbeat_ms=1, report_ms=1),
        Heartbeat(decided=9, **more),
        Update(prev_version=8, prev_hash=HASH, changes=Changes({"routes": {"a": b"\1"}}), **more),
        Snapshot(rows={"routes": {"a": b"\1" * 2000}}, **more),
        Ask(node=node, attributes=here, id=1),
        Refused(reason="no"),
        Answers(answers=[answer, answer]),
        Report(node=node, attributes=here, state="LIVE"),
    ]


def mutations(rng: random.Random, frames: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The message truncated, flipped, repeated, reordered, too long, and with each field of a wrong type."""
    frames = list(frames)
    for place, frame in enumerate(frames):
        for end in sorted({0, 1, len(frame) // 2, len(frame) - 1}):
            yield [*frames[:place], frame[:end], *frames[place + 1 :]]
        for _ in range(8):
            changed = bytearray(frame)
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            yield [*frames[:place], bytes(changed), *frames[place + 1 :]]
        yield [*frames[:place], frame + frame, *frames[place + 1 :]]
        yield [*frames[:place], frame + b"\0" * 70_000, *frames[place + 1 :]]
    yield list(reversed(frames))
    for count in (0, 3, 7, 8, 9, 30):
        yield (frames * 30)[: max(count, 1)] if count else [b""]
    header = msgpack.unpackb(frames[0])
    for key in header:
        for wrong in (None, -1, 1 << 63, 1.5, "x" * 5000, b"\xff" * 40, [], [[[]]] * 50, {"a": {}}, True):
            yield [msgpack.packb({**header, key: wrong}), *frames[1:]]
        yield [msgpack.packb({k: v for k, v in header.items() if k != key}), *frames[1:]]
    yield [msgpack.packb({**header, "t": "nonsense"}), *frames[1:]]
    yield [b"\x91" * 60_000, *frames[1:]]  # arrays in arrays
    yield [b"\xdf\xff\xff\xff\xff", *frames[1:]]  # a map that says it is huge
    yield [msgpack.packb({**header, "protocol": PROTOCOL + 1}), *frames[1:]]


def noise(rng: random.Random, count: int) -> Iterator[list[bytes]]:
    """Messages of anything."""
    for _ in range(count):
        yield [rng.randbytes(rng.choice((0, 1, 5, 40, 300, 2000))) for _ in range(rng.randint(1, 5))]


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def encoded(node: str = "mallory") -> list[list[bytes]]:
    return [encode(message) for message in every_message(node)]
