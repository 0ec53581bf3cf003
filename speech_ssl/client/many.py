"""Many clips, several at a time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from speech_ssl.client.errors import ServiceError, Unauthorized
from speech_ssl.client.inputs import Audio

T = TypeVar("T")
Shown: TypeAlias = "bool | Callable[[Counts], object]"
LINE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Done(Generic[T]):
    """What became of one clip. index: its place among the inputs."""

    index: int
    audio: Audio
    value: T | None
    error: Exception | None = None

    @property
    def answer(self) -> T:
        """Raises its error, if it has one."""
        if self.error is not None:
            raise self.error
        assert self.value is not None
        return self.value


@dataclass(frozen=True, slots=True)
class Counts:
    """done: with those that failed. total: None where the inputs have no length."""

    done: int
    failed: int
    total: int | None

    def __str__(self) -> str:
        total = "" if self.total is None else f" of {self.total}"
        return f"{self.done}{total} clips" + (f", {self.failed} failed" if self.failed else "")


class Window(Generic[T]):
    """At most `workers` requests at a time, with the answers that nobody has taken yet."""

    def __init__(
        self,
        ask: Callable[[Audio], Awaitable[T]],
        workers: int,
        start: Callable[[Coroutine[Any, Any, Done[T]]], asyncio.Task[Done[T]]] = asyncio.create_task,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self._ask = ask
        self._workers = workers
        self._start = start
        self._running: set[asyncio.Task[Done[T]]] = set()

    def steps(self, audios: Iterable[Audio]) -> Iterator[Awaitable[list[Done[T]]]]:
        """Each to be awaited before the next: what is done by then. They raise Unauthorized, for it would be
        so with every clip."""
        for index, audio in enumerate(audios):
            yield self._add(index, audio)
        while self._running:
            yield self._finished()

    async def _add(self, index: int, audio: Audio) -> list[Done[T]]:
        self._running.add(self._start(self._one(index, audio)))
        return await self._finished() if len(self._running) >= self._workers else []

    async def _finished(self) -> list[Done[T]]:
        done, running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        results = [task.result() for task in done]
        self._running = running
        return results

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _one(self, index: int, audio: Audio) -> Done[T]:
        try:
            return Done(index, audio, await self._ask(audio))
        except Unauthorized:
            raise
        except (ServiceError, OSError, ValueError) as error:
            return Done(index, audio, None, error)


class ProgressBar:
    """`shown`: True for a bar on a terminal and a plain line now and then elsewhere, both on stderr, or a
    function that is given the counts as they change."""

    def __init__(self, shown: Shown, total: int | None) -> None:
        self._call = shown if callable(shown) else self._line if shown else None
        self._counts = Counts(0, 0, total)
        self._spoke = time.monotonic()
        self._bar = None
        if shown is True and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=" clips", leave=False)
            self._call = self._draw

    def tick(self, done: Done[Any]) -> None:
        counts = self._counts
        self.show(Counts(counts.done + 1, counts.failed + (done.error is not None), counts.total))

    def show(self, counts: Counts) -> None:
        changed, self._counts = counts != self._counts, counts
        if changed and self._call is not None:
            self._call(counts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _draw(self, counts: Counts) -> None:
        assert self._bar is not None
        self._bar.total = counts.total
        self._bar.set_postfix_str(f"{counts.failed} failed" if counts.failed else "", refresh=False)
        self._bar.update(counts.done - self._bar.n)

    def _line(self, counts: Counts) -> None:
        if time.monotonic() - self._spoke >= LINE_EVERY_S or counts.done == counts.total:
            self._spoke = time.monotonic()
            print(counts, file=sys.stderr, flush=True)


def number_of(audios: Iterable[Audio]) -> int | None:
    return len(audios) if isinstance(audios, Sized) else None
