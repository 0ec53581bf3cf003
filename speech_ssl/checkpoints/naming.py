"""Shared by the readers of fairseq, torchaudio and fairseq2: mapping their names to those of transformers,
and inferring a config from shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Tensors, built_encoder
from speech_ssl.checkpoints.transformers import conformer, transformer
from speech_ssl.model.config import (
    Conformer,
    Convolutions,
    ConvPosition,
    EncoderConfig,
    GatedDistances,
    OfConformer,
    OfTransformer,
    StackedConvolutions,
    Transformer,
    WideConvolution,
)
from speech_ssl.model.encoder import Encoder

LONGEST = 300
"""Longer names of tensors are ignored."""
HEAD_WIDTH = 64
HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16, 2048: 16}
"""Attention heads by the width of published models, since the weights do not show them. 2048: XLS-R 2B, and
Omnilingual ASR's 3B and 7B (omnilingual_asr/models/wav2vec2_ssl/config.py: 16 from fairseq2's large_lv60k on,
in all sizes)."""

LAYER_NORM_EPS = 1e-5
"""For waves normalised by torch's `layer_norm`."""

DEPTHWISE = "encoder.layers.0.conv_module.depthwise_conv.weight"
"""Only Conformers have it."""

QUANTIZER = {
    "quantizer.weight_proj.weight": "quantizer.logits.weight",
    "quantizer.weight_proj.bias": "quantizer.logits.bias",
    "project_q.weight": "project_target.weight",
    "project_q.bias": "project_target.bias",
    "project_hid.weight": "project_context.weight",
    "project_hid.bias": "project_context.bias",
}


Value = TypeVar("Value")


