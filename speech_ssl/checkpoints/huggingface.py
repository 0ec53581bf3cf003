"""Folders of transformers: `config.json`, safetensors, and what its processors keep beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_ssl.checkpoints import hf_conformer, hf_preprocessor, hf_transformer
from speech_ssl.checkpoints.artifact import Artifact, Head
from speech_ssl.checkpoints.conversion import ConversionError, Converted, Tensors, built_encoder, read_json
from speech_ssl.checkpoints.hf_adapters import read_adapter, taken, write_adapter
from speech_ssl.checkpoints.hf_heads import (
    TOKENIZER,
    VOCABULARY,
    read_ctc,
    read_labels,
    read_units,
    write_ctc,
    write_labels,
)
from speech_ssl.checkpoints.naming import QUANTIZER, pretraining_of, tensors_of
from speech_ssl.checkpoints.pickles import read_pickle
from speech_ssl.checkpoints.replacing import CONFIG, check_empty
from speech_ssl.model.config import WAVE_EPS, EncoderConfig
from speech_ssl.model.heads import CTCSpec

WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
FAMILIES = (hf_transformer, hf_conformer)
CLASSES = {
    "wav2vec2": "Wav2Vec2",
    "hubert": "Hubert",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeechSat",
    "data2vec-audio": "Data2VecAudio",
    "wavlm": "WavLM",
    "wav2vec2-conformer": "Wav2Vec2Conformer",
    "wav2vec2-bert": "Wav2Vec2Bert",
}
"""What transformers' classes begin with, by `model_type`."""
LEFT_OUT = (
    "label_embeddings_concat",
    "dropout_",
    "speaker_proj",
    "project_q.",
    "project_hid.",
    "quantizer.",
    "lm_head.",
    "classifier.",
    "projector.",
    "layer_weights",
    "tdnn.",
    "feature_extractor.weight",
    "feature_extractor.bias",
    "objective.",
    "ctc_proj.",
)
"""Of parts beside the encoder that there is no place for here; what was left out is told in `training`."""


def recognises(path: Path) -> bool:
    """A folder whose config says which of transformers' models it is."""
    config = path / CONFIG
    if not config.is_file():
        return False
    try:
        return "model_type" in json.loads(config.read_bytes())
    except (ValueError, RecursionError):
        return False


def read(folder: Path, *, pickles: bool = False) -> Converted:
    """pickles: read `pytorch_model.bin` too, for its weights alone. Raises ConversionError."""
    theirs = read_json(folder / CONFIG)
    kind, family = theirs.get("model_type"), _family(theirs, folder)
    where = str(folder / CONFIG)
    config = family.read_config(theirs, where)
    config = replace(config, normalize_wave=hf_preprocessor.normalizes(folder, config))
    tensors = _weights(folder, pickles=pickles)
    prefix = _prefix(tensors)
    body = tensors.below(prefix)
    if not body.keys():
        raise ConversionError(f"{tensors.where}: has no weights of a {kind} model")
    adapter = taken(body, theirs)
    encoder = built_encoder(config, family.read_encoder(body, config), tensors.where)
    _check_left(body, LEFT_OUT)
    heads = _heads(folder, theirs, tensors, config, adapter)
    extra = pretraining_of(tensors, theirs.get("num_codevector_groups", 2))
    unused = () if adapter is None else adapter.keys()
    left = [*tensors.keys(), *(prefix + key for key in unused)]
    _check_left(tensors, LEFT_OUT)
    training: dict[str, object] = {"source": "transformers", "model_type": kind}
    if left:
        training["left_out"] = left
    name = str(theirs.get("_name_or_path") or folder.resolve().name).rstrip("/").rpartition("/")[2]
    return Converted(encoder, name or str(kind), training, _licence(folder), heads, extra)


