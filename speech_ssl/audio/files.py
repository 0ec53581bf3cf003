"""The bytes of a source: all of them, or those that belong together."""

from __future__ import annotations

import io
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from speech_ssl.audio.errors import AudioError

AudioSource: TypeAlias = str | Path | bytes | BinaryIO
"""A path, the bytes of a file, or an open binary file (read from its beginning)."""

LEAST_WINDOW, MOST_WINDOW = 1 << 12, 1 << 18
VIEW_WINDOW = 1 << 14


class Range(NamedTuple):
    """The bytes of a file from `begin` up to `end`."""

    begin: int
    end: int


Piece: TypeAlias = Range | bytes
"""A piece of a view: bytes of the file, or others in their place."""


class File:
    """A source that can be read anywhere, from `origin` on. descriptor: -1 if it is not a regular file."""

    def __init__(self, raw: BinaryIO | io.FileIO, descriptor: int = -1, origin: int = 0) -> None:
        self.raw, self.descriptor, self.origin = raw, descriptor, origin
        self.size = max(raw.seek(0, io.SEEK_END) - origin, 0)
        self._window, self._window_at, self._window_bytes = b"", 0, LEAST_WINDOW

    def behind(self, at: int) -> File:
        """The rest of it."""
        return File(self.raw, self.descriptor, self.origin + at)

    def read_at(self, at: int, size: int) -> bytes:
        """Fewer bytes where the file ends."""
        if at >= self.size:  # as broken files say, it may be more than a seek can do
            return b""
        self.raw.seek(self.origin + at)
        parts = []
        while size > 0 and (part := self.raw.read(size)):
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def peek(self, at: int, size: int) -> bytes:
        """As `read_at`, for a few bytes: fast for consecutive calls."""
        begin = at - self._window_at
        if not 0 <= begin <= begin + size <= len(self._window):
            self._window, self._window_at, begin = self.read_at(at, max(size, self._window_bytes)), at, 0
            self._window_bytes = min(2 * self._window_bytes, MOST_WINDOW)
        return self._window[begin : begin + size]


class View:
    """Pieces one after the other, as a file for a decoder. A broken file may make it seek before the
    beginning: this is refused without an exception, which could only be printed."""

    def __init__(self, file: File, pieces: Sequence[Piece]) -> None:
        self._file = file
        self._pieces = [piece for piece in pieces if _size(piece)]
        self._begins = [0, *accumulate(map(_size, self._pieces))]
        self._at = 0
        self._window, self._window_at = b"", 0

    @property
    def size(self) -> int:
        return self._begins[-1]

    def descriptor(self) -> int:
        """The file's descriptor, at its beginning, if this is the whole file, else -1."""
        if self._file.origin or self._pieces != [Range(0, self._file.size)]:
            return -1
        self._file.raw.seek(0)
        return self._file.descriptor

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """libsndfile asks for a few bytes at a time of MP3."""
        size = len(buffer)
        begin = self._at - self._window_at
        if not 0 <= begin <= begin + size <= len(self._window):
            at = self._at
            self._window, self._window_at, begin = self.read(max(size, VIEW_WINDOW)), at, 0
            self._at = at
        part = self._window[begin : begin + size]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def read(self, size: int = -1, /) -> bytes:
        parts = []
        size = self.size if size < 0 else size
        while size > 0 and self._at < self.size:
            index = bisect_right(self._begins, self._at) - 1
            piece, skipped = self._pieces[index], self._at - self._begins[index]
            wanted = min(size, self._begins[index + 1] - self._at)
            if isinstance(piece, Range):
                part = self._file.read_at(piece.begin + skipped, wanted)
            else:
                part = piece[skipped : skipped + wanted]
            if not part:  # the file has become shorter
                break
            parts.append(part)
            self._at += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if at < 0:
            return -1
        self._at = at
        return at

    def tell(self) -> int:
        return self._at


def _size(piece: Piece) -> int:
    return piece.end - piece.begin if isinstance(piece, Range) else len(piece)


def patched(begin: int, end: int, changes: Sequence[tuple[int, bytes]]) -> list[Piece]:
    """Pieces of a file with other bytes at some places."""
    pieces: list[Piece] = []
    for at, data in sorted(changes):
        if begin <= at and at + len(data) <= end:
            pieces += [Range(begin, at), data]
            begin = at + len(data)
    return [*pieces, Range(begin, end)]


@contextmanager
def opened(source: AudioSource) -> Iterator[File]:
    """Raises AudioError for anything but a regular file, and OSError."""
    if isinstance(source, str | Path):
        # Unbuffered, for the descriptor's position has to be the file's.
        with _regular(source) as raw:
            yield File(raw, raw.fileno())
        return
    stored = io.BytesIO(source) if isinstance(source, bytes) else source
    yield File(stored if stored.seekable() else io.BytesIO(stored.read()))


def _regular(path: str | Path) -> io.FileIO:
    """A file that can be sought in. A pipe is refused, without waiting for its writer."""
    file = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise AudioError("unsupported_format", f"{path}: not a regular file")
    return file


def name_of(source: AudioSource) -> str:
    if isinstance(source, str | Path):
        return str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "audio"
