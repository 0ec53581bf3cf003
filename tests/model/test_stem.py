"""Convolutions over time and bins between log-mel frames and the blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speech_ssl.checkpoints.transformers.conformer import model_type_of
from speech_ssl.model import presets
from speech_ssl.model.config import Conformer, EncoderConfig, LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.flat import flat_of, hashed, stored_config
from speech_ssl.model.frontends.stem import MelStem
from speech_ssl.types import Frames
from tests.model.test_encoder import randomized

pytestmark = pytest.mark.numerical


def narrow(**frontend: object) -> EncoderConfig:
    """`presets.tiny_mel` with 10 bins: odd after the first convolution."""
    config = presets.tiny_mel().changed(depth=2, width=32, heads=4, ffn_width=64)
    return config.changed(frontend={"bins": 10, "channels": (3, 4), **frontend})


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def by_hand(x_SM: list[list[float]], weight: Tensor, bias: Tensor) -> list[list[list[float]]]:
    """Of one clip's channels (C, S, M): kernels of 3 by 3, every second place, zeros around."""
    channels, steps, bins = len(x_SM), len(x_SM[0]), len(x_SM[0][0])
    made = []
    for kernel_CKK, offset in zip(weight.tolist(), bias.tolist(), strict=True):
        rows = []
        for s in range(0, steps, 2):
            row = []
            for m in range(0, bins, 2):
                total = offset
                for c in range(channels):
                    for i in range(3):
                        for j in range(3):
                            at, bin = s + i - 1, m + j - 1
                            if 0 <= at < steps and 0 <= bin < bins:
                                total += kernel_CKK[c][i][j] * x_SM[c][at][bin]  # type: ignore[index]
                row.append(gelu(total))
            rows.append(row)
        made.append(rows)
    return made


def test_it_is_what_sums_by_hand_are() -> None:
    torch.manual_seed(0)
    stem = MelStem(10, (3, 4), 5).double()
    x_BTC = torch.randn(1, 3, 40, dtype=torch.float64)
    found = stem(x_BTC)[0]
    maps = [x_BTC.reshape(12, 10).tolist()]
    for layer in stem.convolutions:
        maps = by_hand(maps, layer.weight, layer.bias)  # type: ignore[arg-type]
    held = torch.tensor(maps, dtype=torch.float64)
    assert held.shape == (4, 3, 3)
    wanted = held.transpose(0, 1).reshape(3, 12) @ stem.linear.weight.T + stem.linear.bias
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_a_frame_sees_the_end_of_the_one_before_it_and_nothing_that_comes_later() -> None:
    stem = MelStem(10, (3, 4), 5)
    x_BTC = torch.randn(1, 6, 40)
    steps = x_BTC.reshape(1, 24, 10)
    for step in range(24):
        other = steps.clone()
        other[0, step] += 1.0
        changed = (stem(other.reshape(1, 6, 40)) - stem(x_BTC)).abs().amax(2)[0] > 0
        sees = {step // 4} | ({step // 4 + 1} if step % 4 and step < 20 else set())
        assert set(changed.nonzero().flatten().tolist()) == sees


@pytest.mark.parametrize("causal", [False, True])
def test_a_clip_is_the_same_alone_and_in_a_batch(causal: bool) -> None:
    encoder = randomized(narrow().changed(block={"causal": causal})).eval()
    wave_BS = torch.randn(2, 16_000)
    wave_BS[1, 9_000:] = 1e3
    with torch.no_grad():
        both = encoder(wave_BS, torch.tensor([16_000, 9_000]))
        alone = encoder(wave_BS[1:, :9_000], torch.tensor([9_000])).x_BTD[0]
    torch.testing.assert_close(both.x_BTD[1, : len(alone)], alone, atol=1e-5, rtol=0)
    assert not both.x_BTD[1, len(alone) :].any()


def test_hidden_frames_cannot_be_seen_through_the_next_one() -> None:
    encoder = randomized(narrow()).eval()
    features = Frames(torch.randn(2, 12, 40), torch.tensor([12, 9]))
    hidden_BT = torch.zeros(2, 12, dtype=torch.bool)
    hidden_BT[:, 3:5] = True
    other = Frames(features.x_BTD + 5.0 * hidden_BT[:, :, None], features.lengths_B)
    with torch.no_grad():
        seen, same = (encoder.entering(x, hidden_BT).x_BTD for x in (features, other))
        assert torch.equal(seen, same)
        assert not torch.equal(encoder.entering(features).x_BTD, encoder.entering(other).x_BTD)


def test_its_config_is_stored_hashed_and_checked() -> None:
    config = narrow()
    assert stored_config(config.to_dict()) == config
    without = config.changed(frontend={"channels": ()})
    assert "channels" not in without.to_dict()["frontend"]
    assert hashed(flat_of(config)) != hashed(flat_of(without)) != hashed(flat_of(narrow(channels=(4, 3))))
    with pytest.raises(ValueError, match="2 channels of LogMel need stacked=4, not 2"):
        LogMel(stacked=2, channels=(8, 8))
    with pytest.raises(ValueError, match="channels of LogMel must be whole"):
        LogMel(stacked=2, channels=(0,))
    bert = EncoderConfig(
        frontend=LogMel(channels=(8,)),
        positions=None,
        block=Conformer(norm="layer"),
        width=32,
        heads=4,
    )
    with pytest.raises(ValueError, match="frontend"):
        model_type_of(bert)


def test_silence_gives_gradients_of_the_usual_size() -> None:
    torch.manual_seed(0)
    encoder = Encoder(narrow()).train()
    sizes = []
    for scale in (0.1, 0.0):
        encoder.zero_grad()
        wave_BS = scale * torch.randn(1, 16_000)
        encoder(wave_BS, torch.tensor([16_000])).x_BTD.square().mean().backward()
        gradients = [p.grad.norm() for p in encoder.parameters() if p.grad is not None]
        sizes.append(float(torch.stack(gradients).norm()))
    assert sizes[1] < 10 * sizes[0]
