"""The models that are served: each behind its own queue, loaded when needed and let go when idle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager

from service.batcher import Overloaded, Stopped
from service.errors import ServiceError, unavailable
from service.metrics import Metrics
from service.models.model import Model, ModelSource, restarting
from service.settings import Settings

logger = logging.getLogger(__name__)

DEFAULT = "default"
LOOK_EVERY_S = 1.0
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Between two tries to load a model: the first, which doubles, and the last."""


class Failure:
    """Of a model to load, once or several times in a row."""

    def __init__(self) -> None:
        self._pause_s = PAUSE_S
        self._until = 0.0
        self._told = ""

    @property
    def left_s(self) -> float:
        """Of the pause."""
        return max(0.0, self._until - time.monotonic())

    def again(self, message: str) -> None:
        self._until = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if message != self._told:
            logger.error("%s", message)
        self._told = message


class Models:
    """By name. All methods belong to the event loop."""

    def __init__(self, sources: Mapping[str, ModelSource], settings: Settings, metrics: Metrics) -> None:
        """sources: with one that is called "default"."""
        self.sources = dict(sources)
        self._settings, self._metrics = settings, metrics
        self._models: dict[str, Model] = {}
        self._there: set[Model] = set()  # those that are on their way in or out too
        self._failures: dict[str, Failure] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading: set[str] = set()
        self._stopping = False

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
        self._aside(self._look_after())
        return self._models[DEFAULT].started

    def is_running(self, name: str) -> bool:
        model = self._models.get(name)
        return model is not None and model.running

    @property
    def queued_s(self) -> float:
        return sum(model.batcher.queued_s for model in self._models.values())

    def check_room(self, seconds: float) -> None:
        """Raises Overloaded if no queue has room for so much; a model that has none says why by itself."""
        refusal: Overloaded | None = None
        for model in self._models.values():
            try:
                model.batcher.check_room(seconds)
            except Overloaded as error:
                refusal = error
            except Stopped:
                continue
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
        errors = [model.error for model in self._from_the_start() if model is not None]
        return next((error for error in errors if error and not isinstance(error, Stopped)), None)

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
        own = default is not None and default.loaded and asked == default.card.name
        return DEFAULT if own else None

    @asynccontextmanager
    async def serving(self, asked: str) -> AsyncIterator[Model]:
        """A model, for as long as a request needs it; loads it if it is not there. Raises ServiceError."""
        name = self.name_of(asked)
        if self._stopping:
            raise Stopped
        model = self._models.get(name)
        if model is None:
            self._check_failure(name)
            logger.info("loading the model %s", name)
            model = self._models[name] = self._made(name)
            self._aside(self._noting_failure(name, model))
        if model.broken:
            raise restarting()
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
        self._failures.clear()
        for name in [name for name, model in self._models.items() if model.loaded]:
            await self._reload(name)

    async def _reload(self, name: str) -> None:
        if name in self._reloading:
            return
        self._reloading.add(name)
        try:
            fresh = self._made(name)
            if not await self._is_loaded(name, fresh, f"the model {name} stays as it is"):
                return
            old = self._models.get(name)
            self._models[name] = fresh
            logger.info("the model %s has been loaded anew", name)
            if old is not None:
                self._aside(self._let_go(old))
        finally:
            self._reloading.discard(name)

    def reload_soon(self) -> None:
        self._aside(self.reload())

    async def stop(self) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*map(self._end, list(self._there)))

    def _made(self, name: str) -> Model:
        model = Model(self.sources[name], self._settings, self._metrics)
        self._there.add(model)
        return model

    async def _end(self, model: Model) -> None:
        await model.stop()
        self._there.discard(model)

    async def _is_loaded(self, name: str, model: Model, otherwise: str) -> bool:
        """When that is known; if it is not, it has gone, and the log says why."""
        try:
            await _started(model)
        except Exception as error:
            self._failures.setdefault(name, Failure()).again(f"{otherwise}: {error}")
            if self._models.get(name) is model:
                del self._models[name]
            await self._end(model)
            return False
        self._failures.pop(name, None)
        return True

    async def _noting_failure(self, name: str, model: Model) -> None:
        await self._is_loaded(name, model, f"the model {name} cannot be loaded")

    def _check_failure(self, name: str) -> None:
        """Raises the 503 of a model that could not be loaded a moment ago."""
        failure = self._failures.get(name)
        if failure is not None and failure.left_s:
            raise _not_loaded(failure.left_s)

    async def _loaded(self, name: str, model: Model) -> None:
        if self._is_from_the_start(name):
            raise unavailable("loading", "the model is being loaded")
        try:
            await _started(model)
        except Stopped:
            raise
        except Exception as error:
            raise _not_loaded(PAUSE_S) from error

    async def _let_go(self, model: Model) -> None:
        while model.users:
            await asyncio.sleep(0.05)
        await self._end(model)

    async def _look_after(self) -> None:
        """Now and then: of those that cannot run nothing is waited for, stale ones are loaded anew, idle ones
        let go."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for model in self._there:
                model.refuse()
            for name, model in list(self._models.items()):
                failure = self._failures.get(name)
                if model.stale and not (failure and failure.left_s):
                    self._aside(self._reload(name))
                elif self._is_idle(name, model):
                    del self._models[name]
                    self._aside(self._end(model))

    def _is_idle(self, name: str, model: Model) -> bool:
        after = self.sources[name].unload_after_s
        idle = after is not None and time.monotonic() - model.used_at > after
        if not idle or model.users or not model.loaded:
            return False
        logger.info("the model %s has had no request for %g s and is let go", name, after)
        return True

    def _aside(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _not_loaded(retry_after_s: float) -> ServiceError:
    return unavailable("not_loaded", "the model cannot be loaded: the log says why", retry_after_s)


async def _started(model: Model) -> None:
    """Raises why it cannot be loaded. Whoever waits may leave: that ends nothing but the waiting."""
    started = asyncio.wrap_future(model.started)
    started.add_done_callback(
        lambda future: future.cancelled() or future.exception()
    )  # somebody has heard it
    await asyncio.shield(started)
