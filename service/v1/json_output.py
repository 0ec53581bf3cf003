"""Vectors as JSON text, in pieces: the frames of a long clip are never one string."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import numpy as np

from service.models.clips import Vectors
from service.models.engine import Result
from service.v1.schemas import Embedding, EmbeddingOptions

PIECE_ROWS = 48  # a multiple of 3, so that pieces of base64 join without padding


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
