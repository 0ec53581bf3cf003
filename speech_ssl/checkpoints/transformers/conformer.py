"""wav2vec2-conformer and w2v-BERT 2.0, as transformers stores them: both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Tensors, field_of
from speech_ssl.checkpoints.transformers.adapters import FIRST, FLAG
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
from speech_ssl.model.config import MEL_FIELD, MEL_HOP, EncoderConfig, Relative
from speech_ssl.model.conformer import rotary_rates

MODEL_TYPES = frozenset({"wav2vec2-conformer", "wav2vec2-bert"})

_SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "conformer_kernel": "conv_depthwise_kernel_size",
}
_ALL_DROPOUTS = {**DROPOUTS, "conformer_dropout": ("conformer_conv_dropout", 0.1)}
_POSITIONS: dict[str | None, Relative] = {
    None: "none",
    "rotary": "rotary",
    "relative": "sinusoidal",
    "relative_key": "clipped",
}
_UNUSED = "encoder.pos_conv_embed."
"""wav2vec2-conformer has a positional convolution that it never runs."""
_RATES = "encoder.embed_positions.inv_freq"
"""Of rotary positions, which wav2vec2-conformer stores though the config says them."""
_COUNTER = "conv_module.batch_norm.num_batches_tracked"
_BATCH_NORM = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def read_config(config: Mapping[str, Any], where: str) -> EncoderConfig:
    """What a `config.json` of transformers says of the encoder. `normalize_wave` is for the caller to set.

    Raises ConversionError for a field that is missing, or that asks for what this encoder does not have.
    """
    family = field_of(config, "model_type", str, where)
    if config.get(FIRST) and not config.get(FLAG):
        raise ConversionError(f"{where}: field {FIRST!r} is true, and {FLAG!r} is not: set both or none")
    positions = field_of(config, "position_embeddings_type", (str, type(None)), where)
    if positions not in _POSITIONS or (positions == "relative_key" and family != "wav2vec2-bert"):
        raise ConversionError(
            f"{where}: field 'position_embeddings_type' is {positions!r}, which {family} does not have"
        )
    values: dict[str, Any] = {ours: field_of(config, theirs, int, where) for ours, theirs in _SIZES.items()}
    if values["conformer_kernel"] < 1:
        kernel = values["conformer_kernel"]
        raise ConversionError(
            f"{where}: field 'conv_depthwise_kernel_size' is {kernel}: it must be at least 1"
        )
    values |= {
        ours: float(field_of({theirs: usual, **config}, theirs, (int, float), where))
        for ours, (theirs, usual) in _ALL_DROPOUTS.items()
    }
    values["norm_eps"] = float(field_of(config, "layer_norm_eps", (int, float), where))
    values["activation"] = activation_of(config, "hidden_act", where)
    values["relative"] = _POSITIONS[positions]
    if positions == "rotary":
        values["rotary_base"] = field_of(config, "rotary_embedding_base", int, where)
    values |= _heard(config, where) if family == "wav2vec2-bert" else _convolved(config, where)
    try:
        return EncoderConfig(**values, pre_norm=True, position_groups=1, feature_grad_scale=1.0)
    except ValueError as error:
        raise ConversionError(f"{where}: no encoder can be made of it: {error}") from None


def _convolved(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        ours: whole_numbers(config, theirs, where) for ours, theirs in CONVOLUTIONS.items()
    }
    return values | {
        "conv_bias": field_of(config, "conv_bias", bool, where),
        "conv_norm": field_of(config, "feat_extract_norm", str, where),
        "conv_activation": activation_of(config, "feat_extract_activation", where),
    }


def _heard(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    width = field_of(config, "feature_projection_input_dim", int, where)
    if width % 2:
        raise ConversionError(f"{where}: field 'feature_projection_input_dim' is {width}: not two mel steps")
    values: dict[str, Any] = {
        "mel_bins": width // 2,
        "conv_channels": (width,),
        "conv_kernels": (MEL_FIELD,),
        "conv_strides": (MEL_HOP,),
        "conformer_norm": "layer",
    }
    if config.get("position_embeddings_type") == "relative_key":
        values["relative_left"] = field_of(config, "left_max_position_embeddings", int, where)
        values["relative_right"] = field_of(config, "right_max_position_embeddings", int, where)
    return values


def write_config(config: EncoderConfig, model_type: str) -> dict[str, Any]:
    """The inverse of `read_config`. Raises ValueError for a field that the family has no word for."""
    _check_expressible(config, model_type)
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    positions = {ours: theirs for theirs, ours in _POSITIONS.items()}
    written: dict[str, Any] = {"model_type": model_type, "hidden_act": names[config.activation]}
    written |= {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    written |= {theirs: getattr(config, ours) for ours, (theirs, _) in _ALL_DROPOUTS.items()}
    written |= {
        "layer_norm_eps": config.norm_eps,
        "position_embeddings_type": positions[config.relative],
        "rotary_embedding_base": config.rotary_base,
        "initializer_range": 0.02,
        "mask_time_prob": 0.05,  # not 0, for else transformers has no hidden vector
        "mask_time_length": 10,
        "mask_feature_prob": 0.0,
        "mask_feature_length": 10,
        FLAG: False,
    }
    if model_type == "wav2vec2-bert":
        return written | {
            "feature_projection_input_dim": 2 * config.mel_bins,
            "left_max_position_embeddings": config.relative_left,
            "right_max_position_embeddings": config.relative_right,
        }
    written |= {theirs: list(getattr(config, ours)) for ours, theirs in CONVOLUTIONS.items()}
    return written | {
        "num_feat_extract_layers": len(config.conv_channels),
        "conv_bias": config.conv_bias,
        "feat_extract_norm": config.conv_norm,
        "feat_extract_activation": names[config.conv_activation],
        "num_conv_pos_embeddings": 1,
        "num_conv_pos_embedding_groups": config.width,
    }


def model_type_of(config: EncoderConfig) -> str:
    """The family that can express it. Raises ValueError if none can."""
    family = "wav2vec2-bert" if config.mel_bins else "wav2vec2-conformer"
    _check_expressible(config, family)
    return family


def _check_expressible(config: EncoderConfig, family: str) -> None:
    if family not in MODEL_TYPES:
        raise ValueError(f"model type {family!r} is not known: use one of {sorted(MODEL_TYPES)}")
    bert = family == "wav2vec2-bert"
    expressible = {
        "conformer_kernel": config.conformer_kernel > 0,
        "mel_bins": bert == (config.mel_bins > 0),
        "conformer_norm": bert == (config.conformer_norm == "layer"),
        "relative": bert or config.relative != "clipped",
        "pre_norm": config.pre_norm,
        "feature_norm": config.feature_norm,
        "adapter_width": not config.adapter_width,
        "position_depth": not config.position_depth,
        "position_batch_norm": not config.position_batch_norm,
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
    if config.conformer_norm == "batch":
        yield from pair("norm", "encoder.layer_norm")
    for i in range(config.depth):
        yield from _block_names(config, f"blocks.{i}", f"encoder.layers.{i}")


def _block_names(config: EncoderConfig, ours: str, theirs: str) -> Iterator[Name]:
    for place, number in (("before", 1), ("after", 2)):
        yield from pair(f"{ours}.ffn_{place}_norm", f"{theirs}.ffn{number}_layer_norm")
        yield from pair(f"{ours}.ffn_{place}.up", f"{theirs}.ffn{number}.intermediate_dense")
        yield from pair(f"{ours}.ffn_{place}.down", f"{theirs}.ffn{number}.output_dense")
    yield from pair(f"{ours}.norm", f"{theirs}.final_layer_norm")
    yield from pair(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm")
    q, k, v = (f"{theirs}.self_attn.linear_{letter}" for letter in "qkv")
    if config.relative == "rotary":
        yield from pair(f"{ours}.attention.qk", q, k)
        yield from pair(f"{ours}.attention.v", v)
    else:
        yield from pair(f"{ours}.attention.qkv", q, k, v)
    yield from pair(f"{ours}.attention.out", f"{theirs}.self_attn.linear_out")
    attention = f"{theirs}.self_attn"
    if config.relative == "sinusoidal":
        yield Name(f"{ours}.attention.of_distance.weight", (f"{attention}.linear_pos.weight",))
        yield Name(f"{ours}.attention.content_bias_HD", (f"{attention}.pos_bias_u",))
        yield Name(f"{ours}.attention.distance_bias_HD", (f"{attention}.pos_bias_v",))
    if config.relative == "clipped":
        yield Name(f"{ours}.attention.table_KD", (f"{attention}.distance_embedding.weight",))
    yield from pair(f"{ours}.conv_norm", f"{theirs}.conv_module.layer_norm")
    yield Name(f"{ours}.conv.depthwise", (f"{theirs}.conv_module.depthwise_conv.weight",))
    if config.conformer_norm == "layer":
        yield from pair(f"{ours}.conv.norm", f"{theirs}.conv_module.depthwise_layer_norm")
        return
    for name, their in _BATCH_NORM.items():
        yield Name(f"{ours}.conv.norm.{name}", (f"{theirs}.conv_module.batch_norm.{their}",))


def _pointwise(config: EncoderConfig) -> Iterator[tuple[str, str]]:
    """Linear layers that they have as convolutions of one frame: (O, I) here, (O, I, 1) there."""
    for i in range(config.depth):
        for ours, theirs in (("gated", "pointwise_conv1"), ("mixed", "pointwise_conv2")):
            yield f"blocks.{i}.conv.{ours}.weight", f"encoder.layers.{i}.conv_module.{theirs}.weight"


def read_encoder(tensors: Tensors, config: EncoderConfig) -> dict[str, Tensor]:
    """Our encoder's state, taken from the tensors of a base model.

    Raises ConversionError for a key that is missing or does not fit.
    """
    known = tensors.keys()
    tensors.drop([key for key in known if key.startswith(_UNUSED) or key.endswith(_COUNTER)])
    if config.relative == "rotary" and _RATES in tensors:
        _check_rates(tensors, config)
    state = read_names(_names(config), tensors, config)
    for ours, theirs in _pointwise(config):
        state[ours] = tensors.take(theirs).squeeze(-1)
    return state


def _check_rates(tensors: Tensors, config: EncoderConfig) -> None:
    """They may be rounded to half precision, but must be those of the config, from which ours are made."""
    found, wanted = tensors.take(_RATES), _rates(config)
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-2, atol=1e-6):
        raise ConversionError(
            f"{tensors.where}: key {_RATES!r} is not what rotary_embedding_base {config.rotary_base} gives: "
            "set that field of the config to the base that the model was trained with"
        )


def _rates(config: EncoderConfig) -> Tensor:
    return rotary_rates(config.width // config.heads, config.rotary_base)


def write_encoder(state: Mapping[str, Tensor], config: EncoderConfig, model_type: str) -> dict[str, Tensor]:
    """The inverse of `read_encoder`: what `load_state_dict` of the family's base model takes. A convolution
    that wav2vec2-conformer has but never runs is as small as can be, and adds nothing.

    Raises ValueError for a field of the config that the family has no word for.
    """
    _check_expressible(config, model_type)
    written = write_names(_names(config), state)
    written |= {theirs: state[ours][..., None].clone() for ours, theirs in _pointwise(config)}
    if model_type == "wav2vec2-bert":
        return written
    if config.relative == "rotary":
        written[_RATES] = _rates(config)
    for i in range(config.depth):
        written[f"encoder.layers.{i}.{_COUNTER}"] = torch.tensor(0)
    return written | {
        f"{_UNUSED}conv.bias": torch.zeros(config.width),
        f"{_UNUSED}conv.parametrizations.weight.original0": torch.zeros(1, 1, 1),
        f"{_UNUSED}conv.parametrizations.weight.original1": torch.ones(config.width, 1, 1),
    }
