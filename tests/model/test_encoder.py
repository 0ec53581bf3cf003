"""The encoder against an independent implementation, its published sizes, and its invariances."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recipes import pretrain_wav2vec2
from speech_ssl.model import attention, presets
from speech_ssl.model.config import Convolutions, EncoderConfig, WideConvolution
from speech_ssl.model.convolution import conv_over_time
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.wave import ValidGroupNorm, normalize_waves
from speech_ssl.types import Frames

pytestmark = pytest.mark.numerical

NARROW: dict[str, Any] = {
    "frontend": {"channels": (16,) * 7},
    "width": 24,
    "depth": 3,
    "heads": 4,
    "ffn_width": 48,
    "positions": {"kernel": 16, "groups": 4},
}
BASE_LIKE = presets.base().changed(**NARROW)
LARGE_LIKE = presets.large().changed(**NARROW)
MIXED = LARGE_LIKE.changed(frontend={"bias": False, "normalize_wave": False}, positions={"kernel": 15})


def transformers_twin(encoder: Encoder) -> Any:
    """The Hugging Face model with the same weights."""
    transformers = pytest.importorskip("transformers")
    config = encoder.config
    frontend, positions = config.frontend, config.positions
    assert isinstance(frontend, Convolutions) and isinstance(positions, WideConvolution)
    twin = transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.ffn_width,
            conv_dim=frontend.channels,
            conv_kernel=frontend.kernels,
            conv_stride=frontend.strides,
            conv_bias=frontend.bias,
            feat_extract_norm=frontend.norm,
            do_stable_layer_norm=config.block.pre_norm,
            num_conv_pos_embeddings=positions.kernel,
            num_conv_pos_embedding_groups=positions.groups,
        )
    ).eval()
    twin.load_state_dict(dict(hugging_face_names(encoder)), strict=True)
    return twin


def hugging_face_names(encoder: Encoder) -> Any:
    for key, value in encoder.state_dict().items():
        part, _, rest = key.partition(".")
        if key == "hidden_vector":
            yield "masked_spec_embed", value
        elif part == "frontend":
            number, rest = rest.removeprefix("layers.").split(".", 1)
            rest = f"conv.{rest}" if rest in ("weight", "bias") else rest.replace("norm.", "layer_norm.")
            yield f"feature_extractor.conv_layers.{number}.{rest}", value
        elif part == "feature_norm":
            yield f"feature_projection.layer_norm.{rest}", value
        elif part == "feature_projection":
            yield f"feature_projection.projection.{rest}", value
        elif part == "norm":
            yield f"encoder.layer_norm.{rest}", value
        elif part == "positions":
            prefix = "encoder.pos_conv_embed.conv."
            names = {
                "scale_K": "parametrizations.weight.original0",
                "direction": "parametrizations.weight.original1",
                "bias": "bias",
            }
            yield prefix + names[rest], value[None, None] if rest == "scale_K" else value
        else:
            yield from block_names(rest, value)


def block_names(key: str, value: Tensor) -> Any:
    number, name, *rest = key.split(".")
    prefix, kind = f"encoder.layers.{number}", rest[-1]
    if name == "attention" and rest[0] == "qkv":
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            yield f"{prefix}.attention.{letter}_proj.{kind}", part
    elif name == "attention":
        yield f"{prefix}.attention.out_proj.{kind}", value
    elif name == "ffn":
        dense = {"up": "intermediate_dense", "down": "output_dense"}[rest[0]]
        yield f"{prefix}.feed_forward.{dense}.{kind}", value
    else:
        their = {"attention_norm": "layer_norm", "ffn_norm": "final_layer_norm"}[name]
        yield f"{prefix}.{their}.{kind}", value


def randomized(config: EncoderConfig, seed: int = 0) -> Encoder:
    """Every parameter random, norms and biases too, so that no term hides behind a zero."""
    torch.manual_seed(seed)
    encoder = Encoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize("config", [BASE_LIKE, LARGE_LIKE, MIXED], ids=["base", "large", "mixed"])
@pytest.mark.parametrize("samples", [400, 719, 16_001])
def test_every_hidden_state_is_that_of_transformers(config: EncoderConfig, samples: int) -> None:
    encoder = randomized(config)
    twin = transformers_twin(encoder)
    wave_BS = 0.1 * torch.randn(2, samples) + 0.05
    lengths_B = torch.full((2,), samples)
    with torch.inference_mode():
        ours = encoder.hidden_states(wave_BS, lengths_B)
        prepared = normalize_waves(wave_BS, lengths_B) if config.frontend.normalize_wave else wave_BS
        answer = twin(prepared, output_hidden_states=True)
    # Its last hidden state lacks the final norm in some versions: ours is always what the model gives out.
    theirs = [*answer.hidden_states[:-1], answer.last_hidden_state]
    assert len(ours) == len(theirs) == config.depth + 1
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-4)


def test_hidden_frames_take_the_hidden_vector_as_in_transformers() -> None:
    encoder = randomized(LARGE_LIKE)
    twin = transformers_twin(encoder)
    wave_BS, lengths_B = torch.randn(2, 9_000), torch.full((2,), 9_000)
    hidden_BT = torch.rand(2, encoder.frame_count(9_000)) < 0.5
    with torch.inference_mode():
        ours = encoder(wave_BS, lengths_B, hidden_BT=hidden_BT).x_BTD
        theirs = twin(normalize_waves(wave_BS, lengths_B), mask_time_indices=hidden_BT).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_normalized_waves_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    waves = [np.random.default_rng(n).normal(0.3, 2, n).astype(np.float32) for n in (1_000, 2_500)]
    theirs = extractor(waves, sampling_rate=16_000, padding=True, return_tensors="pt").input_values
    padded_BS = torch.zeros(2, 2_500)
    for row_S, wave in zip(padded_BS, waves, strict=True):
        row_S[: len(wave)] = torch.from_numpy(wave)
    ours = normalize_waves(padded_BS, torch.tensor([1_000, 2_500]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "millions", "published"),
    [("tiny", 4.20, None), ("small", 20.31, None), ("base", 94.37, 95.04), ("large", 315.44, 317.39)],
)
def test_presets_have_their_published_size_and_say_it(
    name: str, millions: float, published: float | None
) -> None:
    run = getattr(pretrain_wav2vec2, name)()
    with torch.device("meta"):
        encoder = Encoder(getattr(presets, name)())
        objective = run.objective.build(Encoder(run.encoder))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (encoder, objective)]
    assert sizes[0] == pytest.approx(millions, abs=0.01)
    assert published is None or sizes[1] == pytest.approx(published, abs=0.01)
    said = re.findall(r"([\d.]+) M", getattr(presets, name).__doc__)
    assert said == [f"{size:.1f}" for size in sizes[: len(said)]] and said
    assert re.search(rf"^{name} +{said[0]} M parameters", pretrain_wav2vec2.__doc__ or "", re.M)
    assert (encoder.hop, encoder.receptive_field) == (320, 400)
    assert encoder.frame_count(250_000) == 781


@pytest.mark.parametrize("config", [BASE_LIKE, LARGE_LIKE], ids=["group norm", "layer norm"])
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(400, 20_000), min_size=2, max_size=5),
    padding=st.integers(0, 5_000),
    seed=st.integers(0, 99),
)
def test_a_clip_gives_the_same_frames_alone_and_in_any_batch(
    config: EncoderConfig, lengths: list[int], padding: int, seed: int
) -> None:
    encoder = randomized(config)
    generator = torch.Generator().manual_seed(seed)
    waves = [torch.randn(n, generator=generator) for n in lengths]
    padded_BS = torch.zeros(len(waves), max(lengths) + padding)
    for row_S, wave in zip(padded_BS, waves, strict=True):
        row_S[: len(wave)] = wave
    with torch.inference_mode():
        together = encoder.hidden_states(padded_BS, torch.tensor(lengths))
        for row, wave in enumerate(waves):
            alone = encoder.hidden_states(wave[None], torch.tensor([len(wave)]))
            for one, all_rows in zip(alone, together, strict=True):
                torch.testing.assert_close(all_rows[row, : one.shape[1]], one[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [BASE_LIKE, LARGE_LIKE], ids=["group norm", "layer norm"])
def test_what_stands_in_the_padding_does_not_matter(config: EncoderConfig) -> None:
    encoder = randomized(config)
    lengths_B = torch.tensor([4_000, 9_000])
    wave_BS = torch.randn(2, 9_000)
    changed_BS = wave_BS.clone()
    changed_BS[0, 4_000:] = 1e3
    with torch.inference_mode():
        first, second = encoder(wave_BS, lengths_B), encoder(changed_BS, lengths_B)
    torch.testing.assert_close(first.x_BTD, second.x_BTD, atol=1e-5, rtol=0)
    assert not first.x_BTD[~first.valid_BT].any()


def test_group_norm_is_torchs_where_nothing_is_padded() -> None:
    norm = ValidGroupNorm(6, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x_BTC = torch.randn(3, 50, 6, dtype=torch.float32) + 4
    theirs = torch.nn.functional.group_norm(x_BTC.transpose(1, 2), 6, norm.weight, norm.bias).transpose(1, 2)
    torch.testing.assert_close(norm(Frames(x_BTC, torch.full((3,), 50))), theirs, atol=1e-5, rtol=1e-5)


OTHER_STRIDES = BASE_LIKE.changed(
    frontend={"kernels": (7, 4, 2), "strides": (3, 2, 1), "channels": (8, 8, 8)}
)


@pytest.mark.parametrize("config", [BASE_LIKE, OTHER_STRIDES])
def test_frame_count_is_what_the_convolutions_make(config: EncoderConfig) -> None:
    encoder = randomized(config)
    shortest = encoder.receptive_field
    lengths = torch.arange(shortest, shortest + 2 * encoder.hop + 1)
    with torch.inference_mode():
        for n in lengths.tolist():
            made = encoder.convolve(torch.zeros(1, n), torch.tensor([n])).x_BTD.shape[1]
            assert made == encoder.frame_count(n)
    assert encoder.frame_count(lengths).tolist() == [encoder.frame_count(n) for n in lengths.tolist()]
    assert encoder.frame_count(shortest - 1) == 0


@pytest.mark.parametrize("kernel, stride, bias", [(10, 5, True), (3, 2, False), (4, 7, True)])
def test_a_convolution_out_of_one_channel_is_torchs(kernel: int, stride: int, bias: bool) -> None:
    """Forward and backward: on the CPU it is a matrix product."""
    x_BTC = torch.randn(2, 57, 1)
    weight = torch.randn(5, 1, kernel, requires_grad=True)
    offset = torch.randn(5, requires_grad=True) if bias else None
    ours = conv_over_time(x_BTC, weight, offset, stride=stride)
    theirs = F.conv1d(x_BTC.transpose(1, 2), weight, offset, stride=stride).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    chosen = [weight] if offset is None else [weight, offset]
    gradients = (torch.autograd.grad(y.square().sum(), chosen) for y in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)  # of some hundred terms, in any order


@pytest.mark.parametrize("scores_bytes", [1, 5000, 1 << 21])
def test_attention_in_parts_is_torchs(scores_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One head at a time, a few, all at once; in fp32 exactly, in bf16 as near as its roundings."""
    monkeypatch.setattr(attention, "SCORES_BYTES", scores_bytes)
    q, k, v = (3 * torch.randn(3, 4, 21, 8) for _ in range(3))
    valid_B11T = (torch.arange(21) < torch.tensor([21, 13, 1])[:, None])[:, None, None]
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=valid_B11T)
    torch.testing.assert_close(attention.attend_in_parts(q, k, v, valid_B11T), wanted)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    rounded = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=valid_B11T)
    error = attention.attend_in_parts(q, k, v, valid_B11T).float() - rounded
    assert error.norm() / rounded.norm() < 0.01


