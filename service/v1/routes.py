"""The routes of the HTTP contract."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.metrics import CONTENT_TYPE, Metrics
from service.models.engine import Engine
from service.models.registry import DEFAULT
from service.v1 import answering
from service.v1.requests import TheEngine, attended, received
from service.v1.schemas import (
    EMBEDDING_BODY,
    ERRORS,
    EmbeddingList,
    EmbeddingOptions,
    Head,
    Health,
    ModelCard,
    ModelList,
)
from speech_ssl.inference import card as inference
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
    async with received(request, engine, EmbeddingOptions) as upload:
        return await attended(request, engine, answering.response(engine, upload))


@router.get("/v1/models", responses={503: ERRORS[503]})
async def models(engine: TheEngine) -> ModelList:
    """The models that are served."""
    engine.check_open()
    return ModelList(data=[_described(engine, name) for name in engine.models.names])


@router.get("/v1/models/{model:path}", responses={404: ERRORS[404], 503: ERRORS[503]})
async def one_model(engine: TheEngine, model: str) -> ModelCard:
    """One of them, by its name or an alias."""
    engine.check_open()
    return _described(engine, engine.models.name_of(model))


@router.get("/health/live")
async def live() -> Health:
    """The process answers."""
    return Health()


@router.get("/health/ready", responses={503: ERRORS[503]})
async def ready(engine: TheEngine) -> Health:
    """The models are loaded and requests are taken."""
    engine.check_ready()
    return Health()


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    values: Metrics = request.app.state.metrics
    return Response(values.text(), media_type=CONTENT_TYPE)


def _described(engine: Engine, name: str) -> ModelCard:
    """What is known of it: little of one that is not loaded."""
    model, aliases = engine.models.get(name), engine.models.aliases(name)
    if model is None or not model.loaded:
        return ModelCard(id=name, created=engine.started_at, loaded=False, aliases=aliases)
    return ModelCard(
        id=model.card.name if name == DEFAULT else name,
        created=model.created,
        loaded=True,
        aliases=aliases,
        layers=model.card.num_layers,
        width=model.card.width,
        sample_rate=SAMPLE_RATE,
        heads=[_head(model.card, head) for head in model.card.heads],
    )


def _head(card: inference.ModelCard, name: str) -> Head:
    labels = card.labels(name)
    if labels is None:
        return Head(name=name, task="transcription")
    return Head(name=name, task="classification", labels=list(labels))
