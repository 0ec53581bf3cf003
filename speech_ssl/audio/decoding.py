"""Decoding: blocks of samples at 16 kHz, all samples, or only their duration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import soxr
from numpy.typing import NDArray

from speech_ssl.audio import files, libsndfile
from speech_ssl.audio.errors import DAMAGED, AudioError, AudioWarning, Flaw, Warn
from speech_ssl.audio.files import AudioSource, name_of
from speech_ssl.audio.formats import FORMATS, TABLE, Format
from speech_ssl.audio.libsndfile import UNKNOWN
from speech_ssl.audio.links import Link, links_of
from speech_ssl.audio.phase import PhaseMeter
from speech_ssl.types import SAMPLE_RATE, Waveform

if TYPE_CHECKING:
    from speech_ssl.audio import ffmpeg

    OpenAudio: TypeAlias = libsndfile.SndfileReader | ffmpeg.FFmpegReader

BLOCK_SAMPLES = 1 << 16
OPPOSITE = Flaw(
    "opposite_phase",
    "its channels are in opposite phase, and nearly nothing is left in their mean, which is what is used: "
    "invert one of them, or keep one alone",
)
NOTHING_LEFT = "damaged or cut off before anything that can be decoded"
# The range of 32-bit integers read as floats. Beyond it energies overflow, and the clip is noise anyway.
LARGEST_SAMPLE = 2.0**32


@dataclass(frozen=True)
class Limits:
    """Beyond these a clip is refused. `max_seconds` counts decoded audio, not what the header says."""

    max_seconds: float | None = None
    max_channels: int = 16
    min_rate: int = 4_000
    max_rate: int = 192_000


def stream(
    source: AudioSource,
    *,
    limits: Limits = Limits(),
    start_s: float = 0.0,
    stop_s: float | None = None,
    warn: Warn | None = None,
) -> Iterator[Waveform]:
    """Decode in blocks: 16 kHz, mono (the mean of the channels), constant memory.

    What can be decoded before damage is used. Joined recordings are decoded one after the other.

    `start_s` and `stop_s` choose a part, resampled as if nothing were around it. libsndfile seeks to it;
    FFmpeg's formats are decoded from the beginning, because a seek there is not exact to the sample.
    Never yields an empty block. After the last block `warn` is called with what is wrong with audio that
    is used nevertheless.

    Raises AudioError, from the first block on, and OSError if the file itself cannot be opened.
    """
    if not 0 <= start_s < (math.inf if stop_s is None else stop_s):
        raise ValueError(f"start_s must be at least 0 and before stop_s, not {start_s} and {stop_s}")
    name = name_of(source)
    with files.opened(source) as file:
        decoding = _Decoding(name, limits, start_s, math.inf if stop_s is None else stop_s, warn)
        yield from decoding.blocks(links_of(file, name))


def decode(
    source: AudioSource,
    *,
    limits: Limits = Limits(),
    start_s: float = 0.0,
    stop_s: float | None = None,
    warn: Warn | None = None,
) -> Waveform:
    """All that `stream` yields, joined, shape (S,)."""
    blocks = list(stream(source, limits=limits, start_s=start_s, stop_s=stop_s, warn=warn))
    if not blocks:  # fewer samples than one at 16 kHz
        raise AudioError("empty", f"{name_of(source)}: no audio in it")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def duration(path: str | Path, *, warn: Warn | None = None) -> float:
    """Seconds: from the header if audio is found at the end that it claims, from the frames or the index if
    these are complete (within 50 ms of what is decoded), else by decoding.

    Raises as `stream` does.
    """
    name = name_of(path)
    with files.opened(path) as file:
        links = links_of(file, name)
        total = _total_s(links, name)
        if total is None:
            decoding = _Decoding(name, warn=warn)
            for _ in decoding.blocks(links):
                pass
            return decoding.heard_s
        if links[-1].flaw is not None and warn is not None:
            warn(_warning(name, links[-1].flaw, total))
        return total


def _total_s(links: Sequence[Link], name: str) -> float | None:
    """Without decoding; None if that is not possible."""
    total = 0.0
    for number, link in enumerate(links):
        try:
            clip = _opened(link, name, Limits())
        except AudioError:
            if not number:
                raise
            return None
        with closing(clip):
            seconds = clip.length_s(complete=link.flaw is None) if link.seconds is None else link.seconds
        if seconds is None:
            return None
        total += seconds
    return total


class _Decoding:
    """Decodes a file's recordings from `start_s` to `stop_s`, and reports what is wrong with them."""

    def __init__(
        self,
        name: str,
        limits: Limits = Limits(),
        start_s: float = 0.0,
        stop_s: float = math.inf,
        warn: Warn | None = None,
    ) -> None:
        self.name, self.limits, self.start_s, self.stop_s = name, limits, start_s, stop_s
        self.heard_s = 0.0
        self._at_s = 0.0  # where the recording at hand begins
        self._warn = warn
        self._told: set[str] = set()

    def blocks(self, links: Sequence[Link]) -> Iterator[Waveform]:
        damaged = False
        for link in links:
            if self._at_s >= self.stop_s:
                break
            try:
                clip = _opened(link, self.name, self.limits)
            except AudioError as error:
                if link is links[0] or error.code not in ("undecodable", "empty", "unsupported_format"):
                    raise
                self._tell(DAMAGED)
                break
            with closing(clip):
                blocks = self._mono_blocks(clip, link)
                yield from blocks if clip.samplerate == SAMPLE_RATE else _resampled(blocks, clip.samplerate)
                damaged = clip.flaw is not None
            if damaged:  # it is used up to there
                break
        if not self.heard_s:
            if (damaged or links[-1].flaw) and not self.start_s:
                raise AudioError("undecodable", f"{self.name}: {NOTHING_LEFT}")
            where = f" after {self.start_s:g} s" if self.start_s else ""
            raise AudioError("empty", f"{self.name}: no audio in it{where}")

    def _mono_blocks(self, clip: OpenAudio, link: Link) -> Iterator[Waveform]:
        """Blocks of one recording at its own rate, counted and checked."""
        name, rate, before_s = self.name, clip.samplerate, self.heard_s
        start = max(round((self.start_s - self._at_s) * rate), 0)
        wanted = math.inf if self.stop_s == math.inf else round((self.stop_s - self._at_s) * rate) - start
        most = (self.limits.max_seconds or math.inf) - before_s
        phase = PhaseMeter(clip.channels)
        at, count = _go_to(clip, start), 0
        while at == start and count < wanted:
            block = _read(clip, int(min(_block_size(clip), wanted - count)))
            if not len(block):
                break
            count += len(block)
            self.heard_s = before_s + count / rate
            if count > most * rate:
                raise AudioError("too_long", f"{name}: longer than {self.limits.max_seconds:g} s")
            if not (block.max() <= LARGEST_SAMPLE and block.min() >= -LARGEST_SAMPLE):  # NaN fails both
                raise AudioError("bad_samples", f"{name}: samples are not finite numbers")
            mono = block[:, 0] if clip.channels == 1 else block.mean(axis=1)
            if self._warn is not None:
                phase.add(block, mono)
            yield mono
        self._at_s += (at + count) / rate
        flaw = clip.flaw or link.flaw
        if count < wanted and flaw is not None and self.heard_s:
            self._tell(flaw)
        if phase.cancelled:
            self._tell(OPPOSITE)

    def _tell(self, flaw: Flaw) -> None:
        if self._warn is not None and flaw.code not in self._told:
            self._told.add(flaw.code)
            self._warn(_warning(self.name, flaw, self._at_s))


