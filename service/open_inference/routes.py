"""The Open Inference Protocol, version 2, over HTTP: clips as a tensor, answers as tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.errors import ServiceError, bad_request, wording
from service.models.clips import ClipResult, Vectors
from service.models.engine import Engine, File
from service.models.model import Model
from service.open_inference.schemas import (
    AUDIO,
    INFER_BODY,
    VERSION,
    InferParameters,
    InferRequest,
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    OutputName,
    Ready,
    ServerMetadata,
    TensorMetadata,
    TensorParameters,
)
from service.open_inference.tensors import Tensor, clips_of
from service.v1.answering import Answer, response_of
from service.v1.requests import TheEngine, attended, received_json
from service.v1.schemas import ERRORS
from speech_ssl.inference.answers import Classification
from speech_ssl.inference.card import ModelCard, PassRequest
from speech_ssl.inference.outputs import Pool
from speech_ssl.types import Pooling

SOME: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (400, 401, 404, 503, 504)}
BINARY = "Inference-Header-Content-Length"
"""Says that a body goes on after its JSON."""
router = APIRouter(prefix="/v2")


def _check_version(version: str) -> None:
    if version != VERSION:
        raise ServiceError(
            404, "version_not_found", f"every model has the version {VERSION} and no other", param="version"
        )


MODEL = "/models/{model}"
OF_A_VERSION = f"{MODEL}/versions/{{version}}"
CHECKED = [Depends(_check_version)]
INFER: dict[str, Any] = {
    "response_model": None,
    "responses": {200: {"model": InferResponse}, **ERRORS},
    "openapi_extra": INFER_BODY,
}


@router.get("", responses={401: ERRORS[401]})
async def server() -> ServerMetadata:
    """What this is."""
    return ServerMetadata()


@router.get("/health/live")
async def live() -> Live:
    """The process answers."""
    return Live()


@router.get("/health/ready", responses={503: ERRORS[503]})
async def ready(engine: TheEngine) -> Ready:
    """The models are loaded and requests are taken."""
    engine.check_ready()
    return Ready()


@router.get(OF_A_VERSION, response_model_exclude_none=True, responses=SOME, dependencies=CHECKED)
@router.get(MODEL, response_model_exclude_none=True, responses=SOME)
async def metadata(request: Request, engine: TheEngine, model: str) -> ModelMetadata:
    """What goes into a model and comes out. One that is not loaded is loaded for it."""
    engine.check_open()
    return await attended(request, engine, _metadata(engine, model))


@router.get(f"{OF_A_VERSION}/ready", responses=SOME, dependencies=CHECKED)
@router.get(f"{MODEL}/ready", responses=SOME)
async def model_ready(engine: TheEngine, model: str) -> ModelReady:
    """Requests to this model are taken; the first one loads it, if it is not loaded at the start."""
    engine.check_open()
    engine.models.name_of(model)
    return ModelReady(name=model)


@router.post(f"{OF_A_VERSION}/infer", dependencies=CHECKED, **INFER)
@router.post(f"{MODEL}/infer", **INFER)
async def infer(request: Request, engine: TheEngine, model: str) -> Response:
    """Answers about one or more clips, all from one pass through the encoder."""
    engine.check_room()
    engine.models.name_of(model)
    if BINARY in request.headers:
        raise bad_request("binary tensor data is an extension that is not served: data is JSON", BINARY)
    asked, files = await received_json(request, engine, partial(_read, engine.settings.max_files))
    return await attended(request, engine, _inferred(engine, model, asked, files))


@dataclass(frozen=True)
class _Asked:
    """What is wanted of a model that has it, as which tensors. pooling: of `embedding`."""

    outputs: list[OutputName]
    pooling: Pooling
    wanted: PassRequest

    @classmethod
    def of(cls, card: ModelCard, request: InferRequest) -> _Asked:
        """Raises ChoiceError."""
        outputs: list[OutputName] = [output.name for output in request.outputs or []] or [*card.tasks]
        options = request.parameters or InferParameters()
        wanted = card.choose(
            list(dict.fromkeys("embedding" if output == "frames" else output for output in outputs)),
            layer=options.layer,
            pooling="none" if "frames" in outputs else options.pooling,
            speech_head=options.speech_head,
            sounds_head=options.sounds_head,
        )
        return cls(outputs, options.pooling, wanted)


async def _inferred(engine: Engine, name: str, request: InferRequest, files: list[File]) -> Response:
    async with engine.models.serving(name) as model:
        asked = _Asked.of(model.card, request)
        result = await engine.hear(model, files, asked.wanted)
        answer = partial(_tensors, model, asked, result.clips)
        text = _text(_head(name, request.id, result.clips), await engine.aside(answer))
    return response_of(Answer(text, long="frames" in asked.outputs), result)


def _read(max_files: int, body: dict[str, Any]) -> tuple[InferRequest, list[File]]:
    """A request without its inputs, whose numbers are large in this form, and the clips that these were.
    Raises ServiceError that says where in the body it is wrong."""
    try:
        request = InferRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"])[1:81]
        raise bad_request(f"{where}: {wording(first)}", where) from error
    files = clips_of(request.inputs[0], max_files)
    names = [output.name for output in request.outputs or []]
    if len(set(names)) < len(names):
        raise bad_request("outputs: a tensor is asked for twice", "outputs")
    if "frames" in names and len(files) > 1:
        raise bad_request(f"the output tensor `frames` is of one clip, not of {len(files)}", "outputs")
    return request.model_copy(update={"inputs": []}), files


def _tensors(model: Model, asked: _Asked, clips: Sequence[ClipResult]) -> list[Tensor]:
    heard = [model.answering.heard(clip.whole, asked.wanted) for clip in clips]
    values: dict[OutputName, Vectors | list[str]] = {
        "transcription": [said.text for said, _ in heard if said is not None]
    }
    if "embedding" in asked.outputs:
        values["embedding"] = np.stack([_pooled(clip, asked.pooling) for clip in clips])
    if "frames" in asked.outputs:
        values["frames"] = _vectors(clips[0])
    if asked.wanted.sounds is not None:
        labels = model.card.labels(asked.wanted.sounds) or ()
        rows = [_probabilities(labels, sounds) for _, sounds in heard if sounds is not None]
        values["classification"] = np.stack(rows)
    return [Tensor(output, values[output]) for output in asked.outputs]


def _vectors(clip: ClipResult) -> Vectors:
    assert clip.vectors is not None
    return clip.vectors


def _pooled(clip: ClipResult, pooling: Pooling) -> Vectors:
    """Its frames are there if they were asked for too."""
    vectors = _vectors(clip)
    if vectors.ndim == 1:
        return vectors
    pool = Pool(pooling)
    pool.add(vectors)
    return pool.result()


def _probabilities(labels: Sequence[str], heard: Classification) -> Vectors:
    """In the order of the head's labels."""
    scores = {label.label: label.score for label in heard.labels}
    return np.array([scores[label] for label in labels], dtype=np.float32)


