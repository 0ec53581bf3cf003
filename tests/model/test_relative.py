"""WavLM's relative positions: buckets, the bias they make, its gate, and attention in parts with it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speech_ssl.model import attention, presets
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.relative import GatedBias, PositionGate, RelativeBias, distance_buckets

pytestmark = pytest.mark.numerical


def exact_bucket(distance: int, buckets: int, furthest: int) -> int:
    """In double precision, one distance at a time."""
    half = buckets // 2
    single, length = half // 2, abs(distance)
    bucket = length
    if length >= single:
        grown = math.log(length / single) / math.log(furthest / single) * (half - single)
        bucket = min(half - 1, single + int(grown + 1e-12))
    return bucket + (half if distance > 0 else 0)


@pytest.mark.parametrize(("buckets", "furthest"), [(320, 800), (32, 128), (9, 6), (4, 2), (7, 500)])
def test_buckets_are_those_of_the_formula_and_of_transformers(buckets: int, furthest: int) -> None:
    distances = torch.arange(-2_000, 2_001)
    ours = distance_buckets(distances, buckets, furthest)
    assert ours.tolist() == [exact_bucket(d, buckets, furthest) for d in distances.tolist()]
    modeling = pytest.importorskip("transformers.models.wavlm.modeling_wavlm")
    theirs = modeling.WavLMAttention(8, 2, num_buckets=buckets, max_distance=furthest)
    assert torch.equal(ours, theirs._relative_positions_bucket(distances))


def test_the_bias_is_that_of_each_distance() -> None:
    bias = RelativeBias(heads=3, buckets=8, furthest=5)
    for frames in (1, 2, 13):
        made_HTT = bias(frames)
        assert made_HTT.shape == (3, frames, frames)
        for query in range(frames):
            for key in range(frames):
                wanted_H = bias.table[exact_bucket(key - query, 8, 5)]
                assert torch.equal(made_HTT[:, query, key], wanted_H)


def test_gradients_reach_the_table_and_the_gates() -> None:
    config = replace(SMALL, relative="gated", layer_drop=0.0)
    encoder = Encoder(config).train()
    encoder(torch.randn(2, 4_000), torch.tensor([4_000, 3_000])).x_BTD.square().sum().backward()
    named = {name: p for name, p in encoder.named_parameters() if "relative" in name or "gate" in name}
    assert len(named) == 1 + 3 * config.depth
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in named.values())


def test_a_gate_of_no_projection_lets_through_what_its_constant_says() -> None:
    """sigmoid(0) = 1/2 for both: 2 + (constant / 2 - 1) / 2."""
    gate = PositionGate(heads=2, head_width=4)
    torch.nn.init.zeros_(gate.weight)
    with torch.no_grad():
        gate.constant.copy_(torch.tensor([1.0, 6.0])[:, None, None])
    made_BHT1 = gate(torch.randn(3, 5, 8))
    assert made_BHT1.shape == (3, 2, 5, 1)
    assert torch.allclose(made_BHT1[:, 0], torch.tensor(1.75))
    assert torch.allclose(made_BHT1[:, 1], torch.tensor(3.0))


def scores(frames: int) -> tuple[Tensor, Tensor, Tensor, Tensor, GatedBias]:
    torch.manual_seed(0)
    q, k, v = (3 * torch.randn(3, 4, frames, 8) for _ in range(3))
    valid_B11T = (torch.arange(frames) < torch.tensor([frames, 13, 1])[:, None])[:, None, None]
    return q, k, v, valid_B11T, GatedBias(torch.rand(3, 4, frames, 1) + 1, 2 * torch.randn(4, frames, frames))


@pytest.mark.parametrize("scores_bytes", [1, 5_000, 12_000, 1 << 21])
def test_attention_in_parts_adds_the_bias(scores_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SCORES_BYTES", scores_bytes)
    q, k, v, valid_B11T, positions = scores(21)
    seen = positions.whole().masked_fill(~valid_B11T, -torch.inf)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(attention.attend_in_parts(q, k, v, valid_B11T, positions), wanted)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    narrow = GatedBias(*(x.bfloat16() for x in positions))
    rounded = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=seen)
    error = attention.attend_in_parts(q, k, v, valid_B11T, narrow).float() - rounded
    assert error.norm() / rounded.norm() < 0.02


SMALL = replace(
    presets.base(),
    conv_channels=(16,) * 7,
    width=24,
    depth=2,
    heads=4,
    ffn_width=48,
    position_kernel=16,
    position_groups=4,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"relative": "gated"},
        {"position_depth": 3, "position_kernel": 5},
        {"adapter_width": 5},
        {"feature_norm": False},
        {"position_batch_norm": True},
        {"activation": "relu", "conv_activation": "silu"},
    ],
)
def test_configs_of_relatives_travel(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    assert EncoderConfig.from_dict(config.to_dict()) == config
    assert config != SMALL


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation", "tanh"),
        ("conv_activation", "swish"),
        ("relative", "alibi"),
        ("feature_norm", "no"),
        ("position_batch_norm", 1),
        ("position_depth", -1),
        ("adapter_width", -1),
    ],
)
def test_configs_that_cannot_be_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        EncoderConfig.from_dict({**SMALL.to_dict(), field: value})
