"""The listening sockets. The agent owns them, so that they outlive every worker."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from fastproxy.tables import Listener

BACKLOG = 4096  # the kernel bounds it by net.core.somaxconn
UNIX_PREFIX = "unix://"
UNIX_PATH_MAX = 107  # sockaddr_un.sun_path without its final zero
TRAFFIC_MODE = 0o666  # as open as a TCP port
ADMIN_MODE = 0o600


class ListenError(Exception):
    """``what`` went wrong and what to ``do``."""

    def __init__(self, what: str, do: str) -> None:
        super().__init__(f"{what}; {do}")
        self.what, self.do = what, do


def listen_tcp(address: str, port: int) -> socket.socket:
    """A listening TCP socket. ``::`` is IPv6 only, so that ``0.0.0.0`` may stand beside it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what is accepted
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except (OSError, OverflowError, UnicodeError) as e:
        sock.close()
        raise _explain(e, join(address, port)) from None
    return sock


def listen_unix(path: str, mode: int = TRAFFIC_MODE) -> socket.socket:
    """A listening Unix socket. A file that nobody listens on is replaced. ``@name`` is an abstract one."""
    name = "\0" + path[1:] if path.startswith("@") else path
    where = UNIX_PREFIX + path
    if not path or len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise ListenError(f"{where} is not a socket path", f"use 1 to {UNIX_PATH_MAX} bytes")
    if not path.startswith("@"):
        _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(name)
        if not path.startswith("@"):
            os.chmod(path, mode)
        sock.listen(BACKLOG)
    except (OSError, ValueError) as e:
        sock.close()
        raise _explain(e, where) from None
    return sock


def _clear_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ListenError(f"{path} exists and is not a socket", "move it away or choose another path")
    except FileNotFoundError:
        return
    except OSError as e:
        raise _explain(e, UNIX_PREFIX + path) from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError as e:
            if e.errno != errno.EAGAIN:
                raise _explain(e, UNIX_PREFIX + path) from None
    raise ListenError(f"{UNIX_PREFIX}{path} is in use by another program", "stop it or choose another path")


def _explain(e: Exception, where: str) -> ListenError:
    number = e.errno if isinstance(e, OSError) else None
    if number == errno.EADDRINUSE:
        return ListenError(f"{where} is in use by another program", "stop it or choose another port")
    if number == errno.EADDRNOTAVAIL:
        return ListenError(f"{where} is not an address of this machine", "bind to one it has, or to 0.0.0.0")
    if number in (errno.EACCES, errno.EPERM):
        return ListenError(
            f"{where} may not be bound by this user", "choose a port above 1023 or grant the right"
        )
    text = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
    return ListenError(f"{where} cannot be bound: {text}", "check the address")


def join(address: str, port: int) -> str:
    """``127.0.0.1:80``, ``[::1]:80``."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(slots=True)
class Open:
    """One open listener. ``inode`` tells our socket file from one that took its place."""

    row: Listener
    sock: socket.socket
    inode: int = 0

    def close(self) -> None:
        self.sock.close()
        path = unix_path(self.row["address"])
        if path and not path.startswith("@"):
            remove_socket_file(path, self.inode)


def unix_path(address: str) -> str:
    """The path of ``unix:///path``, or nothing for another address."""
    return address.removeprefix(UNIX_PREFIX) if address.startswith(UNIX_PREFIX) else ""


def inode_of(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0


def remove_socket_file(path: str, inode: int) -> None:
    """Unlink a socket file while it is still the one we made."""
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except OSError:
        return


class Listeners:
    """What is open now, by the key of the ``listeners`` table, and why the rest is not."""

    def __init__(self) -> None:
        self.open: dict[str, Open] = {}
        self.errors: dict[str, ListenError] = {}
        self._ended = False

    def __repr__(self) -> str:
        return f"<Listeners: {len(self.open)} open, {len(self.errors)} failed>"

    def leaving(self, table: Mapping[str, Listener]) -> list[str]:
        """Names that are open now and must not be with this table, or not in this place."""
        return [n for n, o in self.open.items() if n not in table or _place(table[n]) != _place(o.row)]

    def close(self, name: str) -> None:
        self.open.pop(name).close()

    def add(self, table: Mapping[str, Listener]) -> dict[str, socket.socket]:
        """Open what the table has and is not open; the new sockets. Failures are in ``errors``."""
        self.errors = {}
        opened: dict[str, socket.socket] = {}
        if self._ended:
            return opened
        for name, row in table.items():
            if name in self.open:
                continue
            path = unix_path(row["address"])
            try:
                sock = listen_unix(path) if path else listen_tcp(row["address"], row["port"])
            except ListenError as e:
                self.errors[name] = e
                continue
            self.open[name] = Open(row, sock, inode_of(path) if path else 0)
            opened[name] = sock
        return opened

    def close_all(self) -> None:
        """For good: a version that comes while the workers drain must not open a port that nobody serves."""
        self._ended = True
        for name in list(self.open):
            self.close(name)


def _place(row: Listener) -> tuple[str, int]:
    return row["address"], row["port"]
