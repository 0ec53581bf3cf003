"""What takes jobs and runs them, file by file, through the same queue as all else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from service.errors import ServiceError, as_service_error
from service.jobs import schemas as schemas_jobs
from service.jobs.files import results_full, storage, write_answer
from service.jobs.schemas import OPTIONS
from service.jobs.store import STATUSES, JobFile, JobRow, NewJob, Store, new_id
from service.jobs.uploads import finished
from service.metrics import Metrics
from service.models.engine import Engine, File
from service.models.registry import DEFAULT
from service.record import Held, Record, current, recording
from service.settings import Settings
from service.shares import Turns
from service.v1 import answering
from service.v1.answering import Answer, Options

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""A file that was under way when the process died, so often, is given up: it may be what it dies of."""
FOR_NOW = (429, 503, 507)
"""Refusals that are waited out: a full queue, a model that loads, a disk without room."""
LONGEST_WAIT_S, SWEEP_S = 30.0, 60.0

T = TypeVar("T")


async def answer(engine: Engine, job: JobRow, name: str, source: BinaryIO) -> Answer:
    """What the route of the job's task would have answered for one file. Raises what that raises."""
    engine.check_open()
    options = OPTIONS[job.task].model_validate_json(job.options)
    async with engine.models.serving(job.model) as model:
        told, _ = await answering.answered(engine, model, [File(name, source)], options)
    return told


async def checked(engine: Engine, options: Options) -> str:
    """The name of the model that is to do it. Raises ServiceError for what that cannot."""
    async with engine.models.serving(options.model) as model:
        answering.wanted(model.card, options)
    name = engine.models.name_of(options.model)
    return model.card.name if name == DEFAULT else name


@dataclass(frozen=True)
class _Running:
    """A job's file under way."""

    task: asyncio.Task[None]
    record: Record

    @property
    def fraction(self) -> float:
        """How much of it has been through the model."""
        if not (tickets := self.record.tickets) or not tickets[-1].submitted_s:
            return 0.0
        return min(1.0, round(tickets[-1].finished_s / tickets[-1].submitted_s, 3))

    async def cancel(self) -> None:
        """Returns when it has ended."""
        self.task.cancel()
        await asyncio.wait({self.task})


