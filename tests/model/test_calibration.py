"""Temperatures of logits: against scipy's minimum, and what may not change."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F

from speech_ssl.model.heads.calibration import SHARPEST, inverse_temperature

pytestmark = pytest.mark.numerical


def clips(exclusive: bool, temperature: float, n: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `temperature` times too large for the labels drawn from them."""
    generator = torch.Generator().manual_seed(0)
    logits_NK = 2 * torch.randn(n, 5, generator=generator)
    if exclusive:
        drawn_N = torch.multinomial(logits_NK.softmax(-1), 1, generator=generator)[:, 0]
        return temperature * logits_NK, F.one_hot(drawn_N, 5).float()
    return temperature * logits_NK, (torch.rand(n, 5, generator=generator) < logits_NK.sigmoid()).float()


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_labels_drawn_from_scaled_logits_are_told_their_scale(exclusive: bool, temperature: float) -> None:
    found = inverse_temperature(*clips(exclusive, temperature), exclusive=exclusive)
    assert found * temperature == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("exclusive", [True, False])
def test_it_is_the_minimum_of_the_smoothed_loss(exclusive: bool) -> None:
    """Against scipy's search, with the smoothing of one clip more for each label written out."""
    logits_NK, targets_NK = (part.double() for part in clips(exclusive, 2.5, n=40))
    smooth_NK = (40 * targets_NK + 1) / (45 if exclusive else 42)

    def loss(log_scale: float) -> float:
        scaled_NK = float(np.exp(log_scale)) * logits_NK
        if exclusive:
            return float(F.cross_entropy(scaled_NK, smooth_NK))
        return float(F.binary_cross_entropy_with_logits(scaled_NK, smooth_NK))

    best = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    found = inverse_temperature(logits_NK, targets_NK, exclusive=exclusive)
    assert found == pytest.approx(float(np.exp(best.x)), rel=1e-4)


def test_few_clips_that_are_all_right_do_not_make_it_sure() -> None:
    """Three clips, margins of 4: without smoothing the likelihood grows for ever."""
    scale = inverse_temperature(4 * torch.eye(3), torch.eye(3), exclusive=True)
    assert scale < 1
    assert (scale * 4 * torch.eye(3)).softmax(-1).diagonal().tolist() == pytest.approx([4 / 6] * 3, abs=1e-6)


def test_logits_that_say_nothing_stay_in_bounds() -> None:
    wrong = inverse_temperature(torch.eye(3).roll(1, 0), torch.eye(3), exclusive=True)
    assert wrong == pytest.approx(1 / SHARPEST, rel=1e-6)
    assert 1 / SHARPEST <= inverse_temperature(torch.zeros(3, 3), torch.eye(3), exclusive=True) <= SHARPEST
