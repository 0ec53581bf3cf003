"""MP4, ADTS, WebM and Matroska, decoded by FFmpeg through PyAV (the extra `av`).

FFmpeg is given bytes, one demuxer and a few decoders, all by name: it guesses nothing and opens nothing else,
whatever a file refers to. What an encoder put in front of the audio, and behind it, is left out where the
container says how much that is, as FFmpeg does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import av
import numpy as np
from av import AudioStream
from av.audio.plane import AudioPlane
from numpy.typing import NDArray

from speech_ssl.audio.errors import AudioError
from speech_ssl.audio.formats import Container

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.packet import Packet

DEMUXERS: dict[Container, str] = {"mp4": "mov", "adts": "aac", "matroska": "matroska"}

PCM = [f"pcm_{form}{order}" for form in ("s16", "s24", "s32", "f32", "f64") for order in ("be", "le")]
DECODERS = frozenset(
    ["aac", "alac", "flac", "mp3", "mp3float", "opus", "vorbis", *PCM]
    + ["pcm_u8", "pcm_s8", "pcm_alaw", "pcm_mulaw"]
)
CODECS = "AAC, ALAC, FLAC, MP3, Opus, Vorbis and PCM"

OPTIONS = {
    "protocol_whitelist": "none",  # no protocol has this name
    "codec_whitelist": ",".join(sorted(DECODERS)),  # also while FFmpeg looks what is in a file
    "max_streams": "32",
    "enable_drefs": "0",
    "use_absolute_path": "0",
    "ignore_chapters": "1",
}

DTYPES: dict[str, type[Any]] = {
    "u8": np.uint8,
    "s16": np.int16,
    "s32": np.int32,
    "flt": np.float32,
    "dbl": np.float64,
}
FULL_SCALE = {np.uint8: 2.0**7, np.int16: 2.0**15, np.int32: 2.0**31, np.float32: 1.0, np.float64: 1.0}


class File(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


@contextmanager
def opened(file: File, kind: Container, name: str) -> Iterator[Clip]:
    """Raises AudioError."""
    with _refusing(name):
        container = av.open(
            file, "r", format=DEMUXERS[kind], container_options=OPTIONS, metadata_errors="replace"
        )
    with container:
        yield Clip(container, name)


class Clip:
    """One file's sound track, with what `audio` uses of a soundfile.SoundFile. Raises AudioError."""

    can_seek = False
    frames = 0  # not known: they are counted

    def __init__(self, container: InputContainer, name: str) -> None:
        self._name = name
        self._decoded = _frames(container, _track(container, name))
        first = self._frame()
        if first is None:
            raise AudioError("empty", f"{name}: no audio in it")
        self.samplerate, self.channels = first.sample_rate, first.layout.nb_channels
        self._rest = _samples(first)

    def seek(self, frame: int) -> int:
        raise NotImplementedError("`can_seek` says so")

    def read(self, *, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """The beginning of `out`, shape (frames, channels), filled with what comes next."""
        filled = 0
        while filled < len(out):
            if not len(self._rest):
                frame = self._frame()
                if frame is None:
                    break
                self._check_same(frame)
                self._rest = _samples(frame)
            part, self._rest = np.split(self._rest, [len(out) - filled])
            _scale(part, out[filled : filled + len(part)])
            filled += len(part)
        return out[:filled]

    def _frame(self) -> AudioFrame | None:
        with _refusing(self._name):
            return next(self._decoded, None)

    def _check_same(self, frame: AudioFrame) -> None:
        if (frame.sample_rate, frame.layout.nb_channels) != (self.samplerate, self.channels):
            raise AudioError(
                "undecodable", f"{self._name}: its sample rate or its number of channels changes midway"
            )


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        reason = str(error.strerror).lower()
        raise AudioError("undecodable", f"{name}: cannot be decoded ({reason})") from error


def _track(container: InputContainer, name: str) -> AudioStream:
    """The one that FFmpeg thinks best, or else the first that is read here."""
    best = container.streams.best("audio")
    if best is None:
        raise AudioError("empty", f"{name}: no audio in it")
    for track in (best, *container.streams.audio):
        context = track.codec_context  # None where FFmpeg has no decoder
        if isinstance(track, AudioStream) and context is not None and context.codec.name in DECODERS:
            context.thread_count = 1
            if context.codec.name == "flac":  # it has checksums, which nothing else would look at
                context.options = {"err_detect": "crccheck+explode"}
            return track
    raise AudioError("unsupported_format", f"{name}: its codec is not read here; {CODECS} are")


def _frames(container: InputContainer, track: AudioStream) -> Iterator[AudioFrame]:
    """Of a file that is cut off, the last packet may be damaged: it is left out. No other may."""
    damage: av.FFmpegError | None = None
    heard = False
    for packet in _packets(container, track):
        if damage is not None and packet is not None:
            raise damage
        try:
            frames = track.codec_context.decode(packet)
        except av.FFmpegError as error:
            damage = error
            continue
        for frame in frames:
            heard = True
            yield frame
    if damage is not None and not heard:
        raise damage


def _packets(container: InputContainer, track: AudioStream) -> Iterator[Packet[AudioStream] | None]:
    """Those of one track, and then None, for what the decoder still holds."""
    yield from (packet for packet in container.demux(track) if packet.size)
    yield None


def _samples(frame: AudioFrame) -> NDArray[Any]:
    """Shape (frames, channels), as they were decoded."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar:
        return np.stack([_plane(frame, index, frame.samples) for index in range(channels)], axis=1)
    return _plane(frame, 0, frame.samples * channels).reshape(-1, channels)


def _plane(frame: AudioFrame, index: int, count: int) -> NDArray[Any]:
    """Not with `frame.to_ndarray` or `frame.planes`: of eight planes and more they read beyond the last."""
    samples = np.frombuffer(AudioPlane(frame, index), DTYPES[frame.format.packed.name], count)  # type: ignore[call-overload]
    return np.asarray(samples)


def _scale(samples: NDArray[Any], out: NDArray[np.float32]) -> None:
    """To the range from -1 to 1, as libsndfile does."""
    with np.errstate(over="ignore"):  # of doubles: they become infinite, and are refused as such
        np.multiply(samples, 1 / FULL_SCALE[samples.dtype.type], out=out, casting="same_kind")
    if samples.dtype == np.uint8:  # its zero is at 128
        out -= 1
