"""ZeroMQ sockets as the control protocol wants them, at both ends: every limit set, and on asyncio's loop.

Not ``zmq.asyncio``: it keeps a future and a timer for every message, which a thousand links in one process
feel. :class:`Readable` is the part of it that is needed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import zmq

if TYPE_CHECKING:
    from fastproxy.keys import Curve

BATCH = 64  # messages of one socket in one turn of the loop
MAX_FRAMES = 8  # of one message; more are read and thrown away
_POLLIN = int(zmq.POLLIN)
MAX_SOCKETS = 16_384  # of one context; ZeroMQ's own default is 1,023
TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[\w.*-]+):(?P<port>[0-9]{1,5}|\*)\Z", re.ASCII)
IPC = re.compile(r"ipc://(?P<path>[^\0\s]{1,100})\Z")


def make_context(io_threads: int = 1) -> zmq.Context[zmq.Socket[bytes]]:
    """A context for many links. It may be shared by all of a process; who made it ends it."""
    context = zmq.Context(io_threads)
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    context.set(zmq.IPV6, 1)
    return context


def open_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    *,
    curve: Curve | None = None,
    zap_domain: str = "",
    max_message: int = 1024 * 1024,
    queue: int = 1000,
) -> zmq.Socket[bytes]:
    """A socket that waits for nothing when it is closed, notices a dead peer, and bounds what it takes.

    max_message: bytes of one frame; a peer that sends more is cut off. queue: messages that wait in each
    direction per peer. curve: CURVE keys; with ``curve.server`` empty we are the server. zap_domain: who
    connects is asked about there (ZAP, RFC 27).
    """
    socket = context.socket(kind)
    try:
        _set_options(socket, curve, zap_domain, max_message, queue)
    except BaseException:  # out of descriptors, or no key: nobody else would close it
        socket.close(0)
        raise
    return socket


def _set_options(
    socket: zmq.Socket[bytes], curve: Curve | None, zap_domain: str, max_message: int, queue: int
) -> None:
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, max_message),
        (zmq.SNDHWM, queue),
        (zmq.RCVHWM, queue),
        (zmq.BACKLOG, 4096),
        (zmq.IPV6, 1),
        (zmq.HANDSHAKE_IVL, 10_000),
        (zmq.CONNECT_TIMEOUT, 5_000),
        (zmq.RECONNECT_IVL, 100),
        (zmq.RECONNECT_IVL_MAX, 3_000),
        # not ZMTP's heartbeats: a process that was stopped for longer than their timeout while messages came
        # ends by an assertion of libzmq 4.3.5; ours do, and TCP's
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, 60),
        (zmq.TCP_KEEPALIVE_INTVL, 10),
        (zmq.TCP_KEEPALIVE_CNT, 3),
    ):
        socket.setsockopt(option, value)
    if curve is not None:
        socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public)
        if curve.server:
            socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server)
        else:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
    if zap_domain:
        socket.setsockopt_string(zmq.ZAP_DOMAIN, zap_domain)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # else nobody to ask means that everybody may come in


class Readable:
    """A socket whose messages come from the loop, each as its list of frames.

    ZeroMQ's descriptor is edge-triggered: it says only that something happened, and a send or a receive may
    take that word away. So it is read until there is nothing more, :data:`BATCH` messages at a time, and
    looked at again after every :meth:`send`. Mostly one message comes alone: then asking whether there is
    another costs less than the exception that says there is none.
    """

    __slots__ = ("_closed", "_descriptor", "_loop", "_next", "_on_frames", "socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: zmq.Socket[bytes],
        on_frames: Callable[[list[bytes]], None],
    ) -> None:
        self.socket = socket
        self._loop = loop
        self._on_frames = on_frames
        self._closed = False
        try:
            self._descriptor = cast(int, socket.getsockopt(zmq.FD))
            loop.add_reader(self._descriptor, self._turn)
        except BaseException:  # who asked for it has no other hold of the socket
            socket.close(0)
            raise
        self._next: asyncio.Handle | None = loop.call_soon(self._turn)

    def send(self, frames: Sequence[bytes]) -> bool:
        """Now or never: False where the queue is full or nobody is there to take it. Nothing waits."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError):
            return False
        finally:
            self.look_again()
        return True

    def look_again(self) -> None:
        """After every use of the socket that is not ours."""
        if self._next is None and self._more():
            self._next = self._loop.call_soon(self._turn)

    def close(self) -> None:
        """And the socket. May be called twice, and from ``on_frames``."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._descriptor)
        if self._next is not None:
            self._next.cancel()
        self.socket.close(0)

    def _turn(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        left, empty = BATCH, False
        try:
            while left and not self._closed:
                if not self._take() or (left == BATCH and not self._more()):
                    empty = True
                    break
                left -= 1
        finally:
            if not empty and not self._closed and self._next is None:
                self._next = self._loop.call_soon(self._turn)

    def _more(self) -> bool:
        return not self._closed and bool(cast(int, self.socket.getsockopt(zmq.EVENTS)) & _POLLIN)

    def _take(self) -> bool:
        """The next message; False: there is none."""
        frames = [frame.bytes for frame in receive(self.socket)]
        if frames:
            self._on_frames(frames)
        return bool(frames)


def receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """The next message, without waiting; [] where there is none. Of its frames at most MAX_FRAMES + 1."""
    try:
        frames = [socket.recv(zmq.NOBLOCK, copy=False)]
        while frames[-1].more:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            if len(frames) > MAX_FRAMES:
                frames[-1] = frame
            else:
                frames.append(frame)
    except zmq.ZMQError:
        return []
    return frames


# --- addresses ---


def check_address(address: str) -> str:
    """The address of a publish socket to connect to: ``tcp://HOST:PORT`` or ``ipc://PATH``.

    Raises ValueError.
    """
    found = TCP.match(address)
    if found and found["port"] != "*" and 0 < int(found["port"]) < 65536 and "*" not in found["host"]:
        return address
    if IPC.match(address):
        return address
    raise ValueError(f"{address!r} is no address of a publisher: tcp://HOST:PORT or ipc://PATH is wanted")


def loopback(address: str) -> bool:
    """Whether nobody outside this machine can be at the other end: a loopback address, or a Unix socket."""
    if IPC.match(address):
        return True
    found = TCP.match(address)
    if not found:
        return False
    host = found["host"].strip("[]")
    if host == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name: who knows where it leads
    mapped = getattr(ip, "ipv4_mapped", None)  # as ZeroMQ writes 127.0.0.1 once IPv6 is allowed
    return (mapped or ip).is_loopback


def bound_port(socket: zmq.Socket[bytes]) -> int:
    """The TCP port that a socket was bound to; 0 where it is none."""
    found = TCP.match(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    return int(found["port"]) if found else 0


def lane_address(publish: str, port: int) -> str:
    """Where the lane with this announced port is, for who reached the publish socket at ``publish``.

    Over TCP it is the same host; beside a Unix socket ``ipc://PATH`` it is ``ipc://PATH.<port>``.
    """
    found = TCP.match(publish)
    return f"tcp://{found['host']}:{port}" if found else f"{publish}.{port}"
