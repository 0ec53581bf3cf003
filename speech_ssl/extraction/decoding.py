"""Files decoded by processes of their own and cut into windows, ahead of the model.

A decoder that dies (a crash in a codec, the kernel short of memory) fails its file and is replaced.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeAlias

from speech_ssl.audio import AudioError, AudioWarning
from speech_ssl.inference.chunking import Chunker
from speech_ssl.inference.windows import Piece
from speech_ssl.sandbox.pool import Sandbox
from speech_ssl.sandbox.process import DecoderError, Left, Part

STALL_S = 300.0
"""A decoder that sends nothing for so long is killed."""
MEMORY = 4 << 30
"""Bytes of address space of a decoder. What it needs of a sound file does not grow with the file."""
FILES = 100_000
"""After so many a decoder is replaced: one that starts takes as long as fifty short files."""


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """A file to decode, or the part of it between two times in seconds. `clip` names it in the answers."""

    clip: int
    path: str
    start_s: float = 0.0
    stop_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """All windows of a clip have been handed out: so many, of so many samples. warnings: of its audio."""

    clip: int
    windows: int
    samples: int
    warnings: tuple[AudioWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A clip that cannot be decoded; `code` is AudioError's, or "unreadable", "decoder_died", "stalled"."""

    clip: int
    code: str
    reason: str


Event: TypeAlias = Piece | Decoded | Failed


class Decoders:
    """Iterate over what `workers` processes decode: the windows of each clip in order, then Decoded or
    Failed; clips interleave. At most about `ahead_s` seconds of audio wait to be taken.

    Use it in a `with`: the processes end with the block.
    """

    def __init__(self, jobs: Iterable[DecodeTask], chunker: Chunker, *, workers: int, ahead_s: float) -> None:
        self._jobs, self._chunker = iter(jobs), chunker
        self._sandbox = Sandbox(workers, MEMORY, silence_s=STALL_S, files=FILES)
        self._queue = _SecondsQueue(ahead_s)
        self._lock = threading.Lock()
        self._closing = False
        self._threads = [threading.Thread(target=self._feed, daemon=True) for _ in range(workers)]

    def __enter__(self) -> Decoders:
        self._sandbox.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._sandbox.stop()
        self._queue.close()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[Event]:
        ended = 0
        while ended < len(self._threads):
            event = self._queue.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                ended += 1
            else:
                yield event

    def _feed(self) -> None:
        """One thread a process: hand out jobs and pass on what becomes of them."""
        try:
            while (job := self._next_job()) is not None:
                for event in self._decode(job):
                    self._queue.put(event)
        except BaseException as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)

    def _next_job(self) -> DecodeTask | None:
        with self._lock:
            return None if self._closing else next(self._jobs, None)

    def _decode(self, job: DecodeTask) -> Iterator[Event]:
        windows = stop = 0
        warnings: list[AudioWarning] = []
        part = Part(job.path, job.start_s, job.stop_s)
        again = partial(self._sandbox.stream, part)
        try:
            for window, wave in self._chunker.cut_file(again(warn=warnings.append), again):
                yield Piece(job.clip, windows, window, wave.copy())  # of a view all would be held
                windows, stop = windows + 1, window.stop
            yield Decoded(job.clip, windows, stop, tuple(warnings))
        except Left:
            return
        except DecoderError as error:
            yield _failed(job, error)
        except AudioError as error:
            yield Failed(job.clip, error.code, str(error))


def _failed(job: DecodeTask, error: DecoderError) -> Failed:
    if error.how == "unreadable":
        return Failed(job.clip, "unreadable", str(error))
    if error.how == "died":
        return Failed(job.clip, "decoder_died", f"{job.path}: the decoder process died ({error.detail})")
    return Failed(job.clip, "stalled", f"{job.path}: the decoder gave nothing for {STALL_S:g} s")


class _SecondsQueue:
    """A queue bounded by seconds of audio; closed, it takes everything and keeps nothing."""

    def __init__(self, most_s: float) -> None:
        self._most_s, self._held_s = most_s, 0.0
        self._items: deque[Event | BaseException | None] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Event | BaseException | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._held_s < self._most_s)
            if not self._closed:
                self._items.append(item)
                self._held_s += _seconds(item)
                self._changed.notify_all()

    def get(self) -> Event | BaseException | None:
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            item = self._items.popleft()
            self._held_s -= _seconds(item)
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _seconds(item: object) -> float:
    return item.window.seconds if isinstance(item, Piece) else 0.0