class Jobs:
    """Its methods belong to the event loop, and the store to a thread of its own."""

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics, folder: Path) -> None:
        """Raises ValueError, with why, for a folder that cannot be used."""
        self._settings = settings
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._store = self._thread.submit(Store, folder).result()
        self._counts = self._thread.submit(self._store.counts).result()
        self._receiving: dict[str, str] = {}  # the owners of what is being sent, by id
        self._turns = Turns()
        self._taken: set[str] = set()
        self._wake = asyncio.Event()
        self._current: dict[str, _Running] = {}
        self._tasks: list[asyncio.Task[None]] = []
        counts: dict[str, Callable[[], float]] = {status: partial(self._count, status) for status in STATUSES}
        metrics.gauges("jobs", "Jobs that are kept.", "status", counts)

    def start(self) -> None:
        workers = [self._work() for _ in range(self._settings.job_workers)]
        self._tasks = [asyncio.create_task(work) for work in (*workers, self._sweep())]

    async def stop(self) -> None:
        """What runs is left where it is, for the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.submit(self._store.close)
        await asyncio.to_thread(self._thread.shutdown)

    async def call(self, work: Callable[[Store], T]) -> T:
        """In the store's thread. Raises ServiceError."""

        def working() -> tuple[T, dict[str, int]]:
            with storage():
                return work(self._store), self._store.counts()

        value, self._counts = await asyncio.get_running_loop().run_in_executor(self._thread, working)
        return value

    @asynccontextmanager
    async def receiving(self, owner: str, key: str | None) -> AsyncIterator[tuple[str, Path]]:
        """An id and a folder for a job that is to come; the folder goes if the job does not come to be.
        Raises ServiceError if there are too many, those that are still being sent included, or too much in
        their results."""
        id = new_id()
        self._receiving[id] = owner
        try:
            if key is None or not await self.call(lambda store: store.has_key(owner, key)):
                await self._check_number(owner)
                await self._results_left(owner)
            folder = await self.call(lambda store: store.opened(id))
            try:
                yield id, folder
            finally:
                await self.call(lambda store: store.forget(id))
        finally:
            self._receiving.pop(id, None)

    async def _check_number(self, owner: str) -> None:
        """Those that wait, run and are being sent. Raises ServiceError."""
        most, of_one = self._settings.max_jobs, self._settings.key_max_jobs
        live = await self.call(lambda store: store.live(owner))
        own = live + sum(each == owner for each in self._receiving.values())
        every = self._count("queued") + self._count("running") + len(self._receiving)
        if own > _share(owner, most, of_one):
            message = f"there are {own - 1} jobs of this key: try again when one of them has ended"
        elif every > most:
            message = f"there are {most} jobs: try again when one has ended"
        else:
            return
        raise ServiceError(429, "too_many_jobs", message, headers={"Retry-After": "30"})

    async def _results_left(self, owner: str) -> int:
        """Bytes that there is room for. Raises ServiceError if there is none."""
        most, of_one = self._settings.max_result_bytes, self._settings.key_max_result_bytes
        own, every = await self.call(lambda store: store.result_bytes(owner))
        left = min(_share(owner, most, of_one) - own, most - every)
        if left <= 0:
            raise results_full()
        return left

    async def add(self, new: NewJob) -> JobRow:
        job = await self.call(lambda store: store.add(new))
        self._receiving.pop(new.id, None)  # it counts once: from here on among those that wait
        self._wake.set()
        return job

    async def cancel(self, job: JobRow) -> JobRow:
        """When this returns, nothing of it runs."""
        await self.call(lambda store: store.cancel(job.id))
        if (running := self._current.get(job.id)) is not None:
            await running.cancel()
        await self.call(lambda store: store.tidy(job.id))
        return await self.call(lambda store: store.get(job.id))

    def described(self, job: JobRow) -> schemas_jobs.Job:
        running = self._current.get(job.id)
        fraction = None if running is None else running.fraction
        return schemas_jobs.described(job, self._settings.job_keep_s, fraction)

    def folder(self, job: JobRow) -> Path:
        return self._store.folder(job.id)

    def _count(self, status: str) -> int:
        return self._counts.get(status, 0)

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                if not await self._turn():
                    await self._wake.wait()
            except Exception:  # the next job must be run all the same
                logger.exception("a job cannot go on before the service starts again")

    async def _turn(self) -> bool:
        """One file of the oldest job of whoever's turn it is, if there is one that no other worker has."""
        waiting = await _patiently(lambda: self.call(Store.waiting))
        oldest: dict[str, str] = {}
        for owner, id in waiting:
            if id not in self._taken:
                oldest.setdefault(owner, id)
        if not oldest:
            return False
        with self._turns.of_one(list(oldest)) as owner:
            id = oldest[owner]
            self._taken.add(id)
            if (job := await _patiently(lambda: self.call(lambda store: store.claim(id)))) is not None:
                await self._run(job)
            self._taken.discard(id)  # not if it failed: it would only do so again
        return True

    async def _sweep(self) -> None:
        keep_s = self._settings.job_keep_s
        while True:
            await _patiently(lambda: self.call(lambda store: store.expire(time.time() - keep_s)))
            await asyncio.sleep(min(SWEEP_S, keep_s))

    async def _run(self, job: JobRow) -> None:
        """Its next file, if there is one; it ends with the last."""
        if file := await _patiently(lambda: self.call(lambda store: store.begin_file(job.id))):
            record = Record(job.id, held=Held(self._engine.holding))
            with recording(record):
                running = _Running(asyncio.create_task(self._run_file(job, file)), record)
            self._current[job.id] = running
            try:
                await asyncio.wait({running.task})
            finally:
                await running.cancel()
                del self._current[job.id]
        await _patiently(lambda: self.call(lambda store: store.end(job.id)))

    async def _run_file(self, job: JobRow, file: JobFile) -> None:
        """One attempt; after a refusal for now there is another. An error is the file's, not the job's."""
        error = None
        try:
            if file.attempts > ATTEMPTS:
                message = f"given up: the service ended {ATTEMPTS} times while this file was under way"
                raise ServiceError(500, "given_up", message, param=_param(file))
            await self._answer_file(job, file)
        except asyncio.CancelledError:
            await self._leave_file(job, file)
            raise
        except Exception as reason:
            refusal = as_service_error(reason, _param(file))
            if _is_for_now(refusal):
                await self._leave_file(job, file)
                await _wait(refusal)
                return
            if refusal.code == "internal_error":
                logger.exception("file %d of job %s failed", file.position, job.id)
            error = refusal.body().decode()
        await _patiently(lambda: self.call(lambda store: store.end_file(job.id, file.position, error)))

    async def _leave_file(self, job: JobRow, file: JobFile) -> None:
        """For another attempt: this one does not count."""
        with suppress(ServiceError):
            await self.call(lambda store: store.leave_file(job.id, file.position))

    async def _answer_file(self, job: JobRow, file: JobFile) -> None:
        await self._results_left(job.owner)  # before it costs anything
        folder = self._store.folder(job.id)
        try:
            source = (folder / str(file.position)).open("rb")
        except FileNotFoundError:
            lost = "its audio is no longer in the folder of jobs"
            raise ServiceError(500, "file_lost", lost, param=_param(file)) from None
        with source, current().held:
            text = await answer(self._engine, job, _param(file), source)
            left = await self._results_left(job.owner)
            await finished(partial(_write, folder / f"{file.position}.json", text, left))


def _write(path: Path, text: Answer, most: int) -> None:
    with storage():
        write_answer(path, text, most)


def _share(owner: str, most: int, of_one: int | None) -> int:
    """Of what there is for all: half, where there are keys and nothing else is said."""
    if not owner:
        return most
    return min(most, max(1, most // 2) if of_one is None else of_one)


def _param(file: JobFile) -> str:
    return f"file[{file.position}]"


async def _patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """Again and again, while it is refused for now: for the store, without which nothing goes on."""
    while True:
        try:
            return await attempt()
        except Exception as error:
            refusal = as_service_error(error)
            if refusal.status not in FOR_NOW:
                raise
        await _wait(refusal)


def _is_for_now(refusal: ServiceError) -> bool:
    """Not what would only come again: of a file that takes its model down, of a key whose results fill its
    share, of a model that has failed to load so often that the next try is far off."""
    if refusal.code == "not_loaded":
        return _asked_s(refusal) <= LONGEST_WAIT_S
    return refusal.status in FOR_NOW and refusal.code not in ("model_lost", "results_full")


async def _wait(refusal: ServiceError) -> None:
    await asyncio.sleep(min(_asked_s(refusal), LONGEST_WAIT_S))


def _asked_s(refusal: ServiceError) -> float:
    return float((refusal.headers or {}).get("Retry-After", 1))