def write(artifact: Artifact, folder: Path, extra: Mapping[str, Tensor]) -> None:
    """A folder for `from_pretrained`: the encoder with its first head that transformers knows, or with what
    pre-training needs. Raises ValueError for an encoder that no class of transformers can be."""
    config, family = artifact.encoder.config, FAMILIES[bool(artifact.encoder.config.conformer_kernel)]
    kind = family.model_type_of(config)
    told = artifact.config.get("training", {}).get("model_type")
    if told in family.MODEL_TYPES and _same(family, config, told):
        kind = told
    state = family.write_encoder(artifact.encoder.state_dict(), config, kind)
    fields = family.write_config(config, kind)
    architecture, tensors, files = _written_head(artifact.heads, extra, fields)
    if architecture == "ForCTC":
        between, more = _written_adapter(artifact.heads, config, kind)
        state |= between
        fields |= more
    fields["architectures"] = [f"{CLASSES[kind]}{architecture}"]
    prefix = "" if architecture == "Model" else kind.replace("-", "_") + "."
    tensors |= {prefix + key: value for key, value in state.items()}
    files[CONFIG] = {"model_type": kind, **fields}
    files[hf_preprocessor.PREPROCESSOR] = hf_preprocessor.written(config)
    check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _written_head(
    heads: Mapping[str, Head], extra: Mapping[str, Tensor], fields: dict[str, Any]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The architecture's last word, the tensors beside the encoder, and files; `fields` get what it needs."""
    refusal: ValueError | None = None
    for head in heads.values():
        if isinstance(head.spec, CTCSpec):
            tensors, more, vocabulary, tokenizer = write_ctc(head)
            fields |= more
            return "ForCTC", tensors, {VOCABULARY: vocabulary, TOKENIZER: tokenizer}
        try:
            architecture, tensors, more = write_labels(head)
        except ValueError as error:
            refusal = error
            continue
        fields |= more
        return f"For{architecture}", tensors, {}
    if refusal is not None:
        raise refusal
    if not all(key in extra for key in (*QUANTIZER.values(), "quantizer.codebook_GVD")):
        return "Model", {}, {}
    codebook_GVD = extra["quantizer.codebook_GVD"]
    groups, entries, width = codebook_GVD.shape
    fields |= {
        "num_codevector_groups": groups,
        "num_codevectors_per_group": entries,
        "codevector_dim": groups * width,
        "proj_codevector_dim": len(extra["project_target.weight"]),
    }
    tensors = {theirs: extra[ours] for theirs, ours in QUANTIZER.items()}
    tensors["quantizer.codevectors"] = codebook_GVD.reshape(1, groups * entries, width)
    return "ForPreTraining", tensors, {}


def _written_adapter(
    heads: Mapping[str, Head], config: EncoderConfig, kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """That of the first head for CTC, if it has one: tensors of the base model, and fields."""
    head = next(head for head in heads.values() if isinstance(head.spec, CTCSpec))
    assert isinstance(head.spec, CTCSpec)
    if head.spec.adapter is None:
        return {}, {}
    state = {
        key.removeprefix("adapter."): value
        for key, value in head.module.state_dict().items()
        if key.startswith("adapter.")
    }
    return write_adapter(head.spec.adapter, state, config, kind)


def _family(config: Mapping[str, Any], folder: Path) -> Any:
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind in family.MODEL_TYPES:
            return family
    known = ", ".join(sorted(CLASSES))
    raise ConversionError(f"{folder / CONFIG}: field 'model_type' is {kind!r}; read are {known}")


def _same(family: Any, config: EncoderConfig, kind: str) -> bool:
    """Whether that family of transformers says the same as this config."""
    try:
        there_and_back = family.read_config({"model_type": kind, **family.write_config(config, kind)}, "")
    except ValueError:
        return False
    asked = replace(config, normalize_wave=False, wave_eps=WAVE_EPS)
    return bool(there_and_back.architecture() == asked.architecture())


def _prefix(tensors: Tensors) -> str:
    """That of the base model, in files of a model with a head."""
    for kind in CLASSES:
        prefix = kind.replace("-", "_") + "."
        if any(key.startswith(prefix) for key in list(tensors.keys())):
            return prefix
    return ""


def _weights(folder: Path, *, pickles: bool) -> Tensors:
    index, whole, pickle = folder / INDEX, folder / WEIGHTS, folder / PICKLE
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or any(Path(str(n)).name != n for n in shards.values()):
            raise ConversionError(f"{index}: field 'weight_map' is malformed")
        loaded: dict[str, Tensor] = {}
        for name in sorted(set(shards.values())):
            loaded |= _safetensors(folder / name)
        return Tensors(loaded, str(index))
    if whole.is_file():
        return Tensors(_safetensors(whole), str(whole))
    if not pickle.is_file():
        raise ConversionError(f"{folder}: has no {WEIGHTS}")
    if not pickles:
        raise ConversionError(
            f"{pickle} is a pickle, which is not loaded: make an artifact of it with `speech-ssl convert`"
        )
    content = read_pickle(pickle)
    if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise ConversionError(f"{pickle}: not a file of weights alone")
    return Tensors(tensors_of(content), str(pickle))


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path}: not a whole safetensors file ({error}): fetch it again") from None


def _heads(
    folder: Path,
    theirs: Mapping[str, Any],
    tensors: Tensors,
    config: EncoderConfig,
    adapter: Tensors | None,
) -> dict[str, Head]:
    where = str(folder / CONFIG)
    if "lm_head.weight" in tensors:
        units = read_units(folder, theirs)
        if units is None:
            return {}
        read = None if adapter is None else read_adapter(adapter, theirs, config, where)
        return {"ctc": read_ctc(tensors, units, config, read)}
    if "classifier.weight" not in tensors or any(key.startswith("tdnn.") for key in list(tensors.keys())):
        return {}
    if adapter is not None:  # which that head was trained on, if there is such a model
        return {}
    of_frames = "projector.weight" not in tensors
    head = read_labels(tensors, theirs, config, of_frames=of_frames, where=where)
    return {"events": head}


def _licence(folder: Path) -> str:
    """As the model card's first lines say."""
    card = folder / "README.md"
    if not card.is_file():
        return "unknown"
    head = card.read_text(encoding="utf-8", errors="replace")[:4000].splitlines()
    lines = [line.partition(":")[2].strip(" '\"") for line in head if line.startswith("license:")]
    return lines[0] if lines and lines[0] else "unknown"


def _check_left(tensors: Tensors, known: tuple[str, ...]) -> None:
    tensors.drop([key for key in list(tensors.keys()) if key.startswith(known)])
    tensors.check_empty()
