"""JSON that a client sent, for every route that takes it: bounded memory, and no step that takes long.

What is long in it is audio: strings of base64, or lists of numbers. They are taken out, and a small frame is
left with "7" in place of the string, and ["7"] in place of the list, that was the seventh. So neither the
parser nor pydantic, which makes a kilobyte of error of every value that is wrong, ever meets many values.
Parsing holds Python's global lock: long lists are parsed in pieces, for other threads to go on in between.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from service.errors import ServiceError, bad_request

MAX_FRAME = 65_536
"""Bytes without what is in quotes and without long lists of numbers."""
MAX_VALUES = 2_000
"""Texts, names of fields, numbers in short lists, lists and objects; beside as many as there may be files."""
MAX_DEPTH = 16
MAX_NUMBER = 1_024
"""Bytes of a number, with the space around it."""
LONG = 128
"""Bytes from which a list is read as Numbers. What is shorter is too short for a clip."""
PIECE = 65_536
_ESCAPED = re.compile(r"(?:[^\\]{1,4096}+|\\u[0-9a-fA-F]{4}|\\[^u]){1,8192}+", re.DOTALL)
_CHARSETS = re.compile(r"""charset\s*=\s*["']?(utf-?8|us-ascii)["']?\s*(;|$)""", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Numbers:
    """What a long list of numbers is read as, 1-D; what is beyond float32 is infinite. No list to pydantic,
    which would make an error of each."""

    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.values)


async def json_body(request: Request, most: int) -> bytes:
    """So many bytes at most, also of a body that does not say how many it has. Raises ServiceError."""
    _, _, parameters = request.headers.get("content-type", "").partition(";")
    if "charset" in parameters.lower() and not _CHARSETS.search(parameters):
        raise ServiceError(415, "unsupported_charset", "JSON is read in UTF-8 and in no other charset")
    _check_size(int(request.headers.get("content-length", "0")), most)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        _check_size(size, most)
        chunks.append(chunk)
    if not size:
        raise bad_request("the body is empty", code="empty")
    return b"".join(chunks)


def json_object(data: bytes, max_files: int = 0) -> dict[str, Any]:
    """As `json.loads`, but for long lists of numbers, which are Numbers. Not for the event loop, where `data`
    may be long. Raises ServiceError."""
    reader = _Reader(data, MAX_VALUES + max_files)
    try:
        value = reader.value()
    except RecursionError as error:
        raise _malformed("has lists and objects that are too deep in one another") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _malformed("is not JSON") from error
    except ValueError as error:  # Python's own limit, for integers
        raise _malformed("has a number of too many digits") from error
    if not isinstance(value, dict):
        raise _malformed("is not a JSON object")
    return value


class _Pairs(list[tuple[str, Any]]):
    """An object, before it is looked at."""


