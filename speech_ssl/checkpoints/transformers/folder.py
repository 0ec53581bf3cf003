"""Folders of transformers: `config.json`, safetensors, and the files of its processors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from speech_ssl.checkpoints.artifact import Artifact, Head
from speech_ssl.checkpoints.conversion import (
    ConversionError,
    Converted,
    Heads,
    Tensors,
    built_encoder,
    field_of,
    head_or_why,
    provenance,
    read_json,
)
from speech_ssl.checkpoints.naming import QUANTIZER, pretraining_of
from speech_ssl.checkpoints.replacing import CONFIG, check_empty
from speech_ssl.checkpoints.transformers import conformer, preprocessor, transformer
from speech_ssl.checkpoints.transformers.adapters import read_adapter, taken, write_adapter
from speech_ssl.checkpoints.transformers.heads import read_ctc, read_labels, write_ctc, write_labels
from speech_ssl.checkpoints.transformers.pyctcdecode import read_ngram, write_ngram
from speech_ssl.checkpoints.transformers.tokenizer import TOKENIZER, VOCABULARY, read_units
from speech_ssl.checkpoints.transformers.weights import ADAPTER, WEIGHTS, read_weights
from speech_ssl.model.config import Conformer, EncoderConfig
from speech_ssl.model.heads.specs import CTCSpec

FAMILIES = (transformer, conformer)
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
"""Prefixes of transformers' class names, by `model_type`."""
assert CLASSES.keys() == frozenset().union(*(family.MODEL_TYPES for family in FAMILIES))
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
"""Prefixes of tensors beside the encoder that have no place here; `training` records what was left out."""


def recognises(path: Path) -> bool:
    """Whether a folder's config names a model type of transformers."""
    config = path / CONFIG
    if not config.is_file():
        return False
    try:
        return "model_type" in json.loads(config.read_bytes())
    except (ValueError, RecursionError):
        return False


def read(folder: Path, *, pickles: bool = False) -> Converted:
    """Convert a folder. pickles: read `pytorch_model.bin` too, only its weights. Raises ConversionError."""
    theirs = read_json(folder / CONFIG)
    kind, family = theirs.get("model_type"), _family(theirs, folder)
    where = str(folder / CONFIG)
    if theirs.get("quantization_config"):
        raise ConversionError(
            f"{where}: field 'quantization_config' says that its weights were made integers: name the model "
            "that was quantised"
        )
    config = family.read_config(theirs, where)
    config = replace(config, frontend=preprocessor.heard(folder, config.frontend))
    tensors = read_weights(folder, theirs, pickles=pickles)
    stored_as = tensors.stored_as
    prefix = _prefix(tensors)
    body = tensors.below(prefix)
    if not body.keys():
        raise ConversionError(f"{tensors.where}: has no weights of a {kind} model")
    adapter = taken(body, theirs)
    encoder = built_encoder(config, family.read_encoder(body, config), tensors.where)
    _check_left(body, LEFT_OUT)
    heads, why = _heads(folder, theirs, tensors, config, adapter)
    heads, no_ngram = _with_ngrams(folder, heads)
    groups = field_of({"num_codevector_groups": 2, **theirs}, "num_codevector_groups", int, where)
    extra = pretraining_of(tensors, groups)
    unused = () if adapter is None else adapter.keys()
    left = [*tensors.keys(), *(prefix + key for key in unused)]
    _check_left(tensors, LEFT_OUT)
    training = provenance(
        "transformers",
        model_type=kind,
        stored_as=stored_as,
        not_applied=[ADAPTER] if (folder / ADAPTER).is_file() else [],
        left=left,
        why=why,
        language_model_left_out=no_ngram,
    )
    name = str(theirs.get("_name_or_path") or folder.resolve().name).rstrip("/").rpartition("/")[2]
    return Converted(encoder, name or str(kind), training, _licence(folder), heads, extra)


