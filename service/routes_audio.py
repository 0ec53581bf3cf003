"""Routes for what is said and heard in one clip: transcriptions, classifications, analyses."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service import captions, schemas_audio
from service.encoding import embedding_of, timing
from service.engine import Engine, Hearing, Result, Runtime
from service.errors import as_service_error, bad_request
from service.hearing import Wanted
from service.schemas import ERRORS, Usage, body_of
from service.schemas_audio import (
    Analysis,
    AnalysisOptions,
    Classification,
    ClassificationOptions,
    Segment,
    Sounds,
    Spoken,
    Transcription,
    TranscriptionOptions,
    Word,
)
from service.serving import TheEngine, attended, checked_layer, checked_model
from service.uploads import received
from speech_ssl.inference.answers import Choice, Task, Transcript
from speech_ssl.inference.clips import Whole
from speech_ssl.inference.engines import Passed
from speech_ssl.inference.runtime import HeadTask

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
    runtime = engine.runtime()
    engine.check_room()
    async with AsyncExitStack() as stack:
        upload = await stack.enter_async_context(received(request, engine, TranscriptionOptions, max_files=1))
        options = upload.options
        checked_model(runtime, options.model)
        head = _head(runtime, "transcription", options.head)
        wanted = Wanted(heads=(head,))
        if options.stream:
            if options.response_format not in ("json", "text"):
                raise bad_request("with `stream`, response_format is json or text", "response_format")
            opening = stack.enter_async_context(engine.hearing(runtime, upload.files, wanted))
            hearing = await attended(request, engine, opening)
            return Streamed(_events(engine, runtime, hearing, head), stack.pop_all())
        result = await attended(request, engine, engine.hear(runtime, upload.files, wanted))
        said = await engine.aside(partial(runtime.transcript, result.clips[0].whole, head))
    return _transcription(said, options, result)


@router.post(
    "/v1/audio/classifications",
    response_model=None,
    responses={200: {"model": Classification}, **ERRORS},
    openapi_extra=body_of(ClassificationOptions),
)
async def classifications(request: Request, engine: TheEngine) -> Response:
    """What is heard in a clip: labels, and events with their times."""
    runtime = engine.runtime()
    engine.check_room()
    async with received(request, engine, ClassificationOptions, max_files=1) as upload:
        options = upload.options
        checked_model(runtime, options.model)
        head = _head(runtime, "classification", options.head)
        work = engine.hear(runtime, upload.files, Wanted(heads=(head,)))
        result = await attended(request, engine, work)
        choice = Choice(options.top_k, options.threshold)
        heard = await engine.aside(partial(runtime.classification, result.clips[0].whole, head, choice))
    answer = Classification(model=runtime.name, usage=_usage(result), **_fields(heard.labels, heard.events))
    return _json(answer, result)


@router.post(
    "/v1/audio/analyses",
    response_model=None,
    responses={200: {"model": Analysis}, **ERRORS},
    openapi_extra=body_of(AnalysisOptions),
)
async def analyses(request: Request, engine: TheEngine) -> Response:
    """Several answers about a clip, from one pass through the encoder."""
    runtime = engine.runtime()
    engine.check_room()
    async with received(request, engine, AnalysisOptions, max_files=1) as upload:
        options = upload.options
        checked_model(runtime, options.model)
        tasks = options.tasks or _possible(runtime)
        speech = _head(runtime, "transcription", options.speech_head) if "transcription" in tasks else None
        sounds = _head(runtime, "classification", options.sounds_head) if "classification" in tasks else None
        layer = checked_layer(runtime, options.layer) if "embedding" in tasks else None
        wanted = Wanted(layer, options.pooling, tuple(dict.fromkeys(n for n in (speech, sounds) if n)))
        result = await attended(request, engine, engine.hear(runtime, upload.files, wanted))
        (clip,) = result.clips
        answer = Analysis(model=runtime.name, usage=_usage(result))
        if clip.vectors is not None:
            answer.embedding = embedding_of(clip.vectors)
        if speech:
            said = await engine.aside(partial(runtime.transcript, clip.whole, speech))
            answer.transcription = Spoken(text=said.text, words=_words(said))
        if sounds:
            choice = Choice(options.top_k, options.threshold)
            heard = await engine.aside(partial(runtime.classification, clip.whole, sounds, choice))
            answer.classification = Sounds(**_fields(heard.labels, heard.events))
    return _json(answer, result)


def _head(runtime: Runtime, task: HeadTask, name: str | None) -> str:
    try:
        return runtime.check_head(task, name)
    except ValueError as error:
        raise bad_request(str(error), "head" if name else "model", "unsupported_task") from error


def _possible(runtime: Runtime) -> list[Task]:
    tasks: list[Task] = ["embedding"]
    for task in ("transcription", "classification"):
        try:
            runtime.check_head(task)
        except ValueError:
            continue
        tasks.append(task)
    return tasks


def _transcription(said: Transcript, options: TranscriptionOptions, result: Result) -> Response:
    match options.response_format:
        case "text":
            return PlainTextResponse(said.text + "\n", headers=timing(result))
        case "srt":
            return PlainTextResponse(captions.srt(said.words), headers=timing(result))
        case "vtt":
            return Response(captions.vtt(said.words), 200, timing(result), "text/vtt; charset=utf-8")
    answer = Transcription(text=said.text, usage=_usage(result))
    if options.response_format == "verbose_json":
        answer.task, answer.language = "transcribe", options.language or "unknown"
        answer.duration = said.duration_s
        if "word" in options.timestamp_granularities:
            answer.words = _words(said)
        if "segment" in options.timestamp_granularities:
            answer.segments = [_segment(*numbered) for numbered in enumerate(captions.segments(said.words))]
    return _json(answer, result)


def _segment(number: int, part: captions.Segment) -> Segment:
    text = part.text.encode()
    return Segment(
        id=number,
        start=part.start,
        end=part.end,
        text=part.text,
        avg_logprob=statistics.fmean(math.log(max(word.score, 1e-9)) for word in part.words),
        compression_ratio=len(text) / len(zlib.compress(text)),
    )


class Streamed(StreamingResponse):
    """Server-sent events. `held` is let go at the end, also of a client that leaves before the first."""

    def __init__(self, lines: AsyncIterator[str], held: AsyncExitStack) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.held:
            await super().__call__(scope, receive, send)


async def _events(engine: Engine, runtime: Runtime, hearing: Hearing, head: str) -> AsyncIterator[str]:
    """Words as they become certain: all but the last, which the next window may go on with. Joined, the
    deltas are the text."""
    told = ""
    try:
        async with asyncio.timeout(engine.settings.request_timeout_s):
            (clip,) = hearing.clips
            pending: list[Passed] = []
            async for part in clip.parts():
                clip.check(list(part.heads.values()))
                heard = Whole(Passed.joined([*pending, part]), hearing.seconds)
                frames = len(heard.passed.heads[head])
                cut = runtime.settled(heard, head) if clip.windows else frames
                pending = [heard.passed.kept(cut, frames - cut)]
                certain = Whole(heard.passed.kept(0, cut), hearing.seconds)
                text = (await engine.aside(partial(runtime.transcript, certain, head))).text
                if text:
                    delta = f" {text}" if told else text
                    told += delta
                    yield _event("transcript.text.delta", delta=delta)
            usage = Usage(seconds=round(hearing.seconds, 6)).model_dump()
            yield _event("transcript.text.done", text=told, usage=usage)
    except Exception as error:
        yield f"data: {as_service_error(error).body().decode()}\n\n"
    yield "data: [DONE]\n\n"


def _event(kind: str, **fields: Any) -> str:
    return f"data: {json.dumps({'type': kind} | fields)}\n\n"


def _words(said: Transcript) -> list[Word]:
    return [Word(**asdict(word)) for word in said.words]


def _fields(labels: Sequence[Any], events: Sequence[Any]) -> dict[str, Any]:
    return {
        "labels": [schemas_audio.Label(**asdict(label)) for label in labels],
        "events": [schemas_audio.TimedEvent(**asdict(event)) for event in events],
    }


def _usage(result: Result) -> Usage:
    return Usage(seconds=round(result.seconds, 6))


def _json(answer: BaseModel, result: Result) -> Response:
    text = answer.model_dump_json(exclude_none=True)
    return Response(text, headers=timing(result), media_type="application/json")
