"""Small random models of wav2vec2-conformer and w2v-BERT 2.0, and both sides' hidden states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speech_ssl.checkpoints.conversion import Tensors, built_encoder
from speech_ssl.checkpoints.transformers.conformer import read_config, read_encoder
from speech_ssl.model.encoder import Encoder

transformers = pytest.importorskip("transformers")

FAMILIES: dict[str, tuple[Any, Any]] = {
    "wav2vec2-conformer": (transformers.Wav2Vec2ConformerConfig, transformers.Wav2Vec2ConformerModel),
    "wav2vec2-bert": (transformers.Wav2Vec2BertConfig, transformers.Wav2Vec2BertModel),
}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_depthwise_kernel_size": 7,
}
CONVOLUTIONS = {
    "conv_dim": [12, 16, 20],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
MEL = {"feature_projection_input_dim": 40}
OF_FAMILY = {"wav2vec2-conformer": CONVOLUTIONS, "wav2vec2-bert": MEL}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "conformer rotary": ("wav2vec2-conformer", {"position_embeddings_type": "rotary"}),
    "conformer rotary, another base and norm": (
        "wav2vec2-conformer",
        {
            "position_embeddings_type": "rotary",
            "rotary_embedding_base": 100,
            "feat_extract_norm": "layer",
            "conv_bias": True,
            "hidden_act": "swish",
        },
    ),
    "conformer relative": ("wav2vec2-conformer", {"position_embeddings_type": "relative"}),
    "conformer relative, another eps": (
        "wav2vec2-conformer",
        {"position_embeddings_type": "relative", "layer_norm_eps": 0.1, "feat_extract_activation": "relu"},
    ),
    "conformer without positions": ("wav2vec2-conformer", {"position_embeddings_type": None}),
    "conformer with a long kernel": ("wav2vec2-conformer", {"conv_depthwise_kernel_size": 31}),
    "bert": ("wav2vec2-bert", {}),
    "bert, near limits": (
        "wav2vec2-bert",
        {"left_max_position_embeddings": 5, "right_max_position_embeddings": 2, "hidden_act": "gelu"},
    ),
    "bert, one limit is 0": (
        "wav2vec2-bert",
        {"left_max_position_embeddings": 3, "right_max_position_embeddings": 0, "layer_norm_eps": 0.1},
    ),
    "bert rotary": ("wav2vec2-bert", {"position_embeddings_type": "rotary", "rotary_embedding_base": 50}),
    "bert relative": ("wav2vec2-bert", {"position_embeddings_type": "relative", "mask_time_prob": 0.0}),
    "bert without positions": ("wav2vec2-bert", {"position_embeddings_type": None}),
}
ONE_EACH = ["conformer rotary", "conformer relative", "bert, near limits"]


def randomize(model: nn.Module, seed: int = 0) -> None:
    """All parameters, those that begin as zeros and ones too, and the statistics of batch norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            wide = parameter.dim() < 2 or "pos_bias" in name or "distance_embedding" in name
            parameter.add_((0.3 if wide else 0.15) * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):  # small, so that what is added to it counts
                buffer.copy_(0.01 * torch.rand(buffer.shape, generator=generator) + 1e-4)
    model.eval()


def their_model(case: str) -> tuple[dict[str, Any], Any]:
    """Its config as `config.json` holds it, and the model."""
    family, changes = CASES[case]
    make_config, make_model = FAMILIES[family]
    config = make_config(**{**SMALL, **OF_FAMILY[family], **changes})
    torch.manual_seed(0)
    model = make_model(config)
    randomize(model)
    return json.loads(config.to_json_string()), model


def our_encoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Encoder:
    read = read_config(config, "config.json")
    left = Tensors(tensors, "model.safetensors")
    encoder = built_encoder(read, read_encoder(left, read), "model.safetensors")
    left.check_empty()
    return encoder


def mel_inputs(waves: list[Tensor], bins: int) -> dict[str, Tensor]:
    """What transformers' feature extractor makes of them, padded: `input_features`, `attention_mask`."""
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=bins, num_mel_bins=bins)
    arrays = [wave.numpy() for wave in waves]
    return dict(extractor(arrays, sampling_rate=16_000, return_tensors="pt"))


def their_states(model: Any, waves: list[Tensor]) -> list[Tensor]:
    """Of one batch. Only w2v-BERT keeps rows apart: the other family gets one at a time."""
    if model.config.model_type == "wav2vec2-bert":
        inputs = mel_inputs(waves, model.config.feature_projection_input_dim // 2)
    else:
        assert len(waves) == 1
        inputs = {"input_values": torch.stack(waves)}
    with torch.inference_mode():
        answer = model(**inputs, output_hidden_states=True)
    return [*answer.hidden_states[:-1], answer.last_hidden_state]


def our_states(encoder: Encoder, wave_BS: Tensor, lengths_B: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return encoder.hidden_states(wave_BS, lengths_B)


def padded(waves: list[Tensor], padding: int) -> tuple[Tensor, Tensor]:
    wave_BS = torch.zeros(len(waves), max(map(len, waves)) + padding)
    for row_S, wave in zip(wave_BS, waves, strict=True):
        row_S[: len(wave)] = wave
    return wave_BS, torch.tensor([len(wave) for wave in waves])


def assert_same(ours: list[Tensor], theirs: list[Tensor], frames: int, atol: float = 1e-4) -> None:
    """Of states (T, D) the first `frames`, which is all that ours has."""
    assert len(ours) == len(theirs)
    for mine, their in zip(ours, theirs, strict=True):
        assert len(their) >= frames
        torch.testing.assert_close(mine[:frames], their[:frames], atol=atol, rtol=0)


def row_of(states: list[Tensor], row: int) -> list[Tensor]:
    return [state[row] for state in states]
