"""How loud it is around frames, whatever their distance is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_ssl import audio
from speech_ssl.inference.word_times import loudness_of
from tests.narrow import narrow_runtime

FRONT_ENDS = [
    ((9, 4, 3), (5, 6, 3)),
    ((30, 9), (15, 9)),
    ((5,), (2,)),
    ((2,), (1,)),
    ((2,), (8,)),
    ((10, 3, 3), (5, 2, 2)),
]
"""Hops of 90, 135, 2, 1, 8 and 20; the fields of 90 and 8 are shorter than a hop."""


@pytest.mark.parametrize(("kernels", "strides"), FRONT_ENDS)
def test_heads_answer_at_any_hop(kernels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    runtime = narrow_runtime(
        window_s=0.1,
        context_s=0.02,
        frontend={"channels": (4,) * len(kernels), "kernels": kernels, "strides": strides},
    )
    wave = np.random.default_rng(0).normal(0, 0.1, 3_000).astype(np.float32)
    (found,) = runtime.analyze([wave], tasks=["transcription", "classification"])
    assert found.transcript is not None and found.classification is not None
    times = [time for word in found.transcript.words for time in (word.start, word.end)]
    assert times and times == sorted(times) and times[0] >= 0 and times[-1] <= 3_000 / 13_000
    (whole,) = runtime._heard([wave])
    assert len(whole.passed.loudness) == runtime.chunker.frame_count(3_000)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
@pytest.mark.parametrize("at_s", [0.301, 1.2345])
def test_a_sound_has_its_time_at_any_rate(tmp_path: Path, rate: int, at_s: float) -> None:
    """To a part of a frame, 5 ms: the resampler has no delay, nor does a piece of a file."""
    time_s = np.arange(int(1.7 * rate)) / rate
    click = np.exp(-0.5 * ((time_s - at_s) / 0.002) ** 2) * np.cos(2_000 * np.pi * (time_s - at_s))
    soundfile.write(tmp_path / "click.wav", click, rate, subtype="FLOAT")
    for start_s in (0.0, 0.25):
        wave = audio.decode(tmp_path / "click.wav", start_s=start_s)
        squares_N = np.square(wave, dtype=np.float64)
        centre = (squares_N * np.arange(len(wave))).sum() / squares_N.sum()
        assert centre / 16_000 + start_s == pytest.approx(at_s, abs=1e-4)
    wave = audio.decode(tmp_path / "click.wav")
    loudness_TE = loudness_of(wave, (len(wave) - 400) // 320 + 1, 320, 400)
    loudest_s = 40 / 16_000 + (loudness_TE.ravel().argmax() + 0.5) * 0.005
    assert loudest_s == pytest.approx(at_s, abs=0.0026)


@pytest.mark.parametrize(("hop", "field"), [(320, 400), (90, 84), (135, 150), (2, 5), (3, 9), (1, 2), (8, 2)])
def test_loudness_is_the_mean_square_of_each_part(hop: int, field: int) -> None:
    wave = np.random.default_rng(hop).normal(size=20 * hop + field).astype(np.float32)
    frames = (len(wave) - field) // hop + 1
    loudness_TE = loudness_of(wave, frames, hop, field)
    parts = min(4, hop)
    assert loudness_TE.shape == (frames, parts) and loudness_TE.dtype == np.float32
    first = (field - hop) // 2
    for frame in (0, 1, frames - 1):
        for part in range(parts):
            begin, end = (first + frame * hop + n * hop // parts for n in (part, part + 1))
            heard = [float(wave[s]) ** 2 if 0 <= s < len(wave) else 0.0 for s in range(begin, end)]
            assert loudness_TE[frame, part] == pytest.approx(np.mean(heard), rel=1e-5)
    assert loudness_of(wave[:0], 0, hop, field).shape == (0, parts)
