"""SpidR's loss against a transcription layer by layer, and how its teacher slows down."""

from __future__ import annotations

import math

import pytest
import torch

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.masking import hide_spans
from speech_ssl.objectives.spidr import SpidR, SpidRConfig
from speech_ssl.types import Frames
from tests.objectives.test_dinosr import codes_of
from tests.test_objective_contract import QUIET, tones

pytestmark = pytest.mark.numerical


def small() -> SpidR:
    torch.manual_seed(0)
    return SpidRConfig(top=2, entries=12, hidden_share=0.6).build(Encoder(QUIET))


@torch.no_grad()
def test_each_layer_predicts_the_codes_of_the_teachers_same_layer() -> None:
    model, batch = small(), tones(1)
    loss = model(batch, generator=torch.Generator().manual_seed(3))
    features = model.features(batch)
    hidden_BT = hide_spans(
        features.lengths_B,
        features.x_BTD.shape[1],
        share=0.6,
        span=10,
        generator=torch.Generator().manual_seed(3),
    )
    total, right = 0.0, 0
    for row, length in enumerate(features.lengths_B.tolist()):
        alone = Frames(features.x_BTD[row : row + 1, :length], torch.tensor([length]))
        states = list(model.encoder.blockwise(alone, hidden_BT[row : row + 1, :length]))
        for layer in (-2, -1):
            codes = codes_of(model, alone.x_BTD[0], layer)  # type: ignore[arg-type]
            log_p_TV = model.heads[layer](states[layer])[0].double().log_softmax(-1)
            for t in range(length):
                if hidden_BT[row, t]:
                    total -= float(log_p_TV[t, codes[t]]) / 2
                    right += int(log_p_TV[t].argmax()) == codes[t]
    assert float(loss.total) == pytest.approx(total, rel=1e-4)
    assert float(loss.metrics["accuracy"]) == pytest.approx(right / 2, rel=1e-4)


def test_a_head_moves_its_layer_and_those_below_alone() -> None:
    model = small()
    with torch.no_grad():
        model.heads[1].weight.zero_()  # the last layer's head says nothing
    model(tones(1), generator=torch.Generator().manual_seed(0)).total.backward()
    first, second, third = (block.ffn.down.weight.grad.abs().sum() for block in model.encoder.blocks)
    assert first > 0 and second > 0 and third == 0


def test_the_teachers_rate_falls_exponentially() -> None:
    teacher = small().teacher
    for progress in (0.0, 0.05, 0.3):
        rate = 0.001 * math.exp(-progress * 400_000 / 20_000)
        assert 1 - teacher.tau(progress) == pytest.approx(rate, rel=1e-6)
    with pytest.raises(ValueError, match="timescale"):
        SpidRConfig(top=2, timescale=0.0).build(Encoder(QUIET))
