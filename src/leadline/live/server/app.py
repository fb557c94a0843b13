"""The application: what each address answers."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

import leadline
from leadline.depth import FOV_RANGE
from leadline.errors import ContractError, ForeignFormatError, ImageReadError, LeadlineError
from leadline.live.server.answers import TYPES, Format, encoded, headers
from leadline.live.server.arriving import picture_of
from leadline.live.server.described import ERRORS, MODELS, PICTURE, READY, TEXT, depth_answer
from leadline.live.server.guard import Access, Guard, answer_to
from leadline.live.server.limits import GoneError, Limits, RefusedError, Room, busy
from leadline.live.server.metrics import CONTENT_TYPE, Metrics, resident_bytes
from leadline.live.server.pages import Pages
from leadline.live.server.predicting import Hands, Times, infer, prepare, restored, result_size
from leadline.live.server.stream import TOO_MANY, Stream, StreamFormat, StreamOptions, accept, close

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from leadline.live.server.models import Models, Opened

ROUTES = frozenset({"/", "/v1/depth", "/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json"})
CLIENT_GONE = 499  # nginx's, for our own count; nobody receives it
_log = logging.getLogger(__name__)

Model = Annotated[str | None, Query(max_length=100, description="Name of a model; the first one if not given.")]
Runtime = Annotated[str | None, Query(max_length=40, description="Engine; the model's first one if not given.")]
Fov = Annotated[
    float | None,
    Query(ge=FOV_RANGE[0], le=FOV_RANGE[1], description="Horizontal field of view of the camera, degrees."),
]
MaxSide = Annotated[
    int | None, Query(ge=16, le=16384, description="Longer side of the answer, pixels; the picture's if not given.")
]


class State:
    """What requests share.

    Args:
        models: opened.
        limits: of the server.
    """

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.metrics, self.hands = Metrics(), Hands(limits.pixels)
        self.bodies, self.waiting, self.streams = Room(limits.bodies_bytes), Room(limits.waiting), Room(limits.streams)
        self.is_ready = False
        gauge = self.metrics.gauge
        gauge("leadline_waiting_requests", "Requests for depth under way.", lambda: self.waiting.taken)
        gauge("leadline_open_streams", "WebSockets.", lambda: self.streams.taken)
        gauge("leadline_held_upload_bytes", "Bytes of bodies that are held.", lambda: self.bodies.taken)
        gauge("process_resident_memory_bytes", "Resident memory of the server.", resident_bytes)


def create_app(
    models: Models, limits: Limits | None = None, access: Access | None = None, *, reload_s: float = 1.0
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        models: opened; closed when the application ends.
        limits: of sizes, times and counts.
        access: who may ask.
        reload_s: seconds between looks at the models' folders; 0 for none.
    """
    access, state = access or Access(), State(models, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(models.watch(reload_s, state.metrics)) if reload_s else None
        state.is_ready = True
        yield
        state.is_ready = False
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        models.close()
        state.hands.close()

    app = FastAPI(
        title="Leadline",
        version=leadline.__version__,
        summary="Depth from single pictures.",
        docs_url=None,  # FastAPI's pages load their scripts from a network
        redoc_url=None,
        lifespan=lifespan,
        responses=ERRORS,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if access.token is not None else [],
    )
    app.state.leadline = state
    _add_depth(app, state)
    _add_stream(app, state)
    _add_facts(app, state)
    _add_pages(app)
    _add_errors(app, state)
    if access.origins:
        exposed = ["Server-Timing", *(f"Depth-{name}" for name in ("Kind", "Unit", "Scale", "Offset", "Model"))]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=exposed,
        )
    app.add_middleware(Guard, access=access, metrics=state.metrics, routes=ROUTES)
    return app


def _add_depth(app: FastAPI, state: State) -> None:
    @app.post("/v1/depth", openapi_extra=PICTURE, responses=depth_answer(), response_class=Response)
    async def depth(
        request: Request,
        format: Annotated[Format, Query(description="What is returned.")] = Format.PNG16,
        model: Model = None,
        runtime: Runtime = None,
        fov: Fov = None,
        max_side: MaxSide = None,
    ) -> Response:
        """Depth of one picture: raw values with their kind, unit and scale, colours, or statistics."""
        served, opened = state.models.pick(model, runtime)
        if not state.waiting.take():
            raise busy(f"{state.waiting.taken} requests wait", _seconds_to_wait(state))
        try:
            with opened.used():
                async with picture_of(request, state.limits, state.bodies) as data:
                    work = _depth_of(data, opened, state, format, fov, max_side)
                    return await _unless_gone(request, work)
        finally:
            state.waiting.give()
            state.metrics.request_s.add(
                time.perf_counter() - request.scope["state"]["begun"], served.wanted.name, opened.runtime
            )


