"""wav2vec2-conformer and w2v-BERT 2.0 in transformers' format: read and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Tensors, field_of, no_encoder
from speech_ssl.checkpoints.transformers.adapters import FIRST, FLAG
from speech_ssl.checkpoints.transformers.names import (
    Name,
    check_expressible,
    convolutions_of,
    frontend_names,
    numbers_of,
    pair,
    read_names,
    share_of,
    write_names,
    written_convolutions,
    written_numbers,
)
from speech_ssl.model.config import (
    ClippedDistances,
    Conformer,
    Convolutions,
    EncoderConfig,
    LogMel,
    OfConformer,
    Rotary,
    Sinusoidal,
)
from speech_ssl.model.conformer import rotary_rates

MODEL_TYPES = frozenset({"wav2vec2-conformer", "wav2vec2-bert"})

_POSITIONS: dict[type, str | None] = {
    NoneType: None,
    Rotary: "rotary",
    Sinusoidal: "relative",
    ClippedDistances: "relative_key",
}
_KERNEL, _DROPOUT = "conv_depthwise_kernel_size", "conformer_conv_dropout"
_UNUSED = "encoder.pos_conv_embed."
"""wav2vec2-conformer stores a positional convolution that it never runs."""
_RATES = "encoder.embed_positions.inv_freq"
"""Frequencies of rotary positions; wav2vec2-conformer stores them although the config gives them."""
_COUNTER = "conv_module.batch_norm.num_batches_tracked"
_BATCH_NORM = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def read_config(config: Mapping[str, Any], where: str) -> EncoderConfig:
    """The encoder's config from a `config.json` of transformers. The caller sets `normalize_wave`.

    Raises ConversionError for a field that is missing, or that asks for something this encoder does not have.
    """
    family = field_of(config, "model_type", str, where)
    if config.get(FIRST) and not config.get(FLAG):
        raise ConversionError(f"{where}: field {FIRST!r} is true, and {FLAG!r} is not: set both or none")
    bert = family == "wav2vec2-bert"
    kernel = field_of(config, _KERNEL, int, where)
    if kernel < 1:
        raise ConversionError(f"{where}: field {_KERNEL!r} is {kernel}: it must be at least 1")
    dropout = share_of(config, _DROPOUT, 0.1, where)
    with no_encoder(where):
        return EncoderConfig(
            **numbers_of(config, where),
            **({"frontend": _log_mel(config, where)} if bert else convolutions_of(config, None, where)),
            positions=_positions_of(config, family, where),
            block=Conformer(kernel=kernel, norm="layer" if bert else "batch", dropout=dropout),
        )


def _positions_of(config: Mapping[str, Any], family: str, where: str) -> OfConformer:
    kind = field_of(config, "position_embeddings_type", (str, type(None)), where)
    if kind == "rotary":
        return Rotary(base=field_of(config, "rotary_embedding_base", int, where))
    if kind == "relative":
        return Sinusoidal()
    if kind == "relative_key" and family == "wav2vec2-bert":
        left = field_of(config, "left_max_position_embeddings", int, where)
        return ClippedDistances(
            left=left, right=field_of(config, "right_max_position_embeddings", int, where)
        )
    if kind is None:
        return None
    raise ConversionError(
        f"{where}: field 'position_embeddings_type' is {kind!r}, which {family} does not have"
    )


def _log_mel(config: Mapping[str, Any], where: str) -> LogMel:
    width = field_of(config, "feature_projection_input_dim", int, where)
    if width % 2:
        raise ConversionError(f"{where}: field 'feature_projection_input_dim' is {width}: not two mel steps")
    return LogMel(bins=width // 2)


def write_config(config: EncoderConfig, model_type: str) -> dict[str, Any]:
    """The inverse of `read_config`. Raises ValueError for a field that the family cannot express."""
    block = _block(config, model_type)
    positions = config.positions
    written = {
        "model_type": model_type,
        **written_numbers(config),
        _KERNEL: block.kernel,
        _DROPOUT: block.dropout,
        "position_embeddings_type": _POSITIONS[type(positions)],
        "rotary_embedding_base": (positions if isinstance(positions, Rotary) else Rotary()).base,
        FLAG: False,
    }
    if isinstance(config.frontend, LogMel):
        distances = positions if isinstance(positions, ClippedDistances) else ClippedDistances()
        return written | {
            "feature_projection_input_dim": config.frontend.width,
            "left_max_position_embeddings": distances.left,
            "right_max_position_embeddings": distances.right,
        }
    return written | {
        **written_convolutions(config.frontend, config.conv_activation),
        "num_conv_pos_embeddings": 1,
        "num_conv_pos_embedding_groups": config.width,
    }


def model_type_of(config: EncoderConfig) -> str:
    """The family that can express the config. Raises ValueError if none can."""
    family = "wav2vec2-bert" if isinstance(config.frontend, LogMel) else "wav2vec2-conformer"
    _block(config, family)
    return family


def _block(config: EncoderConfig, family: str) -> Conformer:
    """Raises ValueError for what the family cannot express."""
    if family not in MODEL_TYPES:
        raise ValueError(f"model type {family!r} is not known: use one of {sorted(MODEL_TYPES)}")
    block, bert = config.block, family == "wav2vec2-bert"
    can = {
        "block": isinstance(block, Conformer) and bert == (block.norm == "layer"),
        "frontend": isinstance(config.frontend, LogMel if bert else Convolutions)
        and (not bert or config.frontend == LogMel(bins=config.frontend.width // 2)),
        "positions": bert or not isinstance(config.positions, ClippedDistances),
        "feature_norm": config.feature_norm,
    }
    check_expressible(config, family, can)
    assert isinstance(block, Conformer)
    return block


def _layered(config: EncoderConfig) -> bool:
    return isinstance(config.block, Conformer) and config.block.norm == "layer"


def _names(config: EncoderConfig) -> Iterator[Name]:
    """All names except the hidden vector's."""
    yield from frontend_names(config)
    if not _layered(config):
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
    if isinstance(config.positions, Rotary):
        yield from pair(f"{ours}.attention.qk", q, k)
        yield from pair(f"{ours}.attention.v", v)
    else:
        yield from pair(f"{ours}.attention.qkv", q, k, v)
    yield from pair(f"{ours}.attention.out", f"{theirs}.self_attn.linear_out")
    attention = f"{theirs}.self_attn"
    if isinstance(config.positions, Sinusoidal):
        yield Name(f"{ours}.attention.of_distance.weight", (f"{attention}.linear_pos.weight",))
        yield Name(f"{ours}.attention.content_bias_HD", (f"{attention}.pos_bias_u",))
        yield Name(f"{ours}.attention.distance_bias_HD", (f"{attention}.pos_bias_v",))
    if isinstance(config.positions, ClippedDistances):
        yield Name(f"{ours}.attention.table_KD", (f"{attention}.distance_embedding.weight",))
    yield from pair(f"{ours}.conv_norm", f"{theirs}.conv_module.layer_norm")
    yield Name(f"{ours}.conv.depthwise", (f"{theirs}.conv_module.depthwise_conv.weight",))
    if _layered(config):
        yield from pair(f"{ours}.conv.norm", f"{theirs}.conv_module.depthwise_layer_norm")
        return
    for name, their in _BATCH_NORM.items():
        yield Name(f"{ours}.conv.norm.{name}", (f"{theirs}.conv_module.batch_norm.{their}",))


