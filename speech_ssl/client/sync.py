"""The client for code that waits: `AsyncClient` on an event loop in a thread of its own.

So both do the same, and a deadline holds here too: a blocking socket would only limit each single wait.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator, Iterable
from concurrent.futures import CancelledError
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from speech_ssl.client.aio import TIMEOUT_S, AsyncClient
from speech_ssl.client.answers import Analysis, Classification, Embedding, Model, Transcript
from speech_ssl.client.calls import (
    AnalyzeOptions,
    ClassifyOptions,
    EmbedOptions,
    JobOptions,
    Options,
    TranscribeOptions,
)
from speech_ssl.client.inputs import Audio
from speech_ssl.client.jobs import Job, JobTask
from speech_ssl.client.many import Done, ProgressBar, Shown, Window, number_of
from speech_ssl.client.retrying import Retrying

T = TypeVar("T")


class Client:
    """As `AsyncClient`, which says what the parameters are. Several threads may use one, and a forked process
    its parent's. Inside a running event loop it blocks it."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = TIMEOUT_S,
        retrying: Retrying | None = None,
    ) -> None:
        self._make = partial(AsyncClient, url, api_key=api_key, timeout=timeout, retrying=retrying)
        self._forked = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._thread = _Thread(self._make())
        self._finalizer = weakref.finalize(self, self._thread.close)

    @property
    def _aio(self) -> AsyncClient:
        """The one of this process, whose thread runs. Raises RuntimeError after `close`."""
        if not self._finalizer.alive:
            raise RuntimeError("the client is closed")
        with self._forked:
            if self._thread.pid != os.getpid():
                self._finalizer.detach()
                self._start()
        return self._thread.aio

    @property
    def url(self) -> str:
        return self._thread.aio.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._finalizer()

    def embed(self, audio: Audio, **options: Unpack[EmbedOptions]) -> Embedding:
        """One vector of the clip, or with `pooling="none"` one of each frame."""
        return self._wait(self._aio.embed(audio, **options))

    def transcribe(self, audio: Audio, **options: Unpack[TranscribeOptions]) -> Transcript:
        """What is said, with the times of its words and segments."""
        return self._wait(self._aio.transcribe(audio, **options))

    def classify(self, audio: Audio, **options: Unpack[ClassifyOptions]) -> Classification:
        """What is heard: labels, and events with their times."""
        return self._wait(self._aio.classify(audio, **options))

    def analyze(self, audio: Audio, **options: Unpack[AnalyzeOptions]) -> Analysis:
        """Several answers from one pass through the encoder."""
        return self._wait(self._aio.analyze(audio, **options))

    def models(self, **options: Unpack[Options]) -> tuple[Model, ...]:
        """The models that are served."""
        return self._wait(self._aio.models(**options))

    def transcribe_stream(
        self, audio: Audio, **options: Unpack[TranscribeOptions]
    ) -> Generator[str, None, None]:
        """As that of `AsyncClient`."""
        return self._iterated(self._aio.transcribe_stream(audio, **options))

    def embed_many(
        self,
        audios: Iterable[Audio],
        *,
        workers: int = 8,
        progress: Shown = False,
        **options: Unpack[EmbedOptions],
    ) -> Generator[Done[Embedding], None, None]:
        """As that of `AsyncClient`."""
        ask = partial(self._aio.embed, **options)
        return self._many(
            Window(ask, workers, self._thread.start), audios, ProgressBar(progress, number_of(audios))
        )

    def analyze_many(
        self,
        audios: Iterable[Audio],
        *,
        workers: int = 8,
        progress: Shown = False,
        **options: Unpack[AnalyzeOptions],
    ) -> Generator[Done[Analysis], None, None]:
        """As that of `AsyncClient`."""
        ask = partial(self._aio.analyze, **options)
        return self._many(
            Window(ask, workers, self._thread.start), audios, ProgressBar(progress, number_of(audios))
        )

    def _many(
        self, window: Window[T], audios: Iterable[Audio], progress: ProgressBar
    ) -> Generator[Done[T], None, None]:
        try:
            for step in window.steps(audios):
                for done in self._wait(step):
                    progress.tick(done)
                    yield done
        finally:
            progress.close()
            if self._finalizer.alive:
                self._wait(window.close())

    def submit(self, task: JobTask, *audios: Audio, **options: Unpack[JobOptions]) -> Job:
        """Sends files for a job, and does not wait for it."""
        return self._wait(self._aio.submit(task, *audios, **options))

    def job(self, id: str, **options: Unpack[Options]) -> Job:
        """How far it is."""
        return self._wait(self._aio.job(id, **options))

    def wait(self, id: str, *, timeout: float | None = None, progress: Shown = False) -> Job:
        """As that of `AsyncClient`."""
        with closing(ProgressBar(progress, None)) as shown:
            for job in self.watch(id, timeout=timeout):
                shown.show(job.progress.counts)
        return job

    def watch(self, id: str, *, timeout: float | None = None) -> Generator[Job, None, None]:
        """As that of `AsyncClient`."""
        return self._iterated(self._aio.watch(id, timeout=timeout))

    def results(
        self, id: str, kind: type[T], *, after: int = -1, **options: Unpack[Options]
    ) -> Generator[Done[T], None, None]:
        """As that of `AsyncClient`."""
        return self._iterated(self._aio.results(id, kind, after=after, **options))

    def cancel(self, id: str, **options: Unpack[Options]) -> Job:
        """As that of `AsyncClient`."""
        return self._wait(self._aio.cancel(id, **options))

    def _iterated(self, values: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        try:
            while (value := self._wait(anext(values, None))) is not None:
                yield value
        finally:
            if self._finalizer.alive:
                self._wait(values.aclose())

    def _wait(self, work: Awaitable[T]) -> T:
        future = asyncio.run_coroutine_threadsafe(self._thread.call(work), self._thread.loop)
        try:
            return future.result()
        except CancelledError as error:
            raise RuntimeError("the client was closed") from error
        finally:
            future.cancel()  # after Ctrl-C it is still at work


class _Thread:
    """Runs an event loop until it is closed, and the client with it."""

    def __init__(self, aio: AsyncClient) -> None:
        self.aio = aio
        self.pid = os.getpid()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="speech-ssl-client", daemon=True)
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        asyncio.run(self._until_closed())

    async def _until_closed(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        self._calls: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._started.set()
        async with self.aio:
            await self._closed.wait()
            calls = list(self._calls)
            for call in calls:
                call.cancel()
            # Before the connections close: one that is being made then would stay open.
            await asyncio.gather(*calls, return_exceptions=True)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """On its loop, where `close` ends it."""
        call = asyncio.create_task(work)
        self._calls.add(call)
        return call

    async def call(self, work: Awaitable[T]) -> T:
        """As `start`, for one that comes from another thread."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        return await work

    def close(self) -> None:
        if self.pid != os.getpid():  # a fork has no threads
            return
        self.loop.call_soon_threadsafe(self._closed.set)
        if threading.current_thread() is not self._thread:  # the garbage collector runs in any
            self._thread.join()
