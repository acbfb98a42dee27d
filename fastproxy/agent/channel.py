"""A SOCK_SEQPACKET Unix socket on the loop: whole packets both ways, descriptors beside them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

PACKET = 16 * 1024  # the longest answer we read
MAX_FDS = 4

OnPacket = Callable[[str, list[int]], None]


class Channel:
    """Packets go out at once or, when the other side does not read, wait in order. It owns its socket.

    ``on_packet(text, descriptors)`` is called for each packet that arrives, and owns the descriptors;
    ``on_end()`` once, when the other side is gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_packet: OnPacket,
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_packet = on_packet
        self._on_end = on_end
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self.closed = False
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._on_readable)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"open, {len(self._waiting)} waiting"
        return f"<Channel {state}>"

    def send(self, text: str, fds: Sequence[int] = ()) -> None:
        """Send one packet. The descriptors stay the caller's. To a closed channel: nothing."""
        if self.closed:
            return
        data = text.encode()
        if not self._waiting and self._try_send(data, fds):
            return
        if self.closed:
            return
        if not self._waiting:
            self._loop.add_writer(self._sock.fileno(), self._on_writable)
        self._waiting.append((data, [os.dup(fd) for fd in fds]))

    def close(self) -> None:
        """Forget everything and close the socket; ``on_end`` is not called."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _data, fds in self._waiting:
            _close_all(fds)
        self._waiting.clear()

    def _try_send(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            socket.send_fds(self._sock, [data], fds)
        except BlockingIOError:
            return False
        except ConnectionError:
            self._end()
        return True

    def _on_writable(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            if not self._try_send(data, fds):
                return
            if self.closed:
                return
            self._waiting.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._sock.fileno())

    def _on_readable(self) -> None:
        while not self.closed:
            try:
                data, fds, _flags, _address = socket.recv_fds(
                    self._sock, PACKET, MAX_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                _close_all(fds)
                self._end()
                return
            self._on_packet(data.decode(errors="replace"), fds)

    def _end(self) -> None:
        if not self.closed:
            self.close()
            self._on_end()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
