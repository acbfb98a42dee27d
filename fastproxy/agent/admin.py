"""The admin API: Starlette on uvicorn's protocol, inside the agent."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgpack
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from fastproxy import __version__
from fastproxy.agent import log
from fastproxy.agent.listeners import (
    ADMIN_MODE,
    inode_of,
    join,
    listen_tcp,
    listen_unix,
    remove_socket_file,
    unix_path,
)
from fastproxy.agent.metrics import CONTENT_TYPE
from fastproxy.oneline import parse_address

if TYPE_CHECKING:
    from fastproxy.agent.agent import Agent

MAX_BODY = 64 * 1024 * 1024
MSGPACK = "application/x-msgpack"
CONCURRENCY = 64
RECEIVE_TIMEOUT = 10.0


class Json(Response):
    """Indented: it is read by people with curl."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


Answer = Callable[[Request], Awaitable[Response]]


def _route(path: str, answer: Answer, method: str = "GET") -> Route:
    """A POST that a web page made a browser send is refused (browsers name its origin with every POST), and a
    failure of ours is one line on standard error."""

    @functools.wraps(answer)
    async def checked(request: Request) -> Response:
        if method == "POST" and "origin" in request.headers:
            return Json({"error": "requests from web pages are refused"}, 403)
        try:
            return await answer(request)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as e:
            log.error(f"admin API failed: {type(e).__name__}: {e}", path, "please report it")
            return Json({"error": f"{type(e).__name__}: {e}"}, 500)

    return Route(path, checked, methods=[method])


class Connection(HttpToolsProtocol):
    """Uvicorn's, but who does not send a whole request in time is closed: the places are few, and a probe
    of liveness needs one."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(RECEIVE_TIMEOUT, transport.abort)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._late is None:
            self._late = self.loop.call_later(RECEIVE_TIMEOUT, self.transport.abort)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._in_time()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Admin:
    """The API and its socket."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._server: asyncio.AbstractServer | None = None
        self._state = ServerState()
        self._path = ""
        self._inode = 0
        routes = [
            _route("/", self._index),
            _route("/live", self._live),
            _route("/ready", self._ready),
            _route("/metrics", self._metrics),
            _route("/plan", self._plan),
            _route("/clusters", self._clusters),
            _route("/breakers", self._breakers),
            _route("/explain", self._explain),
            _route("/config", self._config, "POST"),
            _route("/drain", self._drain, "POST"),
        ]
        self._app = Starlette(routes=routes)

    async def open(self, address: str) -> None:
        """Listen there. Raises ListenError."""
        sock = self._bind(address)
        config = Config(
            self._app,
            loop="none",
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=CONCURRENCY,
            timeout_keep_alive=30,
        )
        config.load()

        def connection() -> asyncio.Protocol:
            return Connection(config=config, server_state=self._state, app_state={})

        loop = asyncio.get_running_loop()
        if self._path:
            self._server = await loop.create_unix_server(connection, sock=sock)
        else:
            self._server = await loop.create_server(connection, sock=sock)

    def _bind(self, address: str) -> socket.socket:
        self._path = unix_path(address)
        if self._path:
            sock = listen_unix(self._path, ADMIN_MODE)
            self._inode = inode_of(self._path)
            return sock
        host, port = parse_address(address)
        if not ipaddress.ip_address(host).is_loopback:
            log.warning(
                f"other machines may reach the admin API on {join(host, port)}, and it asks for no password",
                "--admin",
                "use 127.0.0.1 or unix:///PATH unless the network is yours",
            )
        return listen_tcp(host, port)

    async def close(self) -> None:
        """Stop listening; running answers get a moment."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        deadline = time.monotonic() + 0.5
        while self._state.tasks and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for task in self._state.tasks:
            task.cancel()
        if self._path:
            remove_socket_file(self._path, self._inode)
        self._server = None

    # --- answers ---

    async def _index(self, request: Request) -> Response:
        lines = [
            "GET  /live /ready /metrics /plan /clusters /breakers",
            "GET  /explain?request=GET%20http://host/path&header=a:%20b",
        ]
        lines += ["POST /config   resources as YAML, or tables as " + MSGPACK, "POST /drain"]
        return PlainTextResponse(f"fastproxy {__version__}\n" + "\n".join(lines) + "\n")

    async def _live(self, request: Request) -> Response:
        return Json({"live": True, "uptime_seconds": round(time.monotonic() - self._agent.started, 1)})

    async def _ready(self, request: Request) -> Response:
        reason = self._agent.not_ready()
        return Json({"ready": not reason, "reason": reason}, 503 if reason else 200)

    async def _metrics(self, request: Request) -> Response:
        text = await asyncio.get_running_loop().run_in_executor(None, self._agent.metrics)
        return Response(text, media_type=CONTENT_TYPE)

    async def _plan(self, request: Request) -> Response:
        return Json(self._agent.describe_plan())

    async def _clusters(self, request: Request) -> Response:
        return Json(self._agent.describe_clusters())

    async def _breakers(self, request: Request) -> Response:
        return Json(self._agent.describe_breakers())

    async def _explain(self, request: Request) -> Response:
        query = request.query_params
        if "request" not in query:
            return Json(
                {"error": "say which request: /explain?request=GET%20http://host/path&header=name:%20value"},
                400,
            )
        try:
            return Json(
                self._agent.explain(query["request"], query.getlist("header"), query.get("listener", ""))
            )
        except (ValueError, LookupError) as e:
            return Json({"error": str(e)}, 400)

    async def _config(self, request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return Json({"error": f"more than {MAX_BODY >> 20} MiB"}, 413, {"connection": "close"})
        if request.headers.get("content-type", "").partition(";")[0].strip() == MSGPACK:
            try:
                tables = msgpack.unpackb(body)
            except (ValueError, msgpack.UnpackException) as e:
                return Json({"error": f"not msgpack: {e}"}, 400)
            answer = await self._agent.config.replace_tables(tables)
        else:
            answer = await self._agent.config.replace(bytes(body))
        if answer.version:
            return Json({"version": answer.version, "changed": answer.changed})
        problems = [p.to_json() for p in answer.problems]
        return Json({"error": answer.error, "problems": problems}, answer.status)

    async def _drain(self, request: Request) -> Response:
        self._agent.drain()
        return Json({"draining": True, "timeout_seconds": self._agent.settings.drain_timeout}, 202)
