"""Decoding: blocks of samples at 16 kHz, or all of them, or how long they are."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speech_ssl.audio.errors import AudioError, AudioWarning, Warn
from speech_ssl.audio.formats import FORMATS, HEAD_BYTES, WITH_PYAV, Container, adts_frame_bytes, sniff
from speech_ssl.audio.phase import PhaseMeter
from speech_ssl.types import SAMPLE_RATE, Waveform

if TYPE_CHECKING:
    from speech_ssl.audio.ffmpeg import Clip

Source: TypeAlias = str | Path | bytes | BinaryIO
"""A path, the bytes of a file, or an open binary file (read from its beginning)."""

BLOCK_SAMPLES = 1 << 16
MAX_TAGS = 8
OPPOSITE = (
    "its channels are in opposite phase, and nearly nothing is left in their mean, which is what is used: "
    "invert one of them, or keep one alone"
)
# The range of 32-bit integers read as floats. Beyond it energies overflow, and the clip is noise anyway.
LARGEST_SAMPLE = 2.0**32


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
    """What a decoder calls while reading from memory or an open file. A broken file makes it seek
    before the beginning: refused here without an exception, which could only be printed."""

    def __init__(self, file: BinaryIO | io.FileIO, begin: int = 0) -> None:
        self.read, self._tell, self._seek, self._begin = file.read, file.tell, file.seek, begin

    def tell(self) -> int:
        return self._tell() - self._begin

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            at = self._seek(offset + self._begin if whence == io.SEEK_SET else offset, whence)
        except (ValueError, OSError):
            return -1
        return at - self._begin


@dataclass(frozen=True)
class Limits:
    """What is decoded before a clip is refused. `max_seconds` counts decoded audio, not the header."""

    max_seconds: float | None = None
    max_channels: int = 16
    min_rate: int = 4_000
    max_rate: int = 192_000


def stream(
    source: Source,
    *,
    limits: Limits = Limits(),
    start_s: float = 0.0,
    stop_s: float | None = None,
    warn: Warn | None = None,
) -> Iterator[Waveform]:
    """Decode in blocks: 16 kHz, mono (the mean of the channels), constant memory.

    `start_s` and `stop_s` choose a part, resampled as if nothing were around it. It is sought; only with
    FFmpeg's formats, where a seek does not lead to an exact sample, is what comes before it decoded too.
    Never yields an empty block. `warn` is told, after the last block, what is wrong with audio that is used
    all the same; without it nobody is.

    Raises AudioError, from the first block on, and OSError where the file itself cannot be opened.
    """
    if not 0 <= start_s < (math.inf if stop_s is None else stop_s):
        raise ValueError(f"start_s must be at least 0 and before stop_s, not {start_s} and {stop_s}")
    name = _name(source)
    with _opened(source, name, limits) as sound:
        phase = PhaseMeter(sound.channels)
        blocks = _mono_blocks(sound, name, limits, start_s, stop_s, phase)
        yield from blocks if sound.samplerate == SAMPLE_RATE else _resampled(blocks, sound.samplerate)
        if phase.cancelled and warn is not None:
            warn(AudioWarning("opposite_phase", f"{name}: {OPPOSITE}"))


def decode(
    source: Source,
    *,
    limits: Limits = Limits(),
    start_s: float = 0.0,
    stop_s: float | None = None,
    warn: Warn | None = None,
) -> Waveform:
    """The whole of what `stream` yields, shape (S,)."""
    blocks = list(stream(source, limits=limits, start_s=start_s, stop_s=stop_s, warn=warn))
    if not blocks:  # fewer samples than one at 16 kHz
        raise AudioError("empty", f"{_name(source)}: no audio in it")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def duration(path: str | Path, *, warn: Warn | None = None) -> float:
    """Seconds, by the header where audio is found at the end that it claims, else (and always with
    FFmpeg's formats) by decoding.

    Raises as `stream` does.
    """
    name, limits = _name(path), Limits()
    with _opened(path, name, limits) as sound:
        if _ends_as_claimed(sound):
            return float(sound.frames / sound.samplerate)
    with _opened(path, name, limits) as sound:
        samples = sum(len(block) for block in _mono_blocks(sound, name, limits, 0.0, None))
        return float(samples / sound.samplerate)


def _ends_as_claimed(sound: _Sound | Clip) -> bool:
    if not sound.can_seek:
        return False
    try:
        sound.seek(sound.frames - 1)
        return len(sound.read(out=np.empty((1, sound.channels), dtype=np.float32))) == 1
    except soundfile.SoundFileError:
        return False


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
def _opened(source: Source, name: str, limits: Limits) -> Iterator[_Sound | Clip]:
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
def _sound(
    file: BinaryIO | io.FileIO, handle: int | _Stored, name: str, limits: Limits
) -> Iterator[_Sound | Clip]:
    kind, begin = _recognised(file, name)
    if kind in WITH_PYAV:
        opened = _by_ffmpeg(_Stored(file, begin), kind, name)
    else:
        file.seek(0)
        opened = _by_libsndfile(handle, name)
    with opened as sound:
        _check_header(sound, name, limits)
        yield sound


def _by_libsndfile(handle: int | _Stored, name: str) -> _Sound:
    try:
        return _Sound(handle, closefd=False)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise AudioError("undecodable", f"{name}: cannot be decoded ({_reason(error)})") from error


def _by_ffmpeg(file: _Stored, kind: Container, name: str) -> AbstractContextManager[Clip]:
    try:
        from speech_ssl.audio.ffmpeg import opened
    except ImportError as error:
        raise AudioError(
            "unsupported_format",
            f"{name}: to read {WITH_PYAV[kind]}, pip install 'speech-ssl[av]' ({error}); without it are read "
            + ", ".join(FORMATS),
        ) from error
    file.seek(0)
    return opened(file, kind, name)


def _recognised(file: BinaryIO | io.FileIO, name: str) -> tuple[Container, int]:
    """What it is, and where it begins."""
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
    if kind == "adts":  # twelve bits may be there by chance, but hardly twice
        following = _head(file, at + adts_frame_bytes(head))
        kind = kind if not following or sniff(following) == "adts" else None
    if kind is None:
        known = ", ".join(FORMATS)
        raise AudioError("unsupported_format", f"{name}: not a known audio format; known are {known}")
    return kind, at


def _head(file: BinaryIO | io.FileIO, at: int) -> bytes:
    file.seek(at)
    return file.read(HEAD_BYTES) or b""


def _check_header(sound: _Sound | Clip, name: str, limits: Limits) -> None:
    if not 1 <= sound.channels <= limits.max_channels:
        raise AudioError(
            "too_many_channels", f"{name}: {sound.channels} channels, at most {limits.max_channels} are read"
        )
    if not limits.min_rate <= sound.samplerate <= limits.max_rate:
        wanted = f"between {limits.min_rate} and {limits.max_rate} Hz"
        raise AudioError("bad_rate", f"{name}: a sample rate of {sound.samplerate} Hz, {wanted} is read")


def _mono_blocks(
    sound: _Sound | Clip,
    name: str,
    limits: Limits,
    start_s: float,
    stop_s: float | None,
    phase: PhaseMeter | None = None,
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
        mono = block[:, 0] if sound.channels == 1 else block.mean(axis=1)
        if phase is not None and sound.channels > 1:
            phase.add(block, mono)
        yield mono
    if not count:
        where = f" after {start_s:g} s" if start else ""
        raise AudioError("empty", f"{name}: no audio in it{where}")


def _block_size(sound: _Sound | Clip) -> int:
    return BLOCK_SAMPLES // int(sound.channels) or 1


def _seek(sound: _Sound | Clip, frame: int, name: str) -> None:
    if not frame:
        return
    if sound.can_seek and frame < sound.frames < 1 << 40:
        try:
            sound.seek(frame)
        except soundfile.SoundFileError as error:
            raise AudioError("undecodable", f"{name}: cannot be sought ({_reason(error)})") from error
        return
    while frame > 0:  # the header does not know the length, or the codec (GSM, FFmpeg's) cannot seek
        skipped = len(_read(sound, min(frame, _block_size(sound)), name))
        if not skipped:
            return
        frame -= skipped


def _read(sound: _Sound | Clip, frames: int, name: str) -> NDArray[np.float32]:
    """At most `frames` frames, shape (frames, channels); none at the end."""
    buffer = np.empty((frames, sound.channels), dtype=np.float32)
    try:
        return np.asarray(sound.read(out=buffer), dtype=np.float32)
    except soundfile.SoundFileError as error:
        raise AudioError("undecodable", f"{name}: broken audio data ({_reason(error)})") from error


def resampler(rate: int) -> soxr.ResampleStream:
    """From `rate` to 16 kHz, one channel, block by block: the one way in which all audio is resampled."""
    return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")


def _resampled(blocks: Iterator[Waveform], rate: int) -> Iterator[Waveform]:
    resampling = resampler(rate)
    for block in blocks:
        if len(wave := resampling.resample_chunk(block)):
            yield wave
    if len(wave := resampling.resample_chunk(np.empty(0, dtype=np.float32), last=True)):
        yield wave


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    if "not a regular file" in text:  # said of MP3 without one whole frame
        return "no audio frames"
    return str(text).strip().rstrip(".")
