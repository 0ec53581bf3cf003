"""data2vec 2.0's loss against a transcription, row by row and copy by copy; no pass is repeated."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.config import Conformer, Rotary
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.data2vec2 import Data2Vec2, Data2Vec2Config, Decoder
from speech_ssl.objectives.masking import all_but_blocks
from speech_ssl.types import Frames
from tests.objectives.test_teacher import mean_of_top
from tests.test_objective_contract import QUIET, tones

pytestmark = pytest.mark.numerical

CONFIG = Data2Vec2Config(
    copies=3, top=2, decoder_width=48, decoder_layers=3, decoder_dropout=0.0, noise=0.0, decoder_groups=8
)


def small(**changes: object) -> Data2Vec2:
    torch.manual_seed(0)
    return replace(CONFIG, **changes).build(Encoder(QUIET))  # type: ignore[arg-type]


def decoded(decoder: Decoder, x_TD: Tensor) -> Tensor:
    """By torch's own convolution: residuals but where the width changes."""
    for layer in decoder.layers:
        y = F.conv1d(x_TD.T[None], layer.weight.double(), layer.bias.double(), padding=3, groups=8)[0].T
        y = F.gelu((y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt())
        x_TD = y if x_TD.shape != y.shape else x_TD + y
    return x_TD @ decoder.project.weight.double().T + decoder.project.bias.double()


@torch.no_grad()
def test_total_is_that_of_each_copy_of_each_row_alone() -> None:
    model, batch = small(), tones(1)
    loss = model(batch, generator=torch.Generator().manual_seed(3))
    features = model.features(batch)
    size, copies = features.x_BTD.shape[1], model.config.copies
    hidden_NT = all_but_blocks(
        features.lengths_B.repeat_interleave(copies),
        size,
        share=0.5,
        block=5,
        adjust=0.05,
        generator=torch.Generator().manual_seed(3),
    )
    total, frames = 0.0, 0
    for row, length in enumerate(features.lengths_B.tolist()):
        alone = Frames(features.x_BTD[row : row + 1, :length], torch.tensor([length]))
        target = mean_of_top(model.teacher.model, alone.x_BTD[0], 2, "feed_forward")
        for copy in range(copies):
            hidden_T = hidden_NT[row * copies + copy, :length]
            entering = model.encoder.entering(alone, hidden_T[None]).x_BTD[:, ~hidden_T]
            visible = Frames(entering, torch.tensor([entering.shape[1]]))
            *_, context = model.encoder.blockwise_from(visible)
            x_TD = torch.zeros(length, context.shape[2], dtype=torch.float64)
            x_TD[~hidden_T] = context[0].double()
            away = (decoded(model.decoder, x_TD) - target)[hidden_T]
            total += float(away.square().mean(1).sum())
            frames += int(hidden_T.sum())
    assert int(loss.count) == frames
    assert float(loss.total) == pytest.approx(total, rel=1e-4)


def test_front_end_and_teacher_hear_a_row_once_for_all_its_copies() -> None:
    model, batch, rows = small(), tones(1), Counter[str]()

    def count(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _, given, __: rows.update({name: len(given[0])}))

    count("front end", model.encoder.frontend)
    count("teacher", model.teacher.model.blocks[0])
    count("student", model.encoder.blocks[0])
    model(batch, generator=torch.Generator().manual_seed(0))
    assert rows == {"front end": 3, "teacher": 3, "student": 9}


def test_hidden_frames_are_noise_to_the_decoder() -> None:
    """Another draw changes the loss only where there is noise."""
    batch = tones(1)
    model = small(noise=0.5).eval()
    decoder, hidden_BT, lengths_B = model.decoder, torch.rand(2, 9) < 0.5, torch.tensor([9, 9])
    hidden_BT[:, 0] = False
    features = Frames(model.features(batch).x_BTD[:2, :9], lengths_B)
    context, position_BK = model.encoder.visible(features, hidden_BT)
    once, again = (
        decoder(context, position_BK, hidden_BT, lengths_B, torch.Generator().manual_seed(n)) for n in (0, 1)
    )
    assert not torch.equal(once, again)
    decoder.noise = 0.0
    once, again = (
        decoder(context, position_BK, hidden_BT, lengths_B, torch.Generator().manual_seed(n)) for n in (0, 1)
    )
    assert torch.equal(once, again)


def test_encoders_that_need_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="visible frames alone"):
        CONFIG.build(Encoder(replace(QUIET, block=Conformer(), positions=Rotary())))
