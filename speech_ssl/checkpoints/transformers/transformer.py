"""wav2vec 2.0 and its Transformer-type relatives, as transformers stores them: both ways.

To transformers a family is a name for certain fields of one architecture. HuBERT may go without the norm of
features, or have a batch norm before its positions. data2vec has its own positions, layer norms in front, and
never the norm before attention, whatever its config says. WavLM has a gated bias in attention. MMS adapters
work only with the norm before attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Tensors, field_of
from speech_ssl.checkpoints.transformers.adapters import FLAG
from speech_ssl.checkpoints.transformers.names import (
    ACTIVATIONS,
    CONVOLUTIONS,
    DROPOUTS,
    Name,
    activation_of,
    frontend_names,
    pair,
    read_names,
    whole_numbers,
    write_names,
)
from speech_ssl.model.config import EncoderConfig

MODEL_TYPES = frozenset({"wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio", "wavlm"})

_ADAPTED = frozenset({"wav2vec2", "hubert", "unispeech", "unispeech-sat"})
"""Families that have MMS adapters."""
_SHORTENED = frozenset({"wav2vec2", "data2vec-audio", "wavlm"})
"""Families that have `add_adapter`."""

_SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "position_groups": "num_conv_pos_embedding_groups",
}
_BATCH_NORM = {
    "norm_weight": "weight",
    "norm_bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
_COUNTER = "encoder.pos_conv_embed.batch_norm.num_batches_tracked"
"""What torch's batch norm counts in training; it changes nothing."""


def read_config(config: Mapping[str, Any], where: str) -> EncoderConfig:
    """What a `config.json` of transformers says of the encoder. `normalize_wave` is for the caller to set:
    the preprocessor's config says it.

    Raises ConversionError for a field that is missing, or that asks for what this encoder does not have.
    """
    family = field_of(config, "model_type", str, where)
    if family not in MODEL_TYPES:
        raise ConversionError(f"{where}: field 'model_type' is {family!r}, not one of {sorted(MODEL_TYPES)}")
    values: dict[str, Any] = {ours: field_of(config, theirs, int, where) for ours, theirs in _SIZES.items()}
    values |= {ours: whole_numbers(config, theirs, where) for ours, theirs in CONVOLUTIONS.items()}
    values |= {
        ours: float(field_of({theirs: usual, **config}, theirs, (int, float), where))
        for ours, (theirs, usual) in DROPOUTS.items()
    }
    values["conv_bias"] = field_of(config, "conv_bias", bool, where)
    values["norm_eps"] = float(field_of(config, "layer_norm_eps", (int, float), where))
    values["activation"] = activation_of(config, "hidden_act", where)
    values["conv_activation"] = activation_of(config, "feat_extract_activation", where)
    values |= _of_family(config, family, where)
    try:
        return EncoderConfig(**values, feature_grad_scale=1.0)
    except ValueError as error:
        raise ConversionError(f"{where}: no encoder can be made of it: {error}") from None


def _of_family(config: Mapping[str, Any], family: str, where: str) -> dict[str, Any]:
    """The fields that not all families have."""
    if family == "data2vec-audio":
        depth = field_of(config, "num_conv_pos_embeddings", int, where)
        if depth < 1:
            raise ConversionError(
                f"{where}: field 'num_conv_pos_embeddings' is {depth}: it must be at least 1"
            )
        return {
            "conv_norm": "layer",
            "position_depth": depth,
            "position_kernel": field_of(config, "conv_pos_kernel_size", int, where),
        }
    values: dict[str, Any] = {
        "conv_norm": field_of(config, "feat_extract_norm", str, where),
        "pre_norm": field_of(config, "do_stable_layer_norm", bool, where),
        "position_kernel": field_of(config, "num_conv_pos_embeddings", int, where),
    }
    if family == "hubert":
        later = {"feat_proj_layer_norm": True, "conv_pos_batch_norm": False, **config}
        values["feature_norm"] = field_of(later, "feat_proj_layer_norm", bool, where)
        values["position_batch_norm"] = field_of(later, "conv_pos_batch_norm", bool, where)
    if family == "wavlm":
        values["relative"] = "gated"
        values["relative_buckets"] = field_of(config, "num_buckets", int, where)
        values["relative_distance"] = field_of(config, "max_bucket_distance", int, where)
    if family in _ADAPTED and values["pre_norm"] and config.get("adapter_attn_dim") is not None:
        values["adapter_width"] = field_of(config, "adapter_attn_dim", int, where)
    return values


