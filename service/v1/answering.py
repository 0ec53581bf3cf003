"""From what a client asks to the answer as text: for the routes, and for jobs, which keep what the routes
would have said."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import bad_request
from service.models.clips import Vectors
from service.models.engine import Engine, File, Hearing, Result
from service.models.model import Model
from service.record import current, milliseconds
from service.v1 import schemas_audio, transcripts
from service.v1.requests import Upload
from service.v1.schemas import AudioWarning, Embedding, EmbeddingOptions, Usage
from service.v1.schemas_audio import (
    Analysis,
    AnalysisOptions,
    Classification,
    ClassificationOptions,
    Sounds,
    Spoken,
    Transcription,
    TranscriptionOptions,
)
from speech_ssl import audio
from speech_ssl.inference.answers import Choice, Transcript
from speech_ssl.inference.answers import Classification as HeardSounds
from speech_ssl.inference.card import ModelCard, PassRequest

PIECE_BYTES = 64 << 10
PIECE_ROWS = 48  # a multiple of 3, so that pieces of base64 join without padding
Options: TypeAlias = EmbeddingOptions | TranscriptionOptions | ClassificationOptions | AnalysisOptions


async def response(engine: Engine, upload: Upload[Any]) -> Response:
    """Raises as `answered` does."""
    async with engine.models.serving(upload.options.model) as model:
        answer, result = await answered(engine, model, upload.files, upload.options)
        return response_of(answer, result)


def wanted(card: ModelCard, options: Options) -> PassRequest:
    """What the model has to run for it. Raises ServiceError or ChoiceError for what it cannot."""
    match options:
        case EmbeddingOptions():
            if options.dimensions not in (None, card.width):
                message = f"dimensions: vectors of {card.name} have {card.width} numbers, and no fewer"
                raise bad_request(message, "dimensions")
            return card.choose(["embedding"], layer=options.layer, pooling=options.pooling)
        case TranscriptionOptions():
            return card.choose(["transcription"], speech_head=options.head)
        case ClassificationOptions():
            choice = Choice(options.top_k, options.threshold)
            return card.choose(["classification"], sounds_head=options.head, choice=choice)
        case AnalysisOptions():
            return card.choose(
                options.tasks,
                layer=options.layer,
                pooling=options.pooling,
                speech_head=options.speech_head,
                sounds_head=options.sounds_head,
                choice=Choice(options.top_k, options.threshold),
            )


async def answered(
    engine: Engine, model: Model, files: Sequence[File], options: Options
) -> tuple[Answer, Result]:
    """From one pass of the model. Raises as `wanted` and `Engine.hear` do."""
    asked = wanted(model.card, options)
    result = await engine.hear(model, files, asked)
    if isinstance(options, EmbeddingOptions):
        text = _embeddings(result, options, model.card.name)
        return Answer(text, long=asked.holds_frames), result
    (clip,) = result.clips
    said, sounds = await engine.aside(partial(model.answering.heard, clip.whole, asked))
    if isinstance(options, TranscriptionOptions):
        assert said is not None
        return _transcription(said, options, result), result
    about: dict[str, Any] = {
        "model": model.card.name,
        "usage": _usage(result),
        "warnings": warnings_of(clip.warnings),
    }
    if isinstance(options, ClassificationOptions):
        assert sounds is not None
        return _json(Classification(**about, **dict(sounds_of(sounds)))), result
    assert isinstance(options, AnalysisOptions)
    analysis = Analysis(**about)
    if clip.vectors is not None:
        analysis.embedding = _embedding(clip.vectors)
    if said is not None:
        analysis.transcription = Spoken(text=said.text, words=transcripts.words_of(said.words))
    if sounds is not None:
        analysis.classification = sounds_of(sounds)
    return _json(analysis), result


def _transcription(said: Transcript, options: TranscriptionOptions, result: Result) -> Answer:
    warnings = result.clips[0].warnings
    plain = partial(Answer, media_type="text/plain; charset=utf-8", warnings=warnings)
    match options.response_format:
        case "text":
            return plain([said.text + "\n"])
        case "srt":
            return plain([transcripts.srt(said.words)])
        case "vtt":
            return plain([transcripts.vtt(said.words)], media_type="text/vtt; charset=utf-8")
    answer = Transcription(text=said.text, usage=_usage(result), warnings=warnings_of(warnings))
    if "logprobs" in options.include:
        answer.logprobs = transcripts.logprobs_of(said.words)
    if options.response_format == "verbose_json":
        answer.task, answer.language = "transcribe", options.language or "unknown"
        answer.duration = said.duration_s
        if "word" in options.timestamp_granularities:
            answer.words = transcripts.words_of(said.words)
        if "segment" in options.timestamp_granularities:
            answer.segments = transcripts.segments_of(said.words)
    return _json(answer)


def sounds_of(heard: HeardSounds) -> Sounds:
    return Sounds(
        labels=[schemas_audio.Label(**asdict(label)) for label in heard.labels],
        events=[schemas_audio.TimedEvent(**asdict(event)) for event in heard.events],
    )


def _usage(result: Result) -> Usage:
    return Usage(seconds=round(result.seconds, 6))


def _json(answer: BaseModel) -> Answer:
    return Answer([answer.model_dump_json(exclude_none=True)])


def _embedding(vector: Vectors) -> Embedding:
    """One clip's (D,). The shortest decimals that are the same float32, as elsewhere."""
    return Embedding(index=0, embedding=vector.astype("U16").astype(np.float64).tolist())


