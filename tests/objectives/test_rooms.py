"""Synthetic rooms: how they decay, how much of them is heard, and whom."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.objectives.rooms import EARLIEST_S, reverberate
from speech_ssl.types import SAMPLE_RATE, valid_mask

pytestmark = pytest.mark.numerical


def click(rows: int, seconds: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    wave_BS = torch.zeros(rows, round(seconds * SAMPLE_RATE))
    wave_BS[:, 0] = 1.0
    return wave_BS, torch.full((rows,), wave_BS.shape[1])


def responses(decay_s: float, direct_db: float, rows: int = 16) -> torch.Tensor:
    heard_BS = reverberate(
        *click(rows),
        share=1.0,
        generator=torch.Generator().manual_seed(0),
        decay_s=(decay_s, decay_s),
        direct_db=(direct_db, direct_db),
    )
    return heard_BS / heard_BS[:, :1]


@pytest.mark.parametrize("decay_s", [0.2, 0.5])
def test_energy_falls_by_sixty_decibels_in_the_decay_time(decay_s: float) -> None:
    """Of 16 rows, in two stretches a tenth of the decay time long and half of it apart: 30 dB."""
    tenth, first = round(decay_s * SAMPLE_RATE / 10), round(EARLIEST_S * SAMPLE_RATE)
    energy_S = responses(decay_s, 0.0).square().sum(0)
    early = energy_S[first : first + tenth].sum()
    late = energy_S[first + 5 * tenth : first + 6 * tenth].sum()
    assert float(10 * (early / late).log10()) == pytest.approx(30, abs=1)


@pytest.mark.parametrize("direct_db", [0.0, 12.0])
def test_what_comes_directly_has_its_share(direct_db: float) -> None:
    tail_B = responses(0.3, direct_db)[:, 1:].square().sum(1)
    assert (-10 * tail_B.log10()).tolist() == pytest.approx([direct_db] * len(tail_B), abs=0.01)
    assert not responses(0.3, direct_db)[:, 1 : round(EARLIEST_S * SAMPLE_RATE)].abs().max() > 1e-6


def test_a_share_of_the_rows_is_in_a_room_with_its_energy_kept() -> None:
    wave_BS = torch.randn(400, 800, generator=torch.Generator().manual_seed(1))
    lengths_B = torch.full((400,), 800)
    heard_BS = reverberate(wave_BS, lengths_B, share=0.3, generator=torch.Generator().manual_seed(0))
    moved_B = (heard_BS != wave_BS).any(1)
    assert 0.22 < float(moved_B.float().mean()) < 0.38
    torch.testing.assert_close(heard_BS.square().sum(1), wave_BS.square().sum(1), rtol=1e-4, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=2, max_size=5), st.integers(0, 40), st.integers(0, 9))
def test_padding_stays_zero_and_neighbours_change_nothing(
    lengths: list[int], padding: int, seed: int
) -> None:
    """The last row is silent."""
    lengths_B, most = torch.tensor(lengths), max(lengths) + padding + 1
    wave_BS = torch.randn(len(lengths), most, generator=torch.Generator().manual_seed(1))
    wave_BS = wave_BS.masked_fill(~valid_mask(lengths_B, most), 0.0)
    wave_BS[-1] = 0.0
    before_BS = wave_BS.clone()
    heard_BS, other_BS = (
        reverberate(x_BS, lengths_B, share=1.0, generator=torch.Generator().manual_seed(seed))
        for x_BS in (wave_BS, wave_BS * torch.tensor([1.0] + [0.5] * (len(lengths) - 1))[:, None])
    )
    assert torch.equal(wave_BS, before_BS) and torch.isfinite(heard_BS).all()
    assert not heard_BS[~valid_mask(lengths_B, most)].any() and not heard_BS[-1].any()
    assert torch.equal(heard_BS[0], other_BS[0])


@pytest.mark.parametrize(
    "numbers", [{"decay_s": (0.0, 0.3)}, {"decay_s": (0.4, 0.3)}, {"direct_db": (3.0, 1.0)}]
)
def test_rooms_that_cannot_be(numbers: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="lowest, highest"):
        reverberate(*click(1), share=1.0, generator=torch.Generator(), **numbers)
