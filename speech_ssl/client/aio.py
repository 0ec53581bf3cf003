"""The client for asyncio; all that `Client` does, it does through this one."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, aclosing, closing
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from speech_ssl.client import calls, errors
from speech_ssl.client.answers import Analysis, Classification, Embedding, Model, Transcript
from speech_ssl.client.calls import (
    AnalyzeOptions,
    Call,
    ClassifyOptions,
    EmbedOptions,
    JobOptions,
    Options,
    TranscribeOptions,
)
from speech_ssl.client.errors import ServiceError, Unavailable
from speech_ssl.client.inputs import Audio, Resendable, opened, read_aside, resendable
from speech_ssl.client.jobs import FIRST_POLL_S, LONGEST_POLL_S, Job, JobTask, result_reader
from speech_ssl.client.many import Done, ProgressBar, Shown, Window, number_of
from speech_ssl.client.retrying import Deadline, Retrying, may_pass
from speech_ssl.client.streaming import delta_of

T = TypeVar("T")
TIMEOUT_S, CONNECT_TIMEOUT_S = 300.0, 10.0
PIECES = 16
"""Of 64 KiB at most, that are read at a time: a thread for each would take longer than reading it."""
DEFAULT_URL = "http://localhost:8000"


class AsyncClient:
    """url, api_key: of the environment (SPEECH_SSL_URL, SPEECH_SSL_API_KEY) where they are not given.
    timeout: seconds of one call with all its attempts, for calls that do not say otherwise; None: no limit.

    Every method raises ServiceError for what the service or the way to it does, and OSError for a file here
    that cannot be read. Raises ValueError for an address or a key that cannot be one.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = TIMEOUT_S,
        retrying: Retrying | None = None,
    ) -> None:
        self.url = _checked_url(url or os.environ.get("SPEECH_SSL_URL") or DEFAULT_URL)
        self._timeout_s = timeout
        self._retrying = retrying or Retrying()
        key = api_key or os.environ.get("SPEECH_SSL_API_KEY")
        headers = {"Authorization": f"Bearer {_checked_key(key)}"} if key else {}
        limit = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)  # the rest is up to the deadline of a call
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=limit)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def embed(self, audio: Audio, **options: Unpack[EmbedOptions]) -> Embedding:
        """One vector of the clip, or with `pooling="none"` one of each frame."""
        return await self._answer(calls.embed(audio, options), options)

    async def transcribe(self, audio: Audio, **options: Unpack[TranscribeOptions]) -> Transcript:
        """What is said, with the times of its words and segments."""
        return await self._answer(calls.transcribe(audio, options), options)

    async def classify(self, audio: Audio, **options: Unpack[ClassifyOptions]) -> Classification:
        """What is heard: labels, and events with their times."""
        return await self._answer(calls.classify(audio, options), options)

    async def analyze(self, audio: Audio, **options: Unpack[AnalyzeOptions]) -> Analysis:
        """Several answers from one pass through the encoder."""
        return await self._answer(calls.analyze(audio, options), options)

    async def models(self, **options: Unpack[Options]) -> tuple[Model, ...]:
        """The models that are served."""
        return await self._answer(calls.models(options), options)

    async def transcribe_stream(
        self, audio: Audio, **options: Unpack[TranscribeOptions]
    ) -> AsyncGenerator[str, None]:
        """Pieces of text as they become certain; joined, they are the text. Nothing is asked again once the
        first has come. The time that the caller takes between two pieces counts too."""
        call = calls.transcribe_stream(audio, options)
        deadline = self._deadline(options)
        async with deadline.bounding():
            response = await self._response(call, deadline, streamed=True)
        async with aclosing(_lines(response, lambda: deadline)) as lines:
            async for line in lines:
                delta = delta_of(line, deadline.request_id)
                if delta is None:
                    return
                if delta:
                    yield delta
        message = "the stream ended in the middle"
        raise Unavailable(message, errors.CONNECTION_LOST, request_id=deadline.request_id)

    def embed_many(
        self,
        audios: Iterable[Audio],
        *,
        workers: int = 8,
        progress: Shown = False,
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[Done[Embedding], None]:
        """`embed` for each, `workers` at a time, in the order in which they end: `index` tells which it is. A
        clip that fails has an error in place of an answer and does not end the others; only a missing key
        does. Clips are taken from `audios` as there is room. progress: True for a bar, or plain lines where
        stderr is no terminal; or a function to call after each."""
        window = Window(partial(self.embed, **options), workers)
        return self._many(window, audios, ProgressBar(progress, number_of(audios)))

    def analyze_many(
        self,
        audios: Iterable[Audio],
        *,
        workers: int = 8,
        progress: Shown = False,
        **options: Unpack[AnalyzeOptions],
    ) -> AsyncGenerator[Done[Analysis], None]:
        """`analyze` for each, as `embed_many`."""
        window = Window(partial(self.analyze, **options), workers)
        return self._many(window, audios, ProgressBar(progress, number_of(audios)))

    async def _many(
        self, window: Window[T], audios: Iterable[Audio], progress: ProgressBar
    ) -> AsyncGenerator[Done[T], None]:
        try:
            for step in window.steps(audios):
                for done in await step:
                    progress.tick(done)
                    yield done
        finally:
            progress.close()
            await window.close()

    async def submit(self, task: JobTask, *audios: Audio, **options: Unpack[JobOptions]) -> Job:
        """Sends files for a job, and does not wait for it."""
        return await self._answer(calls.submit(task, audios, options), options)

    async def job(self, id: str, **options: Unpack[Options]) -> Job:
        """How far it is."""
        return await self._answer(calls.job(id, options), options)

    async def wait(self, id: str, *, timeout: float | None = None, progress: Shown = False) -> Job:
        """Until it is over, be it done, failed or cancelled. progress: as for `embed_many`. Raises TimedOut
        after `timeout`, and the job goes on."""
        with closing(ProgressBar(progress, None)) as shown:
            async for job in self.watch(id, timeout=timeout):
                shown.show(job.progress.counts)
        return job

    async def watch(self, id: str, *, timeout: float | None = None) -> AsyncGenerator[Job, None]:
        """How far it is, now and then, until it is over."""
        deadline = Deadline(timeout, uuid.uuid4().hex)
        pause_s = FIRST_POLL_S
        while True:
            async with deadline.bounding():
                job = await self.job(id)
            yield job
            if job.over:
                return
            async with deadline.bounding():
                await self._retrying.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_POLL_S)

    async def results(
        self, id: str, kind: type[T], *, after: int = -1, **options: Unpack[Options]
    ) -> AsyncGenerator[Done[T], None]:
        """What became of its files so far, in their order, those of an index above `after`; `audio` is the
        file's name. kind: what the task answers, `Embedding`, `Transcript`, `Classification` or `Analysis`.
        The timeout is that of each."""
        read = result_reader(kind)
        deadline = self._deadline(options)
        async with deadline.bounding():
            response = await self._response(calls.results(id, after, options), deadline, streamed=True)
        async with aclosing(_lines(response, lambda: self._deadline(options))) as lines:
            async for line in lines:
                try:
                    done = read(line, deadline.request_id)
                except ValueError as error:
                    raise errors.unreadable(line, deadline.request_id) from error
                yield done

    async def cancel(self, id: str, **options: Unpack[Options]) -> Job:
        """Ends it, if it is not over yet. What its files gave so far stays."""
        job = await self.job(id, **options)
        cancelled = None if job.over else await self._answer(calls.cancel(id), options)
        return cancelled or job

    def _deadline(self, options: Options) -> Deadline:
        return Deadline(options.get("timeout", self._timeout_s), uuid.uuid4().hex)

    async def _answer(self, call: Call[T], options: Options) -> T:
        deadline = self._deadline(options)
        async with deadline.bounding():
            response = await self._response(call, deadline)
        try:
            return await asyncio.to_thread(call.read, response.content)  # frames may be many
        except ValueError as error:
            raise errors.unreadable(response.content, deadline.request_id) from error

    async def _response(
        self, call: Call[Any], deadline: Deadline, *, streamed: bool = False
    ) -> httpx.Response:
        """A success, after as many attempts as it takes."""
        audios = [await read_aside(partial(resendable, audio)) for audio in call.audios]
        clock = self._retrying.clock
        began, attempt = clock(), 0
        while True:
            attempt += 1
            try:
                return await self._attempt(call, audios, deadline, streamed)
            except ServiceError as error:
                if not may_pass(error, call.repeatable):
                    raise
                pause_s = self._retrying.pause_s(error, attempt, clock() - began)
                left_s = deadline.left_s()
                if pause_s is None or (left_s is not None and pause_s >= left_s):
                    raise
            await self._retrying.sleep(pause_s)

    async def _attempt(
        self, call: Call[Any], audios: list[Resendable], deadline: Deadline, streamed: bool
    ) -> httpx.Response:
        with ExitStack() as files:
            request = self._request(call, [("file", opened(audio, files)) for audio in audios], deadline)
            try:
                response = await self._http.send(request, stream=True)
                if not (streamed and response.is_success):
                    await response.aread()
            except (httpx.HTTPError, httpx.StreamError) as error:
                raise errors.of_transport(error, request) from error
        if not response.is_success:
            raise errors.of_response(response)
        return response

    def _request(self, call: Call[Any], files: list[Any], deadline: Deadline) -> httpx.Request:
        headers = {"X-Request-Id": deadline.request_id, **call.headers}
        if (left_s := deadline.left_s()) is not None:
            headers["X-Request-Timeout"] = f"{left_s:.3f}"
        request = self._http.build_request(
            call.method, call.path, headers=headers, data=call.fields or None, files=files or None
        )
        if files:
            assert isinstance(request.stream, httpx.SyncByteStream)
            request.stream = _InThreads(request.stream, int(request.headers["content-length"]))
        return request


