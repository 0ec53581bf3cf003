"""Open any checkpoint: an artifact, or one of another library, converted in memory or on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from speech_ssl.checkpoints.artifact import Artifact, load_artifact, load_extra, save_artifact
from speech_ssl.checkpoints.conversion import ConversionError, Converted
from speech_ssl.checkpoints.identity import identity
from speech_ssl.checkpoints.replacing import CONFIG, check_empty, check_replaceable
from speech_ssl.checkpoints.transformers import folder as transformers_folder
from speech_ssl.checkpoints.transformers import hub
from speech_ssl.checkpoints.transformers.weights import check_no_adapter

Form = Literal["artifact", "huggingface", "fairseq2"]
FORMS: tuple[Form, ...] = get_args(Form)


def open_checkpoint(source: str | Path, *, pickles: bool = False, language_model: bool = True) -> Artifact:
    """Open an artifact as it is. A folder of transformers, or a model of the Hugging Face hub by its id, is
    opened as the artifact that it would become.

    pickles: also read files of torch, as plain data: those of fairseq, fairseq2 and torchaudio, and
    `pytorch_model.bin`. Nothing in them is executed, but they are not for a service. language_model: include
    that of a CTC head, which may be large.

    Raises ArtifactError.
    """
    artifact = _opened(source, pickles=pickles, language_model=language_model)
    return artifact if language_model else artifact.without_ngrams()


def _opened(source: str | Path, *, pickles: bool, language_model: bool) -> Artifact:
    path = Path(source)
    check_no_adapter(path)
    if isinstance(source, str) and hub.is_id(source) and not path.exists():
        read = _read_fetched(source, pickles=pickles, language_model=language_model)
        return _in_memory(read, path)
    if transformers_folder.recognises(path):
        return _in_memory(transformers_folder.read(path, pickles=pickles), path)
    if path.is_dir() and (not pickles or (path / CONFIG).exists()):
        return load_artifact(path)
    if not path.exists():
        return _in_memory(_read_asset(str(source), pickles=pickles), path)
    if not pickles:
        raise ConversionError(f"{path}: first make an artifact of it, with `speech-ssl convert`")
    return _in_memory(_read_pickled(path), path)


def convert(
    source: str | Path, folder: Path, form: Form = "artifact", *, language_model: bool = True
) -> Artifact:
    """Write any checkpoint as an artifact, as a folder for transformers, or for fairseq2; returns what was
    read. Raises ArtifactError, and ValueError for a model that the other library does not have."""
    (check_replaceable if form == "artifact" else check_empty)(folder)
    artifact = open_checkpoint(source, pickles=True, language_model=language_model)
    if form == "huggingface":
        transformers_folder.write(artifact, folder, pretraining_of(artifact))
    elif form == "fairseq2":
        from speech_ssl.checkpoints.fairseq2 import export

        export.write(artifact, folder)
    else:
        save_artifact(
            artifact.encoder,
            folder,
            name=artifact.name,
            training=artifact.config["training"],
            licence=artifact.config["licence"],
            heads=artifact.heads,
            extra=pretraining_of(artifact),
        )
    return artifact


def pretraining_of(artifact: Artifact) -> Mapping[str, Tensor]:
    """The tensors that only pre-training needs, if it has them."""
    return load_extra(artifact.folder) if artifact.extra is None else artifact.extra


def _read_fetched(name: str, *, pickles: bool, language_model: bool) -> Converted:
    """Read a model of the hub by its id: of transformers or, like Omnilingual ASR's, a file of fairseq2."""
    folder = hub.fetched(name, pickles=pickles, language_model=language_model)
    if (folder / CONFIG).exists():
        read = transformers_folder.read(folder, pickles=pickles)
    elif not pickles:
        raise ConversionError(
            f"{name}: has no config.json of transformers; if it has a file of torch, first make an artifact "
            "of it, with `speech-ssl convert`"
        )
    else:
        files = sorted(folder.glob("*.pt"))
        if len(files) != 1:
            count = len(files)
            raise ConversionError(f"{name}: has no config.json of transformers, and {count} files of torch")
        read = _read_pickled(files[0])
    model = name.partition("@")[0]
    fetched = {"hub": {"model": model, "commit": commit}} if (commit := hub.commit_of(folder)) else {}
    return replace(read, name=model.rpartition("/")[2], training={**read.training, **fetched})


def _read_asset(name: str, *, pickles: bool) -> Converted:
    """Read a model by its fairseq2 name."""
    from speech_ssl.checkpoints.fairseq2 import assets, reading

    if not pickles or not assets.is_name(name):
        raise ConversionError(f"{name}: no such folder or file")
    asset = assets.fetched(name)
    if asset is None:
        raise ConversionError(f"{name}: no such folder or file, and {assets.NONE}")
    tokenizers = [] if asset.tokenizer is None else [asset.tokenizer]
    return reading.read_file(asset.path, name, tokenizers, **asset.known)


def _read_pickled(path: Path) -> Converted:
    from speech_ssl.checkpoints import fairseq, torchaudio
    from speech_ssl.checkpoints.fairseq2 import reading
    from speech_ssl.checkpoints.torch_files import pickles

    if path.is_dir():
        return reading.read_folder(path)
    if path.suffix == ".safetensors":
        raise ConversionError(f"{path}: name the folder that it is in, with its config.json")
    try:
        content = pickles.read_pickle(path)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror})") from None
    if fairseq.recognises(content):
        return fairseq.read(content, str(path), path.stem)
    if reading.recognises(content):
        return reading.read(content, str(path), path.stem, reading.tokenizers_in(path.parent))
    if torchaudio.recognises(content):
        return torchaudio.read(content, str(path), path.stem)
    raise ConversionError(f"{path}: not a checkpoint of fairseq, fairseq2 or torchaudio that is known here")


def _in_memory(converted: Converted, path: Path) -> Artifact:
    config = {
        "name": converted.name,
        "encoder": converted.encoder.config.to_dict(),
        "training": dict(converted.training),
        "licence": converted.licence,
    }
    sha256 = identity(converted.encoder, converted.heads)
    return Artifact(path, config, converted.encoder, sha256, converted.heads, converted.extra)
