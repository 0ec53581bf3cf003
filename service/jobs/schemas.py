"""What goes over the wire for jobs."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field

from service.jobs import store as jobs
from service.v1.answering import Options
from service.v1.schemas import EmbeddingOptions, Error, Warned, body_of
from service.v1.schemas_audio import AnalysisOptions, ClassificationOptions, TranscriptionOptions

JobTask: TypeAlias = Literal["embedding", "transcription", "classification", "analysis"]
OPTIONS: dict[str, type[Options]] = {
    "embedding": EmbeddingOptions,
    "transcription": TranscriptionOptions,
    "classification": ClassificationOptions,
    "analysis": AnalysisOptions,
}
assert set(OPTIONS) == set(get_args(JobTask))


class TaskOption(BaseModel):
    """What says which options the others are."""

    task: JobTask = Field(description="Whose route's options the others are.")


class ListOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100, description="Jobs in one answer.")
    after: str | None = Field(default=None, description="The id of the last job of the answer before.")


class ResultOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    after: int = Field(default=-1, ge=-1, le=1 << 31, description="Only files of a greater index.")


class RemoveOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keep: bool = Field(default=False, description="Only cancel: a job that has ended stays as it is.")


class Progress(BaseModel):
    """files_done: those with a result or an error; files_failed: the latter. file: how much of the file under
    way has been through the model, from 0 to 1."""

    files: int
    files_done: int
    files_failed: int
    file: float | None = None


class Job(BaseModel):
    """Times are Unix seconds. `failed`: none of its files has a result."""

    id: str
    object: Literal["job"] = "job"
    status: jobs.Status
    task: str
    model: str
    options: dict[str, Any]
    created: int
    started: int | None
    ended: int | None
    expires: int | None = Field(description="When it is deleted, with its results.")
    files: int
    progress: Progress


class JobList(BaseModel):
    """The newest first."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool


class JobResult(Warned):
    """A line of the results: what the task's route would have answered, or how it would have refused.
    warnings: of a result that is plain text and has no place for them."""

    index: int
    name: str
    result: Any = None
    error: Error | None = None


def described(job: jobs.JobRow, keep_s: float, fraction: float | None) -> Job:
    done = job.answered + job.refused
    progress = Progress(files=job.files, files_done=done, files_failed=job.refused, file=fraction)
    return Job(
        id=job.id,
        status=job.status,
        task=job.task,
        model=job.model,
        options=json.loads(job.options),
        created=int(job.created),
        started=None if job.started is None else int(job.started),
        ended=None if job.ended is None else int(job.ended),
        expires=None if job.ended is None else int(job.ended + keep_s),
        files=job.files,
        progress=progress,
    )


def _job_body() -> dict[str, Any]:
    """A form with the options of every task."""
    bodies = [body_of(options, several=True) for options in (TaskOption, *OPTIONS.values())]
    forms = [body["requestBody"]["content"]["multipart/form-data"]["schema"] for body in bodies]
    fields = {name: field for form in reversed(forms) for name, field in form["properties"].items()}
    form = {"type": "object", "required": ["file", "task"], "properties": fields}
    key = {"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string"}}
    return {
        "parameters": [key],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
    }


JOB_BODY = _job_body()
RESULT = JobResult.model_json_schema(ref_template="#/components/schemas/{model}")
del RESULT["$defs"]  # they are among the application's
