"""Audio of any kind in, 16 kHz mono float32 out, in blocks and within limits.

Headers are taken as claims: samples are counted while they are decoded, and only formats known by
their first bytes reach the decoder.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, get_args

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speech_ssl.types import SAMPLE_RATE, Waveform

Source: TypeAlias = str | Path | bytes | BinaryIO
"""A path, the bytes of a file, or an open binary file (read from its beginning)."""

Code: TypeAlias = Literal[
    "unsupported_format",
    "undecodable",
    "too_long",
    "too_short",
    "too_many_channels",
    "bad_rate",
    "bad_samples",
    "empty",
]

FORMATS: tuple[str, ...] = (
    "WAV (also RF64)",
    "FLAC",
    "Ogg Vorbis",
    "Ogg Opus",
    "MP3",
    "AIFF",
)
"""What can be read, for people."""

BLOCK_SAMPLES = 1 << 16
HEAD_BYTES = 64
MAX_TAGS = 8
# The range of 32-bit integers read as floats. Beyond it energies overflow, and the clip is noise anyway.
LARGEST_SAMPLE = 2.0**32


class AudioError(ValueError):
    """Audio that is refused. `code` is for programs, the message for people."""

    def __init__(self, code: Code, message: str) -> None:
        assert code in get_args(Code)
        super().__init__(code, message)
        self.code: Code = code

    def __str__(self) -> str:
        return str(self.args[1])


class _Sound(soundfile.SoundFile):  # type: ignore[misc]  # it comes without types
    """Reads straight on. Its parent seeks to where it is after every block: FLAC of unknown length
    fails at that, and MP3 decodes a little differently for it."""

    def seekable(self) -> bool:
        return False

    @property
    def can_seek(self) -> bool:
        """What the parent would say of the format: GSM cannot."""
        return bool(super().seekable())


class _Stored:
    """What the decoder calls while reading from memory or an open file. A broken file makes it seek
    before the beginning: refused here without an exception, which could only be printed."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._seek(offset, whence)
        except (ValueError, OSError):
            return -1


@dataclass(frozen=True)
class Limits:
    """What is decoded before a clip is refused. `max_seconds` counts decoded audio, not the header."""

    max_seconds: float | None = None
    max_channels: int = 16
    min_rate: int = 4_000
    max_rate: int = 192_000


