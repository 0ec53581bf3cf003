"""Shared by both architectures of transformers: config fields, and tables of tensor names for reading and
writing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Tensors, field_of
from speech_ssl.model.config import Activation, ConvNorm, Convolutions, EncoderConfig

_CONVOLUTIONS = {"channels": "conv_dim", "kernels": "conv_kernel", "strides": "conv_stride"}
_SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
}
_DROPOUTS = {  # with transformers' defaults
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "feature_dropout": ("feat_proj_dropout", 0.0),
    "layer_drop": ("layerdrop", 0.1),
}
ACTIVATIONS: dict[str, Activation] = {  # for each of ours the first name is written
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_OLD_SPELLING = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
"""Names of weight norm before torch 2.1."""


def numbers_of(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of our config that all families have. Raises ConversionError."""
    numbers: dict[str, Any] = {ours: field_of(config, theirs, int, where) for ours, theirs in _SIZES.items()}
    return numbers | {
        **{ours: share_of(config, theirs, usual, where) for ours, (theirs, usual) in _DROPOUTS.items()},
        "norm_eps": float(field_of(config, "layer_norm_eps", (int, float), where)),
        "activation": activation_of(config, "hidden_act", where),
        "feature_grad_scale": 1.0,
    }


def written_numbers(config: EncoderConfig) -> dict[str, Any]:
    """The inverse of `numbers_of`, with the other fields that transformers needs."""
    written = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    written |= {theirs: getattr(config, ours) for ours, (theirs, _) in _DROPOUTS.items()}
    return written | {
        "layer_norm_eps": config.norm_eps,
        "hidden_act": written_activation(config.activation),
        "initializer_range": 0.02,
        "mask_time_prob": 0.05,  # with 0 transformers would have no hidden vector
        "mask_time_length": 10,
        "mask_feature_prob": 0.0,
        "mask_feature_length": 10,
    }


def convolutions_of(config: Mapping[str, Any], norm: ConvNorm | None, where: str) -> dict[str, Any]:
    """The front end and its activation. norm: None: read it from the config. Raises ValueError."""
    sizes: dict[str, Any] = {
        ours: whole_numbers(config, theirs, where) for ours, theirs in _CONVOLUTIONS.items()
    }
    norm = norm or field_of(config, "feat_extract_norm", str, where)
    frontend = Convolutions(**sizes, norm=norm, bias=field_of(config, "conv_bias", bool, where))
    activation = activation_of(config, "feat_extract_activation", where)
    return {"frontend": frontend, "conv_activation": activation}


def written_convolutions(frontend: Convolutions, activation: Activation) -> dict[str, Any]:
    """The inverse of `convolutions_of`."""
    return {theirs: list(getattr(frontend, ours)) for ours, theirs in _CONVOLUTIONS.items()} | {
        "num_feat_extract_layers": len(frontend.channels),
        "conv_bias": frontend.bias,
        "feat_extract_norm": frontend.norm,
        "feat_extract_activation": written_activation(activation),
    }


def check_expressible(config: EncoderConfig, family: str, can: Mapping[str, bool]) -> None:
    """Raises ValueError for a field of the config that the family cannot express."""
    for name, expressible in can.items():
        if not expressible:
            raise ValueError(
                f"the encoder's {name} is {getattr(config, name)!r}: a {family!r} model of transformers has "
                "no such thing"
            )


def share_of(config: Mapping[str, Any], name: str, usual: float, where: str) -> float:
    """A dropout rate."""
    return float(field_of({name: usual, **config}, name, (int, float), where))


def whole_numbers(config: Mapping[str, Any], name: str, where: str) -> tuple[int, ...]:
    values = field_of(config, name, (list, tuple), where)
    if any(type(value) is not int for value in values):
        raise ConversionError(f"{where}: field {name!r} is {values!r}, not a list of whole numbers")
    return tuple(values)