def _embeddings(result: Result, options: EmbeddingOptions, model: str) -> Iterator[str]:
    yield '{"object":"list","data":['
    for index, clip in enumerate(result.clips):
        vectors = clip.vectors
        assert vectors is not None
        yield f'{"," if index else ""}{{"object":"embedding","index":{index},"embedding":'
        yield from _base64(vectors) if options.encoding_format == "base64" else _numbers(vectors)
        if vectors.ndim == 2:
            yield f',"shape":{json.dumps(vectors.shape)}'
        if clip.warnings:
            yield f',"warnings":{json.dumps([warning._asdict() for warning in clip.warnings])}'
        yield "}"
    usage = {"type": "duration", "seconds": round(result.seconds, 6)}
    yield f'],"model":{json.dumps(model)},"usage":{json.dumps(usage)}}}'


def _numbers(vectors: Vectors) -> Iterator[str]:
    """The shortest decimals that are the same float32: half the length of Python's own."""
    if vectors.ndim == 1:
        yield f"[{','.join(vectors.astype('U16').tolist())}]"
        return
    yield "["
    for start in range(0, len(vectors), PIECE_ROWS):
        rows = vectors[start : start + PIECE_ROWS].astype("U16").tolist()
        yield ("," if start else "") + ",".join(f"[{','.join(row)}]" for row in rows)
    yield "]"


def _base64(vectors: Vectors) -> Iterator[str]:
    yield '"'
    for start in range(0, len(vectors), PIECE_ROWS):
        piece = np.ascontiguousarray(vectors[start : start + PIECE_ROWS], dtype="<f4")
        yield base64.b64encode(piece.tobytes()).decode()
    yield '"'


@dataclass(frozen=True)
class Answer:
    """A body. long: not to be held as one string. warnings: those that it has no place for."""

    text: Iterable[str]
    media_type: str = "application/json"
    long: bool = False
    warnings: Sequence[audio.AudioWarning] = ()


class InPieces(Response):
    """Handed over as it is taken: of one that is slow, the connection has a piece, not a copy of it all."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        size = len(self.body)
        for start in range(0, max(size, 1), PIECE_BYTES):
            piece, more = self.body[start : start + PIECE_BYTES], start + PIECE_BYTES < size
            await send({"type": "http.response.body", "body": piece, "more_body": more})


class Long(StreamingResponse):
    """Made while it is sent. Of a client that has left, nothing stays in cycles, which are seldom collected:
    it was all that the model gave."""

    def __init__(self, text: Generator[str], headers: dict[str, str], media_type: str) -> None:
        super().__init__(text, headers=headers, media_type=media_type)
        self._text = text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._text.close()


def response_of(answer: Answer, result: Result) -> Response:
    """Of what the request at hand holds, the answer is left."""
    headers = {
        "X-Queue-Time": milliseconds(result.waited_s),
        "X-Inference-Time": milliseconds(result.ran_s),
        **warning_codes(result),
    }
    if isinstance(answer.text, Generator) and answer.long:
        return Long(answer.text, headers, answer.media_type)
    body = "".join(answer.text).encode()
    current().held.only(len(body))
    return InPieces(body, headers=headers, media_type=answer.media_type)


def warning_codes(heard: Result | Hearing) -> dict[str, str]:
    """A header with the codes of what is wrong with its files, if anything is; bodies say more."""
    codes = dict.fromkeys(warning.code for clip in heard.clips for warning in clip.warnings)
    return {"X-Audio-Warnings": ", ".join(codes)} if codes else {}


def warnings_of(warnings: Sequence[audio.AudioWarning]) -> list[AudioWarning] | None:
    """None where there are none: an answer then has no such field."""
    return [AudioWarning(**warning._asdict()) for warning in warnings] or None