def sniff(head: bytes) -> str | None:
    """The container named by a file's first bytes (64 are enough), or None if it is not read here."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] in (b"WAVE", b""):
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        codecs = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC")
        return "ogg" if len(head) < 40 or any(codec in head[28:] for codec in codecs) else None
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC", b""):
        return "aiff"
    if head[:3] == b"ID3" or _is_mpeg_audio(head):
        return "mp3"
    return None


def stream(
    source: Source, *, limits: Limits = Limits(), start_s: float = 0.0, stop_s: float | None = None
) -> Iterator[Waveform]:
    """Decode in blocks: 16 kHz, mono (the mean of the channels), constant memory.

    `start_s` and `stop_s` choose a part, which is sought, not decoded from the beginning; the part is
    resampled as if nothing were around it. Never yields an empty block.

    Raises AudioError, from the first block on, and OSError where the file itself cannot be opened.
    """
    if not 0 <= start_s < (math.inf if stop_s is None else stop_s):
        raise ValueError(f"start_s must be at least 0 and before stop_s, not {start_s} and {stop_s}")
    name = _name(source)
    with _opened(source, name, limits) as sound:
        blocks = _mono_blocks(sound, name, limits, start_s, stop_s)
        yield from blocks if sound.samplerate == SAMPLE_RATE else _resampled(blocks, sound.samplerate)


def decode(
    source: Source, *, limits: Limits = Limits(), start_s: float = 0.0, stop_s: float | None = None
) -> Waveform:
    """The whole of what `stream` yields, shape (S,)."""
    blocks = list(stream(source, limits=limits, start_s=start_s, stop_s=stop_s))
    if not blocks:  # fewer samples than one at 16 kHz
        raise AudioError("empty", f"{_name(source)}: no audio in it")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def duration(path: str | Path) -> float:
    """Seconds, by the header where audio is found at the end that it claims, else by decoding.

    Raises as `stream` does.
    """
    name, limits = _name(path), Limits()
    with _opened(path, name, limits) as sound:
        if _ends_as_claimed(sound):
            return float(sound.frames / sound.samplerate)
    with _opened(path, name, limits) as sound:
        samples = sum(len(block) for block in _mono_blocks(sound, name, limits, 0.0, None))
        return float(samples / sound.samplerate)


def _ends_as_claimed(sound: _Sound) -> bool:
    try:
        sound.seek(sound.frames - 1)
        return len(sound.read(out=np.empty((1, sound.channels), dtype=np.float32))) == 1
    except soundfile.SoundFileError:
        return False


def _is_mpeg_audio(head: bytes) -> bool:
    """A frame header: 11 sync bits, then version, layer, bit rate and sample rate, none of them reserved."""
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    return version != 1 and layer != 0 and head[2] >> 4 != 15 and head[2] >> 2 & 3 != 3


def _name(source: Source) -> str:
    if isinstance(source, str | Path):
        return str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "audio"


def _regular(path: str | Path) -> io.FileIO:
    """A file to be sought in. A pipe is refused, and does not make its opener wait for a writer."""
    file = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise AudioError("unsupported_format", f"{path}: not a regular file")
    return file


@contextmanager
def _opened(source: Source, name: str, limits: Limits) -> Iterator[_Sound]:
    if isinstance(source, str | Path):
        # Unbuffered, for the descriptor's position has to be the file's.
        with _regular(source) as file, _sound(file, file.fileno(), name, limits) as sound:
            yield sound
        return
    stored = io.BytesIO(source) if isinstance(source, bytes) else source
    if not stored.seekable():
        stored = io.BytesIO(stored.read())
    with _sound(stored, _Stored(stored), name, limits) as sound:
        yield sound


@contextmanager
def _sound(file: BinaryIO | io.FileIO, handle: int | _Stored, name: str, limits: Limits) -> Iterator[_Sound]:
    _check_format(file, name)
    file.seek(0)
    try:
        sound = _Sound(handle, closefd=False)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise AudioError("undecodable", f"{name}: cannot be decoded ({_reason(error)})") from error
    with sound:
        _check_header(sound, name, limits)
        yield sound


def _check_format(file: BinaryIO | io.FileIO, name: str) -> None:
    head = _head(file, 0)
    if not head:
        raise AudioError("empty", f"{name}: the file is empty")
    kind, at = sniff(head), 0
    for _ in range(MAX_TAGS):  # any format may hide behind a tag: look there
        if head[:3] != b"ID3" or len(head) < 10:
            break
        at += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        head = _head(file, at)
        kind = sniff(head) if head else kind
    if kind is None:
        known = ", ".join(FORMATS)
        raise AudioError("unsupported_format", f"{name}: not a known audio format; known are {known}")


def _head(file: BinaryIO | io.FileIO, at: int) -> bytes:
    file.seek(at)
    return file.read(HEAD_BYTES) or b""


def _check_header(sound: _Sound, name: str, limits: Limits) -> None:
    if not 1 <= sound.channels <= limits.max_channels:
        raise AudioError(
            "too_many_channels", f"{name}: {sound.channels} channels, at most {limits.max_channels} are read"
        )
    if not limits.min_rate <= sound.samplerate <= limits.max_rate:
        wanted = f"between {limits.min_rate} and {limits.max_rate} Hz"
        raise AudioError("bad_rate", f"{name}: a sample rate of {sound.samplerate} Hz, {wanted} is read")


def _mono_blocks(
    sound: _Sound, name: str, limits: Limits, start_s: float, stop_s: float | None
) -> Iterator[Waveform]:
    """Blocks at the file's own rate, counted and checked."""
    rate = sound.samplerate
    start = round(start_s * rate)
    wanted = math.inf if stop_s is None else round(stop_s * rate) - start
    most = math.inf if limits.max_seconds is None else limits.max_seconds * rate
    _seek(sound, start, name)
    count = 0
    while count < wanted:
        block = _read(sound, int(min(_block_size(sound), wanted - count)), name)
        if not len(block):
            break
        count += len(block)
        if count > most:
            raise AudioError("too_long", f"{name}: longer than {limits.max_seconds:g} s")
        if not (block.max() <= LARGEST_SAMPLE and block.min() >= -LARGEST_SAMPLE):  # NaN fails both
            raise AudioError("bad_samples", f"{name}: samples are not finite numbers")
        yield block[:, 0] if sound.channels == 1 else block.mean(axis=1)
    if not count:
        where = f" after {start_s:g} s" if start else ""
        raise AudioError("empty", f"{name}: no audio in it{where}")


def _block_size(sound: _Sound) -> int:
    return BLOCK_SAMPLES // int(sound.channels) or 1


def _seek(sound: _Sound, frame: int, name: str) -> None:
    if not frame:
        return
    if sound.can_seek and frame < sound.frames < 1 << 40:
        try:
            sound.seek(frame)
        except soundfile.SoundFileError as error:
            raise AudioError("undecodable", f"{name}: cannot be sought ({_reason(error)})") from error
        return
    while frame > 0:  # the header does not know the length, or the codec (GSM) cannot seek
        skipped = len(_read(sound, min(frame, _block_size(sound)), name))
        if not skipped:
            return
        frame -= skipped


def _read(sound: _Sound, frames: int, name: str) -> NDArray[np.float32]:
    """At most `frames` frames, shape (frames, channels); none at the end."""
    buffer = np.empty((frames, sound.channels), dtype=np.float32)
    try:
        return np.asarray(sound.read(out=buffer), dtype=np.float32)
    except soundfile.SoundFileError as error:
        raise AudioError("undecodable", f"{name}: broken audio data ({_reason(error)})") from error


def _resampled(blocks: Iterator[Waveform], rate: int) -> Iterator[Waveform]:
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    for block in blocks:
        if len(wave := resampler.resample_chunk(block)):
            yield wave
    if len(wave := resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True)):
        yield wave


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    if "not a regular file" in text:  # said of MP3 without one whole frame
        return "no audio frames"
    return str(text).strip().rstrip(".")
