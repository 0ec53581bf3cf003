"""Between the routes and the model: its life from loading to draining, and clips through the batcher."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Protocol, TypeAlias, TypeVar

import numpy as np

from service.batcher import Batcher, BatchLimits, Run, Stopped, Ticket, TooLarge
from service.errors import as_service_error, unavailable
from service.hearing import Clip, Heard, Job, Wanted, Windows
from service.metrics import Metrics
from service.sandbox import Sandbox
from service.settings import Settings
from speech_ssl.audio import AudioError, Limits
from speech_ssl.inference.answers import Choice, Classification, Decoder, Transcript
from speech_ssl.inference.chunking import Window
from speech_ssl.inference.clips import Whole
from speech_ssl.inference.engines import Passed
from speech_ssl.inference.runtime import HeadTask
from speech_ssl.types import SAMPLE_RATE, Waveform

JOIN_TIMEOUT_S = 10.0


class Runtime(Protocol):
    """What the service needs of a model; `run_windows` is called in one thread, the others in any."""

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

    def run_windows(
        self, waves: Sequence[Waveform], layers: Sequence[int | None], heads: Sequence[str] = ()
    ) -> list[Passed]:
        """The frames (T, D) of each wave, from its own layer, and the outputs of heads."""

    def check_layer(self, layer: int) -> int:
        """0..num_layers, from that or from a negative number. Raises ValueError."""

    @property
    def heads(self) -> Mapping[str, object]: ...

    def check_head(self, task: HeadTask, name: str | None = None) -> str:
        """The head for a task. Raises ValueError."""

    def transcript(self, whole: Whole, head: str, decoder: Decoder | None = None) -> Transcript: ...
    def settled(self, whole: Whole, head: str) -> int: ...
    def classification(self, whole: Whole, head: str, choice: Choice) -> Classification: ...


Loader: TypeAlias = Callable[[], Runtime]


@dataclass(frozen=True)
class File:
    """What a client sent; `name` is for error messages."""

    name: str
    source: bytes | BinaryIO


@dataclass(frozen=True)
class Result:
    """What was wanted of each clip. Times are of this request, in seconds."""

    clips: list[Heard]
    seconds: float
    waited_s: float
    ran_s: float


@dataclass(frozen=True)
class Hearing:
    """Clips that are decoded and queued, until the request ends."""

    clips: list[Clip]
    seconds: float


T = TypeVar("T")
_Ticket: TypeAlias = Ticket[Job, Passed]


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
        self._batcher: Batcher[Job, Passed] = Batcher(self._open, limits, metrics.observe_batch)
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decoder")
        self._sandbox = Sandbox(
            settings.decode_threads,
            settings.decode_memory_bytes,
            settings.decode_timeout_s,
            metrics.lost_decoders.inc,
        )
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
        self._sandbox.start()
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
        self._sandbox.stop()
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

    async def hear(self, runtime: Runtime, files: Sequence[File], wanted: Wanted) -> Result:
        """Raises ServiceError that names the file at fault, and what batcher and runtime raise."""
        with self._batcher.ticket() as ticket:
            hearing = await self._queued(runtime, files, wanted, ticket)
            clips = [await clip.heard(wanted) for clip in hearing.clips]
        return Result(clips, hearing.seconds, ticket.waited_s, ticket.ran_s)

    @asynccontextmanager
    async def hearing(
        self, runtime: Runtime, files: Sequence[File], wanted: Wanted
    ) -> AsyncIterator[Hearing]:
        """For answers that begin before all has run. Raises as `hear` does."""
        with self._batcher.ticket() as ticket:
            yield await self._queued(runtime, files, wanted, ticket)

    async def aside(self, work: Callable[[], T]) -> T:
        """What takes a while and needs no model, in a decoder's thread."""
        return await asyncio.wrap_future(self._decoding(work))

    async def _queued(
        self, runtime: Runtime, files: Sequence[File], wanted: Wanted, ticket: _Ticket
    ) -> Hearing:
        clips, seconds = [], 0.0
        for file in files:
            try:
                wave = await self._decode(file, ticket)
                seconds += len(wave) / SAMPLE_RATE
                self._check_frames(seconds, wanted)
                clips.append(Clip(file.name, len(wave), self._submit(runtime, ticket, wave, wanted)))
            except (AudioError, TooLarge) as error:
                refusal = as_service_error(error, file.name)
                self._metrics.decode_failures.labels(refusal.code).inc()
                raise refusal from error
            del wave
        return Hearing(clips, seconds)

    async def _decode(self, file: File, ticket: _Ticket) -> Waveform:
        """In a decoder's thread; whoever gives up leaves only when that has let go of the file."""
        left = threading.Event()
        work = self._decoding(partial(self._decoded, file, ticket, left))
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            left.set()
            if not work.cancelled():
                await asyncio.gather(asyncio.wrap_future(work), return_exceptions=True)
            raise

    def _decoded(self, file: File, ticket: _Ticket, left: threading.Event) -> Waveform:
        """What it holds counts as queued, block by block. Raises AudioError, Overloaded, TooLarge."""
        blocks = []
        with closing(self._sandbox.stream(file.source, limits=self._limits)) as stream:
            for block in stream:
                if left.is_set():
                    raise Stopped
                ticket.reserve(len(block) / SAMPLE_RATE)
                blocks.append(block)
        if not blocks:
            raise AudioError("empty", "no audio in it")
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _decoding(self, work: Callable[[], T]) -> Future[T]:
        if self.stopping.is_set():
            raise Stopped
        return self._decoders.submit(work)

    def _check_frames(self, seconds: float, wanted: Wanted) -> None:
        most = self.settings.max_frames_s
        if wanted.layer is not None and wanted.pooling == "none" and seconds > most:
            raise TooLarge(f"with pooling 'none', at most {most:g} s of audio are taken in one request")

    def _submit(self, runtime: Runtime, ticket: _Ticket, wave: Waveform, wanted: Wanted) -> Windows:
        """Queue the windows, each with its own samples: what has run is freed."""
        plan = runtime.plan(len(wave))
        windows: Windows = deque()
        for window in plan:
            part = wave if len(plan) == 1 else wave[window.start : window.stop].copy()
            windows.append(
                (window, ticket.submit(Job(part, wanted.layer, wanted.heads), len(part) / SAMPLE_RATE))
            )
        return windows

    def _open(self) -> Run[Job, Passed]:
        """In the batcher's thread: load, warm up, and only then be ready."""
        runtime = self._load()
        batch_s = max(self.settings.max_batch_s or runtime.batch_s, runtime.window_s)
        self._batcher.limits = replace(self._batcher.limits, max_batch_s=batch_s)
        noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
        runtime.run_windows([noise], [runtime.check_layer(-1)], list(runtime.heads))
        self.created = int(time.time())
        self._runtime = runtime
        return partial(_run, runtime)


def _run(runtime: Runtime, jobs: Sequence[Job]) -> list[Passed]:
    """One pass for what all of them want."""
    heads = sorted({name for job in jobs for name in job.heads})
    passed = runtime.run_windows([job.wave for job in jobs], [job.layer for job in jobs], heads)
    return [
        one._replace(heads={name: one.heads[name] for name in job.heads})
        for job, one in zip(jobs, passed, strict=True)
    ]