async def _depth_of(
    data: bytes, opened: Opened, state: State, wanted: Format, fov: float | None, max_side: int | None
) -> Response:
    contract = opened.contract
    prepared, before = await state.hands.do(lambda: prepare(data, contract, fov, state.hands.pixels))
    ran = await infer(opened, prepared, state.metrics)

    def finish() -> tuple[bytes, dict[str, str]]:
        depth = restored(ran, prepared, contract, result_size(prepared.size, max_side))
        facts = {
            "kind": depth.kind.value,
            "unit": depth.unit,
            "model": opened.name,
            "runtime": opened.runtime,
            "camera": prepared.camera.origin,
        }
        body, notes = encoded(depth, wanted, facts)
        if prepared.fov is not None:
            notes["Fov"] = prepared.fov
        return body, headers(depth, opened.name, opened.runtime, prepared.camera, notes)

    (body, said), after = await state.hands.do(finish)
    times = Times(before, 1e3 * ran.waited_s, 1e3 * ran.took_s, after)
    more = {"Server-Timing": times.header(), "Cache-Control": "no-store"}
    if prepared.notices:
        more["Depth-Notice"] = "; ".join(prepared.notices).encode("ascii", "replace").decode()
    return Response(body, headers={**said, **more}, media_type=TYPES[wanted])


def _seconds_to_wait(state: State) -> float:
    """For the queue to become empty, by what the last pictures took."""
    return state.waiting.most * max(state.metrics.network_s.mean(), 0.02)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Do the work as long as somebody waits for it."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_stream(app: FastAPI, state: State) -> None:
    @app.websocket("/v1/stream")
    async def stream(
        socket: WebSocket,
        model: Model = None,
        runtime: Runtime = None,
        format: StreamFormat = StreamFormat.RAW,
        fov: Fov = None,
        smooth: bool = False,
    ) -> None:
        await accept(socket)
        if not state.streams.take():
            state.metrics.refused.add("streams")
            await close(socket, TOO_MANY, "The server has too many streams; try again later.")
            return
        try:
            options = StreamOptions(model, runtime, format, fov, smooth)
            await Stream(socket, options, state.models, state.hands, state.limits, state.metrics).run()
        finally:
            state.streams.give()


def _add_facts(app: FastAPI, state: State) -> None:
    @app.get("/v1/models", responses=MODELS)
    async def models() -> JSONResponse:
        """The models here, the default one first, and what a request may hold."""
        served = [each.facts() for each in state.models.served.values()]
        limits = {"upload_bytes": state.limits.upload_bytes, "pixels": state.hands.pixels}
        return JSONResponse({"default": served[0]["name"], "models": served, "limits": limits})

    @app.get("/healthz", responses=READY)
    async def healthz() -> JSONResponse:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", responses={**READY, 503: READY[200]})
    async def readyz() -> JSONResponse:
        """Whether pictures are taken now."""
        is_free = state.is_ready and state.waiting.taken < state.waiting.most
        return JSONResponse({"status": "ready" if is_free else "busy"}, 200 if is_free else 503)

    @app.get("/metrics", responses=TEXT, response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)


def _add_pages(app: FastAPI) -> None:
    pages = Pages()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return pages.answer("index.html")

    @app.get("/assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return pages.answer(name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)


def _add_errors(app: FastAPI, state: State) -> None:
    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        state.metrics.refused.add(error.reason)
        return answer_to(error)

    def faulty(request: Request, error: Exception) -> Response:
        assert isinstance(error, LeadlineError)
        status = 415 if isinstance(error, ForeignFormatError) else 422
        if not isinstance(error, ImageReadError | ContractError):
            status = 500
            _log.error("%s", error)
        state.metrics.refused.add("picture" if status < 500 else "fault")
        return JSONResponse({"error": str(error)}, status)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        texts = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()]
        return JSONResponse({"error": "; ".join(texts)}, 422)

    def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    def gone(request: Request, error: Exception) -> Response:
        state.metrics.refused.add("gone")
        return Response(status_code=CLIENT_GONE)

    def internal(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "A fault of the server; its log says more."}, 500)

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(LeadlineError, faulty)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(GoneError, gone)
    app.add_exception_handler(Exception, internal)
