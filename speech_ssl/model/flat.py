"""The encoder config before it had parts: one flat mapping, as in artifacts of format version 1 and runs of
that time. A model's hash is still computed from these names, since it must not change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from speech_ssl.model.config import (
    OF_TRAINING,
    ClippedDistances,
    Conformer,
    Convolutions,
    ConvPosition,
    EncoderConfig,
    GatedDistances,
    LogMel,
    OfConformer,
    OfTransformer,
    Part,
    Rotary,
    Sinusoidal,
    StackedConvolutions,
    Transformer,
    WideConvolution,
)

MEL_STEP, MEL_WINDOW = 160, 400
"""Make the kernel and stride that the flat config has for a log-mel front end."""
REQUIRED: dict[str, Any] = {
    "conv_channels": [512] * 7,
    "conv_kernels": [10, 3, 3, 3, 3, 2, 2],
    "conv_strides": [5, 2, 2, 2, 2, 2, 2],
    "conv_norm": "group",
    "conv_bias": False,
    "normalize_wave": False,
    "width": 768,
    "depth": 12,
    "heads": 12,
    "ffn_width": 3072,
    "pre_norm": False,
    "position_kernel": 128,
    "position_groups": 16,
    "norm_eps": 1e-5,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "feature_dropout": 0.1,
    "layer_drop": 0.05,
    "feature_grad_scale": 0.1,
    "init": "published",
}
"""Fields of every flat config. A hash leaves out those with these values."""
LATER: dict[str, Any] = {
    "activation": "gelu",
    "conv_activation": "gelu",
    "feature_norm": True,
    "position_depth": 0,
    "position_batch_norm": False,
    "relative": "none",
    "relative_buckets": 320,
    "relative_distance": 800,
    "relative_left": 64,
    "relative_right": 8,
    "rotary_base": 10000,
    "adapter_width": 0,
    "conformer_kernel": 0,
    "conformer_norm": "batch",
    "mel_bins": 0,
    "mel_norm": "bin",
    "mel_channels": [],
    "conformer_dropout": 0.1,
    "wave_eps": 1e-7,
    "causal": False,
}
"""Fields that the oldest flat configs lack, with their values there."""
SAME = (
    *("width", "depth", "heads", "ffn_width", "activation", "conv_activation", "norm_eps"),
    *("dropout", "attention_dropout", "activation_dropout", "feature_dropout", "layer_drop"),
    *("feature_norm", "feature_grad_scale", "init"),
)
"""Fields with the same name in both forms."""
FRONTEND = {
    **{name: f"conv_{name}" for name in ("channels", "kernels", "strides", "norm", "bias")},
    **{name: name for name in ("normalize_wave", "wave_eps")},
}
CONVOLUTION = {"kernel": "position_kernel", "groups": "position_groups"}
DISTANCES = {"buckets": "relative_buckets", "furthest": "relative_distance"}
CLIPPED = {"left": "relative_left", "right": "relative_right"}
CONFORMER = {"kernel": "conformer_kernel", "norm": "conformer_norm", "dropout": "conformer_dropout"}
TRANSFORMER = {name: name for name in ("pre_norm", "adapter_width", "causal")}


def stored_config(values: Mapping[str, Any]) -> EncoderConfig:
    """Read a stored config, flat or in parts. Raises ValueError naming the field at fault."""
    return _of_flat(values) if is_flat(values) else EncoderConfig.from_dict(values)


def is_flat(values: Mapping[str, Any]) -> bool:
    return "frontend" not in values


def _of_flat(values: Mapping[str, Any]) -> EncoderConfig:
    if unknown := sorted(set(values) - set(REQUIRED) - set(LATER)):
        raise ValueError(f"unknown field {unknown[0]!r} in the encoder config")
    if missing := sorted(set(REQUIRED) - set(values)):
        raise ValueError(f"field {missing[0]!r} is missing in the encoder config")
    flat: dict[str, Any] = {**LATER, **values}
    flat = {name: tuple(value) if isinstance(value, list) else value for name, value in flat.items()}
    parts: dict[str, Any] = {name: flat[name] for name in SAME}
    try:
        if flat["conformer_kernel"]:
            parts |= {"block": Conformer(**_of(flat, CONFORMER)), "positions": _of_conformer(flat)}
        else:
            parts |= {"block": Transformer(**_of(flat, TRANSFORMER)), "positions": _of_transformer(flat)}
        bins = flat["mel_bins"]
        mel = LogMel(bins=bins, norm=flat["mel_norm"]) if bins else None
        config = EncoderConfig(frontend=mel or Convolutions(**_of(flat, FRONTEND)), **parts)
    except TypeError as error:
        raise ValueError(f"a field of the encoder config has the wrong type: {error}") from None
    for name, value in flat_of(config).items():  # a value that no part holds must not be ignored
        if (type(flat[name]), flat[name]) != (type(value), value) and name != "position_groups":
            raise ValueError(f"{name} must be {value!r} beside the other fields, not {flat[name]!r}")
    return config


def _of(flat: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: flat[name] for ours, name in names.items()}


def _of_transformer(flat: Mapping[str, Any]) -> OfTransformer:
    convolution: ConvPosition
    if flat["position_depth"]:
        convolution = StackedConvolutions(layers=flat["position_depth"], **_of(flat, CONVOLUTION))
    else:
        norm: Literal["weight", "batch"] = "batch" if flat["position_batch_norm"] else "weight"
        convolution = WideConvolution(norm=norm, **_of(flat, CONVOLUTION))
    if flat["relative"] == "gated":
        return GatedDistances(convolution=convolution, **_of(flat, DISTANCES))
    return convolution


def _of_conformer(flat: Mapping[str, Any]) -> OfConformer:
    match flat["relative"]:
        case "rotary":
            return Rotary(base=flat["rotary_base"])
        case "sinusoidal":
            return Sinusoidal()
        case "clipped":
            return ClippedDistances(**_of(flat, CLIPPED))
    return None


def _in_words(part: Part, names: Mapping[str, str]) -> dict[str, Any]:
    return {name: getattr(part, ours) for ours, name in names.items()}


def hashed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a flat config that enter a model's hash: no training-only fields, no default values."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in flat.items()}
    usual = REQUIRED | LATER
    return {k: v for k, v in values.items() if not k.endswith(OF_TRAINING) and v != usual[k]}


def flat_of(config: EncoderConfig) -> dict[str, Any]:
    """The flat fields that apply to a config of this kind."""
    flat = {name: getattr(config, name) for name in SAME}
    match config.frontend:
        case LogMel(bins=bins, stacked=stacked, norm=norm, channels=channels):
            flat |= {"mel_bins": bins, "mel_norm": norm, "mel_channels": channels}
            flat |= {"conv_channels": (stacked * bins,), "normalize_wave": False}
            flat["conv_kernels"] = ((stacked - 1) * MEL_STEP + MEL_WINDOW,)
            flat["conv_strides"] = (stacked * MEL_STEP,)
        case Convolutions() as convolutions:
            flat |= _in_words(convolutions, FRONTEND)
    if isinstance(config.block, Conformer):
        flat |= _in_words(config.block, CONFORMER) | {"position_depth": 0, "position_batch_norm": False}
        flat |= {"pre_norm": True, "adapter_width": 0, "position_groups": 1}
    else:
        flat |= _in_words(config.block, TRANSFORMER)
    if (convolution := config.convolution) is not None:
        flat |= {
            "position_depth": convolution.layers if isinstance(convolution, StackedConvolutions) else 0,
            "position_batch_norm": isinstance(convolution, WideConvolution) and convolution.norm == "batch",
            **_in_words(convolution, CONVOLUTION),
        }
    match config.positions:
        case GatedDistances() as gated:
            flat |= {"relative": "gated", **_in_words(gated, DISTANCES)}
        case Rotary(base=base):
            flat |= {"relative": "rotary", "rotary_base": base}
        case Sinusoidal():
            flat |= {"relative": "sinusoidal"}
        case ClippedDistances() as clipped:
            flat |= {"relative": "clipped", **_in_words(clipped, CLIPPED)}
        case _:
            flat |= {"relative": "none"}
    return flat