def write_config(config: EncoderConfig, model_type: str) -> dict[str, Any]:
    """The inverse of `read_config`: a `config.json` but for architectures, vocabulary and what trains heads.

    Raises ValueError for a field that the family has no word for.
    """
    _check_expressible(config, model_type)
    written: dict[str, Any] = {"model_type": model_type}
    written |= {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    written |= {theirs: list(getattr(config, ours)) for ours, theirs in CONVOLUTIONS.items()}
    written |= {theirs: getattr(config, ours) for ours, (theirs, _) in DROPOUTS.items()}
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    written |= {
        "num_feat_extract_layers": len(config.conv_channels),
        "conv_bias": config.conv_bias,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": names[config.activation],
        "feat_extract_activation": names[config.conv_activation],
        "feat_extract_norm": config.conv_norm,
        "do_stable_layer_norm": config.pre_norm,
        "num_conv_pos_embeddings": config.position_depth or config.position_kernel,
        "initializer_range": 0.02,
        "mask_time_prob": 0.05,  # not 0, for else transformers has no hidden vector
        "mask_time_length": 10,
        "mask_feature_prob": 0.0,
        "mask_feature_length": 10,
    }
    if model_type == "data2vec-audio":
        written["conv_pos_kernel_size"] = config.position_kernel
    if model_type == "wavlm":
        written["num_buckets"] = config.relative_buckets
        written["max_bucket_distance"] = config.relative_distance
    if model_type == "hubert":
        written["feat_proj_layer_norm"] = config.feature_norm
        written["conv_pos_batch_norm"] = config.position_batch_norm
    if model_type in _SHORTENED:
        written[FLAG] = False
    if model_type in _ADAPTED and (config.adapter_width or model_type == "wav2vec2"):
        written["adapter_attn_dim"] = config.adapter_width or None
    return written


def model_type_of(config: EncoderConfig) -> str:
    """The family that can express it; wav2vec2 where several can. Raises ValueError if none can."""
    family = "wav2vec2"
    if config.relative == "gated":
        family = "wavlm"
    elif config.position_depth:
        family = "data2vec-audio"
    elif config.position_batch_norm or not config.feature_norm:
        family = "hubert"
    _check_expressible(config, family)
    return family


def _check_expressible(config: EncoderConfig, family: str) -> None:
    if family not in MODEL_TYPES:
        raise ValueError(f"model type {family!r} is not known: use one of {sorted(MODEL_TYPES)}")
    data2vec = family == "data2vec-audio"
    adapted = config.pre_norm and family in _ADAPTED
    expressible = {
        "conformer_kernel": not config.conformer_kernel,
        "mel_bins": not config.mel_bins,
        "relative": config.relative == ("gated" if family == "wavlm" else "none"),
        "position_depth": data2vec == (config.position_depth > 0),
        "feature_norm": config.feature_norm or family == "hubert",
        "position_batch_norm": not config.position_batch_norm or family == "hubert",
        "pre_norm": not (data2vec and config.pre_norm),
        "conv_norm": not (data2vec and config.conv_norm != "layer"),
        "adapter_width": adapted or not config.adapter_width,
    }
    for name, can in expressible.items():
        if not can:
            value = getattr(config, name)
            raise ValueError(
                f"the encoder's {name} is {value!r}: a {family!r} model of transformers has no such thing"
            )


def _names(config: EncoderConfig) -> Iterator[Name]:
    """All of them but the hidden vector's."""
    yield from frontend_names(config)
    yield from _position_names(config)
    yield from pair("norm", "encoder.layer_norm")
    for i in range(config.depth):
        yield from _block_names(config, f"blocks.{i}", f"encoder.layers.{i}")


def _position_names(config: EncoderConfig) -> Iterator[Name]:
    for i in range(config.position_depth):
        yield from pair(f"positions.layers.{i}", f"encoder.pos_conv_embed.layers.{i}.conv")
    theirs = "encoder.pos_conv_embed.conv"
    if config.position_batch_norm:
        yield from pair("positions", theirs)
        for ours, name in _BATCH_NORM.items():
            yield Name(f"positions.{ours}", (f"encoder.pos_conv_embed.batch_norm.{name}",))
    elif not config.position_depth:
        yield Name("positions.scale_K", (f"{theirs}.parametrizations.weight.original0",), leading=2)
        yield Name("positions.direction", (f"{theirs}.parametrizations.weight.original1",))
        yield Name("positions.bias", (f"{theirs}.bias",))
    if config.relative == "gated":
        yield Name("relative.table", ("encoder.layers.0.attention.rel_attn_embed.weight",))


def _block_names(config: EncoderConfig, ours: str, theirs: str) -> Iterator[Name]:
    projections = [f"{theirs}.attention.{letter}_proj" for letter in "qkv"]
    yield from pair(f"{ours}.attention.qkv", *projections)
    yield from pair(f"{ours}.attention.out", f"{theirs}.attention.out_proj")
    yield from pair(f"{ours}.attention_norm", f"{theirs}.layer_norm")
    yield from pair(f"{ours}.ffn.up", f"{theirs}.feed_forward.intermediate_dense")
    yield from pair(f"{ours}.ffn.down", f"{theirs}.feed_forward.output_dense")
    yield from pair(f"{ours}.ffn_norm", f"{theirs}.final_layer_norm")
    if config.relative == "gated":
        yield from pair(f"{ours}.attention.gate", f"{theirs}.attention.gru_rel_pos_linear")
        yield Name(f"{ours}.attention.gate.constant", (f"{theirs}.attention.gru_rel_pos_const",), leading=1)
    if config.adapter_width:
        yield from pair(f"{ours}.adapter.norm", f"{theirs}.adapter_layer.norm")
        yield from pair(f"{ours}.adapter.down", f"{theirs}.adapter_layer.linear_1")
        yield from pair(f"{ours}.adapter.up", f"{theirs}.adapter_layer.linear_2")


def read_encoder(tensors: Tensors, config: EncoderConfig) -> dict[str, Tensor]:
    """Our encoder's state, taken from the tensors of a base model. Without a hidden vector (transformers has
    none where nothing is to be masked) it is zero.

    Raises ConversionError for a key that is missing, or parts of unlike shapes.
    """
    if config.position_batch_norm:
        tensors.drop([_COUNTER])
    return read_names(_names(config), tensors, config)


def write_encoder(state: Mapping[str, Tensor], config: EncoderConfig, model_type: str) -> dict[str, Tensor]:
    """The inverse of `read_encoder`: what `load_state_dict` of the family's base model takes.

    Raises ValueError for a field of the config that the family has no word for.
    """
    _check_expressible(config, model_type)
    written = write_names(_names(config), state)
    if config.position_batch_norm:
        written[_COUNTER] = torch.tensor(0)
    return written
