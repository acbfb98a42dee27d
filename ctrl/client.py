"""The HTTP API from its other side: one method for each endpoint, one exception for whatever goes wrong."""

from __future__ import annotations

import contextlib
import getpass
import ipaddress
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from fastproxy.resources.problem import printable

DEFAULT_API = "http://127.0.0.1:9900"
MAX_ANSWER = 256 * 1024 * 1024
MAX_EVENT = 4 * 1024 * 1024
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0  # a version of 100,000 routes is made in less
READ_SECONDS = 10.0  # what only reads waits for no compile

Answer = dict[str, Any]


class ApiError(Exception):
    """The server did not do it. status: of HTTP, 0 when there was no answer; problems: of documents."""

    def __init__(self, message: str, status: int = 0, problems: list[Answer] | None = None) -> None:
        super().__init__(message)
        self.status, self.problems = status, problems or []


class Client:
    """One server. ``seconds``: how long it may think about an answer."""

    def __init__(self, api: str = DEFAULT_API, token: str = "", seconds: float = ANSWER_SECONDS) -> None:
        parts = urlsplit(api)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ValueError(f"--api: {api!r} is not a URL such as {DEFAULT_API}")
        if parts.username is not None:
            raise ValueError("--api: no user or password in the URL; a token comes from --token-file")
        if token and (not token.isascii() or not token.isprintable() or " " in token):
            raise ValueError("the token holds characters that no token has")
        self.api = api.rstrip("/")
        self._seconds = seconds
        headers = {"X-Fastproxy-User": _user(), "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            base_url=self.api,
            headers=headers,
            # a server on this machine is never behind the proxy that HTTP_PROXY names
            trust_env=not _local(parts.hostname),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    # --- what is there ---

    def head(self) -> Answer:
        return self._ask("GET", "/v1/head")

    def resources(self, kind: str = "", namespace: str = "", name: str = "") -> Answer:
        given = {"kind": kind, "namespace": namespace, "name": name}
        return self._ask("GET", "/v1/resources", params={k: v for k, v in given.items() if v})

    def history(self, limit: int = 50, before: int | None = None) -> Answer:
        params = {"limit": limit} | ({"before": before} if before is not None else {})
        return self._ask("GET", "/v1/history", params=params)

    def entry(self, version: int) -> Answer:
        return self._ask("GET", f"/v1/versions/{version}")

    def resources_of(self, version: int) -> Answer:
        return self._ask("GET", f"/v1/versions/{version}/resources")

    def status(self) -> Answer:
        return self._ask("GET", "/v1/status")

    def verify(self) -> Answer:
        return self._ask("GET", "/v1/verify")

    def progress(self, version: int, wait: float = 0, seen: int | None = None) -> Answer:
        """Who serves ``version``; with ``seen`` of the last answer it comes when that has changed, at most
        ``wait`` seconds later."""
        params: dict[str, Any] = {"version": version, "wait": round(wait, 3)}
        if seen is not None:
            params["seen"] = seen
        return self._ask("GET", "/v1/progress", params=params, wait=wait)

    def rollout(self) -> Answer:
        return self._ask("GET", "/v1/rollout")

    def breakers(self) -> Answer:
        return self._ask("GET", "/v1/breakers")

    def watch(self) -> Iterator[Answer]:
        """Events as they come, until the server ends. Raises ApiError."""
        # the server sends an empty line when nothing happens: silence is a server that is gone
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        with self._told(), self._http.stream("GET", "/v1/watch", timeout=timeout) as response:
            if response.status_code != 200:
                response.read()
                raise self._error(response)
            for line in _lines(response.iter_bytes()):
                if line.strip():
                    event = self._json(line)
                    if isinstance(event, dict):
                        yield event

    # --- what changes it ---

    def apply(self, files: Iterable[tuple[str, str]], **options: Any) -> Answer:
        body = {"files": [{"name": name, "text": text} for name, text in files], **_given(options)}
        return self._ask("POST", "/v1/apply", body=body)

    def delete(self, identities: Iterable[tuple[str, str, str]], **options: Any) -> Answer:
        rows = [{"kind": kind, "namespace": space, "name": name} for kind, space, name in identities]
        return self._ask("POST", "/v1/delete", body={"identities": rows, **_given(options)})

    def rollback(self, version: int, **options: Any) -> Answer:
        return self._ask("POST", f"/v1/rollback/{version}", body=_given(options))

    def abort_rollout(self) -> Answer:
        return self._ask("DELETE", "/v1/rollout")

    def order(self, **order: Any) -> Answer:
        return self._ask("POST", "/v1/breakers", body=_given(order))

    def clear_order(self, name: str) -> Answer:
        return self._ask("DELETE", f"/v1/breakers/{quote(name, safe='')}")

    # --- the one way to ask ---

    def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Answer | None = None,
        wait: float = 0.0,
    ) -> Answer:
        seconds = min(self._seconds, READ_SECONDS) if method == "GET" else self._seconds
        timeout = httpx.Timeout(seconds + wait, connect=min(CONNECT_SECONDS, self._seconds))
        with (
            self._told(),
            self._http.stream(method, path, params=params, json=body, timeout=timeout) as response,
        ):
            data = bytearray()
            for piece in response.iter_bytes():
                data += piece
                if len(data) > MAX_ANSWER:
                    raise ApiError(f"{self.api} answers more than {MAX_ANSWER >> 20} MiB")
            if response.status_code >= 300:
                raise self._error(response, bytes(data))
        answer = self._json(bytes(data))
        if not isinstance(answer, dict):
            raise ApiError(f"{self.api} does not answer as the API of fastproxyctl serve; see --api URL")
        return answer

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except httpx.ReadTimeout:
            raise ApiError(f"{self.api} took the request and does not answer; see its log") from None
        except httpx.HTTPError as e:
            why = str(e) or type(e).__name__
            raise ApiError(
                f"no answer from {self.api} ({printable(why, 200)}): "
                "is fastproxyctl serve running there? Another server: --api URL or FASTPROXY_API"
            ) from None

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ApiError(f"{self.api} answers what is not JSON: is this fastproxyctl serve?") from None

    def _error(self, response: httpx.Response, data: bytes | None = None) -> ApiError:
        """What the server said, and what to do where only the client's side can know it."""
        status = response.status_code
        try:
            said = json.loads(response.content if data is None else data)
        except (ValueError, RecursionError):
            said = None
        text = said.get("error") if isinstance(said, dict) else None
        if not isinstance(text, str) or not text:
            text = f"{self.api} answers {status} {response.reason_phrase}: is this fastproxyctl serve?"
        text = printable(text, 4000)
        if status == 409:
            # the server names its own verb; who reads this has a command for it
            text = text.replace("(DELETE /v1/rollout)", "(fastproxyctl rollout abort, DELETE /v1/rollout)")
        if status == 401:
            text += "; a token is given with --token-file FILE or FASTPROXY_TOKEN"
        problems = said.get("problems") if isinstance(said, dict) else None
        rows = [row for row in problems if isinstance(row, dict)] if isinstance(problems, list) else []
        return ApiError(text, status, rows)


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = bytearray()
    for piece in pieces:
        rest += piece
        *whole, last = rest.split(b"\n")
        yield from (bytes(line) for line in whole)
        rest = last
        if len(rest) > MAX_EVENT:
            raise ApiError(f"an event of more than {MAX_EVENT >> 20} MiB")


def _given(options: Mapping[str, Any]) -> Answer:
    """Options in the API's spelling, those left out that say nothing."""
    out = {}
    for name, value in options.items():
        if value is not None and value is not False and value != "" and value != []:
            first, *rest = name.rstrip("_").split("_")
            out[first + "".join(word.capitalize() for word in rest)] = value
    return out


def _local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _user() -> str:
    """Who this is, for the history of a server without tokens."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
    return quote(name[:80], safe="@.-_+ ")
