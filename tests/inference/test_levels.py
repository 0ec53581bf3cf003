"""A window of a long clip is normalised as the whole clip is, through every kind of front end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl import audio
from speech_ssl.extraction.decoding import Decoders, DecodeTask
from speech_ssl.inference import Runtime, chunking
from speech_ssl.inference.chunking import Chunker
from speech_ssl.inference.levels import Level, Meter
from speech_ssl.model.config import LogMel
from speech_ssl.types import Waveform
from tests.narrow import narrow_runtime

FRONT_ENDS: dict[str, dict[str, Any]] = {
    "layer": {},
    "layer, plain": {"frontend": {"normalize_wave": False}},
    "group": {"frontend": {"normalize_wave": False, "norm": "group", "bias": False}},
    "group, normalised": {"frontend": {"norm": "group"}},
    "mel": {"frontend": LogMel(bins=80)},
    "mel, normalised together": {"frontend": LogMel(bins=80, norm="clip"), "feature_norm": False},
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=FRONT_ENDS)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return narrow_runtime(window_s=4.0, context_s=1.5, **FRONT_ENDS[request.param])


@pytest.fixture(scope="module")
def uneven(prompts: Path) -> Waveform:
    """Twelve seconds of speech, the first half 30 dB lower, on an offset."""
    paths = sorted((prompts / "audio").glob("*.flac"))
    wave = np.concatenate([audio.decode(path) for path in paths[:20]])[: 12 * 16_000]
    wave[: len(wave) // 2] *= 10 ** (-30 / 20)
    return wave + np.float32(0.01)


def test_windows_have_what_one_pass_has(runtime: Runtime, uneven: Waveform) -> None:
    """Before the first block, where attention has not looked past a window yet, they are the same."""
    (whole,) = runtime.encode_windows([uneven], [0])
    assert len(runtime.plan(len(uneven))) > 5
    assert np.abs(runtime.encode([uneven], layer=0)[0].frames - whole).max() <= TOLERANCE
    if runtime.meter is not None:  # and it is the level that makes them so
        alone = narrow_runtime(window_s=4.0, context_s=1.5)
        alone.__dict__.update(runtime.__dict__)
        alone.chunker = replace(runtime.chunker, meter=None)
        assert np.abs(alone.encode([uneven], layer=0)[0].frames - whole).max() > 0.5


def test_the_company_makes_no_difference(runtime: Runtime, uneven: Waveform) -> None:
    """Windows of two clips, and a clip of one window, in the same batches."""
    clips = [uneven, uneven[: 3 * 16_000], 0.1 * uneven[::-1]]
    for clip, found in zip(clips, runtime.encode(clips), strict=True):
        assert np.abs(found.frames - runtime.encode([clip])[0].frames).max() <= TOLERANCE


@pytest.mark.parametrize("held_s", [120.0, 1.0, 6.0])
def test_files_are_as_waves(
    runtime: Runtime, uneven: Waveform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_s: float
) -> None:
    """Whether they are decoded once, or a second time for being long."""
    monkeypatch.setattr(chunking, "HELD_S", held_s)
    path = tmp_path / "clip.wav"
    soundfile.write(path, uneven, 16_000, subtype="FLOAT")
    expected = runtime.encode([uneven])[0]
    assert np.abs(runtime.encode([path])[0].frames - expected.frames).max() <= TOLERANCE
    assert np.abs(runtime.pooled(path) - expected.pooled()).max() <= TOLERANCE
    soundfile.write(path, uneven[:48_000], 16_000, subtype="FLOAT")
    (alone,) = runtime.encode_windows([uneven[:48_000]], [1])
    assert np.array_equal(runtime.encode([path], layer=1)[0].frames, alone)


def test_a_clip_of_one_window_is_normalised_by_itself(runtime: Runtime) -> None:
    """To the last sample that fits; one frame more makes two windows, which know the clip's level."""
    most = runtime.chunker.window * runtime.hop + runtime.min_samples - 1
    wave = np.random.default_rng(0).normal(0, 0.1, most + 1).astype(np.float32)
    assert [window.level for window in runtime.plan_of(wave[:most])] == [None]
    levels = [window.level for window in runtime.plan_of(wave)]
    assert len(levels) == 2 and all((level is None) == (runtime.meter is None) for level in levels)


@pytest.mark.parametrize("samples", [0, 1, 319, 320])
def test_the_shortest_clips_have_all_answers(runtime: Runtime, samples: int) -> None:
    """Of one frame, of nearly two, of two."""
    samples += runtime.min_samples
    wave = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    (found,) = runtime.analyze([wave])
    assert found.features is not None and found.transcript is not None and found.classification is not None
    assert len(found.features.frames) == (samples - runtime.min_samples) // runtime.hop + 1
    times = [time for word in found.transcript.words for time in (word.start, word.end)]
    assert times == sorted(times) and all(0 <= time <= samples / 16_000 for time in times)
    assert np.isfinite(found.features.frames).all()


@pytest.mark.parametrize("meter", [Meter(), Meter(10, 5), Meter(3, 7), Meter(400, 160, 80)])
@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 5_000), max_size=8))
def test_a_level_does_not_depend_on_how_a_clip_is_parted(meter: Meter, cuts: list[int]) -> None:
    wave = np.random.default_rng(1).normal(0.2, 0.1, 5_000).astype(np.float32)
    rows = np.asarray(meter.rows(wave), dtype=np.float64)
    level = Level(meter)
    for block in np.split(wave, sorted(cuts)):
        level.add(block)
    assert level.moments.count == len(rows)
    np.testing.assert_allclose(level.moments.mean_N, rows.mean(0), rtol=1e-9)
    expected_NN = np.cov(rows.T, bias=True).reshape(rows.shape[1], -1)
    np.testing.assert_allclose(level.moments.covariance_NN, expected_NN, rtol=1e-7, atol=1e-12)


def test_a_decoder_hands_out_the_level_of_the_part_that_it_decodes(
    uneven: Waveform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, uneven, 16_000, subtype="FLOAT")
    chunker = Chunker(320, 400, window=100, context=10, meter=Meter())
    jobs = [DecodeTask(0, str(path), 2.0, 9.0), DecodeTask(1, str(path), 0.0, 1.0)]
    levels: dict[int, list[Any]] = {0: [], 1: []}
    with Decoders(jobs, chunker, workers=1, ahead_s=30.0) as events:
        for event in events:
            if hasattr(event, "window"):
                levels[event.clip].append(event.window.level)
    assert levels[1] == [None] and len(levels[0]) > 1
    part = uneven[32_000:144_000].astype(np.float64)
    for level in levels[0]:
        assert level.count == len(part)
        assert level.mean_N[0] == pytest.approx(part.mean())
        assert level.covariance_NN[0, 0] == pytest.approx(part.var())


def test_a_long_file_is_read_twice_and_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "HELD_S", 1.0)
    chunker = Chunker(320, 400, window=100, context=10, meter=Meter())
    read = 0

    def blocks() -> Iterator[Waveform]:
        nonlocal read
        for _ in range(400):
            read += 4_000
            yield np.full(4_000, read, dtype=np.float32)

    most = 0
    for window, _ in chunker.cut_file(blocks(), blocks):
        most = max(most, read - 400 * 4_000 - window.start)
    assert read == 2 * 400 * 4_000 and most <= (2 * chunker.window + 1) * 320 + 400 + 4_000
