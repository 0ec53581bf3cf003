"""Read and write the adapter of transformers' CTC models (`add_adapter`), which reduces the number of frames
after the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Tensors, field_of
from speech_ssl.checkpoints.transformers.names import (
    ACTIVATIONS,
    Name,
    activation_of,
    pair,
    read_parts,
    write_parts,
)
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.heads.adapters import KERNEL
from speech_ssl.model.heads.specs import STRIDE, AdapterSpec

FLAG, FIRST = "add_adapter", "use_intermediate_ffn_before_adapter"
_BLOCKS = frozenset({"wav2vec2-bert"})
_CONVOLUTIONS = frozenset({"wav2vec2", "data2vec-audio", "wavlm", "wav2vec2-conformer"})
_TENSORS = ("adapter.", "intermediate_ffn.")
_PUBLISHED_EPS = 1e-5
"""Epsilon of the norm in adapters of convolutions, whatever the config says."""


def taken(body: Tensors, config: Mapping[str, Any]) -> Tensors | None:
    """Take the adapter's tensors from those of a base model; None if its config says it has none."""
    if not config.get(FLAG) or config["model_type"] not in _BLOCKS | _CONVOLUTIONS:
        return None
    keys = body.keys()
    return Tensors({key: body.take(key) for key in keys if key.startswith(_TENSORS)}, body.where)


def read_adapter(
    tensors: Tensors, config: Mapping[str, Any], encoder: EncoderConfig, where: str
) -> tuple[AdapterSpec, dict[str, Tensor]]:
    """The adapter of a head, and its state under the names of `CTCAdapter`.

    Raises ConversionError for features that our adapters do not have, and for keys that are missing or left
    over.
    """
    spec = _read_spec(config, encoder, where)
    state = read_parts(_names(spec, encoder), tensors)
    tensors.check_empty()
    first = state["layers.0.conv.weight" if spec.kind == "convolutions" else "layers.0.residual_conv.weight"]
    if first.shape != (2 * spec.width, spec.width, KERNEL):
        raise ConversionError(
            f"{tensors.where}: the adapter's convolutions have shape {tuple(first.shape)}, "
            f"'output_hidden_size' asks for {(2 * spec.width, spec.width, KERNEL)}"
        )
    return spec, state


def _read_spec(config: Mapping[str, Any], encoder: EncoderConfig, where: str) -> AdapterSpec:
    blocks = config["model_type"] in _BLOCKS
    sizes = {"adapter_kernel_size": KERNEL, "adapter_stride": STRIDE}
    told = {**sizes, "num_adapter_layers": 1 if blocks else 3, "adapter_act": "relu", FIRST: False, **config}
    for name, known in sizes.items():
        if (value := field_of(told, name, int, where)) != known:
            raise ConversionError(f"{where}: field {name!r} is {value}: adapters here have {known}")
    if told.get("output_hidden_size") is None:
        told["output_hidden_size"] = encoder.width
    values: dict[str, Any] = {
        "kind": "blocks" if blocks else "convolutions",
        "layers": field_of(told, "num_adapter_layers", int, where),
        "width": field_of(told, "output_hidden_size", int, where),
        "eps": _PUBLISHED_EPS,
    }
    if blocks:
        values |= {
            "eps": encoder.norm_eps,
            "heads": encoder.heads,
            "ffn_width": encoder.ffn_width,
            "activation": activation_of(told, "adapter_act", where),
            "ffn_first": field_of(told, FIRST, bool, where),
        }
    try:
        return AdapterSpec(**values)
    except ValueError as error:
        raise ConversionError(f"{where}: no adapter can be made of it: {error}") from None


def write_adapter(
    spec: AdapterSpec, state: Mapping[str, Tensor], encoder: EncoderConfig, model_type: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `read_adapter`: tensors of the base model, and fields for `config.json`.

    Raises ValueError for an adapter that the family does not have, or not with this encoder.
    """
    _check_expressible(spec, encoder, model_type)
    fields: dict[str, Any] = {
        FLAG: True,
        "num_adapter_layers": spec.layers,
        "adapter_kernel_size": KERNEL,
        "adapter_stride": STRIDE,
        "output_hidden_size": spec.width,
    }
    if spec.kind == "blocks":
        names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
        fields |= {"adapter_act": names[spec.activation], FIRST: spec.ffn_first}
    return write_parts(_names(spec, encoder), state), fields


def _check_expressible(spec: AdapterSpec, encoder: EncoderConfig, family: str) -> None:
    blocks = spec.kind == "blocks"
    expressible = {
        "kind": family in (_BLOCKS if blocks else _CONVOLUTIONS),
        "eps": spec.eps == (encoder.norm_eps if blocks else _PUBLISHED_EPS),
        "heads": not blocks or spec.heads == encoder.heads,
        "ffn_width": not blocks or spec.ffn_width == encoder.ffn_width,
    }
    for name, can in expressible.items():
        if not can:
            raise ValueError(
                f"the adapter's {name} is {getattr(spec, name)!r}: a {family!r} model of transformers with "
                "this encoder has no such thing"
            )


def _names(spec: AdapterSpec, encoder: EncoderConfig) -> Iterator[Name]:
    if spec.ffn_first:
        yield from _feed_forward("ffn", "intermediate_ffn")
    if spec.width != encoder.width:
        yield from pair("projection", "adapter.proj")
        yield from pair("projection_norm", "adapter.proj_layer_norm")
    for i in range(spec.layers):
        ours, theirs = f"layers.{i}", f"adapter.layers.{i}"
        if spec.kind == "convolutions":
            yield from pair(f"{ours}.conv", f"{theirs}.conv")
        else:
            yield from _block_names(ours, theirs)


def _block_names(ours: str, theirs: str) -> Iterator[Name]:
    yield from pair(f"{ours}.residual_norm", f"{theirs}.residual_layer_norm")
    yield from pair(f"{ours}.residual_conv", f"{theirs}.residual_conv")
    yield from pair(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm")
    yield from pair(f"{ours}.attention_conv", f"{theirs}.self_attn_conv")
    yield from pair(f"{ours}.attention.qkv", *(f"{theirs}.self_attn.linear_{letter}" for letter in "qkv"))
    yield from pair(f"{ours}.attention.out", f"{theirs}.self_attn.linear_out")
    yield from pair(f"{ours}.ffn_norm", f"{theirs}.ffn_layer_norm")
    yield from _feed_forward(f"{ours}.ffn", f"{theirs}.ffn")


def _feed_forward(ours: str, theirs: str) -> Iterator[Name]:
    yield from pair(f"{ours}.up", f"{theirs}.intermediate_dense")
    yield from pair(f"{ours}.down", f"{theirs}.output_dense")
