"""What goes over the wire for transcriptions, classifications and analyses."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.errors import ServiceError
from service.v1.json_reader import json_object
from service.v1.schemas import Embedding, Usage, Warned
from speech_ssl.inference.card import Task

MAX_NAMES = 64


def listed(value: Any) -> Any:
    """A list, repeated fields, or names separated by commas: not so many that to refuse all takes long. What
    else there is stays, to be refused."""
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        return value
    if sum(part.count(",") + 1 for part in parts) > MAX_NAMES:
        raise PydanticCustomError("too_many", f"at most {MAX_NAMES} are taken")
    return [name.strip() for part in parts for name in part.split(",")]


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _object(value: Any) -> Any:
    """As a form may have it: JSON."""
    try:
        return json_object(value.encode()) if isinstance(value, str) and value.startswith("{") else value
    except (ServiceError, UnicodeEncodeError):
        return value


def _without_speakers(value: Any) -> Any:
    if value == "diarized_json":
        message = "who says what is not told apart here: ask for json or verbose_json"
        raise PydanticCustomError("no_speakers", message)
    return value


Texts: TypeAlias = Annotated[list[str], BeforeValidator(_texts)]


class AudioOptions(BaseModel):
    """Given in the query or the form; unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(default="default", description="A name listed by /v1/models, or `default`.")
    user: str | None = Field(default=None, description="Ignored; there for clients that send it.")


class Labelling(BaseModel):
    """What is asked of a head that classifies."""

    top_k: int | None = Field(default=None, ge=1, le=10_000, description="Labels to tell; unset: all.")
    threshold: float = Field(default=0.5, gt=0, le=1, description="Probability from which an event is told.")


class Chunking(BaseModel):
    """Where to cut long audio. Windows are cut otherwise here."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["server_vad"]
    prefix_padding_ms: int | None = Field(default=None, ge=0)
    silence_duration_ms: int | None = Field(default=None, ge=0)
    threshold: float | None = Field(default=None, ge=0, le=1)


class PassedOver(BaseModel):
    """What OpenAI's clients may send with a transcription, and what changes nothing here: it is read, and
    not kept."""

    prompt: str | None = Field(default=None, exclude=True, description="Passed over.")
    temperature: float | None = Field(
        default=None, exclude=True, description="Passed over: decoding is not random."
    )
    chunking_strategy: Annotated[Literal["auto"] | Chunking, BeforeValidator(_object)] | None = Field(
        default=None,
        exclude=True,
        description="Passed over: where audio is cut does not change the text.",
    )
    keywords: Texts = Field(default=[], exclude=True, description="Passed over.")
    languages: Texts = Field(default=[], exclude=True, description="Passed over.")
    known_speaker_names: Texts = Field(default=[], exclude=True, description="Passed over.")
    known_speaker_references: Texts = Field(default=[], exclude=True, description="Passed over.")


class TranscriptionOptions(AudioOptions, PassedOver):
    head: str | None = Field(default=None, description="Which head, where the model has several.")
    response_format: Annotated[
        Literal["json", "text", "srt", "vtt", "verbose_json"], BeforeValidator(_without_speakers)
    ] = "json"
    include: Annotated[list[Literal["logprobs"]], BeforeValidator(listed)] = Field(
        default=[],
        description="`logprobs`: how sure the model is of each word, in `json` and `verbose_json`.",
    )
    timestamp_granularities: Annotated[list[Literal["word", "segment"]], BeforeValidator(listed)] = Field(
        default=["segment"], description="What `verbose_json` tells the times of."
    )
    stream: bool = Field(default=False, description="Server-sent events, with text as it becomes certain.")
    language: str | None = Field(default=None, max_length=32, description="Repeated in `verbose_json`.")

    @field_validator("include")
    @classmethod
    def _has_a_place(cls, include: list[str], info: ValidationInfo) -> list[str]:
        if include and info.data.get("response_format") not in ("json", "verbose_json"):
            raise PydanticCustomError("no_place", "log-probabilities are told in json and verbose_json alone")
        return include


class ClassificationOptions(AudioOptions, Labelling):
    head: str | None = Field(default=None, description="Which head, where the model has several.")


class AnalysisOptions(AudioOptions, Labelling):
    tasks: Annotated[list[Task], BeforeValidator(listed)] | None = Field(
        default=None,
        min_length=1,
        description="`embedding`, `transcription`, `classification`, separated by commas; unset: all that "
        "the model can.",
    )
    layer: int = Field(default=-1, ge=-1024, le=1024, description="As for /v1/embeddings.")
    pooling: Literal["mean", "max"] = Field(
        default="mean", description="As for /v1/embeddings, which has frames too."
    )
    speech_head: str | None = Field(default=None, description="Which head transcribes.")
    sounds_head: str | None = Field(default=None, description="Which head classifies.")


class Word(BaseModel):
    """start, end: seconds. score: a probability."""

    word: str
    start: float
    end: float
    score: float


class Segment(BaseModel):
    """Words that are said in one breath. seek, tokens, temperature and no_speech_prob are there for clients
    of OpenAI's service that want them, and say nothing."""

    id: int
    start: float
    end: float
    text: str
    avg_logprob: float = Field(description="Mean of the words' log-probabilities.")
    compression_ratio: float = Field(description="Of the text by deflate; high where it repeats itself.")
    seek: int = 0
    tokens: list[int] = []
    temperature: float = 0.0
    no_speech_prob: float = 0.0


class Logprob(BaseModel):
    """A word, with the space before it. bytes: in UTF-8. logprob: the mean over the word's units."""

    token: str
    bytes: list[int]
    logprob: float


class Transcription(Warned):
    """`json`; with further fields for `verbose_json`. logprobs: if asked for with `include`."""

    text: str
    usage: Usage
    logprobs: list[Logprob] | None = None
    task: Literal["transcribe"] | None = None
    language: str | None = None
    duration: float | None = None
    words: list[Word] | None = None
    segments: list[Segment] | None = None


class Label(BaseModel):
    label: str
    score: float


class TimedEvent(BaseModel):
    """start, end: seconds. score: the mean probability in between."""

    label: str
    start: float
    end: float
    score: float


class Classification(Warned):
    """labels: the likeliest first. events: by start."""

    model: str
    labels: list[Label]
    events: list[TimedEvent]
    usage: Usage


class Spoken(BaseModel):
    text: str
    words: list[Word]


class Sounds(BaseModel):
    labels: list[Label]
    events: list[TimedEvent]


class Analysis(Warned):
    """The answers that were asked for, from one pass through the encoder."""

    model: str
    usage: Usage
    embedding: Embedding | None = None
    transcription: Spoken | None = None
    classification: Sounds | None = None
