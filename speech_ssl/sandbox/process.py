"""A process that decodes, seen from the one that started it. What it says is not believed: of a file that has
taken it over there are samples, an error or a warning, or it is ended."""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

import numpy as np

from speech_ssl.audio import AudioError, AudioWarning, Limits, Warn
from speech_ssl.audio.errors import Code, WarningCode
from speech_ssl.sandbox import isolation
from speech_ssl.sandbox.decoder import (
    BLOCK,
    END,
    ENOUGH,
    ERROR,
    GO_ON,
    HEAD,
    STARTED,
    UNREADABLE,
    WARNING,
)
from speech_ssl.types import Waveform

PIECE = 1 << 20
MOST = {BLOCK: 16 * PIECE, WARNING: PIECE, ERROR: PIECE, END: 0}
"""Bytes of a message. A decoder that says something else has been taken over."""

START_S = 60.0
"""A decoder that has not started by then never will."""

LOOK_EVERY_S = 0.5
"""For whether anybody still waits for a decoder that has nothing to say."""

END_S = 5.0
"""So long a decoder that has closed its pipes may take to end by itself."""

SLOW = "decoding it takes too long"


@dataclass(frozen=True, slots=True)
class Part:
    """Of a file on the disk, which the decoder opens: what is between two times in seconds."""

    path: str
    start_s: float = 0.0
    stop_s: float | None = None


Source: TypeAlias = bytes | BinaryIO | Part


class DecoderError(AudioError):
    """A file that no decoder got to the end of. For whoever knows AudioError alone it is undecodable.

    how: whether the decoder died, was ended for taking too long, or could not open the file. detail: of what
    it died.
    """

    def __init__(
        self, how: Literal["died", "too_slow", "unreadable"], message: str, detail: str = ""
    ) -> None:
        super().__init__("undecodable", message)
        self.how, self.detail = how, detail


class Left(Exception):
    """Nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for a decoder: until `deadline`, by `time.monotonic`, for `silence_s` without a
    byte, and not once it is `left`."""

    deadline: float = math.inf
    silence_s: float = math.inf
    left: Callable[[], bool] = lambda: False


class DecoderProcess:
    """One process, for one thread at a time."""

    def __init__(self, memory: int) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "speech_ssl.sandbox.decoder", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",  # whatever is looked for in the working directory
            env=isolation.environment(),
            bufsize=0,
            start_new_session=True,  # a Ctrl-C is for whoever started it, and may finish what is under way
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

    def started(self, patience: Patience) -> bool:
        """Waits for it. What is in a hurry must not kill a process that has not begun with its file: on a
        busy machine the next one would come no further. Raises DecoderError if it died, and Left."""
        if not self._started:
            try:
                self._wait(self._out, select.POLLIN, patience)
            except DecoderError:
                self.ready = time.monotonic() < self._began + START_S
                return False
            self._started = self._receive(HEAD.size, patience)[:1] == STARTED
        return self._started

    def blocks(
        self, source: Source, limits: Limits, patience: Patience, warn: Warn | None = None
    ) -> Generator[Waveform]:
        """Raises AudioError for a file that is refused, of it DecoderError where the process is of no more
        use, and Left."""
        self.files, self.ready = self.files + 1, False
        self._ask(source, limits, patience)
        refused: AudioError | None = None
        while True:
            kind, body = self._message(patience)
            if kind == END:
                self.ready = True
                break
            if kind == ERROR:
                refused = _refused(*_told(body))
            elif kind == WARNING:
                code, message = _told(body)
                warning = AudioWarning(_one_of(get_args(WarningCode), code), message)
                if warn is not None:
                    warn(warning)
            else:
                try:
                    yield np.frombuffer(body, dtype="<f4").astype(np.float32, copy=False)
                except GeneratorExit:
                    self._leave_the_rest()
                    raise
                self._send(GO_ON, patience)
        if refused is not None:
            raise refused

    def _ask(self, source: Source, limits: Limits, patience: Patience) -> None:
        asked: dict[str, object] = {"path": "", "size": 0, "cpu_s": patience.deadline - time.monotonic()}
        options: dict[str, object] = {"limits": asdict(limits)}
        pieces: Iterator[bytes] = iter(())
        if isinstance(source, Part):
            asked["path"] = os.path.abspath(source.path)  # noqa: PTH100 - no look at the disk
            options |= {"start_s": source.start_s, "stop_s": source.stop_s}
        else:
            asked["size"], pieces = _pieces(source)
        self._send(json.dumps(asked | {"options": options}).encode() + b"\n", patience)
        for piece in pieces:
            self._send(piece, patience)

    def _message(self, patience: Patience) -> tuple[bytes, bytes]:
        kind, length = HEAD.unpack(self._receive(HEAD.size, patience))
        if length > MOST.get(kind, -1) or (kind == BLOCK and length % 4):
            raise _nonsense()
        return kind, self._receive(length, patience)

    def _leave_the_rest(self) -> None:
        with suppress(DecoderError):
            soon = Patience(time.monotonic() + 1.0)
            self._send(ENOUGH, soon)
            while self._message(soon)[0] != END:
                pass
            self.ready = True

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()

    def _send(self, data: bytes, patience: Patience) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._in, select.POLLOUT, patience)
            try:
                rest = rest[os.write(self._in, rest[:PIECE]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._died() from None

    def _receive(self, size: int, patience: Patience) -> bytes:
        parts: list[bytes] = []
        while size:
            self._wait(self._out, select.POLLIN, patience)
            try:
                part = os.read(self._out, min(size, PIECE))
            except BlockingIOError:
                continue
            if not part:
                raise self._died()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, descriptor: int, event: int, patience: Patience) -> None:
        poll = select.poll()  # not select: it fails beyond 1,024 connections
        poll.register(descriptor, event)
        until = min(patience.deadline, time.monotonic() + patience.silence_s)
        while (left_s := until - time.monotonic()) > 0:
            if patience.left():
                raise Left
            if poll.poll(1000 * min(left_s, LOOK_EVERY_S)):
                return
        raise DecoderError("too_slow", SLOW)

    def _died(self) -> DecoderError:
        self.ready = False
        try:
            status = self.popen.wait(END_S)
        except subprocess.TimeoutExpired:  # it has closed its pipes, and goes on
            return _nonsense()
        detail = {-each: each.name for each in signal.Signals}.get(status, f"exit status {status}")
        if status == -signal.SIGXCPU:
            return DecoderError("too_slow", SLOW, detail)
        return DecoderError("died", "it is damaged: the decoder died of it", detail)


def _pieces(source: bytes | BinaryIO) -> tuple[int, Iterator[bytes]]:
    """How long it is, and all of it."""
    if isinstance(source, bytes):
        return len(source), iter([source])
    source.seek(0, os.SEEK_END)
    size = source.tell()
    source.seek(0)
    return size, iter(lambda: source.read(PIECE), b"")


def _told(body: bytes) -> tuple[str, str]:
    """A code and its message."""
    code, _, message = body.decode(errors="backslashreplace").partition("\n")
    return code, message


def _refused(code: str, message: str) -> AudioError:
    if code == UNREADABLE:
        return DecoderError("unreadable", message)
    return AudioError(_one_of(get_args(Code), code), message)


def _one_of(codes: tuple[Any, ...], code: str) -> Any:
    """Raises DecoderError for another."""
    for known in codes:
        if known == code:
            return known
    raise _nonsense()


def _nonsense() -> DecoderError:
    return DecoderError("died", "it is damaged: the decoder gave no sensible answer", "no sensible answer")
