"""Tensors of the Open Inference Protocol: clips out of them, and answers into them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.errors import ServiceError, bad_request
from service.models.clips import Vectors
from service.models.engine import File
from service.open_inference.schemas import AUDIO, Datatype, InputTensor, OutputName
from service.v1.json_reader import Numbers
from service.v1.requests import unwrapped

PIECE = 65_536
"""Numbers that are one string at a time."""


@dataclass(frozen=True)
class Tensor:
    """An answer: numbers, or texts."""

    name: OutputName
    values: Vectors | Sequence[str]

    @property
    def shape(self) -> list[int]:
        return list(self.values.shape) if isinstance(self.values, np.ndarray) else [len(self.values)]

    @property
    def datatype(self) -> Datatype:
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    def text(self) -> Iterator[str]:
        """As JSON, in pieces: numbers are the shortest decimals that are the same float32."""
        head = {"name": self.name, "shape": self.shape, "datatype": self.datatype}
        yield json.dumps(head)[:-1] + ', "data": ['
        if isinstance(self.values, np.ndarray):
            flat = self.values.reshape(-1)
            for start in range(0, len(flat), PIECE):
                yield ("," if start else "") + ",".join(flat[start : start + PIECE].astype("U16").tolist())
        else:
            yield ", ".join(map(json.dumps, self.values))
        yield "]}"


def clips_of(tensor: InputTensor, max_files: int) -> list[File]:
    """Raises ServiceError."""
    return _files(tensor, max_files) if tensor.datatype == "BYTES" else _waves(tensor, max_files)


def _files(tensor: InputTensor, max_files: int) -> list[File]:
    if len(tensor.shape) != 1:
        raise _refusal(f"BYTES has the shape [n], for n files, not {tensor.shape}")
    (count,) = tensor.shape
    _check_count(count, max_files)
    if isinstance(tensor.data, Numbers) or not all(isinstance(text, str) for text in tensor.data):
        raise _refusal("the data of BYTES is strings, a file in base64 each")
    if len(tensor.data) != count:
        raise _refusal(f"its shape says {count} files, its data has {len(tensor.data)}")
    names = [f"{AUDIO}[{index}]" for index in range(count)]
    return [File(name, unwrapped(text, name)) for name, text in zip(names, tensor.data, strict=True)]


def _waves(tensor: InputTensor, max_files: int) -> list[File]:
    count, samples = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
    _check_count(count, max_files)
    waves = _flat(tensor).reshape(count, samples)
    return [File(f"{AUDIO}[{index}]", wave) for index, wave in enumerate(waves)]


def _flat(tensor: InputTensor) -> Vectors:
    """The data as one list, if it is of the shape."""
    data, shape = tensor.data, tensor.shape
    if len(shape) == 2 and isinstance(data, list) and data and isinstance(data[0], list | Numbers):
        if any(not isinstance(row, list | Numbers) or len(row) != shape[1] for row in data):
            raise _refusal(f"its shape is {shape}, but its data is not rows of {shape[1]}")
        if len(data) != shape[0]:
            raise _refusal(f"its shape is {shape}, its data has {len(data)} rows")
        return np.concatenate([_numbers(row) for row in data])
    if len(data) != math.prod(shape):
        raise _refusal(f"its shape {shape} is {math.prod(shape)} numbers, its data has {len(data)}")
    return _numbers(data)


def _numbers(values: list[Any] | Numbers) -> Vectors:
    """Of a list that was long, or of one that was not: its numbers are not beyond float64 then."""
    if isinstance(values, Numbers):
        return values.values
    if not set(map(type, values)) <= {int, float}:
        raise _refusal("the data of FP32 is numbers, flat or nested as the shape is")
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float64).astype(np.float32)


def _check_count(count: int, max_files: int) -> None:
    if not 1 <= count <= max_files:
        raise _refusal(f"1 to {max_files} clips are taken in one request, not {count}")


def _refusal(message: str) -> ServiceError:
    return bad_request(f"the input tensor `{AUDIO}`: {message}", AUDIO)
