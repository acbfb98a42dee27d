"""Who may connect: the allow list, asked by ZeroMQ for every connection, by the publisher for every message.

ZeroMQ hands each CURVE handshake to ``inproc://zeromq.zap.01`` (ZAP, https://rfc.zeromq.org/spec/27). An
:class:`Authority` answers there from the allow list of ``ctrl.keys``; the key becomes the ``User-Id`` of
every message of that connection (:func:`user_of`).

The list may change at any time. Handshakes and :meth:`Authority.name_of` know at once. What a connection that
stands already may still *hear*, on a publish socket, ends with :meth:`Authority.protect`: when a key is taken
away, all connections of that socket are cut; who is still allowed comes back within a second and lost nothing
that the next heartbeat does not show.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket as system
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from ctrl.keys import Allowed, read_allow
from fastproxy.keys import NODE, RELAY, KeyError_, Stamp, stamp
from fastproxy.sockets import Readable

DOMAIN = "fastproxy"  # ZAP domain of the sockets that ask us
ENDPOINT = "inproc://zeromq.zap.01"
ON_NODE_SOCKETS = (NODE, RELAY)
LOOK = 1.0  # seconds between two looks at the file when nothing happens
LOOK_FOR_MESSAGES = 0.1  # and at least, when messages come
REBIND = 0.01  # seconds between two tries
LINES_A_MINUTE = 30  # of the log, for refusals; the same one is written once in that time
MAX_SAID = 1000  # refusals that are remembered for it

OnRefused = Callable[[str, str, str], None]  # address, key or name, why

_log = logging.getLogger("fastproxyctl")
_WATCHED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_CRYPTOGRAPHIC = 0x11000001  # ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
_MECHANISM = 0x11000002  # ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH


def user_of(frame: zmq.Frame) -> str:
    """The public key (Z85) behind a frame that was received with ``copy=False``; "" without CURVE, and for
    what ZeroMQ made itself, as the unsubscriptions of a connection that ended."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


class Authority:
    """See the module. Raises KeyError_ when the allow list cannot be read.

    A publisher calls :meth:`start` with its context before it binds, opens its sockets with ``zap_domain=
    authority.domain``, calls :meth:`protect` for each of them, and asks :meth:`name_of` for every message:
    None means that the key has been revoked since, and the message is refused.

    on_refused(address, key or name, why): for every refusal; who lists them must bound the list.
    """

    domain = DOMAIN

    def __init__(self, allow: str | os.PathLike[str], on_refused: OnRefused | None = None) -> None:
        self.allow = Path(allow)
        self.on_refused = on_refused
        self.refused = 0
        self.problems: list[str] = []  # what is wrong with the list; what is right in it counts
        self._entries: dict[str, Allowed] = {}
        self._seen: Stamp | None = None
        self._looked = float("-inf")
        self._lines = float(LINES_A_MINUTE)
        self._lines_at = time.monotonic()
        self._unsaid = 0
        self._said: dict[tuple[str, str, str], float] = {}
        self._zap: Readable | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._doors: list[_Door] = []
        self._entries = self._read()

    def __repr__(self) -> str:
        return f"<Authority {self.allow}: {len(self._entries)} keys, {self.refused} refused>"

    # --- life ---

    def start(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Answer for all sockets of this context, on the running loop. A context has one authority."""
        loop = asyncio.get_running_loop()
        answers = context.socket(zmq.REP)
        answers.linger = 0
        try:
            answers.bind(ENDPOINT)
        except zmq.ZMQError:
            answers.close()
            raise
        self._zap = Readable(loop, answers, self._on_request)
        self._timer = loop.call_later(LOOK, self._on_timer)

    def close(self) -> None:
        """May be called twice. Handshakes fail from now on."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        for door in self._doors:
            door.close()
        self._doors = []
        if self._zap:
            self._zap.close()
            self._zap = None

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """``socket`` is bound: tell of handshakes that fail there, and cut its connections when a key is
        revoked. To be called once; before the socket is closed: :meth:`release` or :meth:`close`."""
        self._doors.append(_Door(self, socket))

    def release(self, socket: zmq.Socket[bytes]) -> None:
        """The end of :meth:`protect`; nothing where there was none."""
        for door in [door for door in self._doors if door.socket is socket]:
            door.close()
            self._doors.remove(door)

    # --- questions ---

    def name_of(self, key: str | bytes) -> tuple[str, str] | None:
        """(name, role) of a public key (Z85); None: it is not allowed, or not any more."""
        self._look(LOOK_FOR_MESSAGES)
        entry = self._entries.get(key.decode("latin-1") if isinstance(key, bytes) else key)
        return (entry.name, entry.role) if entry and entry.role in ON_NODE_SOCKETS else None

    def refuse(self, address: str, who: str, why: str) -> None:
        """Count and tell a refusal; the publisher's own ones come here too."""
        self.refused += 1
        address = address.removeprefix("::ffff:")
        self._write(address, who, why)
        if self.on_refused:
            self.on_refused(address, who, why)

    def _write(self, address: str, who: str, why: str) -> None:
        now = time.monotonic()
        self._lines = min(LINES_A_MINUTE, self._lines + (now - self._lines_at) * LINES_A_MINUTE / 60)
        self._lines_at = now
        about = (
            address.rpartition(":")[0] or address,
            who,
            why,
        )  # a client comes from another port each time
        again = now - self._said.get(about, float("-inf")) < 60
        if again or self._lines < 1:
            self._unsaid += 1
            return
        if len(self._said) >= MAX_SAID:
            self._said.clear()
        self._said[about] = now
        self._lines -= 1
        more = f" ({self._unsaid} more refusals since the last line)" if self._unsaid else ""
        self._unsaid = 0
        _log.warning("refused %s (%s): %s%s", address, who or "no key", why, more)

    # --- ZAP ---

    def _on_request(self, frames: list[bytes]) -> None:
        """Version, request, domain, address, identity, mechanism, credentials: answered, whatever it is."""
        request = frames[1] if len(frames) > 1 else b""
        address = frames[3].decode("utf-8", "replace") if len(frames) > 3 else ""
        key, why = "", ""
        if len(frames) != 7 or frames[0] != b"1.0" or frames[5] != b"CURVE" or len(frames[6]) != 32:
            why = "connects without a CURVE key"
        elif frames[2] != DOMAIN.encode():
            why = f"asks for the domain {frames[2][:40]!r}"
        else:
            key = z85.encode(frames[6]).decode()
            self._look(0)
            entry = self._entries.get(key)
            if entry is None:
                why = f"its key is not in {self.allow.name}: it was never allowed, or it was revoked"
            elif entry.role not in ON_NODE_SOCKETS:
                why = f"the key of {entry.name} is of role {entry.role}, which uses the HTTP API"
        status = [b"400", b"refused", b""] if why else [b"200", b"", key.encode()]
        assert self._zap
        self._zap.send([b"1.0", request, *status, b""])
        if why:
            self.refuse(address, key, why)

    # --- the list ---

    def _on_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._on_timer)
        self._look(0)

    def _look(self, age: float) -> None:
        """Read the list again when it has changed, looking at most every ``age`` seconds."""
        now = time.monotonic()
        if now - self._looked < age:
            return
        if stamp(self.allow) == self._seen:
            self._looked = now
            return
        before = self._entries
        try:
            self._entries = self._read()
        except KeyError_ as e:  # nobody is locked out by half an edit; what was revoked stays so
            self._looked = now
            self._complain([f"{e}; the list as it was before goes on"])
            return
        gone = [entry for key, entry in before.items() if self._entries.get(key) != entry]
        if gone:
            _log.warning("revoked: %s", ", ".join(sorted(f"{e.role} {e.name}" for e in gone)[:20]))
            for door in self._doors:
                door.cut()

    def _read(self) -> dict[str, Allowed]:
        seen = stamp(self.allow)  # before: a change meanwhile is then seen next time
        entries, problems = read_allow(self.allow)
        self._seen, self._looked = seen, time.monotonic()
        self._complain(problems)
        return {entry.public: entry for entry in entries}

    def _complain(self, problems: list[str]) -> None:
        if problems != self.problems:
            self.problems = problems
            for problem in problems[:20]:
                _log.warning("%s", problem)


