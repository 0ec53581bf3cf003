"""The masked prediction of units against the paper, literally, and what is heard and labelled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.hubert import CosineHead, HuBERT, HuBERTConfig
from speech_ssl.objectives.masking import hide_spans
from speech_ssl.objectives.views import Mixing
from speech_ssl.types import Batch, LossSum
from tests.test_objective_contract import ENCODER, QUIET, tones

pytestmark = pytest.mark.numerical


def endless() -> Iterator[Batch]:
    number = 0
    while True:
        number += 1
        yield tones(number)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(**changes: Any) -> HuBERT:
    torch.manual_seed(0)
    small = {"clusters": 8, "fit_frames": 400, "final_width": 16, "feature_penalty": 0.0, **changes}
    objective = HuBERTConfig(**small).build(Encoder(QUIET))
    objective.prepare(endless(), seeded())
    return objective


def paper_loss(objective: HuBERT, batch: Batch, seed: int) -> Tensor:
    """Equations 1 to 3, frame by frame: alpha times the hidden frames' -log p(z_t), and 1 - alpha times the
    visible ones', p a softmax of cosine similarities over tau."""
    encoder, config = objective.encoder.double(), objective.config
    features = encoder.normalized(encoder.convolve(batch.wave_BS.double(), batch.lengths_B))
    size, spans = features.x_BTD.shape[1], (config.hidden_share, config.hidden_span)
    hidden_BT = hide_spans(features.lengths_B, size, share=spans[0], span=spans[1], generator=seeded(seed))
    o_BTD = encoder.contextualize(features, hidden_BT=hidden_BT).x_BTD
    encoder.float()
    z_BT = objective.units(batch, encoder)
    A, bias = objective.head.project.weight.double(), objective.head.project.bias.double()
    e_VD = objective.head.codes_VD.double()
    hidden = visible = torch.zeros((), dtype=torch.float64)
    for b, length in enumerate(features.lengths_B.tolist()):
        for t in range(length):
            projected_D = A @ o_BTD[b, t] + bias
            similar = [torch.cosine_similarity(projected_D, e_D, dim=0) / config.tau for e_D in e_VD]
            p = similar[z_BT[b, t]].exp() / torch.stack(similar).exp().sum()
            if hidden_BT[b, t]:
                hidden = hidden - p.log()
            else:
                visible = visible - p.log()
    return config.alpha * hidden + (1 - config.alpha) * visible


@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.0])
def test_the_loss_is_the_papers(alpha: float) -> None:
    objective, batch = made(alpha=alpha, hidden_share=0.5, hidden_span=4).eval(), tones(1)
    with torch.no_grad():
        sums = objective(batch, generator=seeded(5))
        expected = paper_loss(objective, batch, 5)
    assert float(sums.total) == pytest.approx(float(expected), rel=1e-5)
    valid = float(objective.encoder.frame_count(batch.lengths_B).sum())
    counted = float(sums.count) / valid
    assert counted == 1 if 0 < alpha < 1 else 0.3 < counted < 0.7


def test_a_perfect_and_a_blind_head() -> None:
    """Codes at right angles: met exactly they have a cosine of 1 and all others 0, and to one who hears
    nothing each is as likely."""
    head = CosineHead(8, 8, 8, tau=0.1)
    with torch.no_grad():
        head.codes_VD.copy_(torch.eye(8))
        head.project.weight.copy_(torch.eye(8))
        head.project.bias.zero_()
        logits_NV = head(3.0 * torch.eye(8))
        loss = torch.nn.functional.cross_entropy(logits_NV, torch.arange(8))
        assert float(loss) == pytest.approx(math.log(1 + 7 * math.exp(-10)), rel=1e-3)
        head.project.weight.zero_()
        head.project.bias.fill_(0.5)
        blind = torch.nn.functional.cross_entropy(head(torch.randn(8, 8)), torch.arange(8))
    assert float(blind) == pytest.approx(math.log(8))


def test_what_a_blind_model_reports() -> None:
    objective = made().eval()
    with torch.no_grad():
        objective.head.codes_VD.copy_(torch.ones_like(objective.head.codes_VD))
        sums = objective(tones(1), generator=seeded())
    report = objective.report({k: v / sums.count for k, v in sums.metrics.items()})
    assert report["cross_entropy"] == pytest.approx(math.log(8))
    assert report["guess_perplexity"] == pytest.approx(1)
    assert 1 < report["unit_perplexity"] <= 8
    assert report["chance"] >= 1 / 8


def heard(objective: HuBERT, batch: Batch, seed: int) -> tuple[LossSum, Tensor, Tensor]:
    """The loss, the wave that the encoder heard, and the one that was labelled."""
    seen: dict[str, Tensor] = {}
    convolve, label = objective.encoder.convolve, objective.units.forward

    def convolving(wave_BS: Tensor, *rest: Any) -> Any:
        seen["heard"] = wave_BS
        return convolve(wave_BS, *rest)

    def labelling(batch: Batch, encoder: Encoder) -> Tensor:
        seen["labelled"] = batch.wave_BS
        return label(batch, encoder)

    objective.encoder.convolve, objective.units.forward = convolving, labelling  # type: ignore[method-assign]
    sums = objective(batch, generator=seeded(seed))
    return sums, seen["heard"], seen["labelled"]


def test_rows_are_mixed_in_training_and_units_are_of_the_clean_ones() -> None:
    objective, batch = made(mixing=Mixing(share=1.0)), tones(1)
    sums, heard_BS, labelled_BS = heard(objective, batch, 3)
    assert torch.equal(labelled_BS, batch.wave_BS)
    assert (heard_BS != batch.wave_BS).any(1).all()
    sums.total.backward()
    held_out, heard_BS, _ = heard(objective.eval(), batch, 3)
    assert torch.equal(heard_BS, batch.wave_BS)
    assert torch.equal(held_out.total, made()(batch, generator=seeded(3)).total)


def test_units_of_mfccs_that_came_with_the_weights_are_kept() -> None:
    """Not those of a layer: they may be of another teacher's."""
    objective = made()
    before = {k: v.clone() for k, v in objective.units.state_dict().items()}
    objective.prepare(endless(), seeded(9))
    assert before and all(torch.equal(objective.units.state_dict()[k], v) for k, v in before.items())
    second = HuBERTConfig(units=1, clusters=8, fit_frames=400).build(Encoder(QUIET))
    second.learn_from([Encoder(replace(QUIET, depth=1))])
    second.units.kmeans.counts_K.fill_(3.0)
    second.prepare(endless(), seeded(9))
    assert second.units.kmeans.centroids_KD.any()


def test_a_layer_needs_a_teacher_that_has_it() -> None:
    objective = HuBERTConfig(units=2).build(Encoder(ENCODER))
    with pytest.raises(ValueError, match="HuBERT learns from 1 encoders, not 0"):
        objective.learn_from([])
    with pytest.raises(ValueError, match="the teacher has layers 0 to 3, not 7"):
        HuBERTConfig(units=7).build(Encoder(ENCODER)).learn_from([Encoder(QUIET)])
    with pytest.raises(ValueError, match="alpha is a weight"):
        HuBERTConfig(alpha=1.5)
