"""A form as it comes in, its files straight to the disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.errors import ServiceError, bad_request
from service.jobs.files import storage
from service.v1.requests import MAX_FIELD_BYTES, MAX_FIELDS, kept
from speech_ssl.files import sync

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_NAME = 255
T = TypeVar("T")


@dataclass(frozen=True)
class Sent:
    """A file that is on the disk. digest: of its bytes."""

    name: str
    digest: str


class Form:
    """Fields are kept, files are written into `folder` as "0", "1" and so on. Its methods block."""

    def __init__(self, content_type: str, folder: Path, max_files: int) -> None:
        """Raises ServiceError for what is not a form."""
        kind, parameters = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not parameters.get(b"boundary"):
            message = "send a job as multipart/form-data, with one or more `file` and its `task`"
            raise ServiceError(415, "unsupported_content_type", message)
        self.fields: list[tuple[str, str]] = []
        self.files: list[Sent] = []
        self._folder, self._max_files = folder, max_files
        self._whole = False
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._field = ""
        self._text = bytearray()
        self._name: str | None = None
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        with _well_formed():
            self._parser = MultipartParser(parameters[b"boundary"], self._callbacks())

    def write(self, data: bytes) -> None:
        """Raises ServiceError."""
        with _well_formed(), storage():
            self._parser.write(data)

    def finish(self) -> None:
        """Raises ServiceError for a form that ends too early: files may be missing from it."""
        if not self._whole:
            raise bad_request("the form ends before its closing boundary", code="malformed_form")
        if not self.files:
            raise bad_request("no file: send it in the field `file`", "file", "empty")
        with storage():
            sync(self._folder)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        if b"name" not in parameters:
            raise bad_request("a part of the form has no name", code="malformed_form")
        self._field = _decoded(parameters[b"name"])
        self._name = _decoded(parameters[b"filename"])[:MAX_NAME] if b"filename" in parameters else None
        if self._name is None:
            self._check_field()
            self._text.clear()
            return
        if self._field != "file":
            raise bad_request(
                f"a file in the field {self._field[:80]!r}: the field is `file`", self._field[:80]
            )
        if len(self.files) == self._max_files:
            raise bad_request(f"at most {self._max_files} files are taken in one job", "file")
        self._digest = hashlib.sha256()
        self._file = (self._folder / str(len(self.files))).open("wb")

    def _check_field(self) -> None:
        if self._field == "file":
            message = "`file` is text: give it a file name, as in curl -F file=@clip.wav"
            raise bad_request(message, "file")
        if len(self.fields) == MAX_FIELDS:
            raise bad_request("too many fields", code="malformed_form")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            piece = data[start:end]
            self._file.write(piece)
            self._digest.update(piece)
            return
        end = start + kept(self._field, end - start, len(self._text))
        if len(self._text) + end - start > MAX_FIELD_BYTES:
            raise bad_request(f"{self._field[:80]}: too long", self._field[:80])
        self._text += data[start:end]

    def _on_part_end(self) -> None:
        if self._file is None or self._name is None:
            self.fields.append((self._field, _decoded(bytes(self._text))))
            return
        with self._file as file:
            self._file = None
            file.flush()
            os.fsync(file.fileno())
        self.files.append(Sent(self._name, self._digest.hexdigest()))

    def _on_end(self) -> None:
        self._whole = True


@contextmanager
def _well_formed() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise bad_request("the form is malformed", code="malformed_form") from error


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


async def received(request: Request, folder: Path, max_files: int) -> Form:
    """Raises ServiceError, and ClientDisconnect."""
    form = Form(request.headers.get("content-type", ""), folder, max_files)
    try:
        async for chunk in request.stream():
            await finished(partial(form.write, chunk))
        await finished(form.finish)
    finally:
        form.close()
    return form


async def finished(work: Callable[[], T]) -> T:
    """In a thread; whoever gives up leaves only when it has let go of the files."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