class _InThreads(httpx.AsyncByteStream):
    """A body that is read from files, which may be slow, beside the event loop. Raises ValueError if it is
    not of the length that was promised."""

    def __init__(self, pieces: Iterable[bytes], length: int) -> None:
        self._pieces = pieces
        self._length = length

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces: Iterator[bytes] = iter(self._pieces)
        left = self._length
        while piece := await read_aside(lambda: b"".join(islice(pieces, PIECES))):
            left -= len(piece)
            if left < 0:
                break
            yield piece
        if left:
            raise ValueError("the file changed while it was sent")


async def _lines(response: httpx.Response, deadline: Callable[[], Deadline]) -> AsyncGenerator[bytes, None]:
    """Each comes before its deadline."""
    lines = _split(response.aiter_bytes())
    try:
        while True:
            async with deadline().bounding():
                line = await anext(lines, None)
            if line is None:
                return
            yield line
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise errors.of_transport(error, response.request) from error
    finally:
        await response.aclose()


async def _split(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """At line feeds alone: JSON may hold other characters that end lines."""
    parts: list[bytes] = []
    async for piece in pieces:
        first, *more = piece.split(b"\n")
        parts.append(first)
        for part in more:
            yield b"".join(parts)
            parts = [part]
    if rest := b"".join(parts):
        yield rest


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is no address of a service: it is like http://localhost:8000")
    return url


def _checked_key(key: str) -> str:
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise ValueError("the API key has characters that no key has: white space around it, perhaps")
    return key