def _warning(name: str, flaw: Flaw, seconds: float) -> AudioWarning:
    return AudioWarning(flaw.code, f"{name}: {flaw.message.format(seconds)}")


def _opened(link: Link, name: str, limits: Limits) -> OpenAudio:
    """By the library that reads it. Raises AudioError."""
    try:
        clip = _clip(link, name)
    except AudioError as error:
        if error.code == "empty" and link.flaw is not None:
            raise AudioError("undecodable", f"{name}: {NOTHING_LEFT}") from error
        raise
    try:
        _check_header(clip, name, limits)
    except AudioError:
        clip.close()
        raise
    return clip


def _clip(link: Link, name: str) -> OpenAudio:
    """libsndfile is faster and can seek, but knows fewer codecs."""
    form = TABLE[link.kind]
    refusal: AudioError | None = None
    if form.libsndfile:
        try:
            return libsndfile.SndfileReader(link.view, name)
        except AudioError as error:
            if not form.demuxer:
                raise
            refusal = error
    try:
        from speech_ssl.audio import ffmpeg
    except ImportError as error:
        raise _without_ffmpeg(form, name, refusal, error) from error
    try:
        return ffmpeg.FFmpegReader(link.view, link.kind, name)
    except AudioError as error:
        if refusal is None or error.code == "unsupported_format":
            raise
        raise refusal from error


def _without_ffmpeg(form: Format, name: str, refusal: AudioError | None, error: ImportError) -> AudioError:
    if refusal is not None:
        hint = (
            f"; if it is not damaged, pip install 'speech-ssl[av]' for {' and '.join(form.extra)}"
            if form.extra
            else ""
        )
        return AudioError(refusal.code, f"{refusal}{hint}")
    return AudioError(
        "unsupported_format",
        f"{name}: to read {' and '.join(form.extra)}, pip install 'speech-ssl[av]' ({error}); without it are "
        "read " + ", ".join(FORMATS),
    )


def _check_header(clip: OpenAudio, name: str, limits: Limits) -> None:
    if not 1 <= clip.channels <= limits.max_channels:
        raise AudioError(
            "too_many_channels", f"{name}: {clip.channels} channels, at most {limits.max_channels} are read"
        )
    if not limits.min_rate <= clip.samplerate <= limits.max_rate:
        wanted = f"between {limits.min_rate} and {limits.max_rate} Hz"
        raise AudioError("bad_rate", f"{name}: a sample rate of {clip.samplerate} Hz, {wanted} is read")


def _block_size(clip: OpenAudio) -> int:
    return BLOCK_SAMPLES // int(clip.channels) or 1


def _go_to(clip: OpenAudio, frame: int) -> int:
    """The frame that is read next: this one, or the end."""
    if not frame or (clip.can_seek and frame < clip.frames < UNKNOWN and clip.seek(frame)):
        return frame
    at = 0
    while at < frame:  # the header does not know the length, or the codec (GSM, FFmpeg's) cannot seek
        skipped = len(_read(clip, min(frame - at, _block_size(clip))))
        if not skipped:
            break
        at += skipped
    return at


def _read(clip: OpenAudio, frames: int) -> NDArray[np.float32]:
    """At most `frames` frames, shape (frames, channels); none at the end."""
    return clip.read(out=np.empty((frames, clip.channels), dtype=np.float32))


def resampler(rate: int) -> soxr.ResampleStream:
    """From `rate` to 16 kHz, one channel, block by block. All audio is resampled by this."""
    return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")


def _resampled(blocks: Iterator[Waveform], rate: int) -> Iterator[Waveform]:
    resampling = resampler(rate)
    for block in blocks:
        if len(wave := resampling.resample_chunk(block)):
            yield wave
    if len(wave := resampling.resample_chunk(np.empty(0, dtype=np.float32), last=True)):
        yield wave
