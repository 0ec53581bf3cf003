"""Read files that torch saved as plain data: nothing that they name is imported or called.

`torch.load` is not used, with any unpickler: it passes a TorchScript archive to `torch.jit.load`, which runs
the code in it, and for old files it compares the sources of classes and may write a patch file.
"""

from __future__ import annotations

import io
import math
import os
import sys
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, UntypedStorage

from speech_ssl.checkpoints.conversion import ConversionError
from speech_ssl.checkpoints.torch_files.unpickling import Inert, Machine, Named

ZIP = b"PK\x03\x04"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The beginning of torch files that are not zip archives."""
UNREAD = ("last_optimizer_state", "optimizer_states", "optimizer")
"""Top-level keys to skip: as large as the model, or twice, and not needed."""
MOST_DIMENSIONS, MOST_ALIASES = 32, 4

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_KNOWN = {
    value for value in _DTYPES.values() if not value.is_complex and not repr(value).startswith("torch.q")
}
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
_VALUES: dict[tuple[str, str], torch.dtype] = {("torch", name): value for name, value in _DTYPES.items()}
_VALUES |= {
    (module, name): value
    for module in ("torch", "torch.cuda", "torch.storage")
    for name, value in _STORAGES.items()
}


class _Storage:
    """memory: filled only once it is known that a tensor in it is wanted."""

    __slots__ = ("dtype", "memory")

    def __init__(self, memory: UntypedStorage, dtype: torch.dtype) -> None:
        self.memory, self.dtype = memory, dtype


class _Reader:
    """Resolves what a pickle of torch refers to. find: returns a storage's memory for its key, its size in
    bytes, and further details from the file. size: of the file in bytes; its tensors cannot be much
    larger."""

    def __init__(self, find: Callable[..., UntypedStorage], size: int) -> None:
        self._find, self._left = find, MOST_ALIASES * size + 2**20
        makers: dict[str, Callable[..., Any]] = {
            "_rebuild_tensor": self._tensor,
            "_rebuild_tensor_v2": self._tensor,
            "_rebuild_tensor_v3": self._typed_tensor,
            "_rebuild_parameter": _first,
            "_rebuild_parameter_with_state": _first,
        }
        named: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", name): make for name, make in makers.items()
        }
        named["torch._tensor", "_rebuild_from_type_v2"] = self._without_attributes
        self._machine = Machine(named, _VALUES, self._stored)

    def read(self, file: IO[bytes]) -> Any:
        return self._machine.run(file)

    def _stored(self, saved: Any) -> Any:
        if type(saved) is not tuple or len(saved) < 2:
            raise ValueError("it refers to something unknown")
        if saved[0] == "module":  # old files: a class and its source, which is not needed
            return saved[1]
        kind, dtype, key, _, count, *more = saved
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError("it has a storage of an unknown kind")
        if type(key) is not str or not _whole(count):
            raise ValueError("it has a malformed storage")
        return _Storage(self._find(key, count * dtype.itemsize, dtype.itemsize, *more), dtype)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
        if type(storage) is not _Storage:
            raise ValueError("it has a tensor without a storage")
        return self._view(storage.memory, storage.dtype, offset, shape, strides)

    def _typed_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Any:
        dtype = more[2]
        if type(storage) is not _Storage or not isinstance(dtype, torch.dtype):
            raise ValueError("it has a tensor without a type")
        return self._view(storage.memory, dtype, offset, shape, strides)

    def _view(
        self, memory: UntypedStorage, dtype: torch.dtype, offset: Any, shape: Any, strides: Any
    ) -> Tensor | Inert:
        """Checked here, since `set_` would silently enlarge a storage that is too small."""
        if dtype not in _KNOWN:
            return Inert(f"a tensor of {dtype}", ())
        if type(shape) not in (list, tuple) or type(strides) not in (list, tuple):
            raise ValueError("it has a tensor without a valid shape")
        if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
            raise ValueError("it has a tensor without a valid shape")
        if not all(map(_whole, (offset, *shape, *strides))):
            raise ValueError("it has a tensor without a valid shape")
        count = math.prod(shape)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if count and (last + 1) * dtype.itemsize > memory.nbytes():
            raise ValueError("it has a tensor that is larger than its storage")
        self._left -= count * dtype.itemsize
        if self._left < 0:
            raise ValueError("it has a tensor, or many in one storage, that are far larger than the file")
        tensor = torch.empty(0, dtype=dtype)
        return tensor.set_(memory, offset, tuple(shape), tuple(strides)) if count else tensor.view(shape)

    def _without_attributes(self, make: Any, _: Any, args: Any, *__: Any) -> Any:
        if type(make) is not Named:
            raise ValueError("it has a tensor of an unknown kind")
        return self._machine.call(make, args)


def _first(value: Any, *_: Any) -> Any:
    if type(value) is _Storage:
        raise ValueError("it has a parameter without a tensor")
    return value


def _nothing(*_: Any) -> UntypedStorage:
    raise ValueError("it has a storage where none is allowed")


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _new(size: int) -> UntypedStorage:
    return UntypedStorage(size)  # type: ignore[no-untyped-call]


def read_pickle(path: Path) -> Any:
    """The content of a file of `torch.save`, in either format, with tensors on the CPU. Optimizer states are
    None and are not read.

    Raises ConversionError for a damaged file or one of another kind, OSError for one that cannot be opened.
    """
    if path.exists() and not path.is_file():
        raise ConversionError(f"{path}: not a file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(ZIP))
        file.seek(0)
        try:
            return _read_zip(file, size) if start == ZIP else _read_old(file, size)
        except Exception as error:  # damaged files raise any kind
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            shown = "".join(character if character.isprintable() else "?" for character in reason)
            raise ConversionError(f"{path}: not a whole file of torch ({shown})") from None


def _read_zip(file: IO[bytes], size: int) -> Any:
    """An archive with one folder: `data.pkl`, and the storages in `data/`."""
    records = _records(file)
    if "byteorder" in records and _record(file, records["byteorder"], size) != sys.byteorder.encode():
        raise ValueError("it is from a machine with another byte order")
    found: dict[str, tuple[UntypedStorage, int]] = {}
    left = size

    def find(key: str, wanted: int, *_: Any) -> UntypedStorage:
        nonlocal left
        if f"data/{key}" not in records:
            raise ValueError(f"its record data/{key} is missing")
        if key not in found:
            start, length = _place(file, records[f"data/{key}"], size)
            left -= length
            if left < 0:
                raise ValueError("its records are larger than the file")
            found[key] = (_new(length), start)
        if found[key][0].nbytes() < wanted:
            raise ValueError(f"its record data/{key} is too short")
        return found[key][0]

    content = _Reader(find, size).read(io.BytesIO(_record(file, records["data.pkl"], size)))
    wanted = _wanted(content)
    for memory, start in found.values():
        if _holds(memory, wanted):
            file.seek(start)
            _fill(memory, file)
    return content


def _records(file: IO[bytes]) -> dict[str, zipfile.ZipInfo]:
    """The records by name within the archive's folder."""
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
    records = {info.filename.partition("/")[2]: info for info in listed}
    if "data.pkl" not in records or "constants.pkl" in records:
        raise ValueError("it is a program of TorchScript, or another archive")
    if len(records) < len(listed) or len({info.filename.partition("/")[0] for info in listed}) > 1:
        raise ValueError("it has records with the same name, or several folders")
    return records


