"""What FFmpeg decodes, through PyAV (the extra `av`).

FFmpeg gets bytes, one demuxer and a few decoders, all by name: it guesses nothing, and opens nothing that a
file refers to. An encoder's padding before and after the audio is removed where the container says how long
it is, as FFmpeg does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av import AudioStream
from av.audio.codeccontext import AudioCodecContext
from av.audio.plane import AudioPlane
from numpy.typing import NDArray

from speech_ssl.audio.errors import CHANGED, DAMAGED, AudioError, Flaw
from speech_ssl.audio.files import View
from speech_ssl.audio.formats import TABLE, Container

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.packet import Packet

DECODERS = frozenset(
    ["aac", "ac3", "alac", "eac3", "flac", "mp2", "mp2float", "mp3", "mp3float", "opus", "speex", "vorbis"]
    + ["wavpack", "wmalossless", "wmapro", "wmav1", "wmav2", "wmavoice"]
    + ["amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb"]
    + ["adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "adpcm_yamaha", "g722", "g723_1", "g726", "g726le", "gsm"]
    + ["pcm_u8", "pcm_s8", "pcm_alaw", "pcm_mulaw"]
    + [f"pcm_{form}{order}" for form in ("s16", "s24", "s32", "f32", "f64") for order in ("be", "le")]
)
"""Codecs of speech and music, as recorders, telephones and films use them."""
CODECS = (
    "AAC, AC-3, ADPCM, ALAC, AMR, FLAC, G.722, G.723.1, G.726, GSM, MP2, MP3, Opus, Speex, Vorbis, WavPack, "
    "WMA and PCM"
)
INSTEAD = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}
"""FFmpeg's own decoders do not know pauses (DTX)."""
WITH_CHECKSUMS = frozenset(["ac3", "eac3", "flac", "wavpack"])
"""Nothing else would look at them."""

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
NO_FRAME: tuple[None, int] = (None, 0)
FULL_SCALE = {np.uint8: 2.0**7, np.int16: 2.0**15, np.int32: 2.0**31, np.float32: 1.0, np.float64: 1.0}