def write(artifact: Artifact, folder: Path, extra: Mapping[str, Tensor]) -> None:
    """Write a folder for `from_pretrained`: the encoder with its first head that transformers knows, or
    with the tensors of pre-training. Raises ValueError for an encoder that no class of transformers can
    express."""
    config = artifact.encoder.config
    family: Any = conformer if isinstance(config.block, Conformer) else transformer
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
    files[preprocessor.PREPROCESSOR] = preprocessor.written(config.frontend)
    check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    ngram = next((head.ngram for head in artifact.heads.values() if isinstance(head.spec, CTCSpec)), None)
    if ngram is not None and ngram.unknown_score is not None:  # pyctcdecode always has one
        write_ngram(ngram, folder, list(files[VOCABULARY]), files[TOKENIZER]["pad_token"])


def _written_head(
    heads: Mapping[str, Head], extra: Mapping[str, Tensor], fields: dict[str, Any]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The last word of the architecture's name, tensors beside the encoder, and files; adds to `fields`."""
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
    """The adapter of the first CTC head, if it has one: tensors of the base model, and fields."""
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
        if isinstance(kind, str) and kind in family.MODEL_TYPES:
            return family
    known = ", ".join(sorted(CLASSES))
    raise ConversionError(f"{folder / CONFIG}: field 'model_type' is {kind!r}; read are {known}")


def _same(family: Any, config: EncoderConfig, kind: str) -> bool:
    """Whether this family of transformers expresses the same config."""
    try:
        there_and_back = family.read_config({"model_type": kind, **family.write_config(config, kind)}, "")
    except ValueError:
        return False
    waves = {"frontend.normalize_wave", "frontend.wave_eps"}
    one, other = there_and_back.architecture(), config.architecture()
    return bool(all(one[name] == value for name, value in other.items() if name not in waves))


def _prefix(tensors: Tensors) -> str:
    """The prefix of the base model in files of a model with a head; else empty."""
    for kind in CLASSES:
        prefix = kind.replace("-", "_") + "."
        if any(key.startswith(prefix) for key in tensors):
            return prefix
    return ""


def _heads(
    folder: Path,
    theirs: Mapping[str, Any],
    tensors: Tensors,
    config: EncoderConfig,
    adapter: Tensors | None,
) -> Heads:
    where = str(folder / CONFIG)

    def ctc() -> Head:
        units = read_units(folder, theirs)
        if adapter is None:
            return read_ctc(tensors, units, config)
        with adapter.put_back():
            return read_ctc(tensors, units, config, read_adapter(adapter, theirs, config, where))

    def events() -> Head:
        if any(key.startswith("tdnn.") for key in tensors):
            raise ConversionError(f"{where}: a model that tells speakers apart (x-vectors)")
        if adapter is not None:
            raise ConversionError(f"{where}: field 'add_adapter' is true: no such model is known")
        of_frames = "projector.weight" not in tensors
        return read_labels(tensors, theirs, config, of_frames=of_frames, where=where)

    if "lm_head.weight" in tensors:
        return head_or_why("ctc", tensors, ctc)
    return head_or_why("events", tensors, events) if "classifier.weight" in tensors else ({}, {})


def _with_ngrams(folder: Path, heads: Mapping[str, Head]) -> tuple[dict[str, Head], str]:
    """The heads with the language model beside them, or the reason why it was left out."""
    found = dict(heads)
    for name, head in heads.items():
        index = head.training.get("blank_index")
        if isinstance(head.spec, CTCSpec) and isinstance(index, int):
            try:
                found[name] = replace(head, ngram=read_ngram(folder, head.spec, index))
            except ConversionError as error:
                return found, str(error).replace(f"{folder}/", "")
    return found, ""


def _licence(folder: Path) -> str:
    """The licence in the model card's header."""
    card = folder / "README.md"
    if not card.is_file():
        return "unknown"
    head = card.read_text(encoding="utf-8", errors="replace")[:4000].splitlines()
    lines = [line.partition(":")[2].strip(" '\"") for line in head if line.startswith("license:")]
    return lines[0] if lines and lines[0] else "unknown"


def _check_left(tensors: Tensors, known: tuple[str, ...]) -> None:
    tensors.drop([key for key in tensors if key.startswith(known)])
    tensors.check_empty()
