"""The routes of the HTTP contract."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.encoding import embeddings_response
from service.hearing import Wanted
from service.metrics import CONTENT_TYPE, Metrics
from service.schemas import (
    EMBEDDING_BODY,
    ERRORS,
    EmbeddingList,
    EmbeddingOptions,
    Head,
    Health,
    Model,
    ModelList,
)
from service.serving import TheEngine, attended, checked_layer, checked_model
from service.uploads import received
from speech_ssl.types import SAMPLE_RATE

router = APIRouter()


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
    async with received(request, engine, EmbeddingOptions) as upload:
        options = upload.options
        checked_model(runtime, options.model)
        wanted = Wanted(checked_layer(runtime, options.layer), options.pooling)
        result = await attended(request, engine, engine.hear(runtime, upload.files, wanted))
    return embeddings_response(result, options, runtime.name)


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
        heads=[_described(name, spec) for name, spec in runtime.heads.items()],
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


def _described(name: str, spec: object) -> Head:
    labels = getattr(spec, "labels", None)
    if labels is None:
        return Head(name=name, task="transcription")
    return Head(name=name, task="classification", labels=list(labels))
