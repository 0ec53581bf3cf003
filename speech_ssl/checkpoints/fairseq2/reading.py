"""Read checkpoints of fairseq2's wav2vec 2.0: files, folders of its trainer, and what `fairseq2_export`
writes. This includes Omnilingual ASR's encoders and CTC models (arXiv 2511.09690). Needs no fairseq2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speech_ssl.checkpoints.artifact import Head
from speech_ssl.checkpoints.conversion import (
    ConversionError,
    Converted,
    Heads,
    Tensors,
    head_or_why,
    provenance,
    read_json,
)
from speech_ssl.checkpoints.fairseq2.export import CARD, WEIGHTS
from speech_ssl.checkpoints.fairseq2.sentencepiece import read_units
from speech_ssl.checkpoints.naming import (
    assumed,
    config_of,
    encoder_of,
    old_names,
    pretraining_of,
    renamed,
    tensors_of,
)
from speech_ssl.checkpoints.torch_files.pickles import read_pickle
from speech_ssl.checkpoints.transformers.heads import read_ctc
from speech_ssl.model.config import EncoderConfig

FRONT = r"encoder_frontend\."
LAYER = r"encoder\.layers\.(\d+)\."
NAMES = [
    (r"masker\.temporal_mask_embed", "masked_spec_embed"),
    (FRONT + r"feature_extractor\.layers\.(\d+)\.conv\.(.*)", r"feature_extractor.conv_layers.\1.conv.\2"),
    (
        FRONT + r"feature_extractor\.layers\.(\d+)\.(?:group|layer)_norm\.(.*)",
        r"feature_extractor.conv_layers.\1.layer_norm.\2",
    ),
    (FRONT + r"post_extract_layer_norm\.(.*)", r"feature_projection.layer_norm.\1"),
    (FRONT + r"model_dim_proj\.(.*)", r"feature_projection.projection.\1"),
    (FRONT + r"pos_encoder\.conv\.(.*)", r"encoder.pos_conv_embed.conv.\1"),
    (FRONT + r"pos_encoder\.layers\.(\d+)\.conv\.(.*)", r"encoder.pos_conv_embed.layers.\1.conv.\2"),
    (FRONT + r"layer_norm\.(.*)", r"encoder.layer_norm.\1"),
    (LAYER + r"self_attn\.output_proj\.(.*)", r"encoder.layers.\1.attention.out_proj.\2"),
    (LAYER + r"self_attn\.(.*)", r"encoder.layers.\1.attention.\2"),
    (LAYER + r"self_attn_layer_norm\.(.*)", r"encoder.layers.\1.layer_norm.\2"),
    (LAYER + r"ffn\.inner_proj\.(.*)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (LAYER + r"ffn\.output_proj\.(.*)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (LAYER + r"ffn_layer_norm\.(.*)", r"encoder.layers.\1.final_layer_norm.\2"),
    (r"quantizer\.entry_proj\.(.*)", r"quantizer.weight_proj.\1"),
    (r"quantizer\.entries", "quantizer.codevectors"),
    (r"final_target_proj\.(.*)", r"project_q.\1"),
]
LEFT_OUT = ("project_hid.", "project_q.", "quantizer.", "lm_head.")
TOKENIZER = ".model"
WAVE_NOTE = "waves are normalised, as for fairseq2's published models with the norms first"


def recognises(content: Any) -> bool:
    return any(key.startswith("encoder_frontend.") for key in _state(content))


def read(content: Any, where: str, name: str, tokenizers: Sequence[Path] = (), **known: Any) -> Converted:
    """Convert a checkpoint. What the weights do not show is taken from the published models, unless it is in
    `known` (for `config_of`): heads, strides, and that pre-norm models normalise waves. tokenizers: for a
    model fine-tuned with CTC, the one SentencePiece model of its characters; without it the head has no
    meaning. Raises ConversionError."""
    state = _state(content)
    pre_norm = "encoder.layer_norm.weight" in state
    if pre_norm and "encoder_frontend.layer_norm.weight" in state:
        raise ConversionError(
            f"{where}: key 'encoder_frontend.layer_norm.weight' (layer_norm_features) is not supported where "
            "the norms come first"
        )
    tuned = "final_proj.weight" in state and "quantizer.entries" not in state
    names = [*NAMES, (r"final_proj\.(.*)", r"lm_head.\1" if tuned else r"project_hid.\1")]
    found = renamed(state, names)
    config = config_of(found, where, **{"pre_norm": pre_norm, "normalize_wave": pre_norm, **known})
    tensors = Tensors(found, where)
    encoder = encoder_of(tensors, config)
    heads, why = _heads(tensors, tokenizers, config) if tuned else ({}, {})
    extra = pretraining_of(tensors)
    tensors.drop(["quantizer.num_updates"])
    left = tensors.keys()
    tensors.drop([key for key in left if key.startswith(LEFT_OUT)])
    tensors.check_empty()
    notes = [WAVE_NOTE] if pre_norm and "normalize_wave" not in known else []
    training = provenance(
        "fairseq2",
        stored_as=tensors.stored_as,
        assumed=assumed(config, *notes, known=known),
        left=old_names(left, state, names),
        why=why,
    )
    return Converted(encoder, name, training, heads=heads, extra=extra)


def read_file(path: Path, name: str, tokenizers: Sequence[Path], **known: Any) -> Converted:
    """Convert a file. Raises ConversionError."""
    content = read_pickle(path)
    if not recognises(content):
        raise ConversionError(f"{path}: not a wav2vec 2.0 model of fairseq2")
    return read(content, str(path), name, tokenizers, **known)


def tokenizers_in(folder: Path) -> list[Path]:
    """The SentencePiece models in a folder."""
    return sorted(folder.glob(f"*{TOKENIZER}"))


def _heads(tensors: Tensors, tokenizers: Sequence[Path], config: EncoderConfig) -> Heads:
    def ctc() -> Head:
        if not tokenizers:
            raise ConversionError(f"{tensors.where}: there is no SentencePiece model of its units beside it")
        if len(tokenizers) > 1:
            names = " and ".join(path.name for path in tokenizers[:2])
            raise ConversionError(
                f"{tokenizers[0].parent}: has {len(tokenizers)} SentencePiece models, such as {names}: leave "
                "the one that belongs to the checkpoint"
            )
        return read_ctc(tensors, read_units(tokenizers[0]), config)

    return head_or_why("ctc", tensors, ctc)


def read_folder(folder: Path) -> Converted:
    """Convert the folder of a step of fairseq2's trainer, saved whole on one rank, or of `speech-ssl convert
    --to fairseq2`. Raises ConversionError."""
    written = folder / WEIGHTS
    if written.is_file():
        try:
            return read(load_file(written), str(written), folder.resolve().name, **_carded(folder))
        except SafetensorError as error:
            raise ConversionError(f"{written}: not a whole safetensors file ({error})") from None
    shards = sorted(path for path in folder.rglob("*.pt") if "model" in path.relative_to(folder).as_posix())
    if not shards:
        raise ConversionError(f"{folder}: no known checkpoint: it has no model in it")
    if len(shards) > 1:
        raise ConversionError(
            f"{folder}: the model is in {len(shards)} files, of several ranks or steps: name the folder of "
            "one step, saved whole"
        )
    return read_file(shards[0], name=folder.resolve().name, tokenizers=tokenizers_in(folder))


def _carded(folder: Path) -> dict[str, Any]:
    """The fields that the card of `fairseq2_export` gives beside the weights."""
    try:
        card = read_json(folder / CARD)
        encoder = card["model_config"]["encoder_config"]
        strides = tuple(int(stride) for _, _, stride in encoder["feature_extractor_layer_descs"])
        known = {"heads": int(encoder["num_encoder_attn_heads"]), "strides": strides}
        waves = {"normalize_wave": bool(card["normalize_audio"]), "wave_eps": float(card["wave_eps"])}
        return known | waves
    except (OSError, KeyError, TypeError, ValueError):
        return {}  # another kind of card


def _state(content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    return tensors_of(content)
