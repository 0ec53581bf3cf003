"""Sounds made up for tests, in every format, and what the decoder does with them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from speech_ssl.audio import libsndfile

RATE = 16_000
FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("W64", "PCM_16"),
    ("NIST", "PCM_16"),
    ("VOC", "PCM_16"),
    ("IRCAM", "PCM_16"),
]


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, format=kind, subtype=subtype) as sound:
        for start in range(0, len(samples), 4_000):  # one write of a long Vorbis clip overflows a stack
            sound.write(samples[start : start + 4_000])
    return file.getvalue()


def noise(seconds: float, rate: int = RATE, channels: int | None = None) -> np.ndarray:
    shape = (round(seconds * rate),) if channels is None else (round(seconds * rate), channels)
    return np.random.default_rng(0).uniform(-0.3, 0.3, shape).astype(np.float32)


def count_frames(patch: pytest.MonkeyPatch) -> list[int]:
    """From now on, how many frames each call to the decoder gives."""
    counts: list[int] = []
    read = libsndfile._SoundFile.read

    def counted(self: libsndfile._SoundFile, *, out: np.ndarray) -> np.ndarray:
        block = read(self, out=out)
        counts.append(len(block))
        return block

    patch.setattr(libsndfile._SoundFile, "read", counted)
    return counts
