"""The artifact: a folder that holds a trained model; models are passed on in no other form.

    config.json               format version, name, encoder config, heads, training, licence, sha256 of files
    encoder.safetensors       the encoder's weights
    head.NAME.safetensors     optional, any number: heads that transcribe or detect sound events
    head.NAME.lm.arpa, .bin   optional: a word n-gram for a head; head.NAME.words.txt lists its known words
    pretraining.safetensors   optional: what only pre-training needs (quantizer, projections)

Loading executes nothing in it: no pickle, no code.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from speech_ssl.checkpoints import ngram
from speech_ssl.checkpoints.identity import identity
from speech_ssl.checkpoints.ngram import NGram
from speech_ssl.checkpoints.random_init import no_random_init
from speech_ssl.checkpoints.replacing import CONFIG as CONFIG
from speech_ssl.checkpoints.replacing import ArtifactError as ArtifactError
from speech_ssl.checkpoints.replacing import new_folder
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.flat import is_flat, stored_config
from speech_ssl.model.heads.specs import HeadSpec, spec_from_dict, spec_to_dict

FORMAT_VERSION, KNOWN_VERSIONS = 2, (1, 2)
"""1: the encoder's config is flat, see `model.flat`; 2: it is in parts."""
ENCODER = "encoder.safetensors"
EXTRA = "pretraining.safetensors"

_FIELDS: dict[str, type] = {
    "format_version": int,
    "name": str,
    "encoder": dict,
    "heads": dict,
    "training": dict,
    "licence": str,
    "files": dict,
}


@dataclass(frozen=True)
class Head:
    """A head and its origin. training: provenance, JSON-serialisable. ngram: the default language model."""

    spec: HeadSpec
    module: nn.Module
    training: Mapping[str, object]
    licence: str
    ngram: NGram | None = None


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    config: all of `config.json`. encoder, heads: weights in float32, on the CPU, whatever precision they are
    stored in. sha256: identifies the model, see `identity`.
    """

    folder: Path
    config: Mapping[str, Any]
    encoder: Encoder
    sha256: str
    heads: Mapping[str, Head] = field(default_factory=dict)
    extra: Mapping[str, Tensor] | None = None
    """Tensors for pre-training; None: read them from the folder with `load_extra`, if there are any."""

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def heads_left_out(self) -> dict[str, str]:
        """The heads of another library's checkpoint that are missing here: name -> reason."""
        told = self.config.get("training", {}).get("heads_left_out")
        return {str(name): str(why) for name, why in told.items()} if isinstance(told, dict) else {}

    def without_ngrams(self) -> Artifact:
        """A copy whose heads use the best path."""
        heads = {name: replace(head, ngram=None) for name, head in self.heads.items()}
        return replace(self, heads=heads)


