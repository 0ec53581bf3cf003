"""Routes for jobs: what is long, or much, is sent once and asked about later."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.errors import ServiceError, bad_request
from service.jobs.files import line
from service.jobs.runner import Jobs, checked
from service.jobs.schemas import (
    JOB_BODY,
    OPTIONS,
    RESULT,
    Job,
    JobList,
    ListOptions,
    RemoveOptions,
    ResultOptions,
    TaskOption,
)
from service.jobs.store import JobFile, NewJob
from service.jobs.uploads import Form, received
from service.settings import PREFIX
from service.v1.answering import Options
from service.v1.requests import TheEngine, once
from service.v1.schemas import ERRORS, ErrorBody, as_json, body_of
from service.v1.schemas_audio import TranscriptionOptions

PATH = "/v1/jobs"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "A bad option, or no such job.", "model": ErrorBody},
    501: {"description": "Jobs are off.", "model": ErrorBody},
}
router = APIRouter(prefix=PATH)


class Lines(StreamingResponse):
    media_type = "application/x-ndjson"


def _jobs(request: Request) -> Jobs:
    jobs: Jobs | None = request.app.state.jobs
    if jobs is None:
        message = f"jobs are off here: {PREFIX}JOBS_DIR, the folder to keep them in, turns them on"
        raise ServiceError(501, "jobs_off", message)
    return jobs


def _owner(request: Request) -> str:
    """The name of the key that was sent; "" where none is asked for."""
    return request.scope.get("state", {}).get("key") or ""


TheJobs = Annotated[Jobs, Depends(_jobs)]
Owner = Annotated[str, Depends(_owner)]


@router.post(
    "",
    status_code=202,
    response_model=Job,
    responses={
        **ERRORS,
        409: {"description": "The Idempotency-Key was sent with another job.", "model": ErrorBody},
        501: REFUSED[501],
        507: {"description": "No room on the disk.", "model": ErrorBody},
    },
    openapi_extra=JOB_BODY,
)
async def submit(request: Request, engine: TheEngine, jobs: TheJobs, owner: Owner) -> Response:
    """One or more `file`, the `task`, and the options of its route. The answer does not wait for the work."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise bad_request("Idempotency-Key: 1 to 255 characters of ASCII, without spaces", "Idempotency-Key")
    engine.check_open()
    async with jobs.receiving(owner, key) as (id, folder):
        form = await received(request, folder, engine.settings.max_job_files)
        task, options = _asked(request, form)
        model = await checked(engine, options)
        kept = options.model_dump_json(exclude_unset=True, exclude={"model"})
        asked = json.dumps([task, model, kept, [[file.name, file.digest] for file in form.files]])
        digest = hashlib.sha256(asked.encode()).hexdigest()
        names = [file.name for file in form.files]
        job = await jobs.add(NewJob(id, owner, key, digest, task, model, kept, names))
    answer = jobs.described(job)
    return Response(
        answer.model_dump_json(), 202, {"Location": f"{PATH}/{job.id}"}, media_type="application/json"
    )


@router.get("", responses=REFUSED, openapi_extra={"parameters": body_of(ListOptions)["parameters"]})
async def listed(request: Request, jobs: TheJobs, owner: Owner) -> JobList:
    """One's jobs, the newest first: `limit` of them, `after` the last of the answer before."""
    options = ListOptions.model_validate(once(request.query_params.multi_items()))
    page = await jobs.call(lambda store: store.page(owner, options.limit + 1, options.after))
    data = [jobs.described(job) for job in page[: options.limit]]
    return JobList(data=data, has_more=len(page) > options.limit)


@router.get("/{id}", responses=REFUSED)
async def found(id: str, jobs: TheJobs, owner: Owner) -> Job:
    """How far it is."""
    return jobs.described(await jobs.call(lambda store: store.find(id, owner)))


@router.get(
    "/{id}/results",
    response_class=Lines,
    responses={200: {"content": {Lines.media_type: {"schema": RESULT}}}, **as_json(REFUSED)},
    openapi_extra={"parameters": body_of(ResultOptions)["parameters"]},
)
async def results(id: str, request: Request, jobs: TheJobs, owner: Owner) -> Response:
    """A line of JSON for each file that has been through, in their order; also while the job runs."""
    options = ResultOptions.model_validate(once(request.query_params.multi_items()))
    job = await jobs.call(lambda store: store.find(id, owner))
    files = await jobs.call(lambda store: store.ended_files(id, options.after))
    return Lines(_lines(jobs.folder(job), files))


@router.delete(
    "/{id}",
    response_model=Job,
    responses={204: {"description": "It is deleted."}, **REFUSED},
    openapi_extra={"parameters": body_of(RemoveOptions)["parameters"]},
)
async def removed(id: str, request: Request, jobs: TheJobs, owner: Owner) -> Response:
    """Cancels a job that waits or runs; deletes one that has ended, with its results."""
    options = RemoveOptions.model_validate(once(request.query_params.multi_items()))
    job = await jobs.call(lambda store: store.find(id, owner))
    if job.over and not options.keep:
        await jobs.call(lambda store: store.delete(id))
        return Response(status_code=204)
    answer = jobs.described(job if job.over else await jobs.cancel(job))
    return Response(answer.model_dump_json(), media_type="application/json")


def _asked(request: Request, form: Form) -> tuple[str, Options]:
    """The task and its options. Raises ServiceError and pydantic's ValidationError."""
    given = once(request.query_params.multi_items()) | once(form.fields)
    task = TaskOption.model_validate({"task": given.pop("task", None)}).task
    options = OPTIONS[task].model_validate(given)
    if isinstance(options, TranscriptionOptions) and options.stream:
        raise bad_request("stream: a job has nobody to stream to", "stream")
    return task, options


def _lines(folder: Path, files: Sequence[JobFile]) -> Iterator[bytes]:
    for file in files:
        answer = folder / f"{file.position}.json"
        yield from line(file.position, file.name, error=file.error, answer=answer)
