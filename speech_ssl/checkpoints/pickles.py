"""Files that torch saved, read for the plain data in them: nothing that they name is imported or called.

A pickle is a program. Its tensors, containers, numbers and texts are made here; whatever else it names, such
as `argparse.Namespace` or a class of the library that wrote it, becomes an `Inert` record of that name.

`torch.load` is not used, with whatever unpickler. It hands an archive of TorchScript to `torch.jit.load`,
which runs the code in it; and in old files it compares the sources of classes, and may write a patch file.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import torch
from torch import Tensor, UntypedStorage

from speech_ssl.checkpoints.conversion import ConversionError

ZIP = b"PK\x03\x04"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What files of torch begin with that are not zip archives."""

_MADE: dict[tuple[str, str], Any] = {("collections", "OrderedDict"): OrderedDict, ("torch", "Size"): tuple}
_MADE |= {("builtins", kind.__name__): kind for kind in (dict, list, tuple, set, frozenset)}
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


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


class _Maker:
    """One of torch's functions that put tensors together. A pickle may call it, and not change it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, _: Any) -> NoReturn:
        raise ValueError("it changes a function")


class _Storage(NamedTuple):
    memory: UntypedStorage
    dtype: torch.dtype


class _Unpickler(pickle.Unpickler):
    """find: the memory of a storage, from its key, size in bytes, and what more the file says of it.
    size: of the file in bytes; no tensor in it is larger."""

    def __init__(self, file: IO[bytes], find: Callable[..., UntypedStorage] | None = None, size: int = 0):
        super().__init__(file, encoding="utf-8")
        self._find, self._size = find, size
        makers: dict[str, Callable[..., Any]] = {
            "_rebuild_tensor": self._tensor,
            "_rebuild_tensor_v2": self._tensor,
            "_rebuild_tensor_v3": self._typed_tensor,
            "_rebuild_parameter": _first,
            "_rebuild_parameter_with_state": _first,
        }
        self._makers = {("torch._utils", name): _Maker(make) for name, make in makers.items()}
        self._makers["torch._tensor", "_rebuild_from_type_v2"] = _Maker(_without_attributes)

    def find_class(self, module: str, name: str) -> Any:
        key = (module.replace("__builtin__", "builtins"), name)
        if (made := _MADE.get(key) or self._makers.get(key)) is not None:
            return made
        if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return type("Inert", (Inert,), {"name": f"{module}.{name}"})

    def persistent_load(self, saved: Any) -> Any:
        if saved[0] == "module":  # old files: a class, and its source, which is of no interest
            return saved[1]
        kind, dtype, key, _, count, *more = saved
        if kind != "storage" or not isinstance(dtype, torch.dtype) or self._find is None:
            raise ValueError("it has a storage of an unknown kind")
        if not isinstance(key, str) or not _whole(count):
            raise ValueError("it has a malformed storage")
        return _Storage(self._find(key, count * dtype.itemsize, dtype.itemsize, *more), dtype)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        if not isinstance(storage, _Storage):
            raise ValueError("it has a tensor without a storage")
        return self._view(storage.memory, storage.dtype, offset, shape, strides)

    def _typed_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
        dtype = more[2]
        if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
            raise ValueError("it has a tensor without a type")
        return self._view(storage.memory, dtype, offset, shape, strides)

    def _view(
        self, memory: UntypedStorage, dtype: torch.dtype, offset: Any, shape: Any, strides: Any
    ) -> Tensor:
        """`set_` would silently enlarge a storage that is too small."""
        if len(shape) != len(strides) or not all(map(_whole, (offset, *shape, *strides))):
            raise ValueError("it has a tensor of no shape")
        count = 1
        for length in shape:
            count *= length
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if count and ((last + 1) * dtype.itemsize > memory.nbytes() or count * dtype.itemsize > self._size):
            raise ValueError("it has a tensor that is larger than its storage")
        tensor = torch.empty(0, dtype=dtype)
        return tensor.set_(memory, offset, tuple(shape), tuple(strides)) if count else tensor.view(shape)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _new(size: int) -> UntypedStorage:
    return UntypedStorage(size)  # type: ignore[no-untyped-call]


def _part(memory: UntypedStorage, start: int, length: int) -> UntypedStorage:
    return memory[start : start + length] if length else _new(0)


def _first(value: Any, *_: Any) -> Any:
    return value


def _without_attributes(make: Any, _: Any, args: Any, *__: Any) -> Any:
    if not isinstance(make, _Maker | type) or (isinstance(make, type) and not issubclass(make, Inert)):
        raise ValueError("it has a tensor of an unknown kind")
    return make(*args)


def read_pickle(path: Path) -> Any:
    """What is in a file of `torch.save`, in either of its formats, tensors on the CPU. Those of the newer
    format are views of the file, not yet read: copy what should outlive it.

    Raises ConversionError for one that is damaged or something else, OSError for one that cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(len(ZIP))
        file.seek(0)
        try:
            return _read_zip(file, path) if start == ZIP else _read_old(file, path.stat().st_size)
        except Exception as error:  # of any kind, in a damaged file
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConversionError(f"{path}: not a whole file of torch ({reason[:120]})") from None


