"""Between the routes and the model: its life from loading to draining, and clips through the batcher."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.batcher import Batcher, BatchLimits, Run, Stopped, Ticket, TooLarge
from service.errors import ServiceError, as_service_error, bad_request, unavailable
from service.metrics import Metrics
from service.schemas import EmbeddingOptions
from service.settings import Settings
from speech_ssl.audio import AudioError, Limits, stream
from speech_ssl.inference.chunking import Window
from speech_ssl.inference.pooling import Pool
from speech_ssl.types import SAMPLE_RATE, Waveform

JOIN_TIMEOUT_S = 10.0

Vectors: TypeAlias = NDArray[np.float32]


class Runtime(Protocol):
    """What the service needs of a model; it is called in one thread, `plan` and `check_layer` in any."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def window_s(self) -> float: ...
    @property
    def batch_s(self) -> float: ...

    def plan(self, num_samples: int) -> list[Window]:
        """Raises AudioError `too_short`."""

    def encode_windows(self, waves: Sequence[Waveform], layers: Sequence[int]) -> list[Vectors]:
        """The frames (T, D) of each wave, from its own layer."""

    def check_layer(self, layer: int) -> int:
        """0..num_layers, from that or from a negative number. Raises ValueError."""


Loader: TypeAlias = Callable[[], Runtime]


@dataclass(frozen=True)
class Job:
    """One window's way through the model."""

    wave: Waveform
    layer: int


@dataclass(frozen=True)
class File:
    """What a client sent; `name` is for error messages."""

    name: str
    source: bytes | BinaryIO


@dataclass(frozen=True)
class Embeddings:
    """One array a clip: (D,) pooled, (T, D) frames. Times are of this request, in seconds."""

    clips: list[Vectors]
    seconds: float
    waited_s: float
    ran_s: float


T = TypeVar("T")
_Ticket: TypeAlias = Ticket[Job, Vectors]
_Windows: TypeAlias = deque[tuple[Window, "Future[Vectors]"]]


