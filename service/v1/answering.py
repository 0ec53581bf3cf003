"""Answers about clips, as text: for the routes, and for jobs, which keep what the routes would have said."""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.errors import bad_request
from service.models.clips import PassRequest
from service.models.engine import Engine, File, Result
from service.models.model import Model
from service.models.runtime import ModelRuntime
from service.v1 import captions, logprobs, schemas_audio
from service.v1.dependencies import attended, checked_layer
from service.v1.json_output import Answer, embedding_of, embeddings_text, response_of, warnings_of
from service.v1.schemas import EmbeddingOptions, Usage
from service.v1.schemas_audio import (
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
from service.v1.uploads import Upload
from speech_ssl.inference.answers import Choice, Task, Transcript
from speech_ssl.inference.answers import Classification as HeardSounds
from speech_ssl.inference.card import HeadTask

Options: TypeAlias = EmbeddingOptions | TranscriptionOptions | ClassificationOptions | AnalysisOptions


def wanted(runtime: ModelRuntime, options: Options) -> PassRequest:
    """What the model has to run for it. Raises ServiceError for what it cannot."""
    match options:
        case EmbeddingOptions():
            _check_dimensions(runtime, options.dimensions)
            return PassRequest(checked_layer(runtime, options.layer), options.pooling)
        case TranscriptionOptions():
            return PassRequest(heads=(head_of(runtime, "transcription", options.head),))
        case ClassificationOptions():
            return PassRequest(heads=(head_of(runtime, "classification", options.head),))
    tasks = options.tasks or possible(runtime)
    speech = head_of(runtime, "transcription", options.speech_head) if "transcription" in tasks else None
    sounds = head_of(runtime, "classification", options.sounds_head) if "classification" in tasks else None
    layer = checked_layer(runtime, options.layer) if "embedding" in tasks else None
    return PassRequest(layer, options.pooling, tuple(dict.fromkeys(n for n in (speech, sounds) if n)))


async def respond(request: Request, engine: Engine, upload: Upload[Any]) -> Response:
    """Until the client leaves or the deadline passes. Raises ServiceError."""

    async def work() -> Response:
        async with engine.models.serving(upload.options.model) as model:
            answer, result = await answered(engine, model, upload.files, upload.options)
            return response_of(answer, result)

    return await attended(request, engine, work())


async def answered(
    engine: Engine, model: Model, files: Sequence[File], options: Options
) -> tuple[Answer, Result]:
    """From one pass of the model. Raises as `Engine.hear` does."""
    result = await engine.hear(model, files, wanted(model.runtime, options))
    return await _answer(engine, model.runtime, options, result), result


async def _answer(engine: Engine, runtime: ModelRuntime, options: Options, result: Result) -> Answer:
    match options:
        case EmbeddingOptions():
            return Answer(embeddings_text(result, options, runtime.name), long=options.pooling == "none")
        case TranscriptionOptions():
            name = head_of(runtime, "transcription", options.head)
            said = await engine.aside(partial(runtime.transcript, result.clips[0].whole, name))
            return _transcription(said, options, result)
        case ClassificationOptions():
            sounds = await _sounds(engine, runtime, options, result)
            warnings = warnings_of(result.clips[0].warnings)
            heard = Classification(
                model=runtime.name, usage=_usage(result), warnings=warnings, **dict(sounds)
            )
            return _json(heard)
    return _json(await _analysis(engine, runtime, options, result))


def _check_dimensions(runtime: ModelRuntime, dimensions: int | None) -> None:
    if dimensions not in (None, runtime.width):
        message = f"dimensions: vectors of {runtime.name} have {runtime.width} numbers, and no fewer"
        raise bad_request(message, "dimensions")


def head_of(runtime: ModelRuntime, task: HeadTask, name: str | None) -> str:
    try:
        return runtime.check_head(task, name)
    except ValueError as error:
        raise bad_request(str(error), "model" if name is None else "head", "unsupported_task") from error


def possible(runtime: ModelRuntime) -> list[Task]:
    tasks: list[Task] = ["embedding"]
    for task in ("transcription", "classification"):
        try:
            runtime.check_head(task)
        except ValueError:
            continue
        tasks.append(task)
    return tasks


def labels_of(runtime: ModelRuntime, head: str) -> list[str]:
    """Of a head that classifies, in its own order."""
    labels: Sequence[str] = getattr(runtime.heads[head], "labels", ())
    return list(labels)


async def _analysis(
    engine: Engine, runtime: ModelRuntime, options: AnalysisOptions, result: Result
) -> Analysis:
    tasks = options.tasks or possible(runtime)
    (clip,) = result.clips
    answer = Analysis(model=runtime.name, usage=_usage(result), warnings=warnings_of(clip.warnings))
    if clip.vectors is not None:
        answer.embedding = embedding_of(clip.vectors)
    if "transcription" in tasks:
        name = head_of(runtime, "transcription", options.speech_head)
        said = await engine.aside(partial(runtime.transcript, clip.whole, name))
        answer.transcription = Spoken(text=said.text, words=words_of(said))
    if "classification" in tasks:
        answer.classification = await _sounds(engine, runtime, options, result)
    return answer


async def _sounds(
    engine: Engine, runtime: ModelRuntime, options: ClassificationOptions | AnalysisOptions, result: Result
) -> Sounds:
    given = options.sounds_head if isinstance(options, AnalysisOptions) else options.head
    name = head_of(runtime, "classification", given)
    choice = Choice(options.top_k, options.threshold)
    heard = await engine.aside(partial(runtime.classification, result.clips[0].whole, name, choice))
    return sounds_of(heard)


def _transcription(said: Transcript, options: TranscriptionOptions, result: Result) -> Answer:
    warnings = result.clips[0].warnings
    plain = partial(Answer, media_type="text/plain; charset=utf-8", warnings=warnings)
    match options.response_format:
        case "text":
            return plain([said.text + "\n"])
        case "srt":
            return plain([captions.srt(said.words)])
        case "vtt":
            return plain([captions.vtt(said.words)], media_type="text/vtt; charset=utf-8")
    answer = Transcription(text=said.text, usage=_usage(result), warnings=warnings_of(warnings))
    if "logprobs" in options.include:
        answer.logprobs = logprobs.tokens(said.words)
    if options.response_format == "verbose_json":
        answer.task, answer.language = "transcribe", options.language or "unknown"
        answer.duration = said.duration_s
        if "word" in options.timestamp_granularities:
            answer.words = words_of(said)
        if "segment" in options.timestamp_granularities:
            answer.segments = [_segment(*numbered) for numbered in enumerate(captions.segments(said.words))]
    return _json(answer)


def _segment(number: int, part: captions.Segment) -> Segment:
    text = part.text.encode()
    return Segment(
        id=number,
        start=part.start,
        end=part.end,
        text=part.text,
        avg_logprob=statistics.fmean(map(logprobs.of_word, part.words)),
        compression_ratio=len(text) / len(zlib.compress(text)),
    )


def words_of(said: Transcript) -> list[Word]:
    return [Word(**asdict(word)) for word in said.words]


def sounds_of(heard: HeardSounds) -> Sounds:
    return Sounds(
        labels=[schemas_audio.Label(**asdict(label)) for label in heard.labels],
        events=[schemas_audio.TimedEvent(**asdict(event)) for event in heard.events],
    )


def _usage(result: Result) -> Usage:
    return Usage(seconds=round(result.seconds, 6))


def _json(answer: BaseModel) -> Answer:
    return Answer([answer.model_dump_json(exclude_none=True)])