class _Door:
    """One bound socket: who fails to come in, and how all are put out."""

    def __init__(self, authority: Authority, socket: zmq.Socket[bytes]) -> None:
        self.authority = authority
        self.socket = socket
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._addresses: dict[int, str] = {}  # of open descriptors
        self._failed = ""
        events = socket.context.socket(zmq.PAIR)
        events.setsockopt(zmq.RCVHWM, 0)  # else a full queue would stop ZeroMQ's own thread
        events.linger = 0
        name = f"inproc://fastproxy.door.{id(self)}"
        socket.monitor(name, _WATCHED)
        events.connect(name)
        self._monitor = Readable(self._loop, events, self._on_event)

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        with contextlib.suppress(zmq.ZMQError):
            self.socket.disable_monitor()
        self._monitor.close()

    def cut(self) -> None:
        """ZeroMQ has no word for ending one connection, but unbinding ends all that were accepted there."""
        if self._timer is None:
            self.socket.unbind(self.endpoint)
            self._bind(0)

    def _bind(self, tries: int) -> None:
        self._timer = None
        try:
            self.socket.bind(self.endpoint)
        except zmq.ZMQError as e:  # the old descriptor is closed by another thread, a moment later
            if tries % 100 == 99:
                _log.error("%s cannot be bound again: %s; it is tried on", self.endpoint, e)
            self._timer = self._loop.call_later(REBIND, self._bind, tries + 1)

    def _on_event(self, frames: list[bytes]) -> None:
        """What fails is followed by the end of its descriptor, which tells its address."""
        told = parse_monitor_message(frames)
        event, value = told["event"], int(told["value"])
        if event == zmq.EVENT_ACCEPTED:
            self._addresses[value] = _address_of(value)
        elif event == zmq.EVENT_DISCONNECTED:
            address = self._addresses.pop(value, "unknown address")
            if self._failed:
                self.authority.refuse(address, "", self._failed)
                self._failed = ""
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _CRYPTOGRAPHIC:
            self._failed = "it has another key for this server than ours"
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value != _MECHANISM:
            self._failed = f"what it sends is not CURVE's handshake (ZeroMQ's error {value:#x})"
        elif event in (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL):
            self._failed = "it broke off the handshake: it has no key, or it is no proxy"


def _address_of(descriptor: int) -> str:
    """Only for the log: by now the descriptor may be closed, or another connection's."""
    try:
        connection = system.socket(fileno=descriptor)
    except (OSError, ValueError):
        return "unknown address"
    try:
        name = connection.getpeername()
    except OSError:
        return "unknown address"
    finally:
        connection.detach()  # it is ZeroMQ's to close
    return f"{name[0].removeprefix('::ffff:')}:{name[1]}" if isinstance(name, tuple) else "local socket"
