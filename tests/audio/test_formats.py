"""One short recording in every readable container and codec: each gives the same waveform.

Encoders are soundfile's, FFmpeg's and, of SPHERE, the few lines in tests.sounds. There is none for Speex and
AMR-WB (two recordings made elsewhere stand in), nor for WMA Pro, Lossless and Voice, which are not tried.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soxr

from speech_ssl.audio import AudioWarning, decode, duration
from tests import sounds_av
from tests.sounds import FORMATS, MORE, RATE, encoded, switchboard, timit

RECORDINGS = Path(__file__).parent / "recordings"
MODELS_OF_THE_VOICE = {"hello.spx", "hello.awb", "amr-libopencore_amrnb", "3gp-libopencore_amrnb"}
"""Their encoders take out what is below speech, and shift what is near it: compared is what is above."""

Encode = Callable[[np.ndarray], bytes]


def by_soundfile(kind: str, subtype: str, rate: int) -> Encode:
    return lambda samples: encoded(samples, rate, kind, subtype)


def by_ffmpeg(container: str, codec: str, options: object, rate: int) -> Encode:
    return lambda samples: sounds_av.encoded_av(samples, rate, container, codec, options)


def with_header_of_zero(samples: np.ndarray) -> bytes:
    content = encoded(samples)
    return content[:40] + bytes(4) + content[44:]


def chained(samples: np.ndarray) -> bytes:
    """A link in Vorbis at one rate, one in Opus at another."""
    half = len(samples) // 2
    later = soxr.resample(samples[half:], RATE, 48_000)
    return encoded(samples[:half], RATE, "OGG", "VORBIS") + encoded(later, 48_000, "OGG", "OPUS")


FORMS: dict[str, tuple[int, Encode]] = {"-".join(form): (RATE, by_soundfile(*form, RATE)) for form in FORMATS}
for form in MORE:
    rate = 8_000 if form[1] == "GSM610" else RATE
    FORMS["-".join(form)] = rate, by_soundfile(*form, rate)
FORMS |= {
    "sphere-timit": (RATE, timit),
    "sphere-switchboard": (8_000, switchboard),
    "wav-header-of-0": (RATE, with_header_of_zero),
    "ogg-chained": (RATE, chained),
}
if importlib.util.find_spec("av"):
    for container, codec, options in sounds_av.FORMATS_AV:
        FORMS[f"{container}-{codec}-{len(options)}"] = 48_000, by_ffmpeg(container, codec, options, 48_000)
    for container, codec, rate in sounds_av.MORE_AV:
        FORMS[f"{container}-{codec}"] = rate, by_ffmpeg(container, codec, None, rate)
    for name in ("hello.spx", "hello.awb"):
        FORMS[name] = RATE, lambda samples, name=name: (RECORDINGS / name).read_bytes()


@pytest.fixture(scope="module")
def hello(prompts: Path) -> np.ndarray:
    return decode(prompts / "audio" / "hello.flac")


def above(wave: np.ndarray, hertz: float) -> np.ndarray:
    spectrum = np.fft.rfft(wave)
    spectrum[np.fft.rfftfreq(len(wave), 1 / RATE) < hertz] = 0
    return np.fft.irfft(spectrum, len(wave))


def best_correlation(wave: np.ndarray, expected: np.ndarray, most: int) -> float:
    """Over all delays up to `most` samples."""
    best = -1.0
    for delay in range(-most, most + 1):
        one, other = wave[max(delay, 0) :], expected[max(-delay, 0) :]
        length = min(len(one), len(other))
        best = max(best, sounds_av.correlation(one[:length], other[:length]))
    return best


@pytest.mark.parametrize("form", FORMS)
def test_the_waveform_is_the_same(form: str, hello: np.ndarray, tmp_path: Path) -> None:
    rate, encode = FORMS[form]
    samples = hello if rate == RATE else soxr.resample(hello, RATE, rate, quality="HQ")
    expected = hello if rate >= RATE else soxr.resample(samples, rate, RATE, quality="HQ")
    path = tmp_path / "clip"
    path.write_bytes(encode(samples))
    told: list[AudioWarning] = []
    wave = decode(path, warn=told.append)
    assert [warning.code for warning in told] == (["unfinished_header"] if form == "wav-header-of-0" else [])
    assert len(wave) / RATE == pytest.approx(len(expected) / RATE, abs=0.05)
    assert duration(path) == pytest.approx(len(wave) / RATE, abs=0.05)
    np.testing.assert_array_equal(decode(path.read_bytes()), wave)
    if form in MODELS_OF_THE_VOICE:
        assert best_correlation(above(wave, 500), above(expected, 500), RATE // 20) > 0.95
    else:
        assert best_correlation(wave, expected, RATE // 20) > 0.97