def save_artifact(  # noqa: PLR0913 - each is a part of the artifact
    encoder: Encoder,
    folder: str | Path,
    *,
    name: str,
    training: Mapping[str, object],
    licence: str,
    heads: Mapping[str, Head] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write an artifact and return its folder. Raises ArtifactError if the folder holds something else, and
    for weights that are infinite or NaN, or become so in `dtype`.

    The artifact is written beside the folder and renamed once it is complete and on disk, so that a reader
    never sees half of one. An existing artifact is replaced; other content never is.

    training: provenance, JSON-serialisable. extra: further tensors, for `load_extra`. dtype: the precision in
    which to store the weights, e.g. torch.float16 for half the size.
    """
    with new_folder(Path(folder)) as new:
        _write_tensors(new / ENCODER, encoder.state_dict(), dtype)
        if extra:
            _write_tensors(new / EXTRA, extra, dtype)
        config = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "encoder": encoder.config.to_dict(),
            "heads": {n: _write_head(new, n, head, dtype) for n, head in (heads or {}).items()},
            "training": dict(training),
            "licence": licence,
        }
        _write_config(new, config)
    return Path(folder).absolute()


def add_head(
    source: str | Path,
    folder: str | Path,
    name: str,
    head: Head,
    *,
    model: str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the artifact in `source` to `folder`, which may be the same, with a head added or replaced. Its
    other files are copied byte for byte. model: a new name for the artifact."""
    source = Path(source)
    config = _read_config(source)
    for file in config["files"]:
        _check_sum(source, config, file)
    with new_folder(Path(folder)) as new:
        for file in config["files"]:
            if not file.startswith(f"head.{name}."):
                shutil.copy(source / file, new / file)
        entry = _write_head(new, name, head, dtype)
        heads = {**config["heads"], name: entry}
        encoder = _built(source, "encoder", lambda: stored_config(config["encoder"])).to_dict()
        now = {"format_version": FORMAT_VERSION, "name": model or config["name"], "encoder": encoder}
        _write_config(new, {**config, **now, "heads": heads})
    return Path(folder).absolute()


def _write_head(folder: Path, name: str, head: Head, dtype: torch.dtype | None) -> dict[str, object]:
    """Write the head's file; returns its entry in the config."""
    _write_tensors(folder / head_file(name), head.module.state_dict(), dtype)
    entry = {**spec_to_dict(head.spec), "training": dict(head.training), "licence": head.licence}
    return entry if head.ngram is None else {**entry, "language_model": ngram.write(head.ngram, folder, name)}


def head_file(name: str) -> str:
    """The file of a head. Raises ArtifactError for a head name that is unsuitable as a file name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise ArtifactError(f"{name!r} cannot name a head: use lower-case letters, digits, - and _")
    return f"head.{name}.safetensors"


def _write_config(folder: Path, config: Mapping[str, object]) -> None:
    files = (path for path in sorted(folder.iterdir()) if path.name != CONFIG)
    summed = {**config, "files": {path.name: {"sha256": _sha256(path)} for path in files}}
    text = json.dumps(summed, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def load_artifact(folder: str | Path) -> Artifact:
    """Check the format version, every file's sha256, and the weights' names and shapes; then load, in eval
    mode.

    Raises ArtifactError.
    """
    folder = Path(folder)
    config = _read_config(folder)
    for name in config["files"]:
        _check_sum(folder, config, name)
    stored = config["encoder"]
    encoder = _built(folder, "encoder", lambda: Encoder(stored_config(stored)))
    _load_weights(folder, config, ENCODER, encoder)
    heads = {name: _load_head(folder, config, name, encoder.config) for name in config["heads"]}
    sha256 = identity(encoder, heads, stored if is_flat(stored) else None)
    return Artifact(folder, config, encoder, sha256, heads)


def _load_head(folder: Path, config: Mapping[str, Any], name: str, encoder: EncoderConfig) -> Head:
    entry = config["heads"][name]
    if not isinstance(entry, dict):
        raise ArtifactError(f"{folder / CONFIG}: field 'heads' is malformed at {name!r}")
    spec = _built(folder, f"head {name!r}", lambda: spec_from_dict(entry))
    module = _built(folder, f"head {name!r}", lambda: spec.build(encoder))
    _load_weights(folder, config, head_file(name), module)
    words = _built(
        folder, f"head {name!r}", lambda: ngram.read(entry.get("language_model"), folder, config["files"])
    )
    return Head(spec, module, entry.get("training") or {}, str(entry.get("licence", "")), words)


Made = TypeVar("Made")


def _built(folder: Path, what: str, build: Callable[[], Made]) -> Made:
    try:
        with no_random_init():
            return build()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"{folder / CONFIG}: no {what} can be made of it: {error}") from None


def _load_weights(folder: Path, config: Mapping[str, Any], name: str, module: nn.Module) -> None:
    weights = _read_tensors(folder, config, name)
    _check_weights(folder / name, weights, module.state_dict())
    if odd := next((key for key, value in weights.items() if not value.isfinite().all()), None):
        raise ArtifactError(
            f"{folder / name}: key {odd!r} holds infinite values or NaN: make the artifact again, in float32"
        )
    # Copied: a loaded tensor is a view of the file, which may be overwritten.
    copies = {key: value.to(torch.float32, copy=True) for key, value in weights.items()}
    module.load_state_dict(copies, assign=True)
    module.eval()


def load_extra(folder: str | Path) -> dict[str, Tensor]:
    """The tensors saved as `extra`, in float32; empty if there are none."""
    config = _read_config(folder := Path(folder))
    if EXTRA not in config["files"]:
        return {}
    _check_sum(folder, config, EXTRA)
    tensors = _read_tensors(folder, config, EXTRA)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    stored = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        # Cloned: safetensors refuses tensors that share memory.
        stored[key] = tensor.to(dtype if tensor.is_floating_point() else None, copy=True).contiguous()
        if not stored[key].isfinite().all():
            raise ArtifactError(f"{path.name}: key {key!r} {_not_stored(tensor, dtype)}")
    save_file(stored, path, metadata={"format": "pt"})


def _not_stored(tensor: Tensor, dtype: torch.dtype | None) -> str:
    """Why the tensor cannot be stored in this precision."""
    if dtype is None or not tensor.isfinite().all():
        return "holds infinite values or NaN: the training diverged; save its weights of before that"
    most, found = torch.finfo(dtype).max, float(tensor.abs().max())
    return f"reaches {found:.3g}, and {dtype} {most:.3g}: store torch.bfloat16 or torch.float32"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; an artifact is a folder with {CONFIG} in it")
    if not path.is_file():
        raise ArtifactError(f"{folder} is not an artifact: it has no {CONFIG}")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}): copy the artifact again") from None
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: not a JSON object: copy the artifact again")
    if "format_version" not in config:
        raise ArtifactError(
            f"{path}: of no library that is known here: an artifact's has a 'format_version', one of "
            "transformers a 'model_type'"
        )
    version = config["format_version"]
    if version not in KNOWN_VERSIONS:
        raise ArtifactError(
            f"{path}: format version {version!r} is not known, this is {FORMAT_VERSION}: update speech-ssl"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(config.get(name), kind):
            raise ArtifactError(f"{path}: field {name!r} is missing or not of type {kind.__name__}")
    return config


def _check_sum(folder: Path, config: Mapping[str, Any], name: str) -> None:
    entry, path = config["files"][name], folder / name
    if Path(name).name != name or not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise ArtifactError(f"{folder / CONFIG}: field 'files' is malformed at {name!r}")
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: copy the artifact again")
    if _sha256(path) != entry["sha256"]:
        raise ArtifactError(f"{path}: its sha256 is not the one in {CONFIG}: copy the artifact again")


def _read_tensors(folder: Path, config: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    if name not in config["files"]:
        raise ArtifactError(f"{folder / CONFIG}: field 'files' does not list {name}")
    try:
        return load_file(folder / name)
    except SafetensorError as error:
        raise ArtifactError(f"{folder / name}: not a safetensors file ({error})") from None


def _check_weights(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        what = "is missing" if missing else "is unknown"
        others = len(missing) + len(unknown) - 1
        more = f" (and {others} more)" if others else ""
        raise ArtifactError(f"{path}: key {(missing or unknown)[0]!r} {what}{more}: not of this model")
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            raise ArtifactError(
                f"{path}: key {key!r} has shape {tuple(found[key].shape)}, {CONFIG} asks for "
                f"{tuple(tensor.shape)}"
            )
