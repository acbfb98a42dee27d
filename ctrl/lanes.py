"""The serving half of the control protocol's sockets: what the publisher and a relay bind.

A Lane is read with the metadata that ZeroMQ keeps of each peer (its address and, under CURVE, its key), and
sends large bodies without copying them: a snapshot that a thousand proxies wait for is one object.
"""

from __future__ import annotations

import asyncio
import socket as system
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import zmq

from fastproxy.sockets import Readable, bound_port, loopback, open_socket, receive
from fastproxy.wire import MAX_HEADER, MAX_REPORT

if TYPE_CHECKING:
    from fastproxy.keys import Curve

DOMAIN = "fastproxy"  # of ZAP: see ctrl.zap
COPY_BELOW = 1024  # bytes; a copy is cheaper than sharing
MAX_SUBSCRIPTION = 1024
MAX_ASK = MAX_HEADER + 1024
MAX_ANSWERS = MAX_REPORT + 1024
SUBSCRIPTIONS, SUBSCRIPTIONS_A_SECOND = 100, 0.5  # at once and later, of one connection: a proxy makes two

OnMessage = Callable[["Peer", list[bytes]], None]


class Peer:
    """Who sent a message: its address and, under CURVE, its public key (Z85)."""

    __slots__ = ("_frame", "address", "key")

    def __init__(self, frame: zmq.Frame) -> None:
        self.address = _told(frame, "Peer-Address").removeprefix("::ffff:")
        self.key = _told(frame, "User-Id").encode()
        self._frame = frame

    @property
    def descriptor(self) -> int:
        """Of its connection; -1 where ZeroMQ made the message itself. It may be closed, or another's, by
        now."""
        try:
            return int(self._frame.get(zmq.SRCFD))
        except (zmq.ZMQError, TypeError, ValueError):
            return -1

    def cut(self, port: int) -> None:
        """End its connection to the socket bound to ``port``. ZeroMQ has no word for that.

        Should the descriptor belong to another connection by now, that one is made anew by its owner.
        """
        try:
            connection = system.socket(fileno=self.descriptor)
        except (OSError, ValueError):  # it is closed, or no socket
            return
        try:
            if connection.getsockname()[1] == port:
                connection.shutdown(system.SHUT_RDWR)
        except (OSError, IndexError):
            return
        finally:
            connection.detach()  # it is ZeroMQ's to close


class Pace:
    """How often each connection may do something: ``burst`` at once, then ``a_second``."""

    __slots__ = ("_a_second", "_burst", "_left")

    def __init__(self, burst: float, a_second: float) -> None:
        self._burst = burst
        self._a_second = a_second
        self._left: dict[int, tuple[float, float]] = {}  # there are only so many descriptors

    def take(self, descriptor: int) -> bool:
        """Whether it may once more."""
        now = time.monotonic()
        left, since = self._left.get(descriptor, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._a_second)
        self._left[descriptor] = (max(left - 1, 0), now)
        return left >= 1


def _told(frame: zmq.Frame, name: str) -> str:
    try:
        return str(frame.get(name) or "")
    except (zmq.ZMQError, UnicodeDecodeError):
        return ""


class Lane(Readable):
    """A bound socket. ``on_frames`` gets who sent it and its frames, at most MAX_FRAMES + 1 of them."""

    __slots__ = ("_on_message",)

    def __init__(
        self, loop: asyncio.AbstractEventLoop, socket: zmq.Socket[bytes], on_message: OnMessage
    ) -> None:
        socket.copy_threshold = COPY_BELOW
        self._on_message = on_message
        super().__init__(loop, socket, lambda _: None)

    def send(self, frames: Sequence[Any]) -> bool:
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.ZMQError:
            return False
        finally:
            self.look_again()
        return True

    def _take(self) -> bool:
        frames = receive(self.socket)
        if frames:
            self._on_message(Peer(frames[0]), [frame.bytes for frame in frames])
        return bool(frames)


def bind(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind and return the address, with the port that was taken for ``*``.

    Raises OSError with a sentence.
    """
    try:
        socket.bind(address)
    except zmq.ZMQError as e:
        socket.close(0)
        raise OSError(e.errno, f"cannot bind {address}: {e.strerror}") from None
    return at_port(address, bound_port(socket))


def at_port(address: str, port: int) -> str:
    """The same host, another port; 0: whichever is free."""
    return f"{address.rpartition(':')[0]}:{port or '*'}"


def open_lane(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    curve: Curve | None,
    *,
    most: int,
    queue: int,
    heard: int,
) -> zmq.Socket[bytes]:
    """A socket to bind; whoever connects is asked about at the allow list when there are keys.

    most: bytes of a message that is heard. queue, heard: messages that wait for one peer, and of it. Few of
    the latter: who sends more waits. XPUB takes all that wait in one go, without a limit but this.
    """
    socket = open_socket(
        context,
        kind,
        curve=curve,
        zap_domain=DOMAIN if curve else "",
        max_message=most,
        queue=queue,
    )
    socket.setsockopt(zmq.RCVHWM, heard)
    return socket


def check_bind(address: str, keys: bool) -> int:
    """The port of an address to publish at. Raises ValueError: it is none, or without keys somebody outside
    this machine would be served."""
    host, _, port = address.rpartition(":")
    if not host.startswith("tcp://") or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is no address to publish at: tcp://HOST:PORT is wanted")
    if not keys and not loopback(address):
        raise ValueError(
            f"{address} can be reached from outside this machine: that needs keys (fastproxyctl keys), "
            "or publish at tcp://127.0.0.1"
        )
    return int(port)