def tensors_of(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, without a wrapper's prefix. Names that no module can have are left out."""
    if not isinstance(content, Mapping):
        return {}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    return {
        key.removeprefix("module."): value
        for key, value in tensors.items()
        if type(key) is str and len(key) <= LONGEST and key.isprintable()
    }


def renamed(values: Mapping[str, Value], table: Sequence[tuple[str, str]]) -> dict[str, Value]:
    """Rename each key by the first pattern that matches all of it; other keys stay."""
    patterns = [(re.compile(pattern), new) for pattern, new in table]
    found = {}
    for key, value in values.items():
        for pattern, new in patterns:
            if pattern.fullmatch(key):
                key = pattern.sub(new, key)
                break
        found[key] = value
    return found


def old_names(
    keys: Sequence[str], found: Mapping[str, object], table: Sequence[tuple[str, str]]
) -> list[str]:
    """The original names, among those in `found`, of keys that `renamed` returned."""
    old = renamed({key: key for key in found}, table)
    return sorted(old.get(key, key) for key in keys)


def assumed(config: EncoderConfig, *more: str, known: Collection[str] = ()) -> list[str]:
    """The assumptions to report when neither shapes nor options gave the heads and strides."""
    assert isinstance(config.frontend, Convolutions)
    told = {
        "heads": f"attention has {config.heads} heads",
        "strides": f"the convolutions' strides are {config.frontend.strides}",
    }
    return [*(text for name, text in told.items() if name not in known), *more]


def heads_of(width: int, where: str) -> int:
    """Attention heads for a width. Raises ConversionError for a width that no published model has and that is
    no multiple of 64."""
    if width not in HEADS and width % HEAD_WIDTH:
        raise ConversionError(f"{where}: the number of attention heads is unknown for a width of {width}")
    return HEADS.get(width, width // HEAD_WIDTH)


def config_of(  # noqa: PLR0913 - what shapes do not tell
    tensors: Mapping[str, Tensor],
    where: str,
    *,
    pre_norm: bool,
    normalize_wave: bool,
    wave_eps: float = LAYER_NORM_EPS,
    strides: tuple[int, ...] | None = None,
    furthest: int = GatedDistances().furthest,
    positions: OfConformer = None,
    conformer_dropout: float = Conformer().dropout,
    **known: Any,
) -> EncoderConfig:
    """A config from tensors under transformers' names. strides: None for the published ones. furthest: of
    gated distances. positions, conformer_dropout: of a Conformer. known: more fields that shapes do not show;
    heads may be missing if they are as published. Raises ConversionError."""
    try:
        if empty := next((key for key, tensor in tensors.items() if not tensor.numel()), None):
            raise ConversionError(f"{where}: key {empty!r} is empty (by transformers' names)")
        conformer = DEPTHWISE in tensors
        width = tensors["feature_projection.projection.weight"].shape[0]
        table = tensors.get("encoder.layers.0.attention.rel_attn_embed.weight")
        if "heads" not in known:
            known["heads"] = heads_of(width, where) if table is None else table.shape[1]
        layer = f"encoder.layers.0.{'ffn1' if conformer else 'feed_forward'}.intermediate_dense.weight"
        block: Conformer | Transformer = Transformer(pre_norm=pre_norm)
        of_block: OfTransformer | OfConformer = positions
        if conformer:
            if not pre_norm:
                raise ConversionError(
                    f"{where}: no encoder can be made of it: pre_norm must be True with a Conformer"
                )
            known = {"activation": "silu", **known}
            block = Conformer(kernel=tensors[DEPTHWISE].shape[2], dropout=conformer_dropout)
        else:
            of_block = convolution = _convolution_of(tensors)
            if table is not None:
                of_block = GatedDistances(convolution=convolution, buckets=table.shape[0], furthest=furthest)
        frontend = _frontend_of(tensors, strides)
        return EncoderConfig(
            frontend=replace(frontend, normalize_wave=normalize_wave, wave_eps=wave_eps),
            positions=of_block,
            block=block,
            width=width,
            depth=_count(tensors, "encoder.layers.{}.final_layer_norm.weight"),
            ffn_width=tensors[layer].shape[0],
            **{"feature_grad_scale": 1.0, **known},
        )
    except ConversionError:
        raise
    except KeyError as error:
        raise ConversionError(f"{where}: key {error} is missing (by transformers' names)") from None
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ConversionError(f"{where}: no encoder can be made of it: {error}") from None


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    return sum(name.format(i) in tensors for i in range(len(tensors)))


def _frontend_of(tensors: Mapping[str, Tensor], strides: tuple[int, ...] | None) -> Convolutions:
    layer = "feature_extractor.conv_layers.{}.{}"
    shapes = [
        tensors[layer.format(i, "conv.weight")].shape
        for i in range(_count(tensors, layer.format("{}", "conv.weight")))
    ]
    kernels = tuple(shape[2] for shape in shapes)
    return Convolutions(
        channels=tuple(shape[0] for shape in shapes),
        kernels=kernels,
        strides=tuple(5 if kernel == 10 else 2 for kernel in kernels) if strides is None else strides,
        bias=layer.format(0, "conv.bias") in tensors,
        norm="layer" if layer.format(1, "layer_norm.weight") in tensors else "group",
    )


def _convolution_of(tensors: Mapping[str, Tensor]) -> ConvPosition:
    stack = "encoder.pos_conv_embed.layers.{}.conv.weight"
    spellings = ("weight_v", "parametrizations.weight.original1")
    single = [f"encoder.pos_conv_embed.conv.{name}" for name in spellings]
    layers = _count(tensors, stack)
    key = stack.format(0) if layers else next((name for name in single if name in tensors), single[0])
    width, inputs, kernel = tensors[key].shape
    if layers:
        return StackedConvolutions(layers=layers, kernel=kernel, groups=width // inputs)
    return WideConvolution(kernel=kernel, groups=width // inputs)


def encoder_of(tensors: Tensors, config: EncoderConfig) -> Encoder:
    """The encoder from tensors under transformers' names, which are taken."""
    family = conformer if isinstance(config.block, Conformer) else transformer
    return built_encoder(config, family.read_encoder(tensors, config), tensors.where)


def pretraining_of(tensors: Tensors, groups: int | None = None) -> dict[str, Tensor]:
    """Take quantizer and projections and return copies (a tensor may be a view of its file) under the names
    of our objective; none unless all are present. Raises ConversionError for shapes that do not fit."""
    if not all(key in tensors for key in (*QUANTIZER, "quantizer.codevectors")):
        return {}
    extra = {ours: tensors.take(name).clone() for name, ours in QUANTIZER.items()}
    codes = tensors.take("quantizer.codevectors")
    if not all(value.is_floating_point() for value in (*extra.values(), codes)):
        raise ConversionError(f"{tensors.where}: its quantizer or projections hold no weights")
    logits, targets = extra["quantizer.logits.weight"], extra["project_target.weight"]
    if codes.ndim != 3 or logits.ndim != 2 or targets.ndim != 2 or not codes.numel():
        raise ConversionError(f"{tensors.where}: its quantizer's weights do not have the shapes of one")
    count, width = codes[0].shape
    if groups is None:
        groups = targets.shape[1] // width
    if not groups or count % groups:
        raise ConversionError(f"{tensors.where}: {count} code vectors are not {groups} groups of them")
    if len(codes) != 1 or len(logits) != count or targets.shape[1] != groups * width:
        raise ConversionError(
            f"{tensors.where}: {len(logits)} logits and projections of {targets.shape[1]} values do not fit "
            f"{groups} groups of {count // groups} code vectors with {width} values"
        )
    extra["quantizer.codebook_GVD"] = codes[0].reshape(groups, -1, width).clone()
    return extra
