"""The artifact: the folder in which a trained model travels, and nothing else does.

    config.json               format version, name, encoder config, heads, training, licence, sha256 of files
    encoder.safetensors       the encoder's weights
    pretraining.safetensors   optional: what only pre-training needs (quantizer, projections)

Nothing in it is executed on loading: no pickle, no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder

FORMAT_VERSION = 1
CONFIG = "config.json"
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


class ArtifactError(ValueError):
    """An artifact that cannot be used. One line: which file, key or field, and what to do about it."""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    config: all of `config.json`.
    encoder: the weights in float32, on the CPU, whatever precision they are stored in.
    sha256: of `config.json`, which holds the sums of all other files: it identifies the model.
    """

    folder: Path
    config: Mapping[str, Any]
    encoder: Encoder
    sha256: str

    @property
    def name(self) -> str:
        return str(self.config["name"])


def save_artifact(  # noqa: PLR0913 - each is a part of the artifact
    encoder: Encoder,
    folder: str | Path,
    *,
    name: str,
    training: Mapping[str, object],
    licence: str,
    extra: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write an artifact and return its folder.

    It is written beside the folder and renamed when complete and on disk, so a reader never sees
    half of one. An artifact that is already there is replaced; any other content is not.

    training: provenance, as JSON can hold it. extra: further tensors, for `load_extra`.
    dtype: store the weights in this precision, e.g. torch.float16 for half the size.
    """
    folder = Path(folder).absolute()
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    new.mkdir()
    try:
        _write_tensors(new / ENCODER, encoder.state_dict(), dtype)
        if extra:
            _write_tensors(new / EXTRA, extra, dtype)
        config = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "encoder": encoder.config.to_dict(),
            "heads": {},
            "training": dict(training),
            "licence": licence,
            "files": {path.name: {"sha256": _sha256(path)} for path in sorted(new.iterdir())},
        }
        (new / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in (*new.iterdir(), new):
            if path.is_file():  # safetensors makes files for the owner alone; a service may be another user
                path.chmod((new / CONFIG).stat().st_mode)
            _sync(path)
        _move_into_place(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def load_artifact(folder: str | Path) -> Artifact:
    """Check the format version, every file's sha256, and the weights' names and shapes; then load.

    Raises ArtifactError.
    """
    folder = Path(folder)
    config, sha256 = _read_config(folder)
    for name in config["files"]:
        _check_sum(folder, config, name)
    try:
        with _NoRandomInit():
            encoder = Encoder(EncoderConfig.from_dict(config["encoder"]))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"{folder / CONFIG}: no encoder can be made of it: {error}") from None
    weights = _read_tensors(folder, config, ENCODER)
    _check_weights(folder / ENCODER, weights, encoder.state_dict())
    # Copies, since a loaded tensor is a view of the file, which somebody may overwrite.
    copies = {key: value.to(torch.float32, copy=True) for key, value in weights.items()}
    encoder.load_state_dict(copies, assign=True)
    return Artifact(folder, config, encoder, sha256)


def load_extra(folder: str | Path) -> dict[str, Tensor]:
    """The tensors that were saved as `extra`, in float32; empty if there were none."""
    folder = Path(folder)
    config, _ = _read_config(folder)
    if EXTRA not in config["files"]:
        return {}
    _check_sum(folder, config, EXTRA)
    tensors = _read_tensors(folder, config, EXTRA)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


class _NoRandomInit(TorchFunctionMode):
    """Random initial weights cost seconds for a large encoder, only to be replaced by those in the file.
    (The meta device would do the same, but importing what it needs takes almost a second.)"""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def check_replaceable(folder: Path) -> None:
    """Raises ArtifactError if `save_artifact` would refuse to write there."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ArtifactError(f"{folder} holds something other than an artifact: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file: choose another name for the artifact's folder")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    stored = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        # A clone, since safetensors refuses tensors that share memory.
        stored[key] = tensor.to(dtype if tensor.is_floating_point() else None, copy=True).contiguous()
    save_file(stored, path, metadata={"format": "pt"})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(new: Path, folder: Path) -> None:
    old = new.with_name(new.name + ".old")
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _read_config(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; an artifact is a folder with {CONFIG} in it")
    if not path.is_file():
        raise ArtifactError(f"{folder} is not an artifact: it has no {CONFIG}")
    content = path.read_bytes()
    try:
        config = json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}): copy the artifact again") from None
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: not a JSON object: copy the artifact again")
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format version {version!r} is not known, this is {FORMAT_VERSION}: update speech-ssl"
        )
    for field, kind in _FIELDS.items():
        if not isinstance(config.get(field), kind):
            raise ArtifactError(f"{path}: field {field!r} is missing or not of type {kind.__name__}")
    return config, hashlib.sha256(content).hexdigest()


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
        raise ArtifactError(f"{path}: key {(missing or unknown)[0]!r} {what}{more}: not of this encoder")
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            raise ArtifactError(
                f"{path}: key {key!r} has shape {tuple(found[key].shape)}, the encoder config asks for "
                f"{tuple(tensor.shape)}"
            )
