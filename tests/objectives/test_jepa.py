"""JEPA's loss against a transcription part by part, and what is visible to whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speech_ssl.model.config import Conformer, Rotary
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.jepa import JEPA, JEPAConfig, draw_parts
from speech_ssl.types import Frames, valid_mask
from tests.objectives.test_teacher import mean_of_top
from tests.test_objective_contract import QUIET, tones

pytestmark = pytest.mark.numerical

CONFIG = JEPAConfig(top=2, targets=3, predictor_width=16, predictor_layers=2, predictor_heads=2)


def small() -> JEPA:
    torch.manual_seed(0)
    model = CONFIG.build(Encoder(QUIET))
    with torch.no_grad():
        for number in (*model.predictor.parameters(), *model.teacher.parameters()):
            number.add_(0.05 * torch.randn_like(number))
    return model


def test_parts_are_apart_from_the_context_and_within_the_row() -> None:
    lengths_B = torch.tensor([200] * 50 + [40, 12, 3, 2, 1])
    context_BT, target_BGT = draw_parts(lengths_B, 210, JEPAConfig(), torch.Generator().manual_seed(0))
    valid_BT = valid_mask(lengths_B, 210)
    assert not (context_BT & target_BGT.any(1)).any()
    assert not (context_BT & ~valid_BT).any() and not (target_BGT.any(1) & ~valid_BT).any()
    assert (context_BT.sum(1) >= (0.1 * lengths_B).ceil()).all()
    shares = [context_BT[:50].float().mean() * 210 / 200, target_BGT[:50].float().mean() * 210 / 200]
    overlapping = 1 - (1 - 1 / 191) ** (200 * 0.65 / 10 * 10)  # of a frame by spans of ten, about
    assert 0.5 * overlapping * 0.8**4 < float(shares[0]) < 1.1 * overlapping
    assert 0.18 < float(shares[1]) < 0.25
    assert not torch.equal(target_BGT[:, 0], target_BGT[:, 1])


@torch.no_grad()
def test_total_is_that_of_each_part_of_each_row_alone() -> None:
    """The predictor is given the context and the places of one part, nothing else, and no padding."""
    model, batch = small(), tones(1)
    loss = model(batch, generator=torch.Generator().manual_seed(3))
    features = model.features(batch)
    context_BT, target_BGT = draw_parts(
        features.lengths_B, features.x_BTD.shape[1], CONFIG, torch.Generator().manual_seed(3)
    )
    total, frames = 0.0, 0
    for row, length in enumerate(features.lengths_B.tolist()):
        alone = Frames(features.x_BTD[row : row + 1, :length], torch.tensor([length]))
        target = mean_of_top(model.teacher.model, alone.x_BTD[0], 2, "block")
        seen_T = context_BT[row, :length]
        entering = model.encoder.entering(alone, ~seen_T[None]).x_BTD[:, seen_T]
        *_, known = model.encoder.blockwise_from(Frames(entering, seen_T.sum()[None]))
        for part_T in target_BGT[row, :, :length]:
            predictor, asked = model.predictor, part_T.nonzero()[:, 0]
            x_TP = torch.zeros(length, 16)
            x_TP[seen_T], x_TP[asked] = predictor.narrow(known[0]), predictor.asked
            places = predictor.positions(Frames(x_TP[None], alone.lengths_B))[0]
            x_1TP = (x_TP + places)[None, torch.cat([seen_T.nonzero()[:, 0], asked])]
            for block in predictor.blocks:
                x_1TP = block(x_1TP, torch.ones(1, 1, 1, x_1TP.shape[1], dtype=torch.bool))
            predicted = predictor.widen(predictor.norm(x_1TP))[0, -len(asked) :].double()
            total += float((predicted - target[asked]).square().mean(1).sum())
            frames += len(asked)
    assert int(loss.count) == frames
    assert float(loss.total) == pytest.approx(total, rel=1e-4)


def test_what_is_asked_for_is_hidden_from_the_context() -> None:
    """Whatever the features of asked frames are, context vectors are the same."""
    model, batch = small(), tones(1)
    features = model.features(batch)
    context_BT, target_BGT = draw_parts(
        features.lengths_B, features.x_BTD.shape[1], CONFIG, torch.Generator().manual_seed(3)
    )
    changed_BTC = torch.where(target_BGT.any(1)[:, :, None], 9.0, features.x_BTD)
    once, _ = model.encoder.visible(features, ~context_BT)
    again, _ = model.encoder.visible(Frames(changed_BTC, features.lengths_B), ~context_BT)
    torch.testing.assert_close(once.x_BTD, again.x_BTD)


def test_encoders_that_need_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="visible frames alone"):
        CONFIG.build(Encoder(replace(QUIET, block=Conformer(), positions=Rotary())))
