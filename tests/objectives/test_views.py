"""Views of waves: ratios and moments as asked, padding and silence left alone, chance from the generator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from speech_ssl.objectives.views import (
    Mixing,
    add_noise,
    band_pass,
    beta,
    change_speed,
    coloured_noise,
    mix_in,
    mix_utterances,
    mixup,
    random_crop,
    random_gain,
    time_shift,
)
from speech_ssl.types import valid_mask

pytestmark = pytest.mark.numerical

View = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gain(wave_BS: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
    return random_gain(wave_BS, most_db=12.0, generator=generator)


def noise(wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator, babble: float = 0.0) -> Tensor:
    return add_noise(wave_BS, lengths_B, snr_db=(0.0, 20.0), share=1.0, generator=generator, babble=babble)


def shift(wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator) -> Tensor:
    return time_shift(wave_BS, lengths_B, most_s=0.01, generator=generator)


def mix(wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator) -> Tensor:
    return mixup(wave_BS, lengths_B, alpha=0.5, share=1.0, generator=generator).wave_BS


def overlay(wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator) -> Tensor:
    return mix_utterances(wave_BS, lengths_B, Mixing(share=1.0), generator)


def crop(wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator) -> Tensor:
    return random_crop(wave_BS, lengths_B, share=(0.3, 0.9), generator=generator)[0]


def speed(wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator) -> Tensor:
    return change_speed(wave_BS, lengths_B, 1 + 0.25 * torch.rand(len(wave_BS), generator=generator))[0]


def band(wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator) -> Tensor:
    low_B, high_B = torch.rand(2, len(wave_BS), generator=generator)
    return band_pass(wave_BS, lengths_B, 20 + 400 * low_B, 2_000 + 5_000 * high_B)


behind: View = lambda wave_BS, lengths_B, generator: mix_in(  # noqa: E731
    wave_BS, lengths_B, most=0.4, generator=generator
)
ALONE = [gain, noise, shift]  # of a row, whatever the other rows are
VIEWS = [*ALONE, partial(noise, babble=1.0), mix, overlay, crop, speed, band, behind]


def batch(lengths: list[int], padding: int = 0, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of noise whose energies differ by factors."""
    lengths_B = torch.tensor(lengths)
    wave_BS = torch.randn(len(lengths), max(lengths) + padding, generator=seeded(seed))
    wave_BS *= 0.01 * (1 + torch.arange(len(lengths)))[:, None]
    return wave_BS * valid_mask(lengths_B, wave_BS.shape[1]), lengths_B


def measured_db(signal_S: Tensor, noise_S: Tensor) -> float:
    return float(10 * (signal_S.double().square().sum() / noise_S.double().square().sum()).log10())


@pytest.mark.parametrize("view", VIEWS)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    padding=st.integers(0, 40),
    silent=st.sets(st.integers(0, 5)),
    seed=st.integers(0, 9),
)
def test_padding_stays_zero_and_silence_makes_no_nan(
    view: View, lengths: list[int], padding: int, silent: set[int], seed: int
) -> None:
    wave_BS, lengths_B = batch(lengths, padding)
    wave_BS[[row for row in silent if row < len(lengths)]] = 0.0
    before_BS = wave_BS.clone()
    seen_BS = view(wave_BS, lengths_B, seeded(seed))
    assert torch.equal(wave_BS, before_BS), "the batch itself is left alone"
    assert seen_BS.dtype == torch.float32 and seen_BS.shape == wave_BS.shape
    assert torch.isfinite(seen_BS).all()
    assert not seen_BS[~valid_mask(lengths_B, wave_BS.shape[1])].any()


@pytest.mark.parametrize("view", VIEWS)
def test_chance_is_the_generators(view: View) -> None:
    wave_BS, lengths_B = batch([400, 1, 250, 400], padding=10)
    torch.manual_seed(0)
    first_BS = view(wave_BS, lengths_B, seeded(3))
    torch.manual_seed(1)
    assert torch.equal(view(wave_BS, lengths_B, seeded(3)), first_BS)
    assert not torch.equal(view(wave_BS, lengths_B, seeded(4)), first_BS)
    state = torch.random.get_rng_state()
    view(wave_BS, lengths_B, seeded(3))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("view", ALONE)
def test_neighbours_change_nothing(view: View) -> None:
    wave_BS, lengths_B = batch([200, 150, 200, 60])
    other_BS, other_lengths_B = batch([1, 150, 120, 200], seed=2)
    other_BS[1] = wave_BS[1]
    one_BS, two_BS = view(wave_BS, lengths_B, seeded()), view(other_BS, other_lengths_B, seeded())
    assert torch.equal(one_BS[1], two_BS[1]) and not torch.equal(one_BS[2], two_BS[2])


