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
from speech_ssl.model.config import EncoderConfig, GatedDistances, StackedConvolutions, WideConvolution
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
    config = replace(SMALL, positions=GatedDistances(convolution=POSITIONS), layer_drop=0.0)
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


POSITIONS = WideConvolution(kernel=16, groups=4)
SMALL = presets.base().changed(
    frontend={"channels": (16,) * 7},
    positions=POSITIONS,
    width=24,
    depth=2,
    heads=4,
    ffn_width=48,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": GatedDistances(convolution=POSITIONS)},
        {"positions": GatedDistances(convolution=StackedConvolutions(groups=4), buckets=4, furthest=2)},
        {"positions": StackedConvolutions(layers=3, kernel=5, groups=4)},
        {"block": {"adapter_width": 5}},
        {"feature_norm": False},
        {"positions": {"norm": "batch"}},
        {"activation": "relu", "conv_activation": "silu"},
    ],
)
def test_configs_of_relatives_travel(changes: dict[str, Any]) -> None:
    config = SMALL.changed(**changes)
    assert EncoderConfig.from_dict(config.to_dict()) == config
    assert config != SMALL


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("activation", "tanh", "activation of EncoderConfig must be one of"),
        ("conv_activation", "swish", "conv_activation of EncoderConfig must be"),
        ("feature_norm", "no", "feature_norm of EncoderConfig cannot be 'no'"),
        ("positions", {"kind": "alibi"}, "kind 'alibi' is not known"),
        ("positions", {"kernel": 3}, "kind None is not known"),
        ("positions", {"kind": "rotary", "base": 100}, "positions cannot be Rotary.* of a Transformer"),
        ("positions", {"kind": "rotary", "base": 0}, "base of Rotary must be whole, from 1"),
        ("positions", {"kind": "rotary"}, "field 'base' is missing in Rotary"),
        ("positions", {"kind": "sinusoidal", "base": 1}, "unknown field 'base' in Sinusoidal"),
        ("positions", {"kind": "transformer", "pre_norm": True, "adapter_width": 0}, "positions of Enc"),
        ("positions", None, "positions cannot be None with blocks of a Transformer"),
        ("block", {"kind": "transformer", "pre_norm": True, "adapter_width": -1}, "adapter_width of Tr"),
        ("block", {"kind": "transformer", "pre_norm": 1, "adapter_width": 0}, "pre_norm of Transformer"),
        (
            "block",
            {"kind": "conformer", "kernel": 5, "norm": "batch", "dropout": 0.1},
            "positions cannot be W",
        ),
        ("block", {"kind": "conformer", "kernel": 5, "norm": "batch", "dropout": None}, "wrong type"),
        ("frontend", {"kind": "log_mel", "bins": -1}, "bins of LogMel must be whole, from 1"),
        ("depth", 1001, "depth of EncoderConfig must be whole, from 1 to 1000"),
        ("dropout", 1.5, "dropout of EncoderConfig must be from 0 to 1"),
    ],
)
def test_configs_that_cannot_be_are_refused_by_name(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_dict({**SMALL.to_dict(), field: value})
