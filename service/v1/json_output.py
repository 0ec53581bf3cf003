"""Answers as JSON text, in pieces: the frames of a long clip are never one string."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.models.clips import Vectors
from service.models.engine import Hearing, Result
from service.models.holding import held
from service.record import milliseconds
from service.v1.schemas import AudioWarning, Embedding, EmbeddingOptions
from speech_ssl import audio

PIECE_BYTES = 64 << 10
PIECE_ROWS = 48  # a multiple of 3, so that pieces of base64 join without padding


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
    headers = timing(result) | warning_codes(result)
    if isinstance(answer.text, Generator) and answer.long:
        return Long(answer.text, headers, answer.media_type)
    body = "".join(answer.text).encode()
    held().only(len(body))
    return InPieces(body, headers=headers, media_type=answer.media_type)


def timing(result: Result) -> dict[str, str]:
    """Headers that say where the time went."""
    return {
        "X-Queue-Time": milliseconds(result.waited_s),
        "X-Inference-Time": milliseconds(result.ran_s),
    }


def warning_codes(heard: Result | Hearing) -> dict[str, str]:
    """A header with the codes of what is wrong with its files, if anything is; bodies say more."""
    codes = dict.fromkeys(warning.code for clip in heard.clips for warning in clip.warnings)
    return {"X-Audio-Warnings": ", ".join(codes)} if codes else {}


def warnings_of(warnings: Sequence[audio.AudioWarning]) -> list[AudioWarning] | None:
    """None where there are none: an answer then has no such field."""
    return [AudioWarning(**warning._asdict()) for warning in warnings] or None


def embedding_of(vector: Vectors) -> Embedding:
    """One clip's (D,). The shortest decimals that are the same float32, as elsewhere."""
    return Embedding(index=0, embedding=vector.astype("U16").astype(np.float64).tolist())


def embeddings_text(result: Result, options: EmbeddingOptions, model: str) -> Iterator[str]:
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
