"""Small random models of each Transformer-type family, and both sides' hidden states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speech_ssl.checkpoints.conversion import Tensors, built_encoder
from speech_ssl.checkpoints.transformers.transformer import read_config, read_encoder
from speech_ssl.model.encoder import Encoder

transformers = pytest.importorskip("transformers")

FAMILIES: dict[str, tuple[Any, Any]] = {
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "unispeech": (transformers.UniSpeechConfig, transformers.UniSpeechModel),
    "unispeech-sat": (transformers.UniSpeechSatConfig, transformers.UniSpeechSatModel),
    "data2vec-audio": (transformers.Data2VecAudioConfig, transformers.Data2VecAudioModel),
    "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [12, 16, 20],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
OTHER_STRIDES = {"conv_kernel": [7, 4, 3], "conv_stride": [3, 4, 1], "num_conv_pos_embeddings": 7}
NARROW_BUCKETS = {"num_buckets": 9, "max_bucket_distance": 6}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2 base": ("wav2vec2", {}),
    "wav2vec2 large": ("wav2vec2", LARGE),
    "wav2vec2 layer norm in front, after attention": ("wav2vec2", {"feat_extract_norm": "layer"}),
    "wav2vec2 group norm in front, before attention": ("wav2vec2", {"do_stable_layer_norm": True}),
    "wav2vec2 other strides": ("wav2vec2", {**OTHER_STRIDES, "conv_bias": True}),
    "wav2vec2 gelu_new, relu": ("wav2vec2", {"hidden_act": "gelu_new", "feat_extract_activation": "relu"}),
    "wav2vec2 silu, gelu_new": ("wav2vec2", {"hidden_act": "silu", "feat_extract_activation": "gelu_new"}),
    "wav2vec2 relu, swish": ("wav2vec2", {"hidden_act": "relu", "feat_extract_activation": "swish"}),
    "wav2vec2 another eps": ("wav2vec2", {**LARGE, "layer_norm_eps": 0.1}),
    "wav2vec2 with MMS adapters": ("wav2vec2", {**LARGE, "adapter_attn_dim": 6}),
    "wav2vec2 whose adapters have no place": ("wav2vec2", {"adapter_attn_dim": 6}),
    "hubert base": ("hubert", {}),
    "hubert large": ("hubert", LARGE),
    "hubert without norm of features": ("hubert", {"feat_proj_layer_norm": False}),
    "hubert large without norm of features": ("hubert", {**LARGE, "feat_proj_layer_norm": False}),
    "hubert with batch norm": ("hubert", {"conv_pos_batch_norm": True, "feat_extract_activation": "silu"}),
    "hubert large with batch norm": ("hubert", {**LARGE, "conv_pos_batch_norm": True, **OTHER_STRIDES}),
    "hubert with MMS adapters": ("hubert", {**LARGE, "adapter_attn_dim": 6}),
    "unispeech base": ("unispeech", {}),
    "unispeech large": ("unispeech", LARGE),
    "unispeech-sat base": ("unispeech-sat", {}),
    "unispeech-sat large": ("unispeech-sat", {**LARGE, "mask_time_prob": 0.0}),
    "data2vec-audio": ("data2vec-audio", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}),
    "data2vec-audio, even kernels": (
        "data2vec-audio",
        {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 4, "conv_bias": True},
    ),
    "data2vec-audio that claims another norm": (
        "data2vec-audio",
        {"do_stable_layer_norm": True, "feat_extract_norm": "group", "feat_extract_activation": "silu"},
    ),
    "wavlm base": ("wavlm", {}),
    "wavlm large": ("wavlm", LARGE),
    "wavlm with few buckets": ("wavlm", {**LARGE, **NARROW_BUCKETS}),
    "wavlm base with few buckets": ("wavlm", {**NARROW_BUCKETS, **OTHER_STRIDES}),
}
ONE_EACH = [
    "wav2vec2 base",
    "hubert with batch norm",
    "wav2vec2 with MMS adapters",
    "hubert without norm of features",
]
ONE_EACH += ["data2vec-audio", "wavlm base with few buckets", "wavlm with few buckets"]
PADDED_RIGHT = [
    name
    for name, (_, changes) in CASES.items()
    if changes.get("feat_extract_norm") == "layer" and "conv_pos_batch_norm" not in changes
]


def randomize(model: nn.Module, seed: int = 0) -> None:
    """All parameters, those that begin as zeros and ones too, so that no term hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * noise if parameter.dim() < 2 or parameter.numel() < 99 else 0.1 * noise)
            if parameter.dim() == 2 and parameter.shape[1] == SMALL["num_attention_heads"]:
                parameter.add_(noise)  # WavLM's table
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                scale = 0.01 if name.endswith("var") else 1.0  # small, so that what is added to it counts
                buffer.copy_(scale * torch.rand(buffer.shape, generator=generator) + 1e-4)
    model.eval()


def their_model(case: str) -> tuple[dict[str, Any], Any]:
    """Its config as `config.json` holds it, and the model."""
    family, changes = CASES[case]
    make_config, make_model = FAMILIES[family]
    config = make_config(**{**SMALL, **changes})
    model = make_model(config)
    randomize(model)
    return json.loads(config.to_json_string()), model


def our_encoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Encoder:
    read = read_config(config, "config.json")
    left = Tensors(tensors, "model.safetensors")
    encoder = built_encoder(read, read_encoder(left, read), "model.safetensors")
    left.check_empty()
    return encoder


def their_states(model: Any, wave_BS: Tensor, lengths_B: Tensor | None = None) -> list[Tensor]:
    valid_BS = None
    if lengths_B is not None:
        valid_BS = (torch.arange(wave_BS.shape[1]) < lengths_B[:, None]).long()
    with torch.inference_mode():
        answer = model(wave_BS, attention_mask=valid_BS, output_hidden_states=True)
    return [*answer.hidden_states[:-1], answer.last_hidden_state]


def our_states(encoder: Encoder, wave_BS: Tensor, lengths_B: Tensor | None = None) -> list[Tensor]:
    lengths_B = torch.full((len(wave_BS),), wave_BS.shape[1]) if lengths_B is None else lengths_B
    with torch.inference_mode():
        return encoder.hidden_states(wave_BS, lengths_B)


def assert_same(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-4) -> None:
    assert len(ours) == len(theirs)
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, atol=atol, rtol=0)


def padded(waves: list[Tensor], padding: int) -> tuple[Tensor, Tensor]:
    wave_BS = torch.zeros(len(waves), max(map(len, waves)) + padding)
    for row_S, wave in zip(wave_BS, waves, strict=True):
        row_S[: len(wave)] = wave
    return wave_BS, torch.tensor([len(wave) for wave in waves])
