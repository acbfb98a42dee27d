"""``fastproxyctl serve``: store, publisher and HTTP API in one process, on one loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

from ctrl.api import create_api
from ctrl.keys import server_key
from ctrl.plane import Plane
from ctrl.store import open_store
from ctrl.tokens import Tokens
from ctrl.zap import Authority

RECEIVE_SECONDS = 60.0  # first byte of a request, or the connection, to the request's end
SEND_SECONDS = 30.0  # in which somebody who is sent something must read a part of it
IDLE_SECONDS = 75
END_SECONDS = 5  # that answers have after SIGTERM
CONNECTIONS = 1000
GATHER_SECONDS = 5.0  # after a restart: ZeroMQ tries again every 3 s at the latest
LAPSE_SECONDS, LAPSE_BEATS = 3.0, 10  # without a word from who drives a rollout, until it counts as dead


@dataclass(frozen=True, slots=True)
class Options:
    """What ``fastproxyctl serve`` was asked for. Times in seconds; keys: a folder, tokens: a file."""

    store: str = "sqlite:///fastproxy.db"
    publish: str = "tcp://127.0.0.1:9910"
    api: str = "127.0.0.1:9900"
    keys: str = ""
    tokens: str = ""
    heartbeat: float = 1.0
    report: float = 5.0
    keep: int = 1000
    name: str = ""
    new_epoch: bool = False


async def serve(options: Options) -> int:
    """Until SIGTERM or SIGINT; the exit code is 0 then.

    Raises ValueError for options and key files that cannot be, OSError when an address is in use, StoreError
    when the store cannot be opened.
    """
    logging.basicConfig(format="fastproxyctl: %(message)s", level=logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what goes wrong is told by ctrl.api_access
    tokens = Tokens.load(options.tokens) if options.tokens else None
    with listen(options.api, tokens is not None) as listener:
        plane = make_plane(options)
        await _start(plane, options)
        try:
            app = create_api(plane, tokens)
            await _serve(app, listener, plane)
        finally:
            await plane.close()
    return 0


def make_plane(options: Options) -> Plane:
    """Not started yet. Raises ValueError."""
    secured: dict[str, Any] = {}
    if options.keys:
        secured["curve"] = server_key(options.keys).curve
        secured["authority"] = Authority(Path(options.keys) / "allow")
    return Plane(
        open_store(options.store),
        name=options.name,
        keep=options.keep,
        lapse=max(LAPSE_SECONDS, LAPSE_BEATS * options.heartbeat),
        gather=GATHER_SECONDS,
        bind=options.publish,
        heartbeat=options.heartbeat,
        report=options.report,
        **secured,
    )


@contextlib.contextmanager
def listen(address: str, tokens: bool) -> Iterator[socket.socket]:
    """The socket of the API. Raises ValueError when it may not listen there, OSError with a sentence."""
    host, colon, digits = address.rpartition(":")
    try:
        ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
        port = int(digits)
        if not colon or not 0 <= port <= 65535:
            raise ValueError
    except ValueError:
        raise ValueError(f"--api: {address!r} is not IP:PORT, such as 127.0.0.1:9900") from None
    if not tokens and not ip.is_loopback:
        raise ValueError(
            f"--api {address} can be reached from other machines: that needs --tokens FILE "
            "(fastproxyctl keys token makes one); without it use 127.0.0.1"
        )
    listener = socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((str(ip), port))
            listener.listen(1024)
        except OSError as e:
            raise OSError(f"--api {address}: {e.strerror or e}") from None
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()


async def _start(plane: Plane, options: Options) -> None:
    try:
        await plane.start(options.new_epoch)
    except OSError as e:
        raise OSError(f"--publish {options.publish}: {e.strerror or e}") from None


async def _serve(app: Any, listener: socket.socket, plane: Plane) -> None:
    config = Config(
        app,
        loop="none",
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
    )
    server = _Server(config)

    def end() -> None:
        server.force_exit = server.should_exit  # asked twice: without grace
        server.should_exit = True
        plane.stop_waiting()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    head = plane.head()
    print(
        f"fastproxyctl: API at {url}, proxies at {plane.publisher.address}, store {plane.store.url}, "
        f"version {head.version}",
        file=sys.stderr,
        flush=True,
    )
    try:
        await server.serve(sockets=[listener])
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class _Server(Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are ours: uvicorn's would end the process by the signal once more, after the end."""
        yield


class Connection(HttpToolsProtocol):
    """Uvicorn's, but who does not send a whole request in time, or reads nothing of its answer, is
    disconnected: what waits for it is memory."""

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._has_come()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._has_come()
        self._is_read()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_read()
        self._look(sys.maxsize)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()

    def _look(self, before: int) -> None:
        """Bytes that waited when we looked last."""
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._unread = self.loop.call_later(SEND_SECONDS, self._look, left)

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _expect(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(RECEIVE_SECONDS, self.transport.abort)

    def _has_come(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
