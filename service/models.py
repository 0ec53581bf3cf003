"""The models that are served: each behind its own queue, loaded when needed and let go when idle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from service.batcher import Batcher, BatchLimits, Overloaded, Run, Stopped, Ticket
from service.errors import ServiceError, unavailable
from service.hearing import Job
from service.metrics import Metrics
from service.runtime import Elsewhere, Loader, Runtime
from service.settings import Settings
from speech_ssl.inference.passed import Passed
from speech_ssl.types import SAMPLE_RATE

logger = logging.getLogger(__name__)

DEFAULT = "default"
JOIN_TIMEOUT_S = 10.0
LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Source:
    """Where a model comes from. preload: before the service is ready, not with the first request.
    unload_after_s: without a request, until it is let go. copies: each runs batches of its own."""

    load: Loader
    preload: bool = True
    unload_after_s: float | None = None
    copies: int = 1


class Model:
    """A loaded model behind its queue. `started` ends when it is loaded, or with why it is not."""

    def __init__(self, source: Source, settings: Settings, metrics: Metrics) -> None:
        self._load, self._settings = source.load, settings
        self._runtimes: list[Runtime] = []
        limits = BatchLimits(settings.max_queue_s, settings.max_batch_s or 0.0, settings.max_padding)
        self.batcher: Batcher[Job, Passed] = Batcher(self._open, limits, metrics.observe_batch, source.copies)
        self.users = 0
        self.used_at = time.monotonic()
        self.created = 0
        self.batcher.start()

    @property
    def started(self) -> Future[None]:
        return self.batcher.started

    @property
    def error(self) -> BaseException | None:
        """Why it cannot be loaded."""
        return self.started.exception() if self.started.done() else None

    @property
    def loaded(self) -> bool:
        return self.started.done() and self.error is None

    @property
    def stale(self) -> bool:
        return any(isinstance(runtime, Elsewhere) and runtime.stale for runtime in self._runtimes)

    @property
    def running(self) -> bool:
        """False also while another process takes the place of one that died."""
        return self.loaded and any(not isinstance(r, Elsewhere) or r.running for r in self._runtimes)

    @property
    def runtime(self) -> Runtime:
        return self._runtimes[0]

    def ticket(self) -> Ticket[Job, Passed]:
        return self.batcher.ticket()

    async def stop(self) -> None:
        """Ends its threads and processes; waits for the batches under way, and for what is being loaded."""
        await asyncio.to_thread(self.batcher.stop, timeout=JOIN_TIMEOUT_S)
        for runtime in self._runtimes:
            if isinstance(runtime, Elsewhere):
                await asyncio.to_thread(runtime.close)

    def _open(self) -> Run[Job, Passed]:
        """In a thread of the batcher: load, warm up, and only then be ready."""
        runtime = self._load()
        try:
            self._warm_up(runtime)
        except BaseException:
            if isinstance(runtime, Elsewhere):
                runtime.close()
            raise
        self.created = int(time.time())
        self._runtimes.append(runtime)
        return partial(_run, runtime)

    def _warm_up(self, runtime: Runtime) -> None:
        batch_s = max(self._settings.max_batch_s or runtime.batch_s, runtime.window_s)
        self.batcher.limits = replace(self.batcher.limits, max_batch_s=batch_s)
        noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
        runtime.run_windows([noise], [runtime.check_layer(-1)], list(runtime.heads))


class Models:
    """By name. All methods belong to the event loop."""

    def __init__(self, sources: Mapping[str, Source], settings: Settings, metrics: Metrics) -> None:
        """sources: with one that is called "default"."""
        self.sources = dict(sources)
        self._settings, self._metrics = settings, metrics
        self._models: dict[str, Model] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[Model] = set()
        self._stopping = self._reloading = False

    @property
    def names(self) -> list[str]:
        return list(self.sources)

    def get(self, name: str) -> Model | None:
        """If it is there, loaded or being loaded."""
        return self._models.get(name)

    def start(self) -> Future[None]:
        """Begin to load those that are to be there from the start; the future is the default model's."""
        for name in self.sources:
            if self._is_from_the_start(name):
                self._models[name] = self._made(name)
        if any(source.unload_after_s is not None for source in self.sources.values()):
            self._aside(self._unload_idle())
        return self._models[DEFAULT].started

    def is_running(self, name: str) -> bool:
        model = self._models.get(name)
        return model is not None and model.running

    @property
    def queued_s(self) -> float:
        return sum(model.batcher.queued_s for model in self._models.values())

    def check_room(self, seconds: float) -> None:
        """Raises what the last queue raises if none has room for so much."""
        refusal: Exception | None = None
        for model in self._models.values():
            try:
                model.batcher.check_room(seconds)
            except (Overloaded, Stopped) as error:
                refusal = error
            else:
                return
        if refusal is not None:
            raise refusal

    @property
    def ready(self) -> bool:
        """All that are loaded at the start are, and each has its process."""
        return all(model is not None and model.running for model in self._from_the_start())

    @property
    def loaded(self) -> bool:
        """All that are loaded at the start have been; that the process of one is gone is its own matter."""
        return all(model is not None and model.loaded for model in self._from_the_start())

    def _is_from_the_start(self, name: str) -> bool:
        return name == DEFAULT or self.sources[name].preload

    def _from_the_start(self) -> list[Model | None]:
        return [self._models.get(name) for name in self.sources if self._is_from_the_start(name)]

    @property
    def error(self) -> BaseException | None:
        """Why a model that is to be there from the start is not."""
        return next((model.error for model in self._from_the_start() if model and model.error), None)

    def aliases(self, name: str) -> list[str]:
        """What a model answers to beside its own name."""
        return [
            alias
            for alias, meant in self._settings.aliases.items()
            if meant == name and self._named(alias) is None
        ]

    def name_of(self, asked: str) -> str:
        """Of a model as a client calls it. Raises the 404 of one that is not there."""
        name = self._named(asked) or self._settings.aliases.get(asked)
        if name in self.sources:
            return name
        message = f"there is no model {asked[:80]!r} here; /v1/models lists what there is"
        raise ServiceError(404, "model_not_found", message, param="model")

    def _named(self, asked: str) -> str | None:
        """The model whose own name it is."""
        if asked in self.sources:
            return asked
        default = self._models.get(DEFAULT)
        own = default is not None and default.loaded and asked == default.runtime.name
        return DEFAULT if own else None

    @asynccontextmanager
    async def serving(self, asked: str) -> AsyncIterator[Model]:
        """A model, for as long as a request needs it; loads it if it is not there. Raises ServiceError."""
        name = self.name_of(asked)
        if self._stopping:
            raise Stopped
        model = self._models.get(name)
        if model is None or (model.error is not None and not self._is_from_the_start(name)):
            logger.info("loading the model %s", name)
            if model is not None:
                self._aside(model.stop())
            model = self._models[name] = self._made(name)
        if model.stale:
            self.reload_soon()
            raise unavailable("loading", "the model has changed and is being loaded anew")
        model.users += 1
        try:
            if not model.loaded:
                await self._loaded(name, model)
            yield model
        finally:
            model.users -= 1
            model.used_at = time.monotonic()

    async def reload(self) -> None:
        """Load all that are there anew, each beside the old one, which then finishes what it has and goes.
        One that cannot be loaded any more stays as it is."""
        if self._reloading:
            return
        self._reloading = True
        try:
            await self._reload()
        finally:
            self._reloading = False

    async def _reload(self) -> None:
        for name in [name for name, model in self._models.items() if model.loaded]:
            fresh = self._made(name)
            try:
                await asyncio.wrap_future(fresh.started)
            except Exception as error:
                logger.error("the model %s stays as it is: %s", name, error)
                await fresh.stop()
                continue
            old = self._models.get(name)
            self._models[name] = fresh
            logger.info("the model %s has been loaded anew", name)
            if old is not None:
                self._aside(self._let_go(old))

    def reload_soon(self) -> None:
        self._aside(self.reload())

    async def stop(self) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(model.stop() for model in [*self._models.values(), *self._leaving]))

    def _made(self, name: str) -> Model:
        return Model(self.sources[name], self._settings, self._metrics)

    async def _loaded(self, name: str, model: Model) -> None:
        if self._is_from_the_start(name):
            raise unavailable("loading", "the model is being loaded")
        try:
            await asyncio.shield(asyncio.wrap_future(model.started))
        except Exception as error:
            logger.error("the model %s cannot be loaded: %s", name, error)
            raise unavailable("not_loaded", "the model cannot be loaded: the log says why") from error

    async def _let_go(self, model: Model) -> None:
        self._leaving.add(model)
        while model.users:
            await asyncio.sleep(0.05)
        await model.stop()
        self._leaving.discard(model)

    async def _unload_idle(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for name, model in list(self._models.items()):
                after = self.sources[name].unload_after_s
                idle = after is not None and time.monotonic() - model.used_at > after
                if idle and not model.users and model.loaded:
                    logger.info("the model %s has had no request for %g s and is let go", name, after)
                    del self._models[name]
                    await model.stop()

    def _aside(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _run(runtime: Runtime, jobs: Sequence[Job]) -> list[Passed]:
    """One pass for what all of them want."""
    heads = sorted({name for job in jobs for name in job.heads})
    waves, levels = [job.wave for job in jobs], [job.level for job in jobs]
    passed = runtime.run_windows(waves, [job.layer for job in jobs], heads, levels)
    return [one.only(job.heads) for job, one in zip(jobs, passed, strict=True)]
