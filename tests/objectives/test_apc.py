"""APC: the loss of equation 1 by hand, and what copying costs."""

from __future__ import annotations

import pytest
import torch

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.apc import APC, APCConfig
from speech_ssl.types import Batch
from tests.objectives.methods import causal, mel
from tests.objectives.narrow import ENCODER
from tests.test_objective_contract import fresh, tones

pytestmark = pytest.mark.numerical


def built() -> APC:
    return APCConfig(ahead=3).build(Encoder(mel(causal(ENCODER))))


def test_the_loss_is_equation_1_as_a_mean_over_bins() -> None:
    objective = fresh(built).eval()
    assert isinstance(objective, APC)
    batch = tones(1)
    with torch.no_grad():
        found = objective(batch, generator=torch.Generator())
        frames = objective.encoder.convolve(batch.wave_BS, batch.lengths_B)
        predicted_BTC = objective.predict(objective.encoder(batch.wave_BS, batch.lengths_B).x_BTD).double()
        total = copied = 0.0
        for row, length in enumerate(frames.lengths_B.tolist()):
            for t in range(length - 3):
                total += float((frames.x_BTD[row, t + 3] - predicted_BTC[row, t]).abs().mean())
                copied += float((frames.x_BTD[row, t + 3] - frames.x_BTD[row, t]).abs().mean())
    assert float(found.count) == sum(length - 3 for length in frames.lengths_B.tolist())
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert float(found.metrics["copied"]) == pytest.approx(copied, rel=1e-5)


def test_a_row_shorter_than_the_step_ahead_has_no_target() -> None:
    objective = fresh(built)
    batch = Batch(torch.randn(1, 900), torch.tensor([900]))
    found = objective(batch, generator=torch.Generator())
    assert float(found.count) == float(found.total.detach()) == 0
    found.total.backward()


def test_encoders_that_do_not_fit_are_refused() -> None:
    for config in (ENCODER, mel(ENCODER), causal(ENCODER)):
        with pytest.raises(ValueError, match="LogMel front end and a block with causal=True"):
            APCConfig().build(Encoder(config))
    with pytest.raises(ValueError, match="at least 1"):
        APCConfig(ahead=0).build(Encoder(mel(causal(ENCODER))))
