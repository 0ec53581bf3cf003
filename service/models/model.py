"""A model that is served: its copies, behind one queue."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from service.batcher import Batcher, Stopped
from service.batches import BatchLimits, Lane, Ticket
from service.errors import ServiceError, unavailable
from service.metrics import Metrics
from service.models.clips import WindowTask
from service.models.runtime import Elsewhere, Loader, ModelRuntime
from service.settings import Settings
from speech_ssl.inference.answering import Answering
from speech_ssl.inference.card import ModelCard
from speech_ssl.inference.outputs import WindowOutput
from speech_ssl.types import SAMPLE_RATE

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from. preload: before the service is ready, not with the first request.
    unload_after_s: without a request, until it is let go. copies: each runs batches of its own."""

    load: Loader
    preload: bool = True
    unload_after_s: float | None = None
    copies: int = 1


class Model:
    """A loaded model behind its queue. `started` ends when it is loaded, or with why it is not."""

    def __init__(self, source: ModelSource, settings: Settings, metrics: Metrics) -> None:
        self._load, self._settings = source.load, settings
        self._lock = threading.Lock()
        self._runtimes: list[ModelRuntime] = []
        self._elsewhere: list[Elsewhere] = []  # to be closed, those that are being loaded too
        self._closed = self._mixed = False
        limits = BatchLimits(settings.max_queue_s, settings.max_batch_s or 0.0, settings.max_padding)
        self.batcher: Batcher[WindowTask, WindowOutput] = Batcher(
            self._open, limits, metrics.observe_batch, source.copies
        )
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
        """What it was loaded from is another model now. Copies that have their process go on."""
        return self._mixed or any(
            isinstance(runtime, Elsewhere) and runtime.stale for runtime in self._runtimes
        )

    @property
    def running(self) -> bool:
        """False also while another process takes the place of one that died."""
        return self.loaded and any(not isinstance(r, Elsewhere) or r.running for r in self._runtimes)

    @property
    def broken(self) -> bool:
        """It does not run, and what was tried to change that has failed."""
        failed = all(isinstance(r, Elsewhere) and r.error is not None for r in self._runtimes)
        return self.loaded and failed and not self.running

    @cached_property
    def card(self) -> ModelCard:
        """Of a model that is loaded."""
        return self._runtimes[0].card()

    @cached_property
    def answering(self) -> Answering:
        return Answering(self.card)

    def ticket(self) -> Ticket[WindowTask, WindowOutput]:
        return self.batcher.ticket()

    def refuse(self) -> None:
        """What waits, if it is broken."""
        if self.broken:
            self.batcher.refuse(restarting)

    async def stop(self) -> None:
        """For one that nobody waits for: ends its processes, whatever they do, and its threads; a batch in
        this process may finish, for a while."""
        with self._lock:
            self._closed = True
        await asyncio.gather(*(asyncio.to_thread(each.close) for each in self._elsewhere))
        await asyncio.to_thread(self.batcher.stop, timeout=JOIN_TIMEOUT_S)

    def _open(self) -> Lane[WindowTask, WindowOutput]:
        """In a thread of the batcher: load, warm up, and only then be ready. Raises Stopped if it is to
        end."""
        runtime = self._load()
        if not isinstance(runtime, Elsewhere):
            self._warm_up(runtime)
            self._runtimes.append(runtime)
            return Lane(partial(_run, runtime))
        with self._lock:
            if self._closed:
                raise Stopped
            self._elsewhere.append(runtime)
        try:
            runtime.start(self.batcher.wake)
            self._warm_up(runtime)
        except BaseException:
            runtime.close()
            if self._closed:
                raise Stopped from None
            raise
        if not self._is_as_the_others(runtime):
            logger.warning(
                "%s changed while it was being loaded: it will be loaded anew", runtime.card().name
            )
            runtime.close()
        return Lane(partial(_run, runtime), lambda: runtime.running)

    def _is_as_the_others(self, runtime: ModelRuntime) -> bool:
        """Of the same weights, so that it is one of them from now on."""
        with self._lock:
            same = not self._runtimes or runtime.card().sha256 == self._runtimes[0].card().sha256
            self._mixed |= not same
            if same:
                self.created = int(time.time())
                self._runtimes.append(runtime)
            return same

    def _warm_up(self, runtime: ModelRuntime) -> None:
        card = runtime.card()
        batch_s = max(self._settings.max_batch_s or card.batch_s, card.window_s)
        self.batcher.limits = replace(self.batcher.limits, max_batch_s=batch_s)
        noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
        runtime.run_windows([noise], [card.num_layers], list(card.heads))


def _run(runtime: ModelRuntime, jobs: Sequence[WindowTask]) -> list[WindowOutput]:
    """One pass for what all of them want."""
    heads = sorted({name for job in jobs for name in job.heads})
    waves, levels = [job.wave for job in jobs], [job.level for job in jobs]
    passed = runtime.run_windows(waves, [job.layer for job in jobs], heads, levels)
    return [one.only(job.heads) for job, one in zip(jobs, passed, strict=True)]


def restarting() -> ServiceError:
    message = "the model's process ended and cannot be started again yet: the log says why"
    return unavailable("restarting", message, retry_after_s=1.0)
