"""The HTTP API: one function for each address, typed, with OpenAPI at /openapi.json.

Reading answers from memory (but history, which the store keeps); writing goes through
:class:`ctrl.plane.Plane`. Every error is ``{"error": …, "problems": […]}`` with the status that fits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ctrl import api_models as m
from ctrl import api_shapes as shapes
from ctrl.api_access import Access, Knows
from ctrl.api_metrics import CONTENT_TYPE, Metrics
from ctrl.durations import milliseconds
from ctrl.events import stream
from ctrl.model import Compacted, Conflict, StoreError
from ctrl.orders import KIND as ORDER
from ctrl.orders import Order
from ctrl.rollout import Plan
from ctrl.wishes import Unfit, Wish
from fastproxy import __version__

if TYPE_CHECKING:
    from ctrl.plane import Plane

MAX_WAIT = 60.0  # seconds of one long poll
MAX_HISTORY = 1000
MAX_WATCHERS = 100  # each remembers the fleet as it told it last
STATUSES = {
    400: "it is no request",
    401: "a token is needed",
    403: "not allowed",
    404: "not there",
    409: "somebody else was quicker, or a version is being rolled out",
    410: "older than the history that is kept",
    413: "too large",
    422: "not good; nothing was applied",
    500: "our fault",
    503: "the store cannot be written or read now",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": m.Refusal, "description": text} for status, text in STATUSES.items()
}

Version = Annotated[int, Path(ge=0, lt=1 << 63)]


class NotThere(Exception):
    """404, with this sentence."""


def create_api(plane: Plane, tokens: Knows | None = None) -> FastAPI:
    """The application. ``tokens`` None: it must be bound to loopback only."""
    app = FastAPI(
        title="fastproxy control plane",
        version=__version__,
        # the pages that show it load scripts from elsewhere
        docs_url=None,
        redoc_url=None,
        responses=RESPONSES,
        separate_input_output_schemas=False,
    )
    app.add_middleware(Access, tokens=tokens)
    _add_errors(app)
    _add_reading(app, plane)
    _add_writing(app, plane)
    _add_watching(app, plane)
    return app


# --- errors ---


def _refuse(status: int, error: str, rows: list[m.ProblemRow] | None = None) -> JSONResponse:
    return JSONResponse(m.Refusal(error=error, problems=rows or []).model_dump(by_alias=True), status)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Unfit)
    async def unfit(_: Request, e: Unfit) -> Response:
        return _refuse(422, str(e), shapes.problems(e.problems))

    @app.exception_handler(NotThere)
    async def not_there(_: Request, e: NotThere) -> Response:
        return _refuse(404, str(e))

    @app.exception_handler(StoreError)
    async def store(_: Request, e: StoreError) -> Response:
        status = 409 if isinstance(e, Conflict) else 410 if isinstance(e, Compacted) else 503
        return _refuse(status, str(e))

    @app.exception_handler(HTTPException)
    async def http(_: Request, e: HTTPException) -> Response:
        answer = _refuse(e.status_code, str(e.detail))
        answer.headers.update(e.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, e: RequestValidationError) -> Response:
        told = [f"{'.'.join(str(part) for part in row['loc'])}: {row['msg']}" for row in e.errors()[:10]]
        return _refuse(422, "; ".join(told)[:4000])


# --- reading ---


def _add_reading(app: FastAPI, plane: Plane) -> None:
    @app.get("/v1/head")
    async def head() -> m.HeadAnswer:
        """What everybody should serve."""
        return shapes.head(plane)

    @app.get("/v1/resources")
    async def resources(kind: str = "", namespace: str = "", name: str = "") -> m.ResourcesAnswer:
        """Documents of the head."""
        return shapes.resources(plane.contents, kind, namespace, name)

    @app.get("/v1/history")
    async def history(
        limit: Annotated[int, Query(ge=1, le=MAX_HISTORY)] = 50,
        before: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
    ) -> m.HistoryAnswer:
        """Newest first."""
        entries = await plane.history(limit, before)
        return m.HistoryAnswer(entries=[shapes.entry(e) for e in entries])

    @app.get("/v1/versions/{version}")
    async def one_version(version: Version) -> m.EntryRow:
        """One line of the history."""
        try:
            return shapes.entry(await plane.entry(version))
        except KeyError as e:
            raise _missing(e) from None

    @app.get("/v1/versions/{version}/resources")
    async def resources_of(version: Version) -> m.ResourcesAnswer:
        """Documents as they were."""
        try:
            return shapes.resources(await plane.contents_at(version))
        except KeyError as e:
            raise _missing(e) from None

    @app.get("/v1/status")
    async def status() -> m.StatusAnswer:
        """Every proxy, and who was refused."""
        return shapes.status(plane)

    @app.get("/v1/verify")
    async def verify() -> m.VerifyAnswer:
        """Whether all proxies hold the bytes that are published."""
        return shapes.verify(plane)

    @app.get("/v1/breakers")
    async def breakers() -> m.BreakersAnswer:
        """Orders, and what the proxies say of their breakers."""
        return shapes.breakers(plane.contents, plane.fleet)

    @app.get("/v1/rollout")
    async def rollout() -> m.RolloutAnswer:
        """The rollout that goes on, or the last one."""
        return m.RolloutAnswer.model_validate(plane.rollout)

    @app.get("/live", response_class=PlainTextResponse)
    async def live() -> str:
        """The process answers."""
        return "live\n"

    @app.get("/ready", response_class=PlainTextResponse)
    async def ready() -> str:
        """It publishes; also when the store is away, as proxies are served from memory."""
        return f"ready, but the store fails: {plane.trouble}\n" if plane.trouble else "ready\n"

    metrics = Metrics(plane)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def get_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


# --- writing ---


def _add_writing(app: FastAPI, plane: Plane) -> None:
    @app.post("/v1/apply")
    async def apply(wanted: m.ApplyRequest, request: Request) -> m.ChangeAnswer:
        """Documents as one version. Bad ones are left out and reported, unless ``strict``."""
        files = [
            (f.name or f"file {i}", f.text.encode("utf-8", "surrogatepass"))
            for i, f in enumerate(wanted.files)
        ]
        return shapes.change(await plane.apply(files, _wish(request, wanted)))

    @app.post("/v1/delete")
    async def delete(wanted: m.DeleteRequest, request: Request) -> m.ChangeAnswer:
        """Documents away, as one version."""
        identities = [(i.kind, i.namespace, i.name) for i in wanted.identities]
        wish = Wish(request.state.who, wanted.message, wanted.dry_run)
        return shapes.change(await plane.delete(identities, wish))

    @app.post("/v1/rollback/{version}")
    async def rollback(
        version: Version, request: Request, wanted: m.RollbackRequest | None = None
    ) -> m.ChangeAnswer:
        """A new version with the contents of an old one."""
        try:
            wish = _wish(request, wanted or m.RollbackRequest())
            return shapes.change(await plane.rollback(version, wish))
        except KeyError as e:
            raise _missing(e) from None

    @app.delete("/v1/rollout")
    async def abort(request: Request) -> m.RolloutAnswer:
        """All proxies back to the head."""
        if not await plane.abort(f"aborted by {request.state.who}"):
            raise NotThere("no version is being rolled out")
        return m.RolloutAnswer.model_validate(plane.rollout)

    @app.post("/v1/breakers")
    async def order(wanted: m.OrderRequest, request: Request) -> m.ChangeAnswer:
        """Force breakers open or closed for a time; the same target again replaces the order."""
        order = Order(
            wanted.host,
            wanted.state,
            milliseconds(wanted.for_) / 1000,
            wanted.subset,
            wanted.port,
            wanted.endpoint,
            wanted.reason,
            wanted.namespace,
        )
        return shapes.change(await plane.order(order, Wish(request.state.who, wanted.reason)))

    @app.delete("/v1/breakers/{name}")
    async def clear(name: str, request: Request, namespace: str = "default") -> m.ChangeAnswer:
        """Take an order back before its time is over."""
        if (ORDER, namespace, name) not in plane.contents.resources:
            raise NotThere(f"there is no order {namespace}/{name}")
        wish = Wish(request.state.who)
        done = await plane.delete([(ORDER, namespace, name)], wish, f"breaker clear {name}")
        return shapes.change(done)


def _wish(request: Request, wanted: m.Rolling) -> Wish:
    try:
        plan = Plan.parse(
            wanted.stages,
            wanted.atomic,
            milliseconds(wanted.bake) / 1000,
            milliseconds(wanted.timeout) / 1000,
            wanted.abort_if,
        )
    except ValueError as e:
        raise Unfit(str(e)) from None
    return Wish(request.state.who, wanted.message, wanted.dry_run, wanted.strict, plan)


def _missing(e: KeyError) -> NotThere:
    return NotThere(str(e.args[0]) if e.args else "there is no such version")


# --- waiting ---


def _add_watching(app: FastAPI, plane: Plane) -> None:
    @app.get("/v1/progress")
    async def progress(
        version: Annotated[int | None, Query(ge=0, lt=1 << 63, description="default: the head")] = None,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT, description="seconds")] = 0.0,
        seen: Annotated[int | None, Query(ge=0, lt=1 << 63, description="of the last answer")] = None,
    ) -> m.ProgressAnswer:
        """Who serves a version. With ``seen`` it comes when that has changed, at most ``wait`` seconds
        later."""
        fleet = plane.fleet
        now = fleet.changed
        if seen is not None and seen == now and wait > 0:
            wait = min(wait, plane.gathering + 0.001) if plane.gathering else wait
            now = await _first(plane, fleet.wait_change(seen, wait), now)
        number = plane.head().version if version is None else version
        head = plane.head()
        return shapes.progress(
            fleet.progress(head.epoch, number, head=head.version), now, plane.gathering > 0
        )

    @app.get(
        "/v1/watch",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {}}, "description": "one event a line"}},
    )
    async def watch() -> StreamingResponse:
        """Events as they happen: version, proxy, rollout, refused."""
        if plane.watchers >= MAX_WATCHERS:
            raise HTTPException(503, f"{plane.watchers} are watching already")
        return StreamingResponse(stream(plane), media_type="application/x-ndjson")


async def _first(plane: Plane, change: Any, otherwise: int) -> int:
    """What comes first: the change, or the end of the plane."""
    waiting = asyncio.ensure_future(change)
    closing = asyncio.ensure_future(plane.closing.wait())
    try:
        await asyncio.wait([waiting, closing], return_when=asyncio.FIRST_COMPLETED)
        return int(waiting.result()) if waiting.done() else otherwise
    finally:
        waiting.cancel()
        closing.cancel()
        await asyncio.gather(waiting, closing, return_exceptions=True)