def test_gains_are_uniform_in_decibels() -> None:
    gains_B = random_gain(torch.ones(4_000, 2), most_db=6.0, generator=seeded())
    assert torch.equal(gains_B[:, 0], gains_B[:, 1])
    decibels = 20 * gains_B[:, 0].double().log10().numpy()
    assert stats.kstest(decibels, stats.uniform(-6, 12).cdf).pvalue > 0.01


@pytest.mark.parametrize("babble", [0.0, 1.0])
@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 17.5])
def test_the_ratio_is_the_one_asked_for(babble: float, snr_db: float) -> None:
    wave_BS, lengths_B = batch([1, 7, 2_000, 4_000, 1_234], padding=500)
    noisy_BS = add_noise(
        wave_BS, lengths_B, snr_db=(snr_db, snr_db), share=1.0, generator=seeded(), babble=babble
    )
    for row_S, noisy_S in zip(wave_BS, noisy_BS, strict=True):
        assert measured_db(row_S, noisy_S - row_S) == pytest.approx(snr_db, abs=2e-3)


def test_ratios_and_share_are_those_asked_for() -> None:
    wave_BS, lengths_B = batch([40] * 3_000)
    noisy_BS = add_noise(wave_BS, lengths_B, snr_db=(3.0, 9.0), share=0.25, generator=seeded())
    rows = zip(wave_BS, noisy_BS, strict=True)
    ratios = [measured_db(row, noisy - row) for row, noisy in rows if not torch.equal(row, noisy)]
    assert len(ratios) / 3_000 == pytest.approx(0.25, abs=0.03)
    assert stats.kstest(ratios, stats.uniform(3, 6).cdf).pvalue > 0.01


def test_a_babble_is_made_of_three_other_rows() -> None:
    levels = torch.tensor([0.9, 0.01, 0.3, 0.1, 0.5, 0.02])
    wave_BS, lengths_B = levels.diag().repeat_interleave(50, 1), torch.full((6,), 300)
    added_BS = noise(wave_BS, lengths_B, seeded(), babble=1.0) - wave_BS
    energy = added_BS.square().reshape(6, 6, 50).sum(2)
    energy = energy / energy.sum(1, keepdim=True)
    assert not energy.diagonal().any()
    for shares in energy:
        assert sorted(shares.tolist()) == pytest.approx([0, 0, 0, 1 / 3, 1 / 3, 1 / 3], abs=1e-5)
    pairs = noise(wave_BS[:2], lengths_B[:2], seeded(), babble=1.0) - wave_BS[:2]
    assert not pairs[0, :50].any() and pairs[0, 50:100].all() and not pairs[:, 100:].any()


@pytest.mark.parametrize("lengths", [[300], [300, 200]])
def test_where_no_other_row_is_heard_the_noise_is_coloured(lengths: list[int]) -> None:
    wave_BS, lengths_B = batch(lengths)
    wave_BS[1:] = 0.0
    seen_BS = noise(wave_BS, lengths_B, seeded(), babble=1.0)
    assert 0 < measured_db(wave_BS[0], seen_BS[0] - wave_BS[0]) < 20
    assert not seen_BS[1:].any()


def test_noise_is_between_white_and_pink() -> None:
    noise_BS = coloured_noise(300, 1 << 15, seeded()).double()
    power = torch.fft.rfft(noise_BS).abs().square().numpy()
    hertz = np.fft.rfftfreq(1 << 15, 1 / 16_000)
    octaves = [power[:, (hertz >= low) & (hertz < 2 * low)].mean(1) for low in 31.25 * 2.0 ** np.arange(8)]
    slopes = np.polyfit(np.arange(8), np.log2(octaves), 1)[0]  # per octave: 0 is white, -1 pink
    assert stats.kstest(slopes, stats.uniform(-1, 1).cdf).pvalue > 0.01
    below = power[:, hertz < 20].sum(1) / power.sum(1)
    assert below.max() < 0.25, "not lost on what cannot be heard"


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_rows_are_rolled_within_their_length(lengths: list[int], seed: int) -> None:
    wave_BS, lengths_B = batch(lengths, padding=5)
    seen_BS = shift(wave_BS, lengths_B, seeded(seed))
    drawn = torch.randint(-160, 161, (len(lengths),), generator=seeded(seed))
    for row_S, seen_S, length, step in zip(wave_BS, seen_BS, lengths, drawn.tolist(), strict=True):
        assert torch.equal(seen_S[:length], row_S[:length].roll(step))


