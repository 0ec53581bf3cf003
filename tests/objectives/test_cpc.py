"""CPC: InfoNCE against a transcription with loops, and what a context that knows the future reaches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from speech_ssl.model import presets
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.cpc import CPC, CPCConfig, info_nce
from speech_ssl.types import Frames
from tests.objectives.methods import causal
from tests.objectives.narrow import ENCODER
from tests.test_objective_contract import fresh, tones

pytestmark = pytest.mark.numerical


def built() -> CPC:
    return CPCConfig(steps=3, negatives=7).build(Encoder(causal(ENCODER)))


def test_the_loss_is_equation_4_summed_over_pairs() -> None:
    objective = fresh(built).eval()
    assert isinstance(objective, CPC)
    batch, encoder = tones(1), objective.encoder
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        found = objective(batch, generator=torch.Generator().manual_seed(5))
        features = encoder.normalized(encoder.convolve(batch.wave_BS, batch.lengths_B))
        c_BTD = encoder.contextualize(features).x_BTD.double()
        z_BTC = features.x_BTD.double()
        negative_BTK = objective._drawn(features, generator)
        total, count = 0.0, 0
        for row, length in enumerate(features.lengths_B.tolist()):
            for k in range(1, 4):
                matrix = objective.predictors[k - 1].weight.double()
                for t in range(length - k):
                    predicted = matrix @ c_BTD[row, t]
                    places = [t + k, *(j for j in negative_BTK[row, t + k].tolist() if j != t + k)]
                    scores = [float(predicted @ z_BTC[row, j]) / z_BTC.shape[2] ** 0.5 for j in places]
                    total -= math.log(math.exp(scores[0]) / sum(map(math.exp, scores)))
                    count += 1
    assert float(found.count) == count
    assert float(found.total) == pytest.approx(total, rel=1e-4)


def test_scores_that_tell_nothing_cost_the_logarithm_of_the_choices() -> None:
    assert float(info_nce(torch.tensor(2.0), torch.full((9,), 2.0))) == pytest.approx(math.log(10))
    assert float(info_nce(torch.tensor(50.0), torch.zeros(9))) == pytest.approx(0.0, abs=1e-6)


def test_who_knows_the_future_wins() -> None:
    """Contexts that hold the next feature themselves, under a matrix that reads it out."""
    generator = torch.Generator().manual_seed(0)
    z_BTC = torch.nn.functional.one_hot(torch.arange(12) % 12).float()[None] * 40
    negative_BTK = torch.randint(12, (1, 12, 6), generator=generator)
    loss_BT, won_BT = CPC._step(z_BTC[:, 2:], z_BTC, negative_BTK, 2)
    assert float(loss_BT.max()) < 1e-3 and bool(won_BT.all())
    blind_BT, lost_BT = CPC._step(torch.zeros_like(z_BTC[:, 2:]), z_BTC, negative_BTK, 2)
    assert float(blind_BT.min()) > math.log(3) and not bool(lost_BT.any())


def test_later_audio_changes_no_earlier_context() -> None:
    objective = fresh(built).eval()
    x_BTC = torch.randn(1, 30, ENCODER.frontend.width)
    later_BTC = torch.cat([x_BTC[:, :20], torch.randn(1, 10, x_BTC.shape[2])], 1)

    def contexts(x: Tensor) -> Tensor:
        return objective.encoder.contextualize(Frames(x, torch.tensor([30]))).x_BTD[:, :20]

    with torch.no_grad():
        torch.testing.assert_close(contexts(x_BTC), contexts(later_BTC), atol=1e-5, rtol=0)


def test_an_encoder_that_sees_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="causal=True"):
        CPCConfig().build(Encoder(ENCODER))
    assert isinstance(CPCConfig().build(Encoder(presets.tiny().changed(block={"causal": True}))), nn.Module)
