"""wav2vec 2.0 and its relatives with Transformer blocks, in transformers' format: read and written.

A family of transformers is one architecture with some fields fixed. HuBERT may lack the feature norm, or have
a batch norm before its positions. data2vec has its own positions and layer norms in the front end, and is
never pre-norm, whatever its config says. WavLM has a gated bias in attention. MMS adapters exist only in
pre-norm models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Tensors, field_of, no_encoder
from speech_ssl.checkpoints.transformers.adapters import FLAG
from speech_ssl.checkpoints.transformers.names import (
    Name,
    check_expressible,
    convolutions_of,
    frontend_names,
    numbers_of,
    pair,
    read_names,
    write_names,
    written_convolutions,
    written_numbers,
)
from speech_ssl.model.config import (
    Convolutions,
    ConvPosition,
    EncoderConfig,
    GatedDistances,
    OfTransformer,
    StackedConvolutions,
    Transformer,
    WideConvolution,
)

MODEL_TYPES = frozenset({"wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio", "wavlm"})

_ADAPTED = frozenset({"wav2vec2", "hubert", "unispeech", "unispeech-sat"})
"""Families that have MMS adapters."""
_SHORTENED = frozenset({"wav2vec2", "data2vec-audio", "wavlm"})
"""Families that have `add_adapter`."""

_BATCH_NORM = {
    "norm_weight": "weight",
    "norm_bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
_COUNTER = "encoder.pos_conv_embed.batch_norm.num_batches_tracked"
"""A counter of torch's batch norm in training, without effect."""


def read_config(config: Mapping[str, Any], where: str) -> EncoderConfig:
    """The encoder's config from a `config.json` of transformers. The caller sets `normalize_wave`, from the
    preprocessor's config.

    Raises ConversionError for a field that is missing, or that asks for something this encoder does not have.
    """
    family = field_of(config, "model_type", str, where)
    if family not in MODEL_TYPES:
        raise ConversionError(f"{where}: field 'model_type' is {family!r}, not one of {sorted(MODEL_TYPES)}")
    data2vec = family == "data2vec-audio"
    with no_encoder(where):
        return EncoderConfig(
            **numbers_of(config, where),
            **convolutions_of(config, "layer" if data2vec else None, where),
            positions=_positions_of(config, family, where),
            block=Transformer() if data2vec else _block_of(config, family, where),
            feature_norm=family != "hubert" or _flag(config, "feat_proj_layer_norm", True, where),
        )


def _positions_of(config: Mapping[str, Any], family: str, where: str) -> OfTransformer:
    groups = field_of(config, "num_conv_pos_embedding_groups", int, where)
    number = field_of(config, "num_conv_pos_embeddings", int, where)
    if family == "data2vec-audio":
        if number < 1:
            raise ConversionError(
                f"{where}: field 'num_conv_pos_embeddings' is {number}: it must be at least 1"
            )
        kernel = field_of(config, "conv_pos_kernel_size", int, where)
        return StackedConvolutions(layers=number, kernel=kernel, groups=groups)
    batch = family == "hubert" and _flag(config, "conv_pos_batch_norm", False, where)
    wide = WideConvolution(kernel=number, groups=groups, norm="batch" if batch else "weight")
    if family != "wavlm":
        return wide
    buckets = field_of(config, "num_buckets", int, where)
    furthest = field_of(config, "max_bucket_distance", int, where)
    return GatedDistances(convolution=wide, buckets=buckets, furthest=furthest)


def _block_of(config: Mapping[str, Any], family: str, where: str) -> Transformer:
    pre_norm = field_of(config, "do_stable_layer_norm", bool, where)
    adapted = family in _ADAPTED and pre_norm and config.get("adapter_attn_dim") is not None
    adapter_width = field_of(config, "adapter_attn_dim", int, where) if adapted else 0
    return Transformer(pre_norm=pre_norm, adapter_width=adapter_width)


def _flag(config: Mapping[str, Any], name: str, usual: bool, where: str) -> bool:
    return bool(field_of({name: usual, **config}, name, bool, where))


def write_config(config: EncoderConfig, model_type: str) -> dict[str, Any]:
    """The inverse of `read_config`: a `config.json` without architectures, vocabulary and training settings
    of heads.

    Raises ValueError for a field that the family cannot express.
    """
    frontend, convolution, block = _parts(config, model_type)
    written: dict[str, Any] = {
        "model_type": model_type,
        **written_numbers(config),
        **written_convolutions(frontend, config.conv_activation),
        "do_stable_layer_norm": block.pre_norm,
        "num_conv_pos_embedding_groups": convolution.groups,
    }
    if isinstance(convolution, StackedConvolutions):
        written |= {
            "num_conv_pos_embeddings": convolution.layers,
            "conv_pos_kernel_size": convolution.kernel,
        }
    else:
        written["num_conv_pos_embeddings"] = convolution.kernel
    if isinstance(gated := config.positions, GatedDistances):
        written |= {"num_buckets": gated.buckets, "max_bucket_distance": gated.furthest}
    if model_type == "hubert":
        written["feat_proj_layer_norm"] = config.feature_norm
        written["conv_pos_batch_norm"] = _batch_norm(convolution)
    if model_type in _SHORTENED:
        written[FLAG] = False
    if model_type in _ADAPTED and (block.adapter_width or model_type == "wav2vec2"):
        written["adapter_attn_dim"] = block.adapter_width or None
    return written