def test_folding_the_weight_norm_changes_nothing() -> None:
    encoder = randomized(BASE_LIKE)
    wave_BS, lengths_B = torch.randn(1, 4_000), torch.tensor([4_000])
    with torch.inference_mode():
        before = encoder(wave_BS, lengths_B).x_BTD
        encoder.fold_weight_norm_()
        encoder.positions.direction.zero_()  # no longer read
        after = encoder(wave_BS, lengths_B).x_BTD
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def test_stopping_early_gives_the_same_states() -> None:
    encoder = randomized(LARGE_LIKE)
    wave_BS, lengths_B = torch.randn(1, 4_000), torch.tensor([4_000])
    with torch.inference_mode():
        early = encoder.hidden_states(wave_BS, lengths_B, last=1)
        full = encoder.hidden_states(wave_BS, lengths_B)
    assert len(early) == 2
    assert torch.equal(early[1], full[1])


def test_a_dropped_layer_is_not_computed() -> None:
    encoder = randomized(replace(BASE_LIKE, layer_drop=0.5, dropout=0.0)).train()
    calls = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    for _ in range(200):
        encoder(torch.randn(1, 400), torch.tensor([400]))
    assert 240 < len(calls) < 360  # of 600, six deviations


def test_the_gradient_scale_reaches_the_front_end_alone() -> None:
    gradients = []
    for scale in (1.0, 0.1):
        config = replace(
            BASE_LIKE, feature_grad_scale=scale, dropout=0.0, layer_drop=0.0, feature_dropout=0.0
        )
        encoder = randomized(replace(config, attention_dropout=0.0)).train()
        encoder(torch.ones(1, 2_000).cumsum(1).sin(), torch.tensor([2_000])).x_BTD.square().sum().backward()
        gradients.append({k: p.grad for k, p in encoder.named_parameters() if p.grad is not None})
    full, scaled = gradients
    for name, gradient in full.items():
        factor = 0.1 if name.startswith("frontend.") else 1.0
        torch.testing.assert_close(scaled[name], factor * gradient, atol=1e-6, rtol=1e-4)
    frozen = randomized(replace(BASE_LIKE, feature_grad_scale=0.0)).train()
    frozen(torch.randn(1, 2_000), torch.tensor([2_000])).x_BTD.square().sum().backward()
    assert all(p.grad is None for p in frozen.frontend.parameters())


def test_too_short_a_wave_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="at least 400 samples"):
        Encoder(BASE_LIKE)(torch.zeros(1, 399), torch.tensor([399]))


def test_configs_travel_and_refuse_what_they_do_not_know() -> None:
    config = presets.tiny()
    assert EncoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="'colour'"):
        EncoderConfig.from_dict({**config.to_dict(), "colour": 1})
    with pytest.raises(ValueError, match="'width' is missing"):
        EncoderConfig.from_dict({k: v for k, v in config.to_dict().items() if k != "width"})
    with pytest.raises(ValueError, match="multiple of heads"):
        replace(config, heads=7)