def activation_of(config: Mapping[str, Any], name: str, where: str) -> Activation:
    value = field_of(config, name, str, where)
    if value not in ACTIVATIONS:
        raise ConversionError(
            f"{where}: field {name!r} is {value!r}, an activation that is not supported; those that are: "
            + ", ".join(ACTIVATIONS)
        )
    return ACTIVATIONS[value]


def written_activation(ours: Activation) -> str:
    return next(theirs for theirs, activation in ACTIVATIONS.items() if activation == ours)


class Name(NamedTuple):
    """One of our tensors, and the tensors of theirs that are concatenated to it along the first dimension."""

    ours: str
    theirs: tuple[str, ...]
    leading: int = 0
    """Leading dimensions of size 1 that theirs has and ours lacks."""


def pair(ours: str, *theirs: str) -> Iterator[Name]:
    for kind in ("weight", "bias"):
        yield Name(f"{ours}.{kind}", tuple(f"{module}.{kind}" for module in theirs))


def frontend_names(config: EncoderConfig) -> Iterator[Name]:
    """The names of the convolutions and of the projection of their frames."""
    if isinstance(frontend := config.frontend, Convolutions):
        for i in range(len(frontend.channels)):
            theirs = f"feature_extractor.conv_layers.{i}"
            yield Name(f"frontend.layers.{i}.weight", (f"{theirs}.conv.weight",))
            if frontend.bias:
                yield Name(f"frontend.layers.{i}.bias", (f"{theirs}.conv.bias",))
            if i == 0 or frontend.norm == "layer":
                yield from pair(f"frontend.layers.{i}.norm", f"{theirs}.layer_norm")
    if config.feature_norm:
        yield from pair("feature_norm", "feature_projection.layer_norm")
    yield from pair("feature_projection", "feature_projection.projection")


def read_names(names: Iterable[Name], tensors: Tensors, config: EncoderConfig) -> dict[str, Tensor]:
    """Our encoder's state. The hidden vector is zero if it is missing (transformers has none if nothing is
    masked). Raises ConversionError for a missing key, and for parts whose shapes differ."""
    state = {"hidden_vector": torch.zeros(config.width)}
    if "masked_spec_embed" in tensors:
        state["hidden_vector"] = tensors.take("masked_spec_embed")
    return state | read_parts(names, tensors)


def read_parts(names: Iterable[Name], tensors: Tensors) -> dict[str, Tensor]:
    """Raises as `read_names`."""
    state = {}
    for name in names:
        parts = [_take(tensors, key) for key in name.theirs]
        state[name.ours] = _joined(parts, name, tensors.where)
    return state


def write_names(names: Iterable[Name], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `read_names`."""
    return {"masked_spec_embed": state["hidden_vector"].clone(), **write_parts(names, state)}


def write_parts(names: Iterable[Name], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `read_parts`."""
    written: dict[str, Tensor] = {}
    for name in names:
        tensor = state[name.ours][(None,) * name.leading]
        parts = tensor.chunk(len(name.theirs)) if len(name.theirs) > 1 else (tensor,)
        # Cloned: parts of one tensor share memory, which safetensors refuses.
        written |= {key: part.clone() for key, part in zip(name.theirs, parts, strict=True)}
    return written


def _take(tensors: Tensors, key: str) -> Tensor:
    if key not in tensors:
        for new, old in _OLD_SPELLING.items():
            if key.endswith(new) and (old_key := key.removesuffix(new) + old) in tensors:
                return tensors.take(old_key)
    return tensors.take(key)


def _joined(parts: Sequence[Tensor], name: Name, where: str) -> Tensor:
    first = parts[0]
    for key, part in zip(name.theirs, parts, strict=True):
        if part.shape != first.shape or part.dim() <= name.leading:
            raise ConversionError(f"{where}: key {key!r} has shape {tuple(part.shape)}, which does not fit")
    joined = first if len(parts) == 1 else torch.cat(list(parts))
    for _ in range(name.leading):
        joined = joined.squeeze(0)
    return joined
