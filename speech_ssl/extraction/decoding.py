"""Files decoded and cut into windows by processes of their own, ahead of the model.

A decoder that dies (a crash in a codec, the kernel short of memory) fails its file and is replaced.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TypeAlias

import numpy as np

from speech_ssl import audio
from speech_ssl.audio import AudioError, AudioWarning, Warn
from speech_ssl.inference.chunking import Chunker, Window
from speech_ssl.inference.windows import Piece
from speech_ssl.types import Waveform

STALL_S = 300.0  # a decoder that sends nothing for so long is killed
ALIVE_S = 30.0  # so often it says that it is at work, while it measures the level of a long file
ALIVE = "alive"


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
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._queue = _SecondsQueue(ahead_s)
        self._lock = threading.Lock()
        self._closing = False
        self._workers: set[_Worker] = set()
        self._threads = [threading.Thread(target=self._feed, daemon=True) for _ in range(workers)]

    def __enter__(self) -> Decoders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closing = True
            for worker in self._workers:
                worker.kill()
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
        """One thread a process: hand it jobs and pass on what it answers."""
        worker = None
        try:
            while (job := self._next_job()) is not None:
                worker = worker or self._start()
                for event in worker.answers(job):
                    self._queue.put(event)
                if not worker.alive:
                    self._stop(worker)
                    worker = None
        except BaseException as error:
            self._queue.put(error)
        finally:
            if worker is not None:
                self._stop(worker)
            self._queue.put(None)

    def _next_job(self) -> DecodeTask | None:
        with self._lock:
            return None if self._closing else next(self._jobs, None)

    def _start(self) -> _Worker:
        worker = _Worker(self._context, self._chunker)
        with self._lock:
            self._workers.add(worker)
            if self._closing:
                worker.kill()
        return worker

    def _stop(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.close()


class _Worker:
    """One decoder process, seen from the parent."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, chunker: Chunker) -> None:
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_decode_jobs, args=(theirs, chunker), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the stream
        self.alive, self._stalled = True, False

    def answers(self, job: DecodeTask) -> Iterator[Event]:
        index = 0
        try:
            self._connection.send(job)
            while True:
                with self._impatience():
                    event = self._connection.recv()
                    if event == ALIVE:
                        continue
                    data = self._connection.recv_bytes() if isinstance(event, Window) else b""
                if not isinstance(event, Window):
                    yield event
                    return
                yield Piece(job.clip, index, event, np.frombuffer(data, dtype=np.float32))
                index += 1
        except (EOFError, OSError):
            self.alive = False
            if self._stalled:
                reason = f"{job.path}: the decoder gave nothing for {STALL_S:g} s"
                yield Failed(job.clip, "stalled", reason)
            else:
                reason = f"{job.path}: the decoder process died ({self._death()})"
                yield Failed(job.clip, "decoder_died", reason)

    @contextmanager
    def _impatience(self) -> Iterator[None]:
        """Kill the process if the block takes longer than STALL_S. It may stop in the middle of a message,
        where no poll would see it; its death ends every wait."""

        def kill() -> None:
            self._stalled = True
            self._process.kill()

        timer = threading.Timer(STALL_S, kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._connection.close()  # a process that waits for a job ends by itself
        if not self.alive:
            self._process.kill()
        self._process.join()

    def _death(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"


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


def _decode_jobs(connection: Connection, chunker: Chunker) -> None:
    """The life of a decoder process. It ends when the parent closes the connection, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        while True:
            _decode(connection.recv(), connection, chunker)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _blocks(job: DecodeTask, connection: Connection, warn: Warn | None = None) -> Iterator[Waveform]:
    told = time.monotonic()
    for block in audio.stream(job.path, start_s=job.start_s, stop_s=job.stop_s, warn=warn):
        yield block
        if time.monotonic() - told > ALIVE_S:
            connection.send(ALIVE)
            told = time.monotonic()


def _decode(job: DecodeTask, connection: Connection, chunker: Chunker) -> None:
    windows = stop = 0
    warnings: list[AudioWarning] = []
    try:
        blocks, again = _blocks(job, connection, warnings.append), partial(_blocks, job, connection)
        for window, wave in chunker.cut_file(blocks, again):
            connection.send(window)
            connection.send_bytes(np.ascontiguousarray(wave).data)
            windows, stop = windows + 1, window.stop
        connection.send(Decoded(job.clip, windows, stop, tuple(warnings)))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except AudioError as error:
        connection.send(Failed(job.clip, error.code, str(error)))
    except OSError as error:
        connection.send(Failed(job.clip, "unreadable", f"{job.path}: {error.strerror or error}"))
    except Exception as error:  # whatever a codec comes up with, it is this file's fault alone
        connection.send(Failed(job.clip, "undecodable", f"{job.path}: {type(error).__name__}: {error}"))
