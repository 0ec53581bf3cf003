"""What both files of transformers' names share: fields of `config.json`, and tables of tensors that are read
and written by the same lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Tensors, field_of
from speech_ssl.model.config import Activation, EncoderConfig

CONVOLUTIONS = {"conv_channels": "conv_dim", "conv_kernels": "conv_kernel", "conv_strides": "conv_stride"}
DROPOUTS = {  # with what transformers takes for one that is missing
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "feature_dropout": ("feat_proj_dropout", 0.0),
    "layer_drop": ("layerdrop", 0.1),
}
ACTIVATIONS: dict[str, Activation] = {  # the first name of each of ours is the one that is written
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
"""Of weight norm, before torch 2.1's."""


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


class Name(NamedTuple):
    """One of our tensors, and those of theirs that it is made of, one above the other."""

    ours: str
    theirs: tuple[str, ...]
    leading: int = 0
    """Dimensions of size 1 that theirs has before ours."""


def pair(ours: str, *theirs: str) -> Iterator[Name]:
    for kind in ("weight", "bias"):
        yield Name(f"{ours}.{kind}", tuple(f"{module}.{kind}" for module in theirs))


def frontend_names(config: EncoderConfig) -> Iterator[Name]:
    """Of the convolutions and of what projects their frames."""
    for i in range(0 if config.mel_bins else len(config.conv_channels)):
        theirs = f"feature_extractor.conv_layers.{i}"
        yield Name(f"frontend.layers.{i}.weight", (f"{theirs}.conv.weight",))
        if config.conv_bias:
            yield Name(f"frontend.layers.{i}.bias", (f"{theirs}.conv.bias",))
        if i == 0 or config.conv_norm == "layer":
            yield from pair(f"frontend.layers.{i}.norm", f"{theirs}.layer_norm")
    if config.feature_norm:
        yield from pair("feature_norm", "feature_projection.layer_norm")
    yield from pair("feature_projection", "feature_projection.projection")


def read_names(names: Iterable[Name], tensors: Tensors, config: EncoderConfig) -> dict[str, Tensor]:
    """Our encoder's state. Without a hidden vector (transformers has none where nothing is to be masked) it
    is zero. Raises ConversionError for a key that is missing, or parts of unlike shapes."""
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
        # Clones, since parts of one tensor share its memory, which safetensors refuses.
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
