"""Jobs: files that are sent once and asked about later."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from speech_ssl.client.answers import Analysis, Classification, Embedding, Transcript, read_embedding, reader
from speech_ssl.client.errors import of_event
from speech_ssl.client.many import Counts, Done

T = TypeVar("T")
JobTask = Literal["embedding", "transcription", "classification", "analysis"]
FIRST_POLL_S, LONGEST_POLL_S = 0.5, 5.0


@dataclass(frozen=True, slots=True)
class JobProgress:
    """files_done: with those that failed. file: of the one under way, from 0 to 1."""

    files: int
    files_done: int
    files_failed: int
    file: float | None = None

    @property
    def counts(self) -> Counts:
        return Counts(self.files_done, self.files_failed, self.files)


@dataclass(frozen=True, slots=True)
class Job:
    """Times are Unix seconds. `failed`: none of its files has a result. expires: when the service deletes it,
    with its results."""

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    task: JobTask
    model: str
    progress: JobProgress
    created: int
    started: int | None = None
    ended: int | None = None
    expires: int | None = None

    @property
    def over(self) -> bool:
        return self.ended is not None


@dataclass(frozen=True, slots=True)
class _Line:
    index: int
    name: str
    result: Any = None
    error: Any = None


def result_reader(kind: type[T]) -> Callable[[bytes, str], Done[T]]:
    """From a line of the results, and the request's id, to the answer or the error of a file. Raises
    ValueError for a kind that is none, and the reader does for a line of another."""
    readers: dict[type[Any], Callable[[bytes], Any]] = {
        Embedding: read_embedding,
        **{each: reader(each) for each in (Transcript, Classification, Analysis)},
    }
    if kind not in readers:
        raise ValueError(f"results are {', '.join(each.__name__ for each in readers)}, not {kind!r}")
    line_of = reader(_Line)

    def read(text: bytes, request_id: str) -> Done[T]:
        line = line_of(text)
        if line.error is not None:
            return Done(line.index, line.name, None, of_event(line.error, request_id))
        answer: T = readers[kind](json.dumps(line.result).encode())
        return Done(line.index, line.name, answer)

    return read