def _record(file: IO[bytes], info: zipfile.ZipInfo, size: int) -> bytes:
    """The checksum is ignored, as in torch: `torch.serialization` can be told to write none."""
    start, length = _place(file, info, size)
    file.seek(start)
    return file.read(length)


def _place(file: IO[bytes], info: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """Offset and size of a record's bytes in the file. Each record has its own header, of varying length."""
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
    """A sequence of pickles, then the storages' bytes, each preceded by its length."""
    head = _Reader(_nothing, 0)
    if head.read(file) != MAGIC or head.read(file) != PROTOCOL:
        raise ValueError("it does not begin like one")
    system = head.read(file)
    if not isinstance(system, dict) or system.get("little_endian", True) != (sys.byteorder == "little"):
        raise ValueError("it is from a machine with another byte order")
    found: dict[str, tuple[UntypedStorage, int]] = {}
    left = size

    def find(key: str, wanted: int, itemsize: int, part: Any = None) -> UntypedStorage:
        nonlocal left
        if key not in found:
            left -= wanted
            if left < 0:
                raise ValueError("its storages are larger than the file")
            found[key] = (_new(wanted), itemsize)
        storage, _ = found[key]
        if part is None:
            return storage
        _, start, count = part
        if not _whole(start) or not _whole(count) or (start + count) * itemsize > storage.nbytes():
            raise ValueError("it has a malformed storage")
        return storage[start * itemsize : (start + count) * itemsize] if count else _new(0)

    content = _Reader(find, size).read(file)
    keys = head.read(file)
    if type(keys) is not list or any(type(key) is not str for key in keys) or set(keys) != set(found):
        raise ValueError("its storages are not those that it names")
    _fill_all([found[key] for key in keys], _wanted(content), file, size)
    return content


def _fill_all(
    storages: Iterable[tuple[UntypedStorage, int]], wanted: list[int], file: IO[bytes], size: int
) -> None:
    """Fill the storages in the order of the file, where each follows its length in items."""
    for memory, itemsize in storages:
        if int.from_bytes(file.read(8), "little") * itemsize != memory.nbytes():
            raise ValueError("one of its storages has another length")
        if _holds(memory, wanted):
            _fill(memory, file)
        elif file.seek(memory.nbytes(), os.SEEK_CUR) > size:
            raise ValueError("one of its storages is cut off")


def _wanted(content: Any) -> list[int]:
    """The memory addresses of the storages that tensors use, sorted. Drops optimizer states."""
    for name in UNREAD if isinstance(content, dict) else ():
        if name in content:
            content[name] = None
    found: set[int] = set()
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            found.add(value.untyped_storage().data_ptr())
        elif isinstance(value, dict | list | tuple | Inert) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(_parts(value))
    return sorted(found)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Inert):
        return (*value.args, value.state)
    return value.values() if isinstance(value, dict) else value


def _holds(memory: UntypedStorage, places: list[int]) -> bool:
    place = bisect_left(places, memory.data_ptr())
    return place < len(places) and places[place] < memory.data_ptr() + memory.nbytes()


def _fill(storage: UntypedStorage, file: IO[bytes]) -> None:
    if not storage.nbytes():
        return
    array = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)).numpy()
    if file.readinto(array) != len(array):  # type: ignore[attr-defined]
        raise ValueError("one of its storages is cut off")
