"""The weight files in a folder of transformers, chosen as transformers chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, Tensors, read_json
from speech_ssl.checkpoints.naming import tensors_of
from speech_ssl.checkpoints.torch_files.pickles import read_pickle

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
FILES = (WEIGHTS, INDEX, PICKLE, PICKLE_INDEX)
"""In the order in which transformers looks for them."""
NAMED = "transformers_weights"
"""A field of `config.json` that names the weights' file."""
ADAPTER = "adapter_config.json"
"""Config of a PEFT adapter, which may stand beside a model or alone."""


def read_weights(folder: Path, config: Mapping[str, Any], *, pickles: bool) -> Tensors:
    """Read the weights. A single file takes precedence over an index of several, and safetensors over
    pickles, of which only the weights are read. Raises ConversionError."""
    name = weights_in(folder, config)
    if name is None:
        raise ConversionError(f"{folder}: has no {config.get(NAMED) or WEIGHTS}")
    path, pickled = folder / name, name in (PICKLE, PICKLE_INDEX)
    if pickled and not pickles:
        raise ConversionError(
            f"{path} is a pickle, which is not loaded: make an artifact of it with `speech-ssl convert`"
        )
    read = _unpickled if pickled else _safetensors
    return Tensors(_parts(path, read) if name.endswith(".index.json") else read(path), str(path))


def weights_in(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The name of the weights' file or index; None if there is none. Raises ConversionError if the config
    names anything but a safetensors file in the folder."""
    names = list(FILES)
    if (named := config.get(NAMED)) is not None:
        if not isinstance(named, str) or Path(named).name != named or ".safetensors" not in named:
            raise ConversionError(
                f"{folder}: field {NAMED!r} of its config is {named!r}, which is not a safetensors file"
            )
        names = [named]
    return next((name for name in names if (folder / name).is_file()), None)


def check_no_adapter(folder: Path, called: str | None = None) -> None:
    """Raises ConversionError for a PEFT folder without a model. called: the name to report for it."""
    path = folder / ADAPTER
    if not path.is_file() or any((folder / name).is_file() for name in FILES):
        return
    adapter = read_json(path)
    kind, base = adapter.get("peft_type") or "adapter", adapter.get("base_model_name_or_path") or "a model"
    raise ConversionError(
        f"{called or folder}: holds a PEFT adapter ({kind}) for {base}, not the model: load both with "
        "peft, save the result of `merge_and_unload()` with `save_pretrained`, and name that folder"
    )


def _parts(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or any(Path(str(name)).name != name for name in parts.values()):
        raise ConversionError(f"{index}: field 'weight_map' is malformed")
    loaded: dict[str, Tensor] = {}
    for name in sorted(set(parts.values())):
        loaded |= read(index.with_name(name))
    return loaded


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path}: not a whole safetensors file ({error}): fetch it again") from None


def _unpickled(path: Path) -> dict[str, Tensor]:
    content = read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise ConversionError(f"{path}: not a file of weights only")
    return tensors_of(content)
