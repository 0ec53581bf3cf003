"""Export our weights under fairseq2's names, for its `wav2vec2` family, version 0.8. Needs no fairseq2."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from speech_ssl.checkpoints.artifact import Artifact, load_extra
from speech_ssl.checkpoints.replacing import check_empty
from speech_ssl.model.config import ConvNorm, Convolutions, EncoderConfig, Transformer, WideConvolution

CARD, WEIGHTS = "model.yaml", "model.safetensors"

_RENAMED = {
    "frontend.layers.": "encoder_frontend.feature_extractor.layers.",
    "feature_norm.": "encoder_frontend.post_extract_layer_norm.",
    "feature_projection.": "encoder_frontend.model_dim_proj.",
    "hidden_vector": "masker.temporal_mask_embed",
    "positions.scale_K": "encoder_frontend.pos_encoder.conv.weight_g",
    "positions.direction": "encoder_frontend.pos_encoder.conv.weight_v",
    "positions.bias": "encoder_frontend.pos_encoder.conv.bias",
    "blocks.": "encoder.layers.",
}
_RENAMED_IN_BLOCK = {
    "attention.out.": "self_attn.output_proj.",
    "attention_norm.": "self_attn_layer_norm.",
    "ffn.up.": "ffn.inner_proj.",
    "ffn.down.": "ffn.output_proj.",
    "ffn_norm.": "ffn_layer_norm.",
}
_RENAMED_BESIDE = {
    "quantizer.logits.": "quantizer.entry_proj.",
    "quantizer.codebook_GVD": "quantizer.entries",
    "project_target.": "final_target_proj.",
    "project_context.": "final_proj.",
}


def write(artifact: Artifact, folder: str | Path) -> Path:
    """Write a folder for fairseq2: `model.safetensors`, and the asset card `model.yaml` that points to it.
    fairseq2 finds the card if FAIRSEQ2_USER_ASSET_DIR names the folder.

    Raises ValueError for a model that the wav2vec2 family does not have, and for a folder that is not empty.
    """
    folder, config = Path(folder), artifact.encoder.config
    extra = load_extra(artifact.folder) if artifact.extra is None else artifact.extra
    state = {f"encoder.{name}": value for name, value in artifact.encoder.state_dict().items()} | dict(extra)
    named = write_fairseq2(state, config)
    frontend, *_ = check(config)
    card = {
        "name": artifact.name,
        "model_family": "wav2vec2",
        "model_config": model_config(state, config),
        "checkpoint": WEIGHTS,
        "normalize_audio": frontend.normalize_wave,  # fairseq2's data set does that, not its model
        "wave_eps": frontend.wave_eps,
    }
    check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"  # JSON is valid YAML
    (folder / CARD).write_text(text, encoding="utf-8")
    return folder


def write_fairseq2(state: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """The state dict of fairseq2's Wav2Vec2Model from that of our wav2vec 2.0 objective. Gradients under the
    same names are mapped likewise.

    Raises ValueError naming a field or tensor that has no place there.
    """
    frontend, *_ = check(config)
    named = {"quantizer.num_updates": torch.zeros((), dtype=torch.int64)}
    for name, value in state.items():
        if name.startswith("encoder."):
            named |= _of_encoder(name.removeprefix("encoder."), value.detach(), config, frontend.norm)
        else:
            named[_renamed(name, _RENAMED_BESIDE)] = value.detach()
    if "quantizer.entries" not in named:
        raise ValueError(
            "the model has no quantizer and projections, which fairseq2's wav2vec2 has: convert an artifact "
            "of wav2vec 2.0 pre-training"
        )
    named["quantizer.entries"] = named["quantizer.entries"].flatten(0, 1)[None]
    return {name: value.contiguous().clone() for name, value in named.items()}


def check(config: EncoderConfig) -> tuple[Convolutions, WideConvolution, Transformer]:
    """The parts of the encoder. Raises ValueError for a part that fairseq2's Wav2Vec2Model does not have."""
    frontend, positions, block = config.frontend, config.positions, config.block
    asked = {
        "frontend": isinstance(frontend, Convolutions),
        "positions": isinstance(positions, WideConvolution) and positions.norm == "weight",
        "block": isinstance(block, Transformer) and not (block.adapter_width or block.causal),
        "activation": config.activation == "gelu",
        "conv_activation": config.conv_activation == "gelu",
        "feature_norm": config.feature_norm,
        "norm_eps": config.norm_eps == 1e-5,
    }
    for name, has in asked.items():
        if not has:
            raise ValueError(
                f"fairseq2's wav2vec2 has no {name} like this model's: {getattr(config, name)!r}"
            )
    if frontend.width == config.width:
        raise ValueError(
            f"fairseq2's wav2vec2 has no projection of features as wide as the model, {config.width}: this "
            "model has"
        )
    assert isinstance(frontend, Convolutions) and isinstance(positions, WideConvolution)
    assert isinstance(block, Transformer)
    return frontend, positions, block


