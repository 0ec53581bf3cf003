"""Between the routes and the models: the service from loading to draining, and clips through the queues."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np

from service.batcher import Stopped, TooLarge
from service.batches import Ticket
from service.errors import as_service_error, unavailable
from service.metrics import Metrics
from service.models.clips import ClipResult, QueuedClip, Windows, WindowTask, clip_bytes
from service.models.model import Model, ModelSource
from service.models.registry import Models
from service.pool import Pool
from service.record import Holding, Record, current
from service.settings import Settings
from speech_ssl.audio import LARGEST_SAMPLE, AudioError, AudioWarning, Limits
from speech_ssl.inference.card import ModelCard, PassRequest
from speech_ssl.inference.chunking import Window
from speech_ssl.inference.outputs import WindowOutput
from speech_ssl.sandbox.pool import Sandbox
from speech_ssl.sandbox.process import Left
from speech_ssl.types import SAMPLE_RATE, Waveform

logger = logging.getLogger(__name__)

ANSWERING_THREADS = 2


@dataclass(frozen=True)
class File:
    """What a client sent: a file to be decoded, or mono samples at 16 kHz. `name` is for error messages."""

    name: str
    source: bytes | BinaryIO | Waveform


@dataclass(frozen=True)
class Result:
    """What was wanted of each clip. Times are of this request, in seconds."""

    clips: list[ClipResult]
    seconds: float
    waited_s: float
    ran_s: float


@dataclass(frozen=True)
class Hearing:
    """Clips that are decoded and queued, until the request ends."""

    clips: list[QueuedClip]
    seconds: float


T = TypeVar("T")
_Ticket: TypeAlias = Ticket[WindowTask, WindowOutput]


class Engine:
    """What all requests share: the models, the decoders, and the life of the service from loading to
    draining. All methods but `load_error` and `drain` belong to the event loop."""

    def __init__(self, settings: Settings, sources: Mapping[str, ModelSource], metrics: Metrics) -> None:
        self.settings = settings
        self.requests = self.streams = self.answering = 0
        self.started_at = int(time.time())
        self.draining = False
        self.stopping = asyncio.Event()
        self.holding = Holding(settings.max_answer_bytes)
        self.models = Models(sources, settings, metrics)
        self._metrics = metrics
        self._decoders = Pool(settings.decode_threads, "decoder")
        self._answering = Pool(ANSWERING_THREADS, "answers")
        self._sandbox = Sandbox(
            settings.decode_threads,
            settings.decode_memory_bytes,
            settings.decode_timeout_s,
            self._lost_decoder,
        )
        self._limits = Limits(
            max_seconds=settings.max_clip_s,
            max_channels=settings.max_channels,
            min_rate=settings.min_rate,
            max_rate=settings.max_rate,
        )
        metrics.gauge("queued_audio_seconds", "Audio waiting and running.", lambda: self.models.queued_s)
        metrics.gauge(
            "in_flight_requests", "POST requests and live streams being served.", lambda: self.in_flight
        )
        metrics.gauge("held_bytes", "Outputs of models and answers that are held.", lambda: self.holding.size)
        metrics.gauge("live_streams", "Live streams being served.", lambda: self.streams)
        loaded = {name: partial(self.models.is_running, name) for name in sources}
        metrics.gauges("model_loaded", "1 if the model is loaded and its process runs.", "model", loaded)
        metrics.gauge("ready", "1 if requests are taken.", lambda: float(self.ready))

    @property
    def in_flight(self) -> int:
        """Requests and streams that are being served."""
        return self.requests + self.streams

    def start(self) -> Future[None]:
        """Begin to load; the future ends when the default model is ready, or with why it is not."""
        self._sandbox.start()
        return self.models.start()

    @property
    def load_error(self) -> BaseException | None:
        return self.models.error

    def drain(self) -> None:
        """Take no new requests. May be called in a signal handler."""
        self.draining = True

    async def stop(self) -> None:
        """Answer 503 to what is not finished, and end threads and processes."""
        self.draining = True
        self.stopping.set()
        self._decoders.stop()
        self._answering.stop()
        self._sandbox.stop()
        await self.models.stop()

    @property
    def ready(self) -> bool:
        return self.models.ready and not self.draining

    def check_open(self) -> None:
        """Raises the 503 of a service that takes nothing now."""
        if self.draining:
            raise unavailable("draining", "the service is shutting down")
        if not self.models.loaded:
            raise unavailable("loading", "the model is being loaded")

    def check_ready(self) -> None:
        """For probes: raises as `check_open`, and while the process of a model is being replaced."""
        self.check_open()
        if not self.models.ready:
            raise unavailable("restarting", "the process of a model is being replaced")

    def check_room(self) -> None:
        """Before the bytes of a request are read: raises as `check_open`, and Overloaded if no model would
        take even a second of audio."""
        self.check_open()
        self.models.check_room(min(1.0, self.settings.max_queue_s))

    async def hear(self, model: Model, files: Sequence[File], wanted: PassRequest) -> Result:
        """Raises ServiceError that names the file at fault, and what batcher and runtime raise."""
        with model.ticket() as ticket:
            current().queued(model.card.name, ticket)
            hearing = await self._queued(model.card, files, wanted, ticket)
            clips = [await clip.heard(wanted) for clip in hearing.clips]
        return Result(clips, hearing.seconds, ticket.waited_s, ticket.ran_s)

    @asynccontextmanager
    async def hearing(
        self, model: Model, files: Sequence[File], wanted: PassRequest
    ) -> AsyncIterator[Hearing]:
        """For answers that begin before all has run. Raises as `hear` does."""
        with model.ticket() as ticket:
            current().queued(model.card.name, ticket)
            yield await self._queued(model.card, files, wanted, ticket)

    async def aside(self, work: Callable[[], T]) -> T:
        """What takes a while and needs no model, in a thread."""
        if self.stopping.is_set():
            raise Stopped
        return await asyncio.wrap_future(self._answering.submit(work))

    async def _queued(
        self, card: ModelCard, files: Sequence[File], wanted: PassRequest, ticket: _Ticket
    ) -> Hearing:
        record, clips, seconds = current(), [], 0.0
        most = self.settings.max_frames_s if wanted.holds_frames else math.inf
        for file in files:
            try:
                wave, warnings = await self._decode(file, ticket, record)
                seconds += len(wave) / SAMPLE_RATE
                record.audio_s += len(wave) / SAMPLE_RATE
                if seconds > most:
                    said = f"with pooling 'none', at most {most:g} s of audio are taken in one request"
                    raise TooLarge(said)
                plan = card.plan(len(wave))
                if len(plan) > 1:  # then its level has to be measured
                    plan = await self.aside(partial(card.plan_of, wave))
                record.held.more(clip_bytes(card, wanted, plan))
                windows = self._submit(ticket, wave, plan, wanted)
                clips.append(QueuedClip(file.name, windows, warnings))
                for code in (warning.code for warning in warnings):
                    record.warnings.append(code)
                    self._metrics.decode_warnings.labels(code).inc()
            except (AudioError, TooLarge) as error:
                refusal = as_service_error(error, file.name)
                self._metrics.decode_failures.labels(refusal.code).inc()
                raise refusal from error
            del wave
        return Hearing(clips, seconds)

    async def _decode(
        self, file: File, ticket: _Ticket, record: Record
    ) -> tuple[Waveform, Sequence[AudioWarning]]:
        """In a decoder's thread; whoever gives up leaves only when that has let go of the file."""
        if self.stopping.is_set():
            raise Stopped
        left = threading.Event()
        began = time.monotonic()
        decoded = partial(self._decoded, file, self.reserving(ticket), left, record.due)
        work = self._decoders.submit(decoded)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            left.set()
            if not work.cancelled():
                await asyncio.gather(asyncio.wrap_future(work), return_exceptions=True)
            raise
        finally:
            ended = time.monotonic()
            record.decodes.append((began, ended))
            self._metrics.decode_seconds.observe(ended - began)

    @staticmethod
    def reserving(ticket: _Ticket) -> Callable[[float], None]:
        """Room for seconds of audio, in the queue and in the share of whoever asks."""
        share = current().share

        def reserve(seconds: float) -> None:
            if share is not None:
                share.reserve(seconds)
            ticket.reserve(seconds)

        return reserve

    def _decoded(
        self, file: File, reserve: Callable[[float], None], left: threading.Event, due: float
    ) -> tuple[Waveform, Sequence[AudioWarning]]:
        """What it holds counts as queued, block by block. Raises AudioError, Overloaded, TooLarge."""
        if isinstance(file.source, np.ndarray):
            self._check_samples(file.source)
            reserve(len(file.source) / SAMPLE_RATE)
            return file.source, ()
        blocks, warnings = deque[Waveform](), list[AudioWarning]()
        stream = self._sandbox.stream(
            file.source, limits=self._limits, due=due, warn=warnings.append, left=left.is_set
        )
        try:
            with closing(stream):
                for block in stream:
                    if left.is_set():
                        raise Left
                    reserve(len(block) / SAMPLE_RATE)
                    blocks.append(block)
        except Left:
            raise Stopped from None
        if not blocks:
            raise AudioError("empty", "no audio in it")
        return blocks[0] if len(blocks) == 1 else _joined(blocks), warnings

    def _lost_decoder(self, why: str) -> None:
        self._metrics.lost_decoders.inc()
        logger.warning("a decoder was lost: %s", why)

    def _check_samples(self, wave: Waveform) -> None:
        """As those of a file are. Raises AudioError."""
        most = self.settings.max_clip_s
        if len(wave) > most * SAMPLE_RATE:
            raise AudioError("too_long", f"longer than {most:g} s")
        if not len(wave):
            raise AudioError("empty", "no audio in it")
        if not (wave.max() <= LARGEST_SAMPLE and wave.min() >= -LARGEST_SAMPLE):  # NaN fails both
            raise AudioError("bad_samples", "samples are not finite numbers")

    @staticmethod
    def _submit(ticket: _Ticket, wave: Waveform, plan: Sequence[Window], wanted: PassRequest) -> Windows:
        """Queue the windows, each with its own samples: what has run is freed."""
        windows: Windows = deque()
        for window in plan:
            part = wave if len(plan) == 1 else wave[window.start : window.stop].copy()
            job = WindowTask(part, wanted.layer, wanted.heads, window.level)
            windows.append((window, ticket.submit(job, len(part) / SAMPLE_RATE)))
        return windows


def _joined(blocks: deque[Waveform]) -> Waveform:
    """Each is let go when it has been copied: an hour is not held twice."""
    whole: Waveform = np.empty(sum(map(len, blocks)), dtype=np.float32)
    at = 0
    while blocks:
        block = blocks.popleft()
        whole[at : at + len(block)] = block
        at += len(block)
    return whole
