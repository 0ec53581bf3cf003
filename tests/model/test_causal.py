"""Encoders that see less: causal ones, and those of visible frames alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speech_ssl.model import presets
from speech_ssl.model.config import Conformer, EncoderConfig, Rotary
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.flat import flat_of, hashed
from speech_ssl.types import Frames
from tests.model.test_encoder import randomized

pytestmark = pytest.mark.numerical


def test_visible_frames_alone_are_what_they_are_with_hidden_ones_kept_out_of_attention() -> None:
    """As padding is: the context of the visible frames, in their order, at their places."""
    encoder = randomized(presets.tiny().changed(depth=2)).eval()
    features = Frames(torch.randn(3, 20, encoder.config.frontend.width), torch.tensor([20, 13, 20]))
    hidden_BT = torch.rand(3, 20) < 0.5
    with torch.no_grad():
        found, position_BK = encoder.visible(features, hidden_BT)
        entering = encoder.entering(features, hidden_BT)
        for row in range(3):
            kept = [t for t in range(int(features.lengths_B[row])) if not hidden_BT[row, t]]
            assert position_BK[row, : len(kept)].tolist() == kept and int(found.lengths_B[row]) == len(kept)
            alone = Frames(entering.x_BTD[row : row + 1, kept], torch.tensor([len(kept)]))
            *_, wanted = encoder.blockwise_from(alone)
            torch.testing.assert_close(found.x_BTD[row, : len(kept)], wanted[0], atol=1e-5, rtol=1e-4)
        assert not found.x_BTD[~found.valid_BT].any()
    conformer = Encoder(replace(presets.tiny(), block=Conformer(), positions=Rotary()))
    with pytest.raises(ValueError, match="convolutional positions"):
        conformer.visible(features, hidden_BT)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_causal_blocks_see_nothing_that_comes_later(precision: torch.dtype) -> None:
    """Neither in attention nor through the positions; what was before changes what follows."""
    config = presets.tiny().changed(depth=2, block={"causal": True})
    encoder = randomized(config).eval().to(precision)
    x_BTD = torch.randn(2, 20, config.frontend.width, dtype=precision)
    other_BTD = x_BTD.clone()
    other_BTD[:, 12:] += 1.0
    lengths_B = torch.tensor([20, 15])
    with torch.no_grad():
        first, second = (encoder.contextualize(Frames(x, lengths_B)).x_BTD for x in (x_BTD, other_BTD))
        alone = encoder.contextualize(Frames(x_BTD[:, :12], torch.tensor([12, 12]))).x_BTD
    torch.testing.assert_close(first[:, :12], second[:, :12], atol=1e-5, rtol=0)
    torch.testing.assert_close(first[:, :12], alone, atol=1e-5 if precision == torch.float32 else 0.1, rtol=0)
    assert bool(((first - second)[:, 12:15].abs().amax(2) > 0.01).all())
    with pytest.raises(ValueError, match="causal blocks need positions"):
        presets.base().changed(block={"causal": True}, positions={"norm": "batch"})


def test_fields_that_came_later_are_stored_only_where_they_are_not_as_before() -> None:
    """So that older artifacts open and keep their hash."""
    plain, causal = presets.tiny(), presets.tiny().changed(block={"causal": True})
    assert "causal" not in plain.to_dict()["block"] and causal.to_dict()["block"]["causal"] is True
    assert "causal" not in hashed(flat_of(plain)) and hashed(flat_of(causal))["causal"] is True
    for config in (plain, causal):
        assert EncoderConfig.from_dict(config.to_dict()) == config
