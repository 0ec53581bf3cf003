"""data2vec's loss against a row-by-row transcription, and what a perfect, blind or collapsed model gets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.data2vec import Data2Vec, Data2VecConfig
from speech_ssl.objectives.masking import hide_spans
from speech_ssl.objectives.teacher import regression, told
from speech_ssl.training.health import fallen
from speech_ssl.types import Frames, LossSum
from tests.objectives.test_teacher import mean_of_top
from tests.test_objective_contract import QUIET, tones

pytestmark = pytest.mark.numerical


def small(**changes: object) -> Data2Vec:
    torch.manual_seed(0)
    model = replace(Data2VecConfig(top=2), **changes).build(Encoder(QUIET))  # type: ignore[arg-type]
    with torch.no_grad():
        for number in model.teacher.parameters():  # no longer its student
            number.add_(0.05 * torch.randn_like(number))
    return model


@torch.no_grad()
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_total_is_that_of_the_paper(beta: float) -> None:
    """Equation of section 3.4, frame by frame: 1/2 (y - f)^2 / beta within beta, |y - f| - beta / 2 beyond;
    or the square. The student hears what is visible, the teacher everything."""
    model, batch = small(beta=beta), tones(1)
    loss = model(batch, generator=torch.Generator().manual_seed(3))
    features = model.features(batch)
    size = features.x_BTD.shape[1]
    hidden_BT = hide_spans(
        features.lengths_B, size, share=0.65, span=10, generator=torch.Generator().manual_seed(3)
    )
    total, frames = 0.0, 0
    for row, length in enumerate(features.lengths_B.tolist()):
        alone = Frames(features.x_BTD[row : row + 1, :length], torch.tensor([length]))
        context = model.encoder.contextualize(alone, hidden_BT=hidden_BT[row : row + 1, :length])
        predicted = model.predict(context.x_BTD)[0].double()
        target = mean_of_top(model.teacher.model, alone.x_BTD[0], 2, "feed_forward")
        for t in range(length):
            if hidden_BT[row, t]:
                away = (predicted[t] - target[t]).abs()
                smooth = torch.where(away <= beta, 0.5 * away**2 / (beta or 1), away - 0.5 * beta)
                total += float((smooth if beta else away**2).mean())
                frames += 1
    assert int(loss.count) == frames
    assert float(loss.total) == pytest.approx(total, rel=1e-4)


def reported(predicted_BMD: Tensor, target_BMD: Tensor) -> dict[str, float]:
    chosen_BM = torch.ones(target_BMD.shape[:2], dtype=torch.bool)
    metrics = told(torch.tensor(1.0), torch.randn_like(target_BMD), chosen_BM, chosen_BM.sum())
    sums: LossSum = regression(predicted_BMD, target_BMD, chosen_BM, metrics)
    means = {k: v / sums.count for k, v in sums.metrics.items()}
    return small().report(means) | {"loss": float(sums.total / sums.count)}


def test_perfect_blind_and_collapsed_models_are_told_apart() -> None:
    target_BMD = torch.randn(4, 500, 8) * torch.arange(1, 9).sqrt()
    perfect = reported(target_BMD, target_BMD)
    assert perfect["loss"] == 0 and perfect["explained"] == 1
    assert perfect["target_std"] == pytest.approx(sum(k**0.5 for k in range(1, 9)) / 8, rel=0.03)
    blind = reported(torch.zeros_like(target_BMD), target_BMD)
    assert blind["loss"] == pytest.approx(4.5, rel=0.05) and blind["explained"] == pytest.approx(0, abs=0.01)
    assert not fallen(blind, small().floors())
    one_direction = torch.randn(4, 500, 1) * torch.ones(8)
    collapsed = reported(one_direction, one_direction)
    assert fallen(collapsed, small().floors()) == ["target_rank"]
    same = reported(torch.ones(4, 500, 8), torch.ones(4, 500, 8))
    assert fallen(same, small().floors()) == ["target_std", "target_rank"]


def test_the_teacher_begins_as_the_student_that_was_read_and_then_follows() -> None:
    model = small()
    student = dict(model.encoder.named_parameters())
    model.prepare(iter(()), torch.Generator())
    copies = dict(model.teacher.model.named_parameters())
    assert all(torch.equal(copy, student[name]) for name, copy in copies.items())
    with torch.no_grad():
        for number in model.encoder.parameters():
            number.add_(1.0)
    before = {k: v.clone() for k, v in copies.items()}
    model.after_step(1.0)
    moved = {k: float((v - before[k]).mean()) for k, v in copies.items()}
    shared = ("feature_norm.", "feature_projection.", "positions.")
    for name, way in moved.items():
        assert way == pytest.approx(1.0 if name.startswith(shared) else 1e-4, rel=0.05), name


def test_no_more_layers_than_there_are() -> None:
    with pytest.raises(ValueError, match="top must be from 1 to the encoder's 3 layers, not 8"):
        Data2VecConfig().build(Encoder(QUIET))