def _read_zip(file: IO[bytes], path: Path) -> Any:
    """An archive with one folder: `data.pkl`, and the storages in `data/`."""
    size = path.stat().st_size
    memory: Any = UntypedStorage.from_file(str(path), False, size)
    found: dict[str, UntypedStorage] = {}
    with zipfile.ZipFile(file) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in records or "constants.pkl" in records:
            raise ValueError("it is a program of TorchScript, or another archive")
    if "byteorder" in records and _record(file, records["byteorder"], size) != sys.byteorder.encode():
        raise ValueError("it is of a machine with another order of bytes")

    def find(key: str, wanted: int, *_: Any) -> UntypedStorage:
        if f"data/{key}" not in records:
            raise ValueError(f"its record data/{key} is missing")
        if key not in found:
            found[key] = _part(memory, *_place(file, records[f"data/{key}"], size))
        if found[key].nbytes() < wanted:
            raise ValueError(f"its record data/{key} is too short")
        return found[key]

    return _Unpickler(io.BytesIO(_record(file, records["data.pkl"], size)), find, size).load()


def _record(file: IO[bytes], info: zipfile.ZipInfo, size: int) -> bytes:
    """Its checksum is not looked at, as torch does not: `torch.serialization` may be told to write none."""
    start, length = _place(file, info, size)
    file.seek(start)
    return file.read(length)


def _place(file: IO[bytes], info: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """Where a record's bytes are in the file, and how many. It has a header of its own, of varying length."""
    file.seek(info.header_offset)
    header = file.read(30)
    if info.compress_type != zipfile.ZIP_STORED or header[:4] != ZIP:
        raise ValueError(f"its record {info.filename} is compressed or damaged")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = info.header_offset + len(header) + names
    if start + info.file_size > size:
        raise ValueError(f"its record {info.filename} is cut off")
    return start, info.file_size


def _read_old(file: IO[bytes], size: int) -> Any:
    """A row of pickles, and then the storages' bytes, each after its length."""
    if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != PROTOCOL:
        raise ValueError("it begins otherwise")
    system = _Unpickler(file).load()
    if not isinstance(system, dict) or system.get("little_endian", True) != (sys.byteorder == "little"):
        raise ValueError("it is of a machine with another order of bytes")
    found: dict[str, tuple[UntypedStorage, int]] = {}
    left = size

    def find(key: str, wanted: int, itemsize: int, part: Any = None) -> UntypedStorage:
        nonlocal left
        if key not in found:
            if wanted > left:
                raise ValueError("its storages are larger than the file")
            left -= wanted
            found[key] = (_new(wanted), itemsize)
        storage, _ = found[key]
        if part is None:
            return storage
        _, start, count = part
        if not _whole(start) or not _whole(count) or (start + count) * itemsize > storage.nbytes():
            raise ValueError("it has a malformed storage")
        return _part(storage, start * itemsize, count * itemsize)

    content = _Unpickler(file, find, size).load()
    keys = _Unpickler(file).load()
    if not isinstance(keys, list) or set(keys) != set(found):
        raise ValueError("its storages are not those that it names")
    for key in keys:
        _fill(*found[key], file)
    return content


def _fill(storage: UntypedStorage, itemsize: int, file: IO[bytes]) -> None:
    count = int.from_bytes(file.read(8), "little")
    array = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)).numpy()
    if count * itemsize != len(array) or file.readinto(array) != len(array):  # type: ignore[attr-defined]
        raise ValueError("a storage of it is cut off")


def plain(value: Any) -> Any:
    """Namespaces and the nodes of OmegaConf as dicts, lists and values; of other objects what they hold.
    What holds itself becomes None there. Raises RecursionError if it is nested too deeply."""
    return _plain(value, {})


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """done: what became of objects that were met before, by identity, for one may be referred to often."""
    if not isinstance(value, Inert | dict | list | tuple):
        return value
    if id(value) not in done:
        done[id(value)] = None
        if isinstance(value, Inert):
            done[id(value)] = _plain_object(value, done)
        elif isinstance(value, dict):
            done[id(value)] = _plain_fields(value, done)
        else:
            done[id(value)] = [_plain(each, done) for each in value]
    return done[id(value)]


def _plain_object(value: Inert, done: dict[int, Any]) -> Any:
    state = value.state
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # with slots: (dict, slots)
    fields = [part for part in parts if isinstance(part, dict)]
    for name in ("_content", "_val"):
        for part in fields:
            if name in part:
                return _plain(part[name], done)
    if fields:
        return {key: each for part in fields for key, each in _plain_fields(part, done).items()}
    return _plain(value.args[0], done) if len(value.args) == 1 else None


def _plain_fields(value: dict[Any, Any], done: dict[int, Any]) -> dict[Any, Any]:
    fields = ((_plain(key, done), each) for key, each in value.items())
    return {key: _plain(each, done) for key, each in fields if not isinstance(key, dict | list)}
