"""What the service answers, as values, and how they are read from its JSON.

Times are seconds. Fields that a newer service adds are passed over; one that is missing, or of another type,
is a ValueError.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasPath, Field, PlainValidator, TypeAdapter

T = TypeVar("T")
Seconds = Annotated[float, Field(validation_alias=AliasPath("usage", "seconds"))]


@dataclass(frozen=True, slots=True)
class AudioWarning:
    """What is wrong with a file that was used all the same. code: `truncated`, for one. message: one line."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """values: (D,), or (T, D) of frames. seconds: of audio."""

    values: NDArray[np.float32]
    model: str
    seconds: float
    warnings: tuple[AudioWarning, ...] = ()

    @property
    def vector(self) -> NDArray[np.float32]:
        """(D,). Raises ValueError for frames."""
        if self.values.ndim != 1:
            raise ValueError("these are frames, of pooling='none': ask for 'mean' or 'max' to get one vector")
        return self.values

    @property
    def frames(self) -> NDArray[np.float32]:
        """(T, D). Raises ValueError where there is one vector."""
        if self.values.ndim != 2:
            raise ValueError("this is one vector: ask for pooling='none' to get frames")
        return self.values


@dataclass(frozen=True, slots=True)
class Word:
    """score: a probability."""

    word: str
    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True)
class Segment:
    """Words that are said in one breath. avg_logprob: the mean of theirs."""

    text: str
    start: float
    end: float
    avg_logprob: float


@dataclass(frozen=True, slots=True)
class Spoken:
    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Transcript(Spoken):
    segments: tuple[Segment, ...]
    seconds: Seconds
    warnings: tuple[AudioWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Label:
    """score: a probability."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class TimedEvent:
    """score: the mean probability in between."""

    label: str
    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True)
class Sounds:
    """labels: the likeliest first. events: by start."""

    labels: tuple[Label, ...]
    events: tuple[TimedEvent, ...]


@dataclass(frozen=True, slots=True)
class Classification(Sounds):
    model: str
    seconds: Seconds
    warnings: tuple[AudioWarning, ...] = ()


def _vector(value: object) -> NDArray[np.float32]:
    numbers = value.get("embedding") if isinstance(value, dict) else None
    return np.array(_adapter(list[float]).validate_python(numbers, strict=True), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """None for what was not asked for. embedding: (D,)."""

    model: str
    seconds: Seconds
    embedding: Annotated[NDArray[np.float32] | None, PlainValidator(_vector)] = None
    transcription: Spoken | None = None
    classification: Sounds | None = None
    warnings: tuple[AudioWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Head:
    """labels: of one that classifies."""

    name: str
    task: Literal["transcription", "classification"]
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """`layer` may be 0 to `layers`; vectors have `width` numbers; audio is resampled to `sample_rate` Hz.
    Of one that is not loaded, `layers` and `width` are None and `heads` is empty: a request loads it."""

    id: str
    layers: int | None
    width: int | None
    sample_rate: int
    heads: tuple[Head, ...]
    loaded: bool = True


@dataclass(frozen=True, slots=True)
class _Row:
    embedding: str | list[float] | list[list[float]]
    shape: tuple[int, int] | None = None
    warnings: tuple[AudioWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rows:
    data: Annotated[tuple[_Row, ...], Field(min_length=1, max_length=1)]
    model: str
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class _Models:
    data: tuple[Model, ...]


def reader(kind: type[T]) -> Callable[[bytes], T]:
    key: Any = kind  # for mypy, which takes no type of a variable for hashable

    def read(body: bytes) -> T:
        answer: T = _adapter(key).validate_json(body, strict=True)
        return answer

    return read


def read_embedding(body: bytes) -> Embedding:
    """Of base64, or of numbers, as somebody else's job may have them."""
    rows = reader(_Rows)(body)
    row = rows.data[0]
    if not isinstance(row.embedding, str):
        values = np.array(row.embedding, dtype=np.float32)
    else:
        values = np.frombuffer(base64.b64decode(row.embedding, validate=True), "<f4").astype(np.float32)
        values = values if row.shape is None else values.reshape(row.shape)
    return Embedding(values, rows.model, rows.seconds, row.warnings)


def read_models(body: bytes) -> tuple[Model, ...]:
    return reader(_Models)(body).data


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