class Engine:
    """The model behind the queue. All methods but `load_error` and `drain` belong to the event loop."""

    def __init__(self, settings: Settings, load: Loader, metrics: Metrics) -> None:
        self.settings = settings
        self.in_flight = 0
        self.draining = False
        self.created = 0
        self.stopping = asyncio.Event()
        self._load = load
        self._runtime: Runtime | None = None
        self._metrics = metrics
        limits = BatchLimits(settings.max_queue_s, settings.max_batch_s or 0.0, settings.max_padding)
        self._batcher: Batcher[Job, Vectors] = Batcher(self._open, limits, metrics.observe_batch)
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decoder")
        self._limits = Limits(
            max_seconds=settings.max_clip_s,
            max_channels=settings.max_channels,
            min_rate=settings.min_rate,
            max_rate=settings.max_rate,
        )
        metrics.gauge("queued_audio_seconds", "Audio waiting and running.", lambda: self._batcher.queued_s)
        metrics.gauge("in_flight_requests", "POST requests being served.", lambda: self.in_flight)
        metrics.gauge("ready", "1 if requests are taken.", lambda: float(self.ready))

    def start(self) -> Future[None]:
        """Begin to load the model; the future ends when it is ready, or with why it is not."""
        self._batcher.start()
        return self._batcher.started

    @property
    def load_error(self) -> BaseException | None:
        started = self._batcher.started
        return started.exception() if started.done() else None

    def drain(self) -> None:
        """Take no new requests. May be called in a signal handler."""
        self.draining = True

    async def stop(self) -> None:
        """Answer 503 to what is not finished, and end the threads; waits for the batch under way."""
        self.draining = True
        self.stopping.set()
        self._decoders.shutdown(wait=False)
        await asyncio.to_thread(self._batcher.stop, timeout=JOIN_TIMEOUT_S)

    @property
    def ready(self) -> bool:
        return self._runtime is not None and not self.draining

    def runtime(self) -> Runtime:
        """Raises the 503 of a service that is not ready."""
        if self.draining:
            raise unavailable("draining", "the service is shutting down")
        if self._runtime is None:
            raise unavailable("loading", "the model is being loaded")
        return self._runtime

    def check_room(self) -> None:
        """Raises Overloaded if not even a second of audio would be taken: before its bytes are read."""
        self._batcher.check_room(min(1.0, self.settings.max_queue_s))

    async def embed(self, runtime: Runtime, files: Sequence[File], options: EmbeddingOptions) -> Embeddings:
        """Raises ServiceError for what is wrong with an option or a file, naming it, and what batcher and
        runtime raise."""
        try:
            layer = runtime.check_layer(options.layer)
        except ValueError as error:
            raise bad_request(str(error), "layer") from error
        with self._batcher.ticket() as ticket:
            clips, seconds = [], 0.0
            for file in files:
                try:
                    wave = await self._decode(file, ticket)
                    seconds += len(wave) / SAMPLE_RATE
                    self._check_frames(seconds, options)
                    clips.append(self._submit(runtime, ticket, wave, layer))
                except (AudioError, TooLarge) as error:
                    refusal = as_service_error(error, file.name)
                    self._metrics.decode_failures.labels(refusal.code).inc()
                    raise refusal from error
                del wave
            vectors = [await _joined(clip, options, file) for clip, file in zip(clips, files, strict=True)]
        return Embeddings(vectors, seconds, ticket.waited_s, ticket.ran_s)

    async def _decode(self, file: File, ticket: _Ticket) -> Waveform:
        """In a decoder's thread; whoever gives up leaves only when that has let go of the file."""
        left = threading.Event()
        work = self._decoding(partial(_decode, file, self._limits, ticket, left))
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            left.set()
            if not work.cancelled():
                await asyncio.gather(asyncio.wrap_future(work), return_exceptions=True)
            raise

    def _decoding(self, work: Callable[[], T]) -> Future[T]:
        if self.stopping.is_set():
            raise Stopped
        return self._decoders.submit(work)

    def _check_frames(self, seconds: float, options: EmbeddingOptions) -> None:
        most = self.settings.max_frames_s
        if options.pooling == "none" and seconds > most:
            raise TooLarge(f"with pooling 'none', at most {most:g} s of audio are taken in one request")

    def _submit(self, runtime: Runtime, ticket: _Ticket, wave: Waveform, layer: int) -> _Windows:
        """Queue the windows, each with its own samples: what has run is freed."""
        plan = runtime.plan(len(wave))
        windows: _Windows = deque()
        for window in plan:
            part = wave if len(plan) == 1 else wave[window.start : window.stop].copy()
            windows.append((window, ticket.submit(Job(part, layer), len(part) / SAMPLE_RATE)))
        return windows

    def _open(self) -> Run[Job, Vectors]:
        """In the batcher's thread: load, warm up, and only then be ready."""
        runtime = self._load()
        batch_s = max(self.settings.max_batch_s or runtime.batch_s, runtime.window_s)
        self._batcher.limits = replace(self._batcher.limits, max_batch_s=batch_s)
        noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
        runtime.encode_windows([noise], [runtime.check_layer(-1)])
        self.created = int(time.time())
        self._runtime = runtime
        return lambda jobs: runtime.encode_windows([job.wave for job in jobs], [job.layer for job in jobs])


def _decode(file: File, limits: Limits, ticket: _Ticket, left: threading.Event) -> Waveform:
    """What it holds counts as queued, block by block. Raises AudioError, Overloaded, TooLarge."""
    blocks = []
    for block in stream(file.source, limits=limits):
        if left.is_set():
            raise Stopped
        ticket.reserve(len(block) / SAMPLE_RATE)
        blocks.append(block)
    if not blocks:
        raise AudioError("empty", "no audio in it")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


async def _joined(windows: _Windows, options: EmbeddingOptions, file: File) -> Vectors:
    """Pooled as windows come in: the frames of a long clip are never held together."""
    pool = None if options.pooling == "none" else Pool(options.pooling)
    kept: list[Vectors] = []
    while windows:
        window, future = windows.popleft()
        try:
            frames = (await asyncio.wrap_future(future))[window.skip : window.skip + window.keep]
        except ValueError as error:
            raise ServiceError(422, "unprocessable", str(error), param=file.name) from error
        if pool is None:
            kept.append(frames)
        else:
            pool.add(frames)
    vectors = np.concatenate(kept) if pool is None else pool.result()
    if not np.isfinite(vectors).all():
        raise ServiceError(422, "bad_samples", "the model's answer is not finite", param=file.name)
    return vectors