def _head(model: str, given_id: str | None, clips: Sequence[ClipResult]) -> dict[str, Any]:
    head: dict[str, Any] = {"model_name": model, "model_version": VERSION}
    if given_id is not None:
        head["id"] = given_id
    lines = [
        f"{AUDIO}[{index}]: {warning.code}: {warning.message}"
        for index, clip in enumerate(clips)
        for warning in clip.warnings
    ]
    return head | {"parameters": {"warnings": "\n".join(lines)}} if lines else head


def _text(head: dict[str, Any], tensors: Sequence[Tensor]) -> Iterator[str]:
    yield json.dumps(head)[:-1] + ', "outputs": ['
    for index, tensor in enumerate(tensors):
        yield ", " if index else ""
        yield from tensor.text()
    yield "]}"


async def _metadata(engine: Engine, name: str) -> ModelMetadata:
    async with engine.models.serving(name) as model:
        outputs: list[OutputName] = [*model.card.tasks, "frames"]
        return ModelMetadata(name=name, outputs=[_described(model.card, output) for output in outputs])


def _described(card: ModelCard, output: OutputName) -> TensorMetadata:
    match output:
        case "embedding" | "frames":
            return TensorMetadata(name=output, datatype="FP32", shape=[-1, card.width])
        case "transcription":
            return TensorMetadata(name=output, datatype="BYTES", shape=[-1])
    labels = list(card.labels(card.check_head(output)) or ())
    parameters = TensorParameters(labels=labels)
    return TensorMetadata(name=output, datatype="FP32", shape=[-1, len(labels)], parameters=parameters)