class _Reader:
    """Raises ValueError and RecursionError for what is not JSON, ServiceError for what is too much of it."""

    def __init__(self, data: bytes, max_values: int) -> None:
        self._data, self._max_values = data, max_values
        self._frame = bytearray()
        self._taken: list[str | Numbers] = []
        self._values = 0

    def value(self) -> Any:
        self._take_apart()
        return self._joined(json.loads(self._frame.decode(), object_pairs_hook=_Pairs), 0)

    def _take_apart(self) -> None:
        """Each turn goes on from the next quote or bracket. Where those are is looked for once: a search may
        go through all the data."""
        data, end = self._data, len(self._data)
        at, quote, opening, closing = 0, -1, -1, -1
        while at < end:
            quote = self._next(b'"', at) if quote < at else quote
            opening = self._next(b"[", at) if opening < at else opening
            found = min(quote, opening)
            self._keep(at, found)
            if found == end:
                return
            at = found + 1
            if found == quote:
                at = self._end_of_text(at)
                self._take(b'"%d"', _text(data, found, at))
                continue
            opening = self._next(b"[", at)
            closing = self._next(b"]", at) if closing < at else closing
            if at + LONG <= closing < min(quote, opening, end):
                self._take(b'["%d"]', _numbers(data[at:closing]))
                at = closing + 1
            else:
                self._count()
                self._frame += b"["

    def _next(self, character: bytes, at: int) -> int:
        found = self._data.find(character, at)
        return len(self._data) if found < 0 else found

    def _keep(self, start: int, stop: int) -> None:
        if len(self._frame) + stop - start > MAX_FRAME:
            most = f"more than {MAX_FRAME >> 10} KiB that are neither text nor lists of numbers"
            raise _malformed(f"has {most}")
        self._frame += self._data[start:stop]

    def _take(self, place: bytes, value: str | Numbers) -> None:
        self._count()
        self._frame += place % len(self._taken)
        self._taken.append(value)

    def _end_of_text(self, at: int) -> int:
        """After the quote that no backslash stands for. Beyond the end there is none: it is not JSON."""
        while (quote := self._data.find(b'"', at)) >= 0:
            if self._data[quote - 1] != ord("\\"):
                return quote + 1
            before = self._data[at:quote]
            if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
                return quote + 1
            self._count()
            at = quote + 1
        return len(self._data)

    def _count(self) -> None:
        self._values += 1
        if self._values > self._max_values:
            raise _malformed(f"has more than {self._max_values} values")

    def _joined(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):  # counted when it was taken, as lists were
            return self._taken[int(value)]
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(value, _Pairs):
            self._count()
            named = {self._taken[int(name)]: self._joined(each, depth + 1) for name, each in value}
            if len(named) < len(value):
                raise _malformed("has a field twice in one object")
            return named
        if isinstance(value, list):
            if len(value) == 1 and isinstance(value[0], str):
                taken = self._taken[int(value[0])]
                return taken if isinstance(taken, Numbers) else [taken]
            return [self._joined(each, depth + 1) for each in value]
        self._count()
        return value


def _text(data: bytes, start: int, stop: int) -> str:
    """A string, with its quotes. One of many escapes takes the parser long, and is parsed in pieces too."""
    quoted = str(memoryview(data)[start:stop], "utf-8")
    if quoted.count("\\") <= PIECE:
        return _parsed_text(quoted)
    parsed, at, last = [], 1, len(quoted) - 1
    while at < last:
        piece = _ESCAPED.match(quoted, at, last)
        if piece is None:
            raise _malformed("is not JSON")
        parsed.append(_parsed_text(f'"{piece[0]}"'))
        at = piece.end()
    return "".join(parsed) + _parsed_text(f'"{quoted[last:]}')


def _parsed_text(quoted: str) -> str:
    text: str = json.loads(quoted)
    return text


def _numbers(text: bytes) -> Numbers:
    """Of what stands between two brackets, with no quote or bracket in it."""
    pieces = [_parsed_numbers(piece) for piece in _pieces(text)]
    return Numbers(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))


def _pieces(text: bytes) -> Iterator[bytes]:
    at = 0
    while True:
        comma = text.find(b",", at + PIECE, at + PIECE + MAX_NUMBER)
        if comma < 0:
            break
        yield text[at:comma]
        at = comma + 1
    if len(text) - at > PIECE + MAX_NUMBER:
        raise _malformed(f"has a number of more than {MAX_NUMBER} characters")
    if at and not text[at:].strip():
        raise _malformed("is not JSON")
    yield text[at:]


def _parsed_numbers(piece: bytes) -> NDArray[np.float32]:
    listed = f"[{piece.decode('ascii')}]"
    values = json.loads(listed)
    if not set(map(type, values)) <= {int, float}:
        raise _malformed(f"has a list of {LONG} characters or more that is not of numbers alone")
    try:
        packed = array("f", values)  # NumPy lets go of the lock for so short that no other thread gets it
    except OverflowError:
        packed = array("f", json.loads(listed, parse_int=float))
    return np.frombuffer(packed, np.float32)


def _check_size(size: int, most: int) -> None:
    if size > most:
        advice = "send audio as a file in multipart/form-data, or as the body itself"
        raise ServiceError(413, "body_too_large", f"JSON may have {most / (1 << 20):g} MiB: {advice}")


def _malformed(what: str) -> ServiceError:
    return bad_request(f"the body {what}", code="malformed_json")
