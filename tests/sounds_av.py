"""Sounds in the containers that FFmpeg reads, made with it."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.sounds import RATE, noise

Form = tuple[str, str, Mapping[str, str]]  # container, codec, options of the container
FORMATS_AV: list[Form] = [
    ("ipod", "aac", {"movflags": "faststart"}),
    ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}),
    ("mp4", "libmp3lame", {}),
    ("mp4", "flac", {}),
    ("ipod", "alac", {}),
    ("mov", "pcm_s16le", {}),
    ("adts", "aac", {}),
    ("webm", "libopus", {}),
    ("matroska", "flac", {}),
    ("matroska", "aac", {}),
]
MORE_AV: list[tuple[str, str, int]] = [  # container, codec, rate
    ("wav", "g722", 16_000),
    ("wav", "g726", 8_000),
    ("wav", "g723_1", 8_000),
    ("wav", "adpcm_yamaha", 48_000),
    ("wav", "libmp3lame", 48_000),
    ("wav", "wmav2", 48_000),
    ("w64", "ac3", 48_000),
    ("amr", "libopencore_amrnb", 8_000),
    ("3gp", "libopencore_amrnb", 8_000),
    ("asf", "wmav1", 48_000),
    ("asf", "wmav2", 48_000),
    ("ac3", "ac3", 48_000),
    ("eac3", "eac3", 48_000),
    ("mp4", "ac3", 48_000),
    ("wv", "wavpack", 16_000),
    ("matroska", "wavpack", 16_000),
    ("matroska", "mp2", 48_000),
    ("mp2", "mp2", 48_000),
    ("mp3", "libmp3lame", 16_000),
    ("ogg", "flac", 16_000),
    ("mov", "adpcm_ima_qt", 16_000),
    ("mov", "pcm_mulaw", 16_000),
]
"""Of what is read besides, one of each codec and container."""
BIT_RATES = {"wmav1": 64_000, "wmav2": 64_000, "libopencore_amrnb": 12_200, "g723_1": 6_300}
NAMES = ["-".join(form[:2]) for form in FORMATS_AV]
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1", 16: "16 channels", 17: "17 channels"}


def sound(seconds: float, rate: int = RATE) -> np.ndarray:
    """Two tones and a little noise, louder and softer: no delay makes it look like itself."""
    time_S = np.arange(round(seconds * rate)) / rate
    tones = 0.3 * np.sin(2 * np.pi * 440 * time_S) + 0.1 * np.sin(2 * np.pi * 1_234 * time_S)
    return (tones * (0.6 + 0.4 * np.sin(2.3 * time_S)) + 0.02 * noise(seconds, rate)).astype(np.float32)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def encoded_av(
    samples: np.ndarray,
    rate: int = RATE,
    container: str = "ipod",
    codec: str = "aac",
    options: Mapping[str, str] | None = None,
) -> bytes:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    layout = LAYOUTS[channels]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        with av.open(str(path), "w", format=container, options=dict(options or {})) as file:
            stream = file.add_stream(codec, rate=rate, layout=layout)  # type: ignore[call-overload]
            if codec in BIT_RATES:
                stream.bit_rate = BIT_RATES[codec]
            packed = np.ascontiguousarray(samples.reshape(1, -1), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        return path.read_bytes()


def referring_to(path: Path, samples: int) -> bytes:
    """A QuickTime file whose sound is said to lie in another one, as 16-bit samples at 16 kHz."""
    movie = encoded_av(np.zeros(samples, dtype=np.float32), RATE, "mov", "pcm_s16le")
    at = movie.index(b"dref") + 12  # its first entry, "in this file"
    size = int.from_bytes(movie[at : at + 4], "big")
    alias = _alias(str(path).encode())
    changed = bytearray(movie[:at] + alias + movie[at + size :])
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        length_at = movie.rindex(box, 0, at) - 4
        length = int.from_bytes(movie[length_at : length_at + 4], "big")
        changed[length_at : length_at + 4] = struct.pack(">I", length + len(alias) - size)
    return bytes(changed)


def _alias(path: bytes) -> bytes:
    path += bytes(len(path) % 2)
    body = bytes(10) + b"\x04" + b"disk".ljust(27, b"\0") + bytes(12) + b"\x04" + b"file".ljust(63, b"\0")
    body += bytes(16) + struct.pack(">hh", 0, 0) + bytes(16)
    body += struct.pack(">hh", 2, len(path)) + path + struct.pack(">hh", -1, 0)  # 2: an absolute path
    return struct.pack(">I4sI", 12 + len(body), b"alis", 0) + body
