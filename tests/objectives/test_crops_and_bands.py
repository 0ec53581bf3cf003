"""Crops, speed, bands and mixed-in rows of waves; the views of log-mel spectrograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from speech_ssl.objectives.mel_views import log_mixup_exp, resized_crop
from speech_ssl.objectives.views import band_pass, change_speed, mix_in, random_crop
from speech_ssl.types import valid_mask
from tests.objectives.test_views import batch, seeded

pytestmark = pytest.mark.numerical


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_crops_are_parts_of_their_rows(lengths: list[int], seed: int) -> None:
    lengths_B = torch.tensor(lengths)
    wave_BS = (1.0 + torch.arange(305)).repeat(len(lengths), 1) * valid_mask(lengths_B, 305)
    seen_BS, kept_B = random_crop(wave_BS, lengths_B, share=(0.4, 0.7), generator=seeded(seed))
    for seen_S, length, kept in zip(seen_BS, lengths, kept_B.tolist(), strict=True):
        assert 1 <= kept <= length and 0.4 * length - 1 <= kept <= 0.7 * length + 1
        first = seen_S[0]
        assert 1 <= first <= length - kept + 1
        assert torch.equal(seen_S[:kept], first + torch.arange(kept)) and not seen_S[kept:].any()


def test_crops_lie_anywhere() -> None:
    wave_BS, lengths_B = torch.arange(10.0).repeat(4_000, 1), torch.full((4_000,), 10)
    seen_BS, kept_B = random_crop(wave_BS, lengths_B, share=(0.5, 0.5), generator=seeded())
    assert set(kept_B.tolist()) == {5}
    times = torch.bincount(seen_BS[:, 0].long())
    assert stats.chisquare(times.numpy()).pvalue > 0.01 and len(times) == 6
    whole_BS, kept_B = random_crop(wave_BS, lengths_B, share=(1.0, 1.0), generator=seeded())
    assert torch.equal(whole_BS, wave_BS) and torch.equal(kept_B, lengths_B)


def tone(hertz: float, samples: int = 16_000) -> Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(samples, dtype=torch.float64) / 16_000).float()


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.0, 1.1, 1.25])
def test_a_faster_tone_is_higher_and_shorter_by_the_factor(factor: float) -> None:
    wave_BS = torch.nn.functional.pad(tone(1_000.0)[None], (0, 8_000))
    seen_BS, length_B = change_speed(wave_BS, torch.tensor([16_000]), torch.tensor([factor]))
    length = int(length_B)
    assert length == int(np.float32(16_000) / np.float32(factor)) and not seen_BS[0, length:].any()
    spectrum = torch.fft.rfft(seen_BS[0, :length] * torch.hann_window(length), n=1 << 18).abs()
    assert float(spectrum.argmax()) * 16_000 / (1 << 18) == pytest.approx(1_000 * factor, rel=1e-3)
    torch.testing.assert_close(
        seen_BS[0, : length - 1], tone(1_000.0 * factor, length - 1), atol=0.02, rtol=0
    )


def test_speed_is_each_rows_own_and_one_leaves_all() -> None:
    wave_BS, lengths_B = batch([300, 120, 7], padding=9)
    same_BS, same_B = change_speed(wave_BS, lengths_B, torch.ones(3))
    assert torch.equal(same_BS, wave_BS) and torch.equal(same_B, lengths_B)
    double_BS, double_B = change_speed(wave_BS, lengths_B, torch.tensor([1.0, 2.0, 0.5]))
    assert torch.equal(double_BS[0], wave_BS[0]) and torch.equal(double_BS[1, :60], wave_BS[1, :120:2])
    assert torch.equal(double_BS[2, :14:2], wave_BS[2, :7]) and double_B.tolist() == [300, 60, 14]
    cut_BS, cut_B = change_speed(wave_BS[:1], lengths_B[:1], torch.tensor([0.5]))
    assert cut_BS.shape == (1, 309) and cut_B.tolist() == [309], "no longer than the batch"


@pytest.mark.parametrize("hertz", [60.0, 150.0, 300.0, 1_000.0, 3_000.0, 4_500.0, 7_000.0])
def test_a_band_weakens_what_is_outside_by_24_db_an_octave(hertz: float) -> None:
    wave_BS, lengths_B = tone(hertz, 1 << 15)[None], torch.tensor([1 << 15])
    seen_BS = band_pass(wave_BS, lengths_B, torch.tensor([300.0]), torch.tensor([3_000.0]))
    middle = slice(8_000, 24_000)
    found = float(seen_BS[0, middle].double().norm() / wave_BS[0, middle].double().norm())
    gain = 1 / math.sqrt((1 + (hertz / 3_000) ** 8) * (1 + (300 / hertz) ** 8))
    assert 20 * math.log10(found) == pytest.approx(20 * math.log10(gain), abs=0.3)
    phase = float((seen_BS[0, middle] * wave_BS[0, middle]).sum()) / (
        found * float(wave_BS[0, middle].square().sum())
    )
    assert phase == pytest.approx(1.0, abs=1e-3), "without a change of phase"


def test_a_band_of_everything_leaves_all() -> None:
    wave_BS, lengths_B = batch([300, 120, 7], padding=9)
    seen_BS = band_pass(wave_BS, lengths_B, torch.zeros(3), torch.full((3,), 8_000.0))
    torch.testing.assert_close(seen_BS, wave_BS, atol=1e-6, rtol=1e-5)


def mels(lengths: list[int], padding: int = 0, bins: int = 12) -> tuple[Tensor, Tensor]:
    lengths_B = torch.tensor(lengths)
    x_BTM = torch.randn(len(lengths), max(lengths) + padding, bins, generator=seeded(1))
    return x_BTM * valid_mask(lengths_B, x_BTM.shape[1])[:, :, None], lengths_B


def test_energies_are_mixed_and_not_their_logarithms() -> None:
    x_BTM, lengths_B = mels([9, 4, 1], padding=2)
    seen_BTM = log_mixup_exp(x_BTM, lengths_B, most=0.4, generator=seeded(2))
    assert not seen_BTM[~valid_mask(lengths_B, 11)].any()
    for row, length in enumerate(lengths_B.tolist()):
        fits = []
        for partner in {0, 1, 2} - {row}:
            other_TM = x_BTM[partner, : lengths_B[partner]].double().repeat(9, 1)[:length].exp()
            own_TM, mixed_TM = x_BTM[row, :length].double().exp(), seen_BTM[row, :length].double().exp()
            weights_TM = (mixed_TM - own_TM) / (other_TM - own_TM)
            fits.append((float(weights_TM.std()), float(weights_TM.mean())))
        off, weight = min(fits)
        assert off < 1e-3 and 0 < weight < 0.4, "one weight, the same in every bin"
    alone_BTM = log_mixup_exp(x_BTM[:1], lengths_B[:1], most=0.4, generator=seeded())
    torch.testing.assert_close(alone_BTM, x_BTM[:1])


def test_waves_are_mixed_in_at_equal_energy() -> None:
    levels = torch.tensor([0.9, 0.01, 0.3])
    wave_BS, lengths_B = levels.diag().repeat_interleave(50, 1), torch.full((3,), 150)
    weights = []
    for seed in range(40):
        seen_BS = mix_in(wave_BS, lengths_B, most=0.4, generator=seeded(seed))
        shares = seen_BS.abs().reshape(3, 3, 50).mean(2) / levels[:, None]
        weights += shares[~torch.eye(3).bool()].tolist()
        torch.testing.assert_close(shares.sum(1), torch.ones(3))
    heard = [weight for weight in weights if weight]
    assert (
        len(heard) == 120
        and 0.3 < max(heard) < 0.4
        and stats.kstest(heard, stats.uniform(0, 0.4).cdf).pvalue > 0.01
    )


def test_a_crop_of_the_whole_is_the_spectrogram() -> None:
    x_BTM, lengths_B = mels([10, 6, 1], padding=3)

    seen = [resized_crop(x_BTM, lengths_B, share=(1.5, 1.5), generator=seeded(seed)) for seed in range(3)]
    assert all(torch.equal(seen[0], each) for each in seen), (
        "1.5 times the time and all bins: nothing to draw"
    )
    squeezed_TM = seen[0][0, 2:8]  # 10 steps in 10 / 1.5, in the middle
    assert not seen[0][0, [0, 9]].any() and squeezed_TM.abs().sum() > 0


def test_a_resized_tone_moves_as_the_crop_says() -> None:
    """A ramp over bins and steps is still one after bicubic stretching, with the slopes of its sides."""
    T, M = 60, 40
    ramp_TM = 100.0 + torch.arange(T)[:, None] + 1_000.0 * torch.arange(M)
    x_BTM, lengths_B = ramp_TM.repeat(300, 1, 1), torch.full((300,), T)
    seen_BTM = resized_crop(x_BTM, lengths_B, share=(0.6, 0.9), generator=seeded())
    inner_BTM = seen_BTM[:, 5:-5, 5:-5]
    steps_B = (inner_BTM[:, -1] - inner_BTM[:, 0]).mean(1) / (T - 11)
    bins_B = (inner_BTM[:, :, -1] - inner_BTM[:, :, 0]).mean(1) / (M - 11) / 1_000
    inside_B = (seen_BTM > 0).flatten(1).all(1)
    assert inside_B.sum() > 50, "of crops that reach over an end the slope says nothing"
    assert stats.kstest(bins_B[inside_B].numpy(), stats.uniform(0.6, 0.3).cdf).pvalue > 0.01
    assert 0.59 < steps_B[inside_B].min() < 0.65 and steps_B[inside_B].max() < 0.91


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    padding=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_resized_rows_do_not_know_their_neighbours_or_padding(
    lengths: list[int], padding: int, seed: int
) -> None:
    x_BTM, lengths_B = mels(lengths, padding)
    seen_BTM = resized_crop(x_BTM, lengths_B, share=(0.6, 1.5), generator=seeded(seed))
    assert seen_BTM.isfinite().all() and not seen_BTM[~valid_mask(lengths_B, x_BTM.shape[1])].any()
    wider_BTM = torch.nn.functional.pad(x_BTM, (0, 0, 0, 4), value=50.0)
    torch.testing.assert_close(
        resized_crop(wider_BTM, lengths_B, share=(0.6, 1.5), generator=seeded(seed))[:, : x_BTM.shape[1]],
        seen_BTM,
        atol=1e-4,
        rtol=1e-4,
    )


def test_what_cannot_be_asked_for() -> None:
    wave_BS, lengths_B = batch([10, 10])
    with pytest.raises(ValueError, match="shortest, longest"):
        random_crop(wave_BS, lengths_B, share=(0.9, 0.3), generator=seeded())
    with pytest.raises(ValueError, match="smallest, largest"):
        resized_crop(wave_BS[:, :, None], lengths_B, share=(0.0, 1.0), generator=seeded())
    with pytest.raises(ValueError, match="from 0 to below 1"):
        mix_in(wave_BS, lengths_B, most=1.0, generator=seeded())
