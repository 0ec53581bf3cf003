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


MORE = [
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAV", "GSM610"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("WAV", "G721_32"),
    ("AIFF", "IMA_ADPCM"),
    ("AU", "ULAW"),
    ("AU", "G721_32"),
    ("CAF", "PCM_24"),
    ("W64", "FLOAT"),
    ("NIST", "ULAW"),
    ("NIST", "ALAW"),
    ("VOC", "ULAW"),
    ("IRCAM", "ULAW"),
]
"""Other codecs in the same containers."""


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


def sphere(samples: np.ndarray, *lines: bytes, header_bytes: int = 1_024) -> bytes:
    """NIST SPHERE, as a corpus has it: `lines` are its header's."""
    start = b"NIST_1A\n%7d\n" % header_bytes
    return (start + b"\n".join(lines) + b"\nend_head\n").ljust(header_bytes) + samples.tobytes()


TIMIT = (
    b"database_id -s5 TIMIT",
    b"utterance_id -s8 cjf0_sa1",
    b"channel_count -i 1",
    b"sample_count -i %d",
    b"sample_rate -i 16000",
    b"sample_min -i -2191",
    b"sample_n_bytes -i 2",
    b"sample_byte_format -s2 01",
    b"sample_sig_bits -i 16",
)
SWITCHBOARD = (
    b"conversation_id -s4 4325",
    b"channel_count -i 2",
    b"sample_coding -s4 ulaw",
    b"channels_interleaved -s4 TRUE",
    b"sample_count -i %d",
    b"sample_rate -i 8000",
    b"sample_n_bytes -i 1",
    b"sample_sig_bits -i 8",
)


def mu_law(samples: np.ndarray) -> np.ndarray:
    """By G.711."""
    integers = np.clip(np.round(samples * 32_768), -32_635, 32_635).astype(int)
    biased = np.abs(integers) + 132
    exponent = np.floor(np.log2(biased)).astype(int) - 7
    return (~((integers < 0) << 7 | exponent << 4 | biased >> (exponent + 3) & 15) & 255).astype(np.uint8)


def timit(samples: np.ndarray) -> bytes:
    counted = [line % len(samples) if b"%d" in line else line for line in TIMIT]
    return sphere((samples * 32_767).astype("<i2"), *counted)


def switchboard(samples: np.ndarray) -> bytes:
    """Of two channels, both the same."""
    counted = [line % len(samples) if b"%d" in line else line for line in SWITCHBOARD]
    return sphere(np.repeat(mu_law(samples), 2), *counted)