def model_type_of(config: EncoderConfig) -> str:
    """The family that can express the config, wav2vec2 if several can. Raises ValueError if none can."""
    family = "wav2vec2"
    if isinstance(config.positions, GatedDistances):
        family = "wavlm"
    elif isinstance(config.positions, StackedConvolutions):
        family = "data2vec-audio"
    elif _batch_norm(config.convolution) or not config.feature_norm:
        family = "hubert"
    _parts(config, family)
    return family


def _batch_norm(convolution: ConvPosition | None) -> bool:
    return isinstance(convolution, WideConvolution) and convolution.norm == "batch"


def _parts(config: EncoderConfig, family: str) -> tuple[Convolutions, ConvPosition, Transformer]:
    """Front end, positional convolution, block. Raises ValueError for what the family cannot express."""
    if family not in MODEL_TYPES:
        raise ValueError(f"model type {family!r} is not known: use one of {sorted(MODEL_TYPES)}")
    frontend, positions, block = config.frontend, config.positions, config.block
    data2vec, hubert, adapted = family == "data2vec-audio", family == "hubert", family in _ADAPTED
    can = {
        "block": isinstance(block, Transformer)
        and not (data2vec and block.pre_norm)
        and not block.causal
        and (not block.adapter_width or (block.pre_norm and adapted)),
        "frontend": isinstance(frontend, Convolutions) and not (data2vec and frontend.norm != "layer"),
        "positions": isinstance(positions, GatedDistances) == (family == "wavlm")
        and isinstance(config.convolution, StackedConvolutions) == data2vec
        and (hubert or not _batch_norm(config.convolution)),
        "feature_norm": config.feature_norm or hubert,
    }
    check_expressible(config, family, can)
    assert isinstance(frontend, Convolutions) and isinstance(block, Transformer) and config.convolution
    return frontend, config.convolution, block


def _names(config: EncoderConfig) -> Iterator[Name]:
    """All names except the hidden vector's."""
    yield from frontend_names(config)
    yield from _position_names(config)
    yield from pair("norm", "encoder.layer_norm")
    for i in range(config.depth):
        yield from _block_names(config, f"blocks.{i}", f"encoder.layers.{i}")


def _position_names(config: EncoderConfig) -> Iterator[Name]:
    theirs = "encoder.pos_conv_embed.conv"
    if isinstance(stack := config.convolution, StackedConvolutions):
        for i in range(stack.layers):
            yield from pair(f"positions.layers.{i}", f"encoder.pos_conv_embed.layers.{i}.conv")
    elif _batch_norm(config.convolution):
        yield from pair("positions", theirs)
        for ours, name in _BATCH_NORM.items():
            yield Name(f"positions.{ours}", (f"encoder.pos_conv_embed.batch_norm.{name}",))
    else:
        yield Name("positions.scale_K", (f"{theirs}.parametrizations.weight.original0",), leading=2)
        yield Name("positions.direction", (f"{theirs}.parametrizations.weight.original1",))
        yield Name("positions.bias", (f"{theirs}.bias",))
    if isinstance(config.positions, GatedDistances):
        yield Name("relative.table", ("encoder.layers.0.attention.rel_attn_embed.weight",))


def _block_names(config: EncoderConfig, ours: str, theirs: str) -> Iterator[Name]:
    projections = [f"{theirs}.attention.{letter}_proj" for letter in "qkv"]
    yield from pair(f"{ours}.attention.qkv", *projections)
    yield from pair(f"{ours}.attention.out", f"{theirs}.attention.out_proj")
    yield from pair(f"{ours}.attention_norm", f"{theirs}.layer_norm")
    yield from pair(f"{ours}.ffn.up", f"{theirs}.feed_forward.intermediate_dense")
    yield from pair(f"{ours}.ffn.down", f"{theirs}.feed_forward.output_dense")
    yield from pair(f"{ours}.ffn_norm", f"{theirs}.final_layer_norm")
    if isinstance(config.positions, GatedDistances):
        yield from pair(f"{ours}.attention.gate", f"{theirs}.attention.gru_rel_pos_linear")
        yield Name(f"{ours}.attention.gate.constant", (f"{theirs}.attention.gru_rel_pos_const",), leading=1)
    if isinstance(config.block, Transformer) and config.block.adapter_width:
        yield from pair(f"{ours}.adapter.norm", f"{theirs}.adapter_layer.norm")
        yield from pair(f"{ours}.adapter.down", f"{theirs}.adapter_layer.linear_1")
        yield from pair(f"{ours}.adapter.up", f"{theirs}.adapter_layer.linear_2")


def read_encoder(tensors: Tensors, config: EncoderConfig) -> dict[str, Tensor]:
    """Our encoder's state, taken from the tensors of a base model. The hidden vector is zero if it is missing
    (transformers has none if nothing is masked).

    Raises ConversionError for a missing key, and for parts whose shapes differ.
    """
    if _batch_norm(config.convolution):
        tensors.drop([_COUNTER])
    return read_names(_names(config), tensors, config)


def write_encoder(state: Mapping[str, Tensor], config: EncoderConfig, model_type: str) -> dict[str, Tensor]:
    """The inverse of `read_encoder`: what `load_state_dict` of the family's base model takes.

    Raises ValueError for a field of the config that the family cannot express.
    """
    _parts(config, model_type)
    written = write_names(_names(config), state)
    if _batch_norm(config.convolution):
        written[_COUNTER] = torch.tensor(0)
    return written
