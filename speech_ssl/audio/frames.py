"""Formats that consist of frames only, each with a header: where they end, and what is in between."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from speech_ssl.audio.errors import CUT_OFF, DAMAGED, Flaw
from speech_ssl.audio.files import File
from speech_ssl.audio.formats import Container

SEARCHED_BYTES = 1 << 16
"""So many other bytes may precede MP3 or ADTS."""
CHAIN = 8
"""So many headers in a row, each where the previous one says, are not there by chance."""
JUNK_BYTES = 4_096
"""So many bytes after the last frame are not lost audio, but tags of unknown kinds."""
HEADER_BYTES = 48

_SYNC = re.compile(rb"\xff(?=[\xe0-\xff])")


class Frame(NamedTuple):
    """key: what is the same in all frames of one recording."""

    size: int
    samples: int
    rate: int
    key: bytes = b""


NO_FRAME = Frame(0, 0, 1)


class FrameRun(NamedTuple):
    """Frames of one recording, one after the other."""

    begin: int
    end: int
    frames: int
    samples: int
    first: Frame

    @property
    def seconds(self) -> float:
        return self.samples / self.first.rate


FrameOf: TypeAlias = Callable[[bytes], Frame | None]
"""The frame with this header; None if it is not a header."""

KBITS = {  # by whether the version is 1, and by layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def mpeg_frame(head: bytes) -> Frame | None:
    """Layers I to III. With a free bit rate the end of a frame is unknown."""
    return _mpeg_frame(head[:4])


@lru_cache(4_096)
def _mpeg_frame(head: bytes) -> Frame | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    kbits, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or not 0 < kbits < 15 or rate == 3:
        return None
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = 1_000 * KBITS[version == 3, layer][kbits - 1]
    padding = head[2] >> 1 & 1
    key = bytes([head[1] & 0xFE, head[2] & 0x0C, head[3] >> 6 == 3])
    if layer == 1:
        return Frame(4 * (12 * bits // hertz + padding), 384, hertz, key)
    samples = 576 if layer == 3 and version != 3 else 1_152
    return Frame(samples // 8 * bits // hertz + padding, samples, hertz, key)


ADTS_RATES = (
    96_000,
    88_200,
    64_000,
    48_000,
    44_100,
    32_000,
    24_000,
    22_050,
    16_000,
    12_000,
    11_025,
    8_000,
    7_350,
)


def adts_frame(head: bytes) -> Frame | None:
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 >= 13:
        return None
    size = int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF
    if size <= 7:
        return None
    key = bytes([head[1] & 0xFE, head[2] & 0xFD, head[3] & 0xC0])
    return Frame(size, 1_024 * (1 + (head[6] & 3)), ADTS_RATES[head[2] >> 2 & 15], key)


AC3_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
AC3_RATES = (48_000, 44_100, 32_000)


def ac3_frame(head: bytes) -> Frame | None:
    """Of AC-3 and E-AC-3."""
    if len(head) < 6 or head[:2] != b"\x0b\x77" or head[5] >> 3 > 16:
        return None
    rate, version = head[4] >> 6, head[5] >> 3
    if version <= 10:
        code = head[4] & 63
        if rate == 3 or code >= 2 * len(AC3_KBITS):
            return None
        hertz = AC3_RATES[rate]
        words = 96_000 * AC3_KBITS[code >> 1] // hertz + (code & 1 if rate == 1 else 0)
        return Frame(2 * words, 1_536, hertz >> max(version - 8, 0))
    size = 2 * ((int.from_bytes(head[2:4], "big") & 0x7FF) + 1)
    blocks = (1, 2, 3, 6)[head[4] >> 4 & 3]
    dependent = head[2] >> 6 == 1
    if rate == 3:
        half = head[4] >> 4 & 3
        return None if half == 3 else Frame(size, 0 if dependent else 1_536, AC3_RATES[half] // 2)
    return Frame(size, 0 if dependent else 256 * blocks, AC3_RATES[rate])


def amr_frame(sizes: tuple[int, ...], rate: int) -> FrameOf:
    def frame(head: bytes) -> Frame | None:
        size = sizes[head[0] >> 3 & 15] if head and not head[0] & 0x83 else 0
        return Frame(size, rate // 50, rate) if size else None

    return frame


AMR_NB = amr_frame((13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1), 8_000)
AMR_WB = amr_frame((18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 0, 0, 0, 0, 1, 1), 16_000)

WAVPACK_RATES = (6, 8, 9.6, 11.025, 12, 16, 22.05, 24, 32, 44.1, 48, 64, 88.2, 96, 192)


def wavpack_frame(head: bytes) -> Frame | None:
    """A block; if there are several for several channels, the first counts."""
    if len(head) < 32 or head[:4] != b"wvpk":
        return None
    size, flags = int.from_bytes(head[4:8], "little") + 8, int.from_bytes(head[24:28], "little")
    rate = flags >> 23 & 15
    samples = int.from_bytes(head[20:24], "little") if flags & 0x800 else 0
    if not 32 <= size <= 1 << 24:
        return None
    return Frame(size, samples, round(1_000 * WAVPACK_RATES[rate]) if rate < 15 else 1)


FRAMES: dict[Container, FrameOf] = {
    "mp3": mpeg_frame,
    "adts": adts_frame,
    "ac3": ac3_frame,
    "eac3": ac3_frame,
    "wavpack": wavpack_frame,
}


class Frames:
    """A file of frames of one kind. `is_first`: whether a frame, by its first bytes, begins a recording."""

    def __init__(
        self, file: File, frame_of: FrameOf, is_first: Callable[[bytes], bool] = lambda head: False
    ) -> None:
        self._file, self._frame_of, self._is_first = file, frame_of, is_first

    def follow(self, at: int, count: int) -> bool:
        """Whether there are so many in a row, or fewer up to the end of the file."""
        first: Frame | None = None
        for number in range(count):
            frame = self._frame_of(self._file.peek(at, HEADER_BYTES))
            if frame is None or (first is not None and frame.key != first.key):
                return False
            first, at = frame, at + frame.size
            if at >= self._file.size:
                return number > 0 or at == self._file.size
        return True

    def runs(self, begin: int) -> tuple[list[FrameRun], Flaw | None]:
        """All recordings, and what is wrong at the end of the last. Tags in between are passed over."""
        runs: list[FrameRun] = []
        at, size = begin, self._file.size
        while True:
            run = self._run(at)
            if not run.frames or (runs and not self.follow(at, 3)):
                return runs, self._flaw(at)
            runs.append(run)
            at = run.end
            while skipped := tag_bytes(self._file.peek(at, HEADER_BYTES)):
                at += skipped
            if at >= size:
                return runs, None

    def _run(self, begin: int) -> FrameRun:
        file, frame_of, is_first = self._file, self._frame_of, self._is_first
        at, frames, samples = begin, 0, 0
        first = frame_of(file.peek(at, HEADER_BYTES)) or NO_FRAME
        key, size = first.key, file.size
        while True:
            head = file.peek(at, HEADER_BYTES)
            frame = frame_of(head)
            if frame is None or frame.key != key or at + frame.size > size or (frames and is_first(head)):
                return FrameRun(begin, at, frames, samples, first)
            frames += 1
            samples += frame.samples
            at += frame.size

    def _flaw(self, at: int) -> Flaw | None:
        """What it means that no recording continues here."""
        frame = self._frame_of(self._file.peek(at, HEADER_BYTES))
        if at >= self._file.size:
            return None
        if frame is not None and at + frame.size > self._file.size:
            return CUT_OFF
        has_sync = self._frame_of in (mpeg_frame, adts_frame)  # others' junk is all that is left of frames
        allowed = JUNK_BYTES if has_sync else 0
        return (
            DAMAGED if self._file.size - at > allowed or (has_sync and self.found(at) is not None) else None
        )

    def found(self, begin: int) -> int | None:
        """Where frames begin after other bytes."""
        data = self._file.read_at(begin, SEARCHED_BYTES + 1)
        for candidate in _SYNC.finditer(data):
            if self.follow(begin + candidate.start(), CHAIN):
                return begin + candidate.start()
        return None


def tag_bytes(head: bytes) -> int:
    """The length of the tag that begins here; 0 if there is none."""
    if head[:3] == b"ID3" and len(head) >= 10:
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        return size + (20 if head[5] & 0x10 else 10)
    if head[:8] == b"APETAGEX" and len(head) >= 32:
        return 32 + int.from_bytes(head[12:16], "little")
    return 128 if head[:3] == b"TAG" else 0