def test_shifts_go_as_far_as_asked_and_no_further() -> None:
    wave_BS = torch.zeros(2_000, 100)
    wave_BS[:, 50] = 1.0
    seen_BS = time_shift(wave_BS, torch.full((2_000,), 100), most_s=8 / 16_000, generator=seeded())
    assert set(seen_BS.argmax(1).tolist()) == set(range(42, 59))


def test_mixtures_are_what_they_say() -> None:
    wave_BS, lengths_B = batch([300, 120, 1, 300, 77], padding=9)
    seen_BS, partner_B, weight_B = mixup(wave_BS, lengths_B, alpha=1.0, share=1.0, generator=seeded(1))
    for row, (partner, weight) in enumerate(zip(partner_B.tolist(), weight_B.tolist(), strict=True)):
        assert partner != row and 0 < weight < 1
        length = int(lengths_B[row])
        own_S = wave_BS[row, :length].double()
        other_S = wave_BS[partner, : lengths_B[partner]].double().repeat(length)[:length]
        other_S *= own_S.norm() / other_S.norm()
        expected_S = weight * own_S + (1 - weight) * other_S
        torch.testing.assert_close(seen_BS[row, :length].double(), expected_S, rtol=1e-5, atol=1e-7)


def test_rows_left_alone_keep_their_bits() -> None:
    wave_BS, lengths_B = batch([50] * 2_000)
    mixed = mixup(wave_BS, lengths_B, alpha=1.0, share=0.3, generator=seeded())
    alone_B = mixed.weight_B == 1.0
    assert float(alone_B.float().mean()) == pytest.approx(0.7, abs=0.04)
    assert torch.equal(mixed.partner_B == torch.arange(2_000), alone_B)
    assert torch.equal(mixed.wave_BS[alone_B], wave_BS[alone_B])
    assert (mixed.wave_BS != wave_BS)[~alone_B].any(1).all()
    single = mixup(wave_BS[:1], lengths_B[:1], alpha=1.0, share=1.0, generator=seeded())
    assert torch.equal(single.wave_BS, wave_BS[:1]) and single.weight_B.tolist() == [1.0]


def test_every_other_row_is_a_partner() -> None:
    wave_BS, lengths_B = batch([4] * 5)
    seen: set[tuple[int, int]] = set()
    for seed in range(80):
        mixed = mixup(wave_BS, lengths_B, alpha=1.0, share=1.0, generator=seeded(seed))
        seen |= set(enumerate(mixed.partner_B.tolist()))
    assert seen == {(row, partner) for row in range(5) for partner in range(5) if row != partner}


def test_a_silent_row_is_mixed_with_what_its_partner_is() -> None:
    wave_BS, lengths_B = batch([100, 100])
    wave_BS[0] = 0.0
    mixed = mixup(wave_BS, lengths_B, alpha=1.0, share=1.0, generator=seeded())
    torch.testing.assert_close(mixed.wave_BS[0], (1 - mixed.weight_B[0]) * wave_BS[1])
    torch.testing.assert_close(mixed.wave_BS[1], mixed.weight_B[1] * wave_BS[1])


def mixed_with(mixing: Mixing, wave_BS: Tensor, lengths_B: Tensor, seed: int = 0) -> Tensor:
    return mix_utterances(wave_BS, lengths_B, mixing, seeded(seed))


def test_only_a_part_of_some_rows_is_mixed() -> None:
    """Of a share of them; at most half of each, anywhere, and of any length up to that."""
    wave_BS, lengths_B = batch([400] * 3_000, padding=30)
    added_BS = mixed_with(Mixing(share=0.3), wave_BS, lengths_B) != wave_BS
    rows_B = added_BS.any(1)
    assert float(rows_B.float().mean()) == pytest.approx(0.3, abs=0.03)
    touched_BS = added_BS[rows_B].double()
    first_B, last_B = touched_BS.argmax(1), 429 - touched_BS.flip(1).argmax(1)
    part_B = (last_B - first_B + 1).numpy()
    assert stats.kstest(part_B, stats.uniform(0, 200).cdf).pvalue > 0.01
    assert part_B.max() <= 200 and first_B.min() == 0 and last_B.max() == 399
    middle_B = (first_B + last_B) / 2
    assert float(middle_B.double().mean()) == pytest.approx(199.5, abs=10)


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, -5.0, 5.0), (1.0, -5.0, 20.0)])
def test_ratios_of_energies_are_uniform_in_decibels(noise: float, low: float, high: float) -> None:
    """What is added is seen whole where a row may be mixed all over: where the part is nearly the row."""
    wave_BS, lengths_B = batch([2_000] * 1_500)
    mixing = Mixing(share=1.0, noise=noise, longest=1.0)
    added_BS = mixed_with(mixing, wave_BS, lengths_B) - wave_BS
    whole_B = (added_BS != 0).sum(1) > 500
    power_B = added_BS.double().square().sum(1) / (added_BS != 0).sum(1)
    own_B = wave_BS.double().square().mean(1)
    decibels = 10 * (own_B / power_B).log10()[whole_B].numpy()
    assert decibels.mean() == pytest.approx((low + high) / 2, abs=0.6)
    assert decibels.std() == pytest.approx((high - low) / 12**0.5, rel=0.12)


