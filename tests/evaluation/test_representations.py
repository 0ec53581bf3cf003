"""Cached means: those of a clip by itself, whatever it is batched with; spectra against their definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.evaluation.probes import representations
from speech_ssl.evaluation.probes.representations import (
    cached,
    encoder_states,
    hidden_means,
    load_wave,
    log_mel,
    mfcc,
    random_encoder,
)
from speech_ssl.inference.runtime import Runtime
from speech_ssl.model.encoder import Encoder
from tests.narrow import save_narrow

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def encoder(tiny_artifact: Path) -> Encoder:
    return load_artifact(tiny_artifact).encoder.eval()


@pytest.fixture(scope="module")
def clips(prompts: Path) -> list[Utterance]:
    return read_manifest(prompts / "manifest.tsv")[:6]


def test_means_are_those_of_the_clip_alone(encoder: Encoder, clips: list[Utterance]) -> None:
    waves = [load_wave(clip) for clip in clips]
    together = hidden_means(encoder, waves)
    assert together.shape == (6, 5, 256) and together.dtype == np.float32
    alone = np.concatenate([hidden_means(encoder, [wave]) for wave in waves])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)
    np.testing.assert_allclose(hidden_means(encoder, waves[::-1])[::-1], together, rtol=0, atol=1e-4)


def test_means_are_over_real_frames_of_each_hidden_state(encoder: Encoder, clips: list[Utterance]) -> None:
    wave = load_wave(clips[2])
    with torch.no_grad():
        states = encoder.hidden_states(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    expected = np.stack([state[0].mean(0).numpy() for state in states])
    longer = load_wave(max(clips, key=lambda clip: clip.duration_s))
    assert len(longer) > len(wave)
    np.testing.assert_allclose(hidden_means(encoder, [longer, wave])[1], expected, rtol=0, atol=1e-4)


def test_deviations_are_those_of_all_real_frames(encoder: Encoder, clips: list[Utterance]) -> None:
    wave, longer = load_wave(clips[2]), load_wave(max(clips, key=lambda clip: clip.duration_s))
    with torch.no_grad():
        states = encoder.hidden_states(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    expected = np.stack([np.concatenate([x[0].mean(0), x[0].std(0, unbiased=False)]) for x in states])
    described = encoder_states(encoder, "cpu", deviations=True)([longer, wave])
    assert described.shape == (2, 5, 512)
    np.testing.assert_allclose(described[1], expected, rtol=0, atol=2e-4)


@given(st.integers(0, 2**31), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.floats(-1e6, 1e6))
def test_moments_of_parts_are_those_of_the_whole(seed: int, sizes: list[int], offset: float) -> None:
    """Even where frames hardly differ beside their mean."""
    sizes = [*sizes, 3]
    frames = np.random.default_rng(seed).normal(offset, 1.0, (sum(sizes), 2, 4)).astype(np.float32)
    moments = representations.MeanAndDeviation()
    for part in np.split(frames, np.cumsum(sizes)[:-1]):
        moments.add(part)
    mean, std = np.split(moments.described(deviations=True), 2, axis=-1)
    np.testing.assert_allclose(mean, frames.mean(0, dtype=np.float64), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std, frames.astype(np.float64).std(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moments.described(deviations=False), mean)


def test_no_frames_cannot_be_described() -> None:
    moments = representations.MeanAndDeviation()
    moments.add(np.zeros((0, 2, 4), np.float32))
    with pytest.raises(ValueError, match="no frame"):
        moments.described(deviations=True)


def test_a_long_clip_is_computed_in_windows_as_the_runtime_does(tmp_path: Path) -> None:
    artifact = load_artifact(save_narrow(tmp_path / "narrow"))
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, 50 * 16_000).astype(np.float32)
    means = hidden_means(artifact.encoder.eval(), [wave])[0]
    runtime = Runtime(artifact, precision="fp32")
    for layer in (0, 1):
        np.testing.assert_allclose(means[layer], runtime.pooled(wave, layer=layer), rtol=0, atol=1e-4)


def test_groups_of_clips_make_no_difference(
    clips: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little audio is held at a time."""
    states = encoder_states(load_artifact(save_narrow(tmp_path / "narrow")).encoder)
    whole = cached(clips, {"states": states, "mfcc": mfcc})
    monkeypatch.setattr(representations, "GATHERED_S", 2.0)
    sizes: list[int] = []
    pieces = cached(
        clips, {"states": lambda waves: (sizes.append(len(waves)), states(waves))[1], "mfcc": mfcc}
    )
    assert max(sizes) < 4 and sum(sizes) == 6
    np.testing.assert_allclose(pieces.means["states"], whole.means["states"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(pieces.means["mfcc"], whole.means["mfcc"])


def test_clips_that_cannot_be_read_are_named(clips: list[Utterance], tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    bad = [
        Utterance(tmp_path / "text.wav", 1.0, "text.wav"),
        Utterance(tmp_path / "absent.wav", 1.0, "absent.wav"),
        replace(clips[0], id="short", start=0.1, end=0.11),
    ]
    ticked: list[float] = []
    found = cached([bad[0], clips[0], *bad[1:], clips[1]], {"log-mel": log_mel}, tick=ticked.append)
    assert found.clips == clips[:2] and len(ticked) == 5
    assert list(found.failures) == ["text.wav", "absent.wav", "short"]
    assert "160 samples, 512 are needed" in found.failures["short"]
    np.testing.assert_array_equal(found.means["log-mel"], log_mel([load_wave(c) for c in clips[:2]]))
    with pytest.raises(ValueError, match="none of the 3 clips can be used: .*text.wav"):
        cached(bad, {"log-mel": log_mel})


def test_a_part_is_that_part(clips: list[Utterance]) -> None:
    whole = load_wave(clips[2])
    part = load_wave(replace(clips[2], start=0.25, end=0.75))
    np.testing.assert_array_equal(part, whole[4_000:12_000])


def test_random_weights_are_seeded_and_leave_the_global_state(encoder: Encoder) -> None:
    before = torch.get_rng_state()
    one, two, other = (random_encoder(encoder.config, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["feature_projection.weight"], other["feature_projection.weight"])


def test_log_mel_is_its_definition(clips: list[Utterance]) -> None:
    wave = load_wave(clips[2])
    found = log_mel([wave])
    assert found.shape == (1, 1, 160)
    window = np.hanning(401)[:-1]
    window = np.pad(window, 56)
    padded = np.pad(wave, 256)
    frames = np.stack([padded[i : i + 512] for i in range(0, len(padded) - 511, 160)]) * window
    power = np.square(np.abs(np.fft.rfft(frames)))
    bands = np.log(np.maximum(power @ librosa.filters.mel(sr=16_000, n_fft=512, n_mels=80).T, 1e-10))
    np.testing.assert_allclose(found[0, 0], [*bands.mean(0), *bands.std(0)], rtol=0, atol=2e-3)


def test_mfcc_of_a_clip_of_few_frames(clips: list[Utterance]) -> None:
    found = mfcc([load_wave(clips[2]), load_wave(clips[2])[:512]])
    assert found.shape == (2, 1, 78) and np.isfinite(found).all()
    gain = mfcc([load_wave(clips[2]) * 0.5])
    np.testing.assert_allclose(gain[0, 0, 1:13], found[0, 0, 1:13], atol=3)  # a gain moves only the first
    assert found[0, 0, 0] - gain[0, 0, 0] > 20
