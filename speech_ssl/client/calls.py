"""The routes of the service as values: what is sent, and how the answer is read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from speech_ssl.client.answers import (
    Analysis,
    Classification,
    Embedding,
    Model,
    Transcript,
    read_embedding,
    read_models,
    reader,
)
from speech_ssl.client.inputs import Audio
from speech_ssl.client.jobs import Job, JobTask

T_co = TypeVar("T_co", covariant=True)
JOBS = "/v1/jobs"
Task = Literal["embedding", "transcription", "classification"]
Fields = dict[str, Any]
FORMS: dict[str, Fields] = {
    "embedding": {"encoding_format": "base64"},
    "transcription": {
        "response_format": "verbose_json",
        "timestamp_granularities[]": ["word", "segment"],
    },
}
"""How the answers of a task are wanted."""


class Options(TypedDict, total=False):
    """timeout: seconds for the call with all its attempts; None: no limit."""

    timeout: float | None


class ModelOptions(Options, total=False):
    model: str


class EmbedOptions(ModelOptions, total=False):
    """layer: 0 is what enters the first block, -1 the last one's output. pooling: `none` gives frames."""

    layer: int
    pooling: Literal["mean", "max", "none"]


class TranscribeOptions(ModelOptions, total=False):
    """head: which one, where the model has several."""

    head: str


class ClassifyOptions(ModelOptions, total=False):
    """top_k: labels to tell; all, if it is not given. threshold: probability from which an event is told.
    head: which one, where the model has several."""

    head: str
    top_k: int
    threshold: float


class AnalyzeOptions(ModelOptions, total=False):
    """tasks: all that the model can, if none are given. The others as for the single tasks."""

    tasks: Sequence[Task]
    layer: int
    pooling: Literal["mean", "max"]
    speech_head: str
    sounds_head: str
    top_k: int
    threshold: float


class JobOptions(EmbedOptions, ClassifyOptions, total=False):
    """Those of the job's task."""

    tasks: Sequence[Task]
    speech_head: str
    sounds_head: str


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """read: from the body of a success; raises ValueError for what is none. repeatable: doing it twice does
    no harm."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    read: Callable[[bytes], T_co]
    fields: Mapping[str, Any] = field(default_factory=dict)
    audios: tuple[Audio, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True


def embed(audio: Audio, options: EmbedOptions) -> Call[Embedding]:
    fields = _fields(options, EmbedOptions) | FORMS["embedding"]
    return Call("POST", "/v1/embeddings", read_embedding, fields, (audio,))


def transcribe(audio: Audio, options: TranscribeOptions) -> Call[Transcript]:
    fields = _fields(options, TranscribeOptions) | FORMS["transcription"]
    return Call("POST", "/v1/audio/transcriptions", reader(Transcript), fields, (audio,))


def transcribe_stream(audio: Audio, options: TranscribeOptions) -> Call[bytes]:
    fields = _fields(options, TranscribeOptions) | {"stream": True}
    return Call("POST", "/v1/audio/transcriptions", bytes, fields, (audio,))


def classify(audio: Audio, options: ClassifyOptions) -> Call[Classification]:
    fields = _fields(options, ClassifyOptions)
    return Call("POST", "/v1/audio/classifications", reader(Classification), fields, (audio,))


def analyze(audio: Audio, options: AnalyzeOptions) -> Call[Analysis]:
    fields = _fields(options, AnalyzeOptions)
    return Call("POST", "/v1/audio/analyses", reader(Analysis), fields, (audio,))


def models(options: Options) -> Call[tuple[Model, ...]]:
    _fields(options, Options)
    return Call("GET", "/v1/models", read_models)


def submit(task: JobTask, audios: tuple[Audio, ...], options: JobOptions) -> Call[Job]:
    """With a key, so that a job whose answer was lost is not made twice."""
    if not audios:
        raise ValueError("a job has at least one file")
    fields = _fields(options, JobOptions) | FORMS.get(task, {}) | {"task": task}
    return Call("POST", JOBS, reader(Job), fields, audios, {"Idempotency-Key": uuid.uuid4().hex})


def job(id: str, options: Options) -> Call[Job]:
    _fields(options, Options)
    return Call("GET", _path(id), reader(Job))


def results(id: str, after: int, options: Options) -> Call[bytes]:
    _fields(options, Options)
    return Call("GET", f"{_path(id)}/results?after={after}", bytes)


def cancel(id: str) -> Call[Job | None]:
    """One that has ended meanwhile is kept. By a service that does not know that option it would be deleted,
    also if it is asked twice: then None."""
    read = reader(Job)
    path = f"{_path(id)}?keep=true"
    return Call("DELETE", path, lambda body: read(body) if body else None, repeatable=False)


def _path(id: str) -> str:
    return f"{JOBS}/{quote(id, safe='')}"


def _fields(options: Mapping[str, Any], kind: type[Any]) -> Fields:
    """What goes into the form. Raises TypeError for an option that is none."""
    if unknown := sorted(options.keys() - kind.__optional_keys__):
        known = ", ".join(sorted(kind.__optional_keys__))
        raise TypeError(f"{unknown[0]!r} is no option here: choose from {known}")
    return {
        name: ",".join(value) if name == "tasks" else value
        for name, value in options.items()
        if name != "timeout" and value is not None
    }
