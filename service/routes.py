"""The routes of the HTTP contract."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.batcher import Stopped
from service.encoding import embeddings_response
from service.engine import Engine, Runtime
from service.errors import ServiceError
from service.metrics import CONTENT_TYPE, Metrics
from service.schemas import EMBEDDING_BODY, ERRORS, EmbeddingList, Health, Model, ModelList
from service.uploads import received
from speech_ssl.types import SAMPLE_RATE

router = APIRouter()
T = TypeVar("T")


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


TheEngine = Annotated[Engine, Depends(_engine)]


@router.post(
    "/v1/embeddings",
    response_model=None,
    responses={200: {"model": EmbeddingList}, **ERRORS},
    openapi_extra=EMBEDDING_BODY,
)
async def embeddings(request: Request, engine: TheEngine) -> Response:
    """Vectors of audio: a multipart form with one or more `file`, a raw body, or JSON."""
    runtime = engine.runtime()
    engine.check_room()
    async with received(request, engine) as upload:
        _check_model(runtime, upload.options.model)
        result = await _attended(request, engine, engine.embed(runtime, upload.files, upload.options))
    return embeddings_response(result, upload.options, runtime.name)


@router.get("/v1/models", responses={503: ERRORS[503]})
async def models(engine: TheEngine) -> ModelList:
    """The model that is served."""
    runtime = engine.runtime()
    model = Model(
        id=runtime.name,
        created=engine.created,
        layers=runtime.num_layers,
        width=runtime.width,
        sample_rate=SAMPLE_RATE,
    )
    return ModelList(data=[model])


@router.get("/health/live")
async def live() -> Health:
    """The process answers."""
    return Health()


@router.get("/health/ready", responses={503: ERRORS[503]})
async def ready(engine: TheEngine) -> Health:
    """The model is loaded and requests are taken."""
    engine.runtime()
    return Health()


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    values: Metrics = request.app.state.metrics
    return Response(values.text(), media_type=CONTENT_TYPE)


def _check_model(runtime: Runtime, name: str) -> None:
    if name not in ("default", runtime.name):
        message = f"there is no model {name[:80]!r} here; /v1/models lists what there is"
        raise ServiceError(404, "model_not_found", message, param="model")


async def _attended(request: Request, engine: Engine, work: Coroutine[Any, Any, T]) -> T:
    """Until it is done, or the client leaves, or the deadline passes, or the service stops."""
    task = asyncio.create_task(work)
    left = asyncio.create_task(_disconnect(request))
    stopping = asyncio.create_task(engine.stopping.wait())
    timeout = engine.settings.request_timeout_s
    try:
        await asyncio.wait({task, left, stopping}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled():
            return task.result()
        if left.done():
            raise ClientDisconnect
        raise Stopped if stopping.done() else TimeoutError
    finally:
        for each in (task, left, stopping):
            each.cancel()
        await asyncio.gather(task, left, stopping, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