def test_what_is_added_is_a_stretch_of_another_row() -> None:
    """Rows of one value each: by the ratio of 0 dB all are as loud as the row that they are added to."""
    wave_BS = torch.tensor([[1.0], [2.0], [3.0], [4.0]]) * torch.ones(4, 50)
    lengths_B = torch.tensor([50, 50, 50, 50])
    mixing = Mixing(share=1.0, noise=0.0, speech_db=(0.0, 0.0))
    added_BS = mixed_with(mixing, wave_BS, lengths_B) - wave_BS
    for row_S, added_S in zip(wave_BS, added_BS, strict=True):
        torch.testing.assert_close(added_S[added_S != 0], row_S[added_S != 0])
    ramp_BS = torch.stack([torch.zeros(50) + 1.0, torch.arange(1.0, 51.0)])
    added_S = (mixed_with(mixing, ramp_BS, lengths_B[:2]) - ramp_BS)[0]
    heard_S = added_S[added_S != 0]
    steps_S = heard_S.diff() / (ramp_BS[0].norm() / ramp_BS[1].norm())
    assert len(heard_S) > 2 and ((steps_S - 1).abs() < 1e-3).sum() >= len(steps_S) - 1  # it may begin again


def test_a_row_alone_is_mixed_with_noise_or_nothing() -> None:
    wave_BS, lengths_B = batch([300])
    assert torch.equal(mixed_with(Mixing(share=1.0, noise=0.0), wave_BS, lengths_B), wave_BS)
    assert not torch.equal(mixed_with(Mixing(share=1.0, noise=1.0), wave_BS, lengths_B), wave_BS)
    silent_BS = torch.zeros(2, 300)
    assert not mixed_with(Mixing(share=1.0), silent_BS, torch.tensor([300, 300])).any()
    assert mix_utterances(wave_BS, lengths_B, None, seeded()) is wave_BS


@pytest.mark.parametrize("alpha", [0.01, 0.4, 1.0, 8.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    draws = beta(alpha, 20_000, seeded()).double().numpy()
    expected = stats.beta(alpha, alpha)
    assert draws.mean() == pytest.approx(0.5, abs=4 * expected.std() / 20_000**0.5)
    assert draws.var() == pytest.approx(expected.var(), rel=0.03)
    # In the middle: near 1, float32 has not the values that a small alpha gives.
    for edge in (0.1, 0.5, 0.9):
        assert (draws < edge).mean() == pytest.approx(expected.cdf(edge), abs=0.015)


def test_speech_keeps_its_ratio(prompts) -> None:
    waves = [
        soundfile.read(prompts / "audio" / f"{name}.flac", dtype="float32")[0] for name in ("hello", "sorry")
    ]
    lengths_B = torch.tensor([len(wave) for wave in waves])
    wave_BS = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)
    noisy_BS = add_noise(wave_BS, lengths_B, snr_db=(10.0, 10.0), share=1.0, generator=seeded())
    for row_S, noisy_S in zip(wave_BS, noisy_BS, strict=True):
        assert measured_db(row_S, noisy_S - row_S) == pytest.approx(10, abs=1e-3)


def test_what_cannot_be_asked_for() -> None:
    wave_BS, lengths_B = batch([10, 10])
    with pytest.raises(ValueError, match="most_db must be at least 0"):
        random_gain(wave_BS, most_db=-1.0, generator=seeded())
    with pytest.raises(ValueError, match="lowest, highest"):
        add_noise(wave_BS, lengths_B, snr_db=(9.0, 3.0), share=1.0, generator=seeded())
    with pytest.raises(ValueError, match="most_s must be at least 0"):
        time_shift(wave_BS, lengths_B, most_s=-0.1, generator=seeded())
    with pytest.raises(ValueError, match="alpha must be at least 0.01"):
        mixup(wave_BS, lengths_B, alpha=0.0, share=1.0, generator=seeded())
    with pytest.raises(ValueError, match="longest of Mixing is within 0 and 1"):
        Mixing(longest=1.2)
    with pytest.raises(ValueError, match="speech_db of Mixing must be"):
        Mixing(speech_db=(3.0, 2.0))
    with pytest.raises(ValueError, match="share must be within 0 and 1"):
        mixup(wave_BS, lengths_B, alpha=1.0, share=1.5, generator=seeded())
