"""State dicts of torchaudio's Wav2Vec2Model: wav2vec 2.0, HuBERT and WavLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Converted, Tensors, provenance
from speech_ssl.checkpoints.naming import assumed, config_of, encoder_of, old_names, renamed, tensors_of

LAYER = r"encoder\.transformer\.layers\.(\d+)\."
NAMES = [
    (r"mask_generator\.mask_embedding", "masked_spec_embed"),
    (r"encoder\.feature_projection\.(.*)", r"feature_projection.\1"),
    (LAYER + r"attention\.attention\.out_proj\.(.*)", r"encoder.layers.\1.attention.out_proj.\2"),
    (r"encoder\.transformer\.(.*)", r"encoder.\1"),
]
WAVE_NOTE = "waves are normalised, as for torchaudio's models with a layer norm in the front end"


def recognises(content: Any) -> bool:
    return any(key.startswith("encoder.transformer.") for key in _state(content))


def read(content: Any, where: str, name: str) -> Converted:
    """Convert a state dict. What the weights do not show is taken from the published models: heads, strides,
    and that models with layer norms in their convolutions are pre-norm and normalise waves. Raises
    ConversionError."""
    state = _state(content)
    found = _parted(renamed(state, NAMES), where)
    layered = "feature_extractor.conv_layers.1.layer_norm.weight" in found
    config = config_of(found, where, pre_norm=layered, normalize_wave=layered)
    tensors = Tensors(found, where)
    encoder = encoder_of(tensors, config)
    left = tensors.keys()
    tensors.drop([key for key in left if key.startswith(("aux.", "mask_generator.", "logit_generator."))])
    tensors.check_empty()
    training = provenance(
        "torchaudio",
        stored_as=tensors.stored_as,
        assumed=assumed(config, *[WAVE_NOTE] * layered),
        left=old_names(left, state, NAMES),
    )
    return Converted(encoder, name, training)


def _state(content: Any) -> dict[str, Tensor]:
    """The model's own tensors, without the prefixes of pre-training (`HuBERTPretrainModel`) and Lightning."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    found = tensors_of(content)
    return {key.removeprefix("model.").removeprefix("wav2vec2."): value for key, value in found.items()}


def _parted(found: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Split WavLM's combined tensors of queries, keys and values."""
    parted = {}
    for key, value in found.items():
        head, joined, kind = key.partition(".attention.attention.in_proj_")
        if not joined:
            parted[key] = value
            continue
        if not value.ndim or len(value) % 3 or not len(value):
            raise ConversionError(f"{where}: key {key!r} does not have the shape of queries, keys and values")
        for letter, rows in zip("qkv", value.chunk(3), strict=True):
            parted[f"{head}.attention.{letter}_proj.{kind}"] = rows
    return parted
