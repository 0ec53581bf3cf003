"""Files that torch saved, read for the plain data in them: nothing that they name is imported or called.

A pickle is a program. Its tensors, containers, numbers and texts are made here; whatever else it names, such
as `argparse.Namespace` or a class of the library that wrote it, becomes an `Inert` record of that name.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch

from speech_ssl.checkpoints.conversion import ConversionError

_MADE: dict[tuple[str, str], Any] = {("collections", "OrderedDict"): OrderedDict}
_MADE |= {("builtins", kind.__name__): kind for kind in (dict, list, tuple, set, frozenset)}
_MADE |= {("builtins", kind.__name__): kind for kind in (int, float, bool, str, complex, bytearray, slice)}
_REBUILT = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
"""Of torch._utils: they put tensors together, and do nothing else."""


class Inert:
    """An object that a pickle asked for. name: of its class or function; args, state: what it was given."""

    name = ""

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        made = super().__new__(cls)
        made.args, made.state, made.items = args, None, []
        return made

    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        """All is done in `__new__`, which pickles may call alone."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: list[Any]) -> None:
        self.items.extend(values)

    def __call__(self, *args: Any, **_: Any) -> Inert:
        """What was made may be called in turn, to no more effect."""
        return type(self)(*args)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (made := _MADE.get((module.replace("__builtin__", "builtins"), name))) is not None:
            return made
        if module == "torch._utils" and name in _REBUILT:
            return getattr(torch._utils, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) == ("torch", "Size"):
            return torch.Size
        return type("Inert", (Inert,), {"name": f"{module}.{name}"})


def _load(file: IO[bytes], **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_restricted = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="restricted")


def read_pickle(path: Path) -> Any:
    """What is in a file of `torch.save`, in either of its formats, tensors on the CPU. Raises ConversionError
    for one that is damaged or something else, OSError for one that cannot be opened."""
    with path.open("rb"):
        pass
    load: Callable[..., Any] = torch.load
    try:
        return load(path, map_location="cpu", weights_only=False, pickle_module=_restricted)
    except Exception as error:  # of any kind, in a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{path}: not a whole file of torch ({reason[:120]})") from None


def plain(value: Any) -> Any:
    """Namespaces and the nodes of OmegaConf as dicts, lists and values; of other objects what they hold."""
    if isinstance(value, Inert):
        state = value.state
        if isinstance(state, tuple) and len(state) == 2:  # with slots: (dict, slots)
            state = {**(state[0] or {}), **(state[1] or {})}
        if isinstance(state, dict):
            for wrapped in ("_content", "_val"):
                if wrapped in state:
                    return plain(state[wrapped])
            return plain(state)
        return plain(value.args[0]) if len(value.args) == 1 else None
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