def model_config(state: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Any]:
    """fairseq2's Wav2Vec2Config as in an asset card. Dropout is left out: it is no part of a model."""
    groups, entries, width = state["quantizer.codebook_GVD"].shape
    frontend, positions, block = check(config)
    shapes = zip(frontend.channels, frontend.kernels, frontend.strides, strict=True)
    return {
        "encoder_config": {
            "model_dim": config.width,
            "feature_dim": frontend.width,
            "layer_norm_features": not block.pre_norm,
            "feature_extractor_layer_descs": [list(shape) for shape in shapes],
            "feature_extractor_bias": frontend.bias,
            "feature_extractor_layer_norm_convs": frontend.norm == "layer",
            "pos_conv_kernel_size": positions.kernel,
            "num_pos_conv_groups": positions.groups,
            "num_encoder_layers": config.depth,
            "num_encoder_attn_heads": config.heads,
            "ffn_inner_dim": config.ffn_width,
            "norm_order": "PRE" if block.pre_norm else "POST",
        },
        "final_dim": state["project_context.weight"].shape[0],
        "quantized_dim": groups * width,
        "num_codebooks": groups,
        "num_codebook_entries": entries,
    }


def _of_encoder(
    name: str, value: Tensor, config: EncoderConfig, norm: ConvNorm
) -> Iterator[tuple[str, Tensor]]:
    """A tensor of our encoder under its name or names there."""
    if name.startswith("norm."):  # post-norm: before the first block; pre-norm: after the last
        part = "encoder.layer_norm." if config.block.pre_norm else "encoder_frontend.layer_norm."
        yield part + name.removeprefix("norm."), value
    elif ".attention.qkv." in name:
        block, kind = name.split("attention.qkv.")
        for which, rows in zip("qkv", value.chunk(3), strict=True):
            yield f"{_renamed(block, _RENAMED)}self_attn.{which}_proj.{kind}", rows
    elif name == "positions.scale_K":
        yield _renamed(name, _RENAMED), value[None, None, :]
    elif name.startswith("frontend.layers."):
        yield _of_convolution(name, norm), value
    elif name.startswith("blocks."):
        _, number, rest = name.split(".", 2)
        yield f"encoder.layers.{number}.{_renamed(rest, _RENAMED_IN_BLOCK)}", value
    else:
        yield _renamed(name, _RENAMED), value


def _of_convolution(name: str, norm: ConvNorm) -> str:
    number, rest = name.removeprefix("frontend.layers.").split(".", 1)
    if rest.startswith("norm."):
        rest = rest.replace("norm.", "layer_norm." if norm == "layer" else "group_norm.")
    else:
        rest = f"conv.{rest}"
    return f"{_RENAMED['frontend.layers.']}{number}.{rest}"


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"fairseq2's wav2vec2 has no place for {name!r}")