def _pointwise(config: EncoderConfig) -> Iterator[tuple[str, str]]:
    """Linear layers stored as convolutions over one frame: (O, I) here, (O, I, 1) there."""
    for i in range(config.depth):
        for ours, theirs in (("gated", "pointwise_conv1"), ("mixed", "pointwise_conv2")):
            yield f"blocks.{i}.conv.{ours}.weight", f"encoder.layers.{i}.conv_module.{theirs}.weight"


def read_encoder(tensors: Tensors, config: EncoderConfig) -> dict[str, Tensor]:
    """Our encoder's state, taken from the tensors of a base model.

    Raises ConversionError for a key that is missing or does not fit.
    """
    known = tensors.keys()
    tensors.drop([key for key in known if key.startswith(_UNUSED) or key.endswith(_COUNTER)])
    if isinstance(config.positions, Rotary) and _RATES in tensors:
        _check_rates(tensors, config.positions.base, config)
    state = read_names(_names(config), tensors, config)
    for ours, theirs in _pointwise(config):
        state[ours] = tensors.take(theirs).squeeze(-1)
    return state


def _check_rates(tensors: Tensors, base: int, config: EncoderConfig) -> None:
    """The stored frequencies may be rounded to half precision, but must match the config, from which ours are
    computed."""
    found, wanted = tensors.take(_RATES), _rates(base, config)
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-2, atol=1e-6):
        raise ConversionError(
            f"{tensors.where}: key {_RATES!r} is not what rotary_embedding_base {base} gives: "
            "set that field of the config to the base that the model was trained with"
        )


def _rates(base: int, config: EncoderConfig) -> Tensor:
    return rotary_rates(config.width // config.heads, base)


def write_encoder(state: Mapping[str, Tensor], config: EncoderConfig, model_type: str) -> dict[str, Tensor]:
    """The inverse of `read_encoder`: what `load_state_dict` of the family's base model takes. The convolution
    that wav2vec2-conformer never runs is written as small as possible.

    Raises ValueError for a field of the config that the family cannot express.
    """
    _block(config, model_type)
    written = write_names(_names(config), state)
    written |= {theirs: state[ours][..., None].clone() for ours, theirs in _pointwise(config)}
    if model_type == "wav2vec2-bert":
        return written
    if isinstance(config.positions, Rotary):
        written[_RATES] = _rates(config.positions.base, config)
    for i in range(config.depth):
        written[f"encoder.layers.{i}.{_COUNTER}"] = torch.tensor(0)
    return written | {
        f"{_UNUSED}conv.bias": torch.zeros(config.width),
        f"{_UNUSED}conv.parametrizations.weight.original0": torch.zeros(1, 1, 1),
        f"{_UNUSED}conv.parametrizations.weight.original1": torch.ones(config.width, 1, 1),
    }
