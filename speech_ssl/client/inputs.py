"""Audio to send: files as they are, samples as a WAV file."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
Audio: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | NDArray[np.float32]
"""The path of a file, its bytes, an open binary file (sent from its beginning), or samples: (S,) float32 at
16 kHz."""
Resendable: TypeAlias = Path | bytes | BinaryIO
T = TypeVar("T")


def resendable(audio: Audio) -> Resendable:
    """What can be sent several times. Reads a pipe to its end. Raises ValueError, TypeError and OSError."""
    if isinstance(audio, str | os.PathLike):
        path = Path(audio)
        return path if path.is_file() else path.read_bytes()  # of a pipe, or why it cannot be read
    if isinstance(audio, bytes):
        return audio
    if isinstance(audio, np.ndarray):
        return wav(audio)
    if isinstance(audio, io.TextIOBase):
        raise ValueError("this file is open for text: open it with mode 'rb'")
    if not hasattr(audio, "read"):
        kind = type(audio).__name__
        raise TypeError(f"audio is a path, bytes, an open binary file or float32 samples, not {kind}")
    seekable = getattr(audio, "seekable", lambda: False)
    return audio if seekable() else audio.read()


async def read_aside(read: Callable[[], T]) -> T:
    """Beside the event loop, in a thread that nothing waits for: not the end of the loop, as with
    `asyncio.to_thread`, nor that of the process. Nobody may ever write to a pipe."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(value: T | None, error: BaseException | None) -> None:
        if future.done():  # whoever waited has given up
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, value))

    def run() -> None:
        value, failure = None, None
        try:
            value = read()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, value, failure)

    threading.Thread(target=run, name="speech-ssl-reading", daemon=True).start()
    return await future


def opened(audio: Resendable, files: ExitStack) -> tuple[str, BinaryIO]:
    """Its name and its bytes; `files` closes what was opened here. Whoever sends it begins with a rewind."""
    if isinstance(audio, Path):
        name = audio.name.encode("utf-8", "replace").decode()
        return name, cast(BinaryIO, files.enter_context(_Later(audio)))
    if isinstance(audio, bytes):
        return "audio", io.BytesIO(audio)
    return "audio", audio


class _Later(io.RawIOBase):
    """A file that is open only while it is read, from its beginning to its end: a job may have more of them
    than a process may hold."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._file: BinaryIO | None = None

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Tells the length, as whoever sends it wants to know that."""
        return self._size if whence == os.SEEK_END else 0

    def read(self, size: int = -1) -> bytes:
        if self._file is None:
            self._file = self._path.open("rb")
        data = self._file.read(size)
        if not data:
            self._file.close()
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def wav(wave: NDArray[np.float32]) -> bytes:
    """A WAV file of 32-bit floats, which changes no sample."""
    if wave.ndim != 1 or wave.dtype != np.float32:
        raise ValueError(f"samples are (S,) float32 at 16 kHz, not {wave.shape} {wave.dtype}")
    data = wave.astype("<f4").tobytes()
    if len(data) >= 1 << 32:
        raise ValueError("too many samples for one WAV file")
    header = struct.pack(
        "<4sI4s 4sIHHIIHHH 4sII 4sI",
        *(b"RIFF", 50 + len(data), b"WAVE"),
        *(b"fmt ", 18, 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32, 0),
        *(b"fact", 4, len(wave)),
        *(b"data", len(data)),
    )
    return header + data
