"""Decoders at hand: of those that die, hang or grow old each has a successor."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress

from speech_ssl.audio import Limits, Warn
from speech_ssl.sandbox.process import SLOW, DecoderError, DecoderProcess, Left, Patience, Source
from speech_ssl.types import Waveform

NONE = Limits()
FILES = 1_000
"""After so many a decoder is replaced: what its libraries leak goes with it."""


class Sandbox:
    """So many decoders, started before they are needed.

    memory: of each, bytes of address space. timeout_s: of a file; silence_s: for a decoder that says nothing.
    lost: told of each that died or had to be ended, with the reason. files: after which one is replaced.
    """

    def __init__(
        self,
        decoders: int,
        memory: int,
        timeout_s: float = math.inf,
        lost: Callable[[str], object] = lambda why: None,
        *,
        silence_s: float = math.inf,
        files: int | None = None,
    ) -> None:
        self._count, self._memory, self._timeout_s, self._lost = decoders, memory, timeout_s, lost
        self._silence_s, self._files = silence_s, files or FILES
        self._stopped, self._lock = False, threading.Lock()
        # None: still to be started.
        self._free: queue.SimpleQueue[DecoderProcess | None] = queue.SimpleQueue()

    def start(self) -> None:
        for _ in range(self._count):
            self._free.put(DecoderProcess(self._memory))

    def stream(
        self,
        source: Source,
        *,
        limits: Limits = NONE,
        due: float = math.inf,
        warn: Warn | None = None,
        left: Callable[[], bool] = lambda: False,
    ) -> Generator[Waveform]:
        """As `speech_ssl.audio.stream`, in any thread; `due`: when nobody waits for it any more, by
        `time.monotonic`; `left`: nobody does now. Raises AudioError, of it DecoderError for what killed a
        decoder or took too long, TimeoutError where it is due before one has started, Left where it is left
        or the decoders are stopped."""
        decoder = self._taken()
        deadline = min(time.monotonic() + self._timeout_s, due)
        patience = Patience(deadline, self._silence_s, lambda: self._stopped or left())
        try:
            if not decoder.started(patience):
                raise TimeoutError(SLOW) if time.monotonic() >= due else DecoderError("too_slow", SLOW)
            yield from decoder.blocks(source, limits, patience, warn)
        except DecoderError as error:
            if not decoder.ready:
                self._lost(f"{error} {error.detail}".rstrip())
            raise
        finally:
            self._give_back(decoder)

    def _taken(self) -> DecoderProcess:
        """Waits for one. Raises OSError where the system cannot start it, and Left once they are stopped."""
        decoder = self._free.get()
        if self._stopped:
            self._put(decoder)
            raise Left
        if decoder is not None and decoder.popen.poll() is not None:
            self._lost(f"it ended with {decoder.popen.returncode} while it had nothing to do")
            decoder.end()
            decoder = None
        try:
            return decoder or DecoderProcess(self._memory)
        except OSError:
            self._put(None)  # for the next one to try
            raise

    def _give_back(self, decoder: DecoderProcess) -> None:
        if decoder.ready and decoder.files < self._files:
            self._put(decoder)
            return
        decoder.end()
        try:
            self._put(None if self._stopped else DecoderProcess(self._memory))
        except OSError:
            self._put(None)

    def _put(self, decoder: DecoderProcess | None) -> None:
        with self._lock:
            if decoder is not None and self._stopped:
                decoder.end()
                decoder = None
            self._free.put(decoder)

    def stop(self) -> None:
        """End the decoders; those at work end with the next word of theirs, or in a moment."""
        with self._lock:
            self._stopped = True
        for _ in range(self._free.qsize()):
            with suppress(queue.Empty):
                self._put(self._free.get_nowait())