class FFmpegReader:
    """One file's audio track, with the interface of `libsndfile.SndfileReader`. Raises AudioError."""

    can_seek = False
    frames = 0  # not known: they are counted

    def __init__(self, view: View, kind: Container, name: str) -> None:
        self._name = name
        self.flaw: Flaw | None = None
        self._container = _container(view, kind, name)
        try:
            self._track, self._decoder = _track(self._container, name)
            self._packets = self._container.demux(self._track)
            self._begin_pts = self._end_pts = 0
            self._decoded = self._without_padding()
            first, count = next(self._decoded, NO_FRAME)
            if first is None:
                raise AudioError("empty", f"{name}: no audio in it")
        except BaseException:
            self._container.close()
            raise
        self.samplerate, self.channels = first.sample_rate, first.layout.nb_channels
        self._rest = _samples(first)[:count]

    def close(self) -> None:
        self._decoded.close()
        self._container.close()

    def length_s(self, *, complete: bool) -> float | None:
        """From the index, or from packets without decoding them. Nothing can be read afterwards."""
        if not complete:
            return None
        if indexed_s := self._indexed_s():
            return indexed_s
        try:
            for packet in self._packets:
                if packet.is_corrupt:
                    return None
                self._note(packet)
        except av.FFmpegError:
            return None
        return self._packets_s() or None

    def _note(self, packet: Packet[AudioStream]) -> None:
        if packet.pts is not None and packet.size:
            self._begin_pts = self._begin_pts if self._end_pts else packet.pts
            self._end_pts = packet.pts + (packet.duration or 0)

    def seek(self, frame: int) -> bool:
        raise NotImplementedError("`can_seek` says so")

    def read(self, *, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """The beginning of `out`, shape (frames, channels), filled with what comes next, up to damage."""
        filled = 0
        while filled < len(out):
            if not len(self._rest):
                frame, count = next(self._decoded, NO_FRAME)
                if frame is None:
                    break
                if (frame.sample_rate, frame.layout.nb_channels) != (self.samplerate, self.channels):
                    self.flaw = CHANGED
                    self._decoded.close()
                    break
                self._rest = _samples(frame)[:count]
            part, self._rest = np.split(self._rest, [len(out) - filled])
            _scale(part, out[filled : filled + len(part)])
            filled += len(part)
        return out[:filled]

    def _indexed_s(self) -> float:
        """0 if there is no index."""
        track = self._track
        if not track.frames or not track.duration or track.time_base is None:
            return 0.0
        return float(track.duration * track.time_base)

    def _packets_s(self) -> float:
        """Of the packets so far."""
        return float((self._end_pts - max(self._begin_pts, 0)) * (self._track.time_base or 0))

    def _without_padding(self) -> Generator[tuple[AudioFrame, int]]:
        """Frames, and how many samples of each count: MP4 says if the last is not full."""
        last: AudioFrame | None = None
        before = 0
        for frame in self._frames():
            if last is not None:
                yield last, last.samples
                before += last.samples
            last = frame
        if last is not None:
            counted = last.samples
            if self._track.time_base == Fraction(1, last.sample_rate) and self.flaw is None:
                left = round((self._indexed_s() or self._packets_s()) * last.sample_rate) - before
                counted = left if 0 < left < counted else counted
            yield last, counted

    def _frames(self) -> Generator[AudioFrame]:
        """Up to damage; raises the error if nothing comes before it."""
        heard = False
        damage: av.FFmpegError | None = None
        try:
            for packet in self._packets:
                self._note(packet)
                if packet.is_corrupt:  # it is cut off
                    self.flaw = DAMAGED
                    break
                if packet.size:
                    for frame in self._decoder.decode(packet):
                        heard = True
                        yield frame
        except av.FFmpegError as error:
            self.flaw, damage = DAMAGED, error
        try:
            for frame in self._decoder.decode(None):  # what it still holds
                heard = True
                yield frame
        except av.FFmpegError as error:
            self.flaw, damage = DAMAGED, damage or error
        if self.flaw and not heard:
            raise _refusal(self._name, "it is damaged" if damage is None else str(damage.strerror))


def _container(view: View, kind: Container, name: str) -> InputContainer:
    view.seek(0)
    demuxer = TABLE[kind].demuxer
    with _refusing(name):
        return av.open(view, "r", format=demuxer, container_options=OPTIONS, metadata_errors="replace")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise _refusal(name, str(error.strerror)) from error


def _refusal(name: str, reason: str) -> AudioError:
    return AudioError("undecodable", f"{name}: cannot be decoded ({reason.lower()})")


def _track(container: InputContainer, name: str) -> tuple[AudioStream, AudioCodecContext]:
    """The track that FFmpeg prefers, or else the first that can be read here, and its decoder."""
    best = container.streams.best("audio")
    if best is None:
        raise AudioError("empty", f"{name}: no audio in it")
    for track in (best, *container.streams.audio):
        context = track.codec_context  # None where FFmpeg has no decoder
        if isinstance(track, AudioStream) and context is not None and context.codec.name in DECODERS:
            assert isinstance(context, AudioCodecContext)
            return track, _decoder(context)
    raise AudioError("unsupported_format", f"{name}: its codec is not read here; {CODECS} are")


def _decoder(context: AudioCodecContext) -> AudioCodecContext:
    better = INSTEAD.get(context.codec.name)
    if better in av.codecs_available:
        other = av.CodecContext.create(better, "r")
        assert isinstance(other, AudioCodecContext)
        other.sample_rate, other.layout = context.sample_rate, context.layout
        context = other
    context.thread_count = 1
    if context.codec.name in WITH_CHECKSUMS:
        context.options = {"err_detect": "crccheck+explode"}
    return context


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
    with np.errstate(over="ignore", invalid="ignore"):  # infinite, or no numbers: refused as such
        np.multiply(samples, 1 / FULL_SCALE[samples.dtype.type], out=out, casting="same_kind")
    if samples.dtype == np.uint8:  # its zero is at 128
        out -= 1
