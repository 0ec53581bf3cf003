"""Shared by the readers of other libraries' checkpoints: their result, and how they report errors."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from speech_ssl.checkpoints.artifact import ArtifactError, Head
from speech_ssl.checkpoints.random_init import no_random_init
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder


class ConversionError(ArtifactError):
    """A checkpoint that cannot be converted. One line: which file, key or field, and what to do about it."""


@dataclass(frozen=True)
class Converted:
    """The result of a reader: the parts of an artifact, weights in float32.

    training: provenance, JSON-serialisable. extra: tensors for pre-training, under the names of our
    objective.
    """

    encoder: Encoder
    name: str
    training: Mapping[str, object]
    licence: str = "unknown"
    heads: Mapping[str, Head] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Tensors:
    """A checkpoint's tensors by name; each can be taken once. where: the file, for error messages. stored_as:
    the precision of the weights, if not float32."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.where = where
        self._left = dict(tensors)
        floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in floats}
        self.stored_as = "" if kinds <= {"float32"} else " and ".join(sorted(kinds))

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def keys(self) -> list[str]:
        """The keys not taken yet, sorted."""
        return sorted(self._left)

    def __iter__(self) -> Iterator[str]:
        """As `keys`: what is taken meanwhile does not matter."""
        return iter(self.keys())

    def take(self, key: str) -> Tensor:
        """Remove and return a tensor, floats in float32. Raises ConversionError if it is missing."""
        try:
            tensor = self._left.pop(key)
        except KeyError:
            raise ConversionError(f"{self.where}: key {key!r} is missing") from None
        return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()

    def below(self, prefix: str) -> Tensors:
        """Takes all tensors whose names start with `prefix`, and removes the prefix."""
        found = [key for key in self._left if key.startswith(prefix)]
        return Tensors({key.removeprefix(prefix): self._left.pop(key) for key in found}, self.where)

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """If the block fails, puts back the tensors that it took."""
        before = dict(self._left)
        try:
            yield
        except BaseException:
            self._left = before
            raise

    def drop(self, keys: Iterable[str]) -> None:
        """Discard these keys, if present: they have no meaning."""
        for key in keys:
            self._left.pop(key, None)

    def check_empty(self) -> None:
        """Raises ConversionError naming a key that was not taken."""
        if self._left:
            more = f" (and {len(self._left) - 1} more)" if len(self._left) > 1 else ""
            raise ConversionError(f"{self.where}: key {self.keys()[0]!r} is not known{more}")


def field_of(config: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a checkpoint's config. Raises ConversionError if it is missing or has the wrong type."""
    if name not in config:
        raise ConversionError(f"{where}: field {name!r} is missing")
    value = config[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(each.__name__ for each in kinds)
        raise ConversionError(f"{where}: field {name!r} is {reprlib.repr(value)}, not of type {wanted}")
    return value


@contextmanager
def no_encoder(where: str) -> Iterator[None]:
    """Turns a ValueError about the encoder's config into a ConversionError that names the file."""
    try:
        yield
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{where}: no encoder can be made of it: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: not a JSON object")
    return content


Heads: TypeAlias = tuple[dict[str, Head], dict[str, str]]
"""Heads by name, and for those that could not be read the reason."""


def head_or_why(name: str, tensors: Tensors, read: Callable[[], Head]) -> Heads:
    """Read a head. If that fails, its tensors are put back, and the encoder goes without it."""
    try:
        with tensors.put_back():
            return {name: read()}, {}
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        return {}, {name: reason.replace(f"{Path(tensors.where).parent}/", "")}


def provenance(
    source: str, *, left: Iterable[str], why: Mapping[str, str] | None = None, **more: object
) -> dict[str, object]:
    """An artifact's `training` field for a conversion. left: tensors that have no place in it. why: reasons
    why heads could not be read, by name. Empty fields are left out."""
    told = {"source": source, **more, "left_out": list(left), "heads_left_out": dict(why or {})}
    return {name: value for name, value in told.items() if value}


def check_weights(tensor: Tensor, key: str, where: str) -> None:
    """Raises ConversionError for integer weights, infinite values and NaN."""
    if not tensor.is_floating_point():
        raise ConversionError(f"{where}: {key!r} holds {tensor.dtype}: no weights")
    if not tensor.isfinite().all():
        raise ConversionError(f"{where}: {key!r} holds infinite values or NaN: a broken file")


def built_encoder(config: EncoderConfig, state: Mapping[str, Tensor], where: str) -> Encoder:
    """The encoder with these weights. Raises ConversionError for a name or shape that does not fit."""
    room = 2 * sum(tensor.numel() for tensor in state.values()) + 2**20
    try:
        with no_random_init(most=room):
            encoder = Encoder(config)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{where}: no encoder can be made of it: {reason}") from None
    wanted = encoder.state_dict()
    if odd := sorted(wanted.keys() ^ state.keys()):
        what = "is missing" if odd[0] in wanted else "is not known"
        raise ConversionError(f"{where}: {odd[0]!r} {what}")
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            found, asked = tuple(state[key].shape), tuple(tensor.shape)
            raise ConversionError(f"{where}: {key!r} has shape {found}, its config asks for {asked}")
        check_weights(state[key], key, where)
    copies = {key: value.to(torch.float32, copy=True).contiguous() for key, value in state.items()}
    encoder.load_state_dict(copies, assign=True)
    return encoder.eval()
