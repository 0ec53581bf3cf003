"""Decoding in processes that may die: a file that crashes a decoder, or takes too long or too much memory, is
refused, and the service goes on."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import BinaryIO, get_args

import numpy as np

from service import isolation
from service.batcher import Stopped
from service.decoding.decoder import BLOCK, END, ENOUGH, ERROR, GO_ON, HEAD, STARTED, WARNING
from speech_ssl.audio import AudioError, AudioWarning, Limits, Warn
from speech_ssl.audio.errors import WarningCode
from speech_ssl.types import Waveform

logger = logging.getLogger(__name__)

PIECE = 1 << 20
MOST = {BLOCK: 16 * PIECE, WARNING: PIECE, ERROR: PIECE, END: 0}
"""Bytes of a message. A decoder that says something else has been taken over."""
FILES = 1_000
"""After so many a decoder is replaced: what its libraries leak goes with it."""


START_S = 60.0
"""A decoder that has not started by then never will."""

LOOK_EVERY_S = 0.5
"""For whether anybody still waits for a decoder that has nothing to say."""

SLOW = "decoding it takes too long"


class _Crashed(Exception):
    """A decoder is no more; the message says why, for the client."""


class DecoderProcess:
    """One process, for one thread at a time."""

    def __init__(self, memory: int) -> None:
        self.is_left: Callable[[], bool] = lambda: False
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.decoding.decoder", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",  # whatever is looked for in the working directory
            env=isolation.environment(),
            bufsize=0,
            start_new_session=True,  # a Ctrl-C is for the service, which lets requests finish
        )
        assert self.popen.stdin and self.popen.stdout
        self._in, self._out = self.popen.stdin.fileno(), self.popen.stdout.fileno()
        for pipe in (self._in, self._out):
            with suppress(OSError):  # of a user who has many
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIECE)  # a clip in few turns, not in ten
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self.files = 0
        self.ready = True
        """For the next file: it has answered the last one to the end."""
        self._began, self._started = time.monotonic(), False

    def started(self, deadline: float) -> bool:
        """Waits for it. What is in a hurry must not kill a process that has not begun with its file: on a
        busy machine the next one would come no further. Raises _Crashed if it died."""
        if not self._started:
            try:
                self._wait(self._out, select.POLLIN, deadline)
            except _Crashed:
                self.ready = time.monotonic() < self._began + START_S
                return False
            self._started = self._receive(HEAD.size, deadline)[:1] == STARTED
        return self._started

    def blocks(
        self, source: bytes | BinaryIO, limits: Limits, deadline: float, warn: Warn | None = None
    ) -> Generator[Waveform]:
        """Raises AudioError for a file that is refused, _Crashed when the process is of no more use."""
        self.files, self.ready = self.files + 1, False
        size, pieces = _pieces(source)
        asked = {"size": size, "cpu_s": deadline - time.monotonic(), "limits": asdict(limits)}
        self._send(json.dumps(asked).encode() + b"\n", deadline)
        for piece in pieces:
            self._send(piece, deadline)
        refused: AudioError | None = None
        while True:
            kind, length = HEAD.unpack(self._receive(HEAD.size, deadline))
            if length > MOST.get(kind, -1):
                raise _Crashed("it is damaged: the decoder gave no sensible answer")
            body = self._receive(length, deadline)
            if kind == END:
                self.ready = True
                break
            if kind == ERROR:
                said = json.loads(body)
                refused = AudioError(said["code"], said["message"])
                continue
            if kind == WARNING:
                said = json.loads(body)
                if warn is not None and said["code"] in get_args(WarningCode):
                    warn(AudioWarning(said["code"], said["message"]))
                continue
            try:
                yield np.frombuffer(body, dtype="<f4").astype(np.float32, copy=False)
            except GeneratorExit:
                self._leave_the_rest()
                raise
            self._send(GO_ON, deadline)
        if refused is not None:
            raise refused

    def _leave_the_rest(self) -> None:
        with suppress(_Crashed):
            soon = time.monotonic() + 1.0
            self._send(ENOUGH, soon)
            self.ready = self._receive(HEAD.size, soon)[:1] == END

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()

    def _send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._in, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._in, rest[:PIECE]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._crash() from None

    def _receive(self, size: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while size:
            self._wait(self._out, select.POLLIN, deadline)
            try:
                part = os.read(self._out, min(size, PIECE))
            except BlockingIOError:
                continue
            if not part:
                raise self._crash()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()  # not select: it fails beyond 1,024 connections
        poll.register(descriptor, event)
        while (left_s := deadline - time.monotonic()) > 0:
            if poll.poll(1000 * min(left_s, LOOK_EVERY_S)):
                return
            if self.is_left():
                raise Stopped
        raise _Crashed(SLOW)

    def _crash(self) -> _Crashed:
        self.ready = False
        slow = self.popen.wait() == -signal.SIGXCPU
        return _Crashed(SLOW if slow else "it is damaged: the decoder died of it")


class Sandbox:
    """So many decoders, started before they are needed. `lost` is told of each that died."""

    def __init__(self, decoders: int, memory: int, timeout_s: float, lost: Callable[[], object]) -> None:
        self._memory, self._timeout_s, self._lost = memory, timeout_s, lost
        self._count = decoders
        self._stopped = False
        # None: still to be started.
        self._free: queue.SimpleQueue[DecoderProcess | None] = queue.SimpleQueue()

    def start(self) -> None:
        for _ in range(self._count):
            self._free.put(DecoderProcess(self._memory))

    def stream(
        self,
        source: bytes | BinaryIO,
        *,
        limits: Limits,
        due: float = math.inf,
        warn: Warn | None = None,
        left: threading.Event | None = None,
    ) -> Generator[Waveform]:
        """As `speech_ssl.audio.stream`, in any thread; `due`: when nobody waits for it any more, by
        `time.monotonic`; `left`: nobody does now. Raises AudioError, `undecodable` for what killed a decoder
        or took too long, TimeoutError where it is due before one has started, Stopped where it is left."""
        decoder = self._taken()
        decoder.is_left = lambda: self._stopped or (left is not None and left.is_set())
        try:
            deadline = min(time.monotonic() + self._timeout_s, due)
            if not decoder.started(deadline):
                raise TimeoutError(SLOW) if time.monotonic() >= due else AudioError("undecodable", SLOW)
            yield from decoder.blocks(source, limits, deadline, warn)
        except _Crashed as error:
            self._lost()
            logger.warning("a decoder was lost, with exit status %s: %s", decoder.popen.poll(), error)
            raise AudioError("undecodable", str(error)) from None
        finally:
            self._give_back(decoder)

    def _taken(self) -> DecoderProcess:
        """Waits for one. Raises OSError where the system cannot start it."""
        decoder = self._free.get()
        if decoder is not None and decoder.popen.poll() is not None:  # killed while it had nothing to do
            self._lost()
            decoder.end()
            decoder = None
        try:
            return decoder or DecoderProcess(self._memory)
        except OSError:
            self._free.put(None)  # for the next one to try
            raise

    def _give_back(self, decoder: DecoderProcess) -> None:
        if decoder.ready and decoder.files < FILES and not self._stopped:
            self._free.put(decoder)
            return
        decoder.end()
        if not self._stopped:
            try:
                self._free.put(DecoderProcess(self._memory))
            except OSError:
                self._free.put(None)

    def stop(self) -> None:
        """End the decoders; those at work end with the next block or word of theirs, or in a moment."""
        self._stopped = True
        while True:
            try:
                decoder = self._free.get_nowait()
            except queue.Empty:
                return
            if decoder is not None:
                decoder.end()


def _pieces(source: bytes | BinaryIO) -> tuple[int, Iterator[bytes]]:
    """How long it is, and all of it."""
    if isinstance(source, bytes):
        return len(source), iter([source])
    source.seek(0, os.SEEK_END)
    size = source.tell()
    source.seek(0)
    return size, iter(lambda: source.read(PIECE), b"")
