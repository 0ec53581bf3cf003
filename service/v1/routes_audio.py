"""Routes for what is said and heard in one clip: transcriptions, classifications, analyses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import bad_request, failed_midway
from service.models.engine import Engine, Hearing
from service.v1 import answering
from service.v1.partial_text import Settling
from service.v1.requests import TheEngine, Upload, attended, received, seconds_left
from service.v1.schemas import ERRORS, body_of
from service.v1.schemas_audio import (
    Analysis,
    AnalysisOptions,
    Classification,
    ClassificationOptions,
    Transcription,
    TranscriptionOptions,
)

router = APIRouter()


@router.post(
    "/v1/audio/transcriptions",
    response_model=None,
    responses={200: {"model": Transcription}, **ERRORS},
    openapi_extra=body_of(TranscriptionOptions),
)
async def transcriptions(request: Request, engine: TheEngine) -> Response:
    """What is said in a clip, as OpenAI's route of this name: text, captions, words and segments with their
    times; with `stream`, server-sent events."""
    async with AsyncExitStack() as stack:
        upload = await stack.enter_async_context(received(request, engine, TranscriptionOptions, max_files=1))
        if not upload.options.stream:
            return await attended(request, engine, answering.response(engine, upload))
        if upload.options.response_format not in ("json", "text"):
            raise bad_request("with `stream`, response_format is json or text", "response_format")
        return await attended(request, engine, _streamed(request, engine, upload, stack))


async def _streamed(
    request: Request, engine: Engine, upload: Upload[TranscriptionOptions], stack: AsyncExitStack
) -> Response:
    """Takes over what is held, until its last event."""
    model = await stack.enter_async_context(engine.models.serving(upload.options.model))
    wanted = answering.wanted(model.card, upload.options)
    hearing = await stack.enter_async_context(engine.hearing(model, upload.files, wanted))
    assert wanted.speech is not None
    settling = Settling(engine, model.answering, wanted.speech)
    lines = _events(hearing, settling, "logprobs" in upload.options.include, seconds_left(request, engine))
    return Streamed(lines, stack.pop_all(), answering.warning_codes(hearing))


@router.post(
    "/v1/audio/classifications",
    response_model=None,
    responses={200: {"model": Classification}, **ERRORS},
    openapi_extra=body_of(ClassificationOptions),
)
async def classifications(request: Request, engine: TheEngine) -> Response:
    """What is heard in a clip: labels, and events with their times."""
    async with received(request, engine, ClassificationOptions, max_files=1) as upload:
        return await attended(request, engine, answering.response(engine, upload))


@router.post(
    "/v1/audio/analyses",
    response_model=None,
    responses={200: {"model": Analysis}, **ERRORS},
    openapi_extra=body_of(AnalysisOptions),
)
async def analyses(request: Request, engine: TheEngine) -> Response:
    """Several answers about a clip, from one pass through the encoder."""
    async with received(request, engine, AnalysisOptions, max_files=1) as upload:
        return await attended(request, engine, answering.response(engine, upload))


class Streamed(StreamingResponse):
    """Server-sent events. `held` is let go at the end, also of a client that leaves before the first."""

    def __init__(self, lines: AsyncIterator[str], held: AsyncExitStack, headers: dict[str, str]) -> None:
        headers = {"Cache-Control": "no-cache"} | headers
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.held:
            await super().__call__(scope, receive, send)


async def _events(
    hearing: Hearing, settling: Settling, with_logprobs: bool, timeout_s: float
) -> AsyncIterator[str]:
    """Words as they become certain. Joined, the deltas are the text."""
    told: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(timeout_s):
            (clip,) = hearing.clips
            async for part in clip.parts():
                clip.check(part.numbers)
                delta = await settling.more(part, hearing.seconds, last=not clip.windows)
                new = [token.model_dump() for token in delta.tokens] if with_logprobs else []
                told += new
                if delta.text:
                    yield _event("transcript.text.delta", delta=delta.text, **_if_any(logprobs=new))
            warnings = [warning._asdict() for warning in clip.warnings]
            further = _if_any(logprobs=told, warnings=warnings)
            yield _event("transcript.text.done", text=settling.told, **further)
    except Exception as error:
        yield f"data: {failed_midway(error).body().decode()}\n\n"
    yield "data: [DONE]\n\n"


def _if_any(**lists: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: values for name, values in lists.items() if values}


def _event(kind: str, **fields: Any) -> str:
    return f"data: {json.dumps({'type': kind} | fields)}\n\n"
