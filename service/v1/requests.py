"""A request: its files and options, from whichever of the three forms it has; and the wait for its answer."""

from __future__ import annotations

import asyncio
import binascii
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.batcher import Stopped
from service.errors import ServiceError, bad_request
from service.models.engine import Engine, File
from service.record import current
from service.v1.json_reader import json_body, json_object
from service.v1.schemas import EmbeddingOptions, EmbeddingRequest
from speech_ssl.audio import FORMATS

MAX_FIELDS = 256
MAX_FIELD_BYTES = 4096
SHORTENED = frozenset({"prompt", "keywords", "known_speaker_references"})
"""Fields that change nothing, and may be long: what is kept of them is their beginning."""
_PART = re.compile(r"(\w+)\[(\w*)\]", re.ASCII)
"""Of a list (`name[]`, `name[0]`), or of an object (`name[key]`)."""
_SPACE = b" \t\r\n"  # base64 comes in lines of 76 characters
_BASE64_PIECE = 1 << 18  # for other threads to go on in between
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


T = TypeVar("T")
Options = TypeVar("Options", bound=BaseModel)


async def _engine(request: Request) -> Engine:  # not async, it would be called in a thread
    engine: Engine = request.app.state.engine
    return engine


TheEngine = Annotated[Engine, Depends(_engine)]


def seconds_left(request: Request, engine: Engine) -> float:
    """Until an answer is of no more use: the client's word, within the service's. Raises ServiceError."""
    asked = request.headers.get("x-request-timeout")
    if asked is None:
        return engine.settings.request_timeout_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise bad_request("X-Request-Timeout is a number of seconds, more than 0", "X-Request-Timeout")
    return min(seconds, engine.settings.request_timeout_s)


async def attended(request: Request, engine: Engine, work: Coroutine[Any, Any, T]) -> T:
    """Until it is done, or the client leaves, or the deadline passes, or the service stops. The deadline of a
    request is that of the first work that it is attended in."""
    try:
        seconds = seconds_left(request, engine)
    except ServiceError:
        work.close()
        raise
    record = current()
    record.due = min(record.due, time.monotonic() + seconds)
    task = asyncio.create_task(work)
    left = asyncio.create_task(_disconnect(request))
    stopping = asyncio.create_task(engine.stopping.wait())
    try:
        timeout = record.due - time.monotonic()
        await asyncio.wait({task, left, stopping}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled():
            return task.result()
        if left.done():
            raise ClientDisconnect
        raise Stopped if stopping.done() else TimeoutError
    finally:
        for each in (task, left, stopping):
            each.cancel()
        await asyncio.gather(task, left, stopping, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Upload(Generic[Options]):
    files: list[File]
    options: Options


@asynccontextmanager
async def received(
    request: Request, engine: Engine, options: type[Options], *, max_files: int | None = None
) -> AsyncIterator[Upload[Options]]:
    """The whole body, with its temporary files closed at the end. Raises ServiceError, and as
    `Engine.check_room` before a byte of it is read."""
    engine.check_room()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query = once(request.query_params.multi_items())
    if kind == "multipart/form-data":
        form = await _form(request, max_files or engine.settings.max_files)
        try:
            yield _from_form(form, query, options)
        finally:
            await form.close()
    elif kind == "application/json" and options is EmbeddingOptions:
        read: Any = partial(_from_json, query, engine.settings.max_files)  # options are EmbeddingOptions
        yield await received_json(request, engine, read)
    elif kind.startswith("audio/") or kind == "application/octet-stream":
        yield Upload([File("body", await body_of(request))], options.model_validate(query))
    else:
        also = ", or application/json with `input`" if options is EmbeddingOptions else ""
        raise ServiceError(
            415,
            "unsupported_content_type",
            f"the content type {kind[:80]!r} is not read: send multipart/form-data with `file`, or a body of "
            f"audio/* or application/octet-stream{also}; the audio formats are " + ", ".join(FORMATS),
        )


class _WholeParser(MultiPartParser):
    """Refuses a form that ends before its closing boundary: files may be missing from it."""

    whole = False

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None:
            end = start + kept(part.field_name, end - start, len(part.data))
        super().on_part_data(data, start, end)

    def on_end(self) -> None:
        self.whole = True

    async def parse(self) -> FormData:
        self.stream = self._to_the_boundary(self.stream)
        return await super().parse()

    async def _to_the_boundary(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self.whole:  # raised in here, for the parser then closes its files
            raise MultiPartException("the form ends before its closing boundary")


async def body_of(request: Request) -> bytes:
    """Can be had once: the request does not keep it. Raises ServiceError for an empty one."""
    body = b"".join([chunk async for chunk in request.stream()])
    if not body:
        raise bad_request("the body is empty", code="empty")
    return body


def _without_charset(content_type: str) -> Headers:
    """A form is UTF-8. A charset that is claimed may be a codec that raises or unpacks, and each name that is
    looked up is remembered for good. Raises ServiceError."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise bad_request("the content type of the form has no boundary", code="malformed_form")
    quoted = boundary.replace(b"\\", rb"\\").replace(b'"', rb"\"")
    return Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%s"' % quoted)])


async def _form(request: Request, max_files: int) -> FormData:
    parser = _WholeParser(
        _without_charset(request.headers["content-type"]),
        request.stream(),
        max_files=max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise bad_request(error.message, code="malformed_form") from error


def _from_form(form: FormData, query: dict[str, Any], options: type[Options]) -> Upload[Options]:
    fields: list[tuple[str, str]] = []
    files: list[File] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "file":
                raise bad_request(f"a file in the field {name[:80]!r}: the field is `file`", name[:80])
            files.append(File(f"file[{len(files)}]", value.file))
        elif name == "file":
            raise bad_request("`file` is text: give it a file name, as in curl -F file=@clip.wav", "file")
        else:
            fields.append((name, value))
    chosen = options.model_validate(query | once(fields))
    if not files:
        raise bad_request("no file: send it in the field `file`", "file", "empty")
    return Upload(files, chosen)


async def received_json(request: Request, engine: Engine, read: Callable[[dict[str, Any]], T]) -> T:
    """What `read` makes of a body that is a JSON object, in a thread. The one way for JSON bodies; they are
    not held any longer then. Raises ServiceError, and as `read` and `attended` do."""
    work = partial(_parsed, await json_body(request, engine.settings.max_json_bytes), read, engine)
    return await attended(request, engine, engine.aside(work))


def _parsed(body: bytes, read: Callable[[dict[str, Any]], T], engine: Engine) -> T:
    return read(json_object(body, engine.settings.max_files))


def _from_json(query: dict[str, Any], max_files: int, body: dict[str, Any]) -> Upload[EmbeddingOptions]:
    request = EmbeddingRequest.model_validate(query | body)
    inputs = [request.input] if isinstance(request.input, str) else request.input
    if len(inputs) > max_files:
        raise bad_request(f"at most {max_files} files are taken in one request", "input")
    options = EmbeddingOptions.model_validate(request.model_dump(exclude={"input"}))
    names = [f"input[{index}]" for index in range(len(inputs))]
    return Upload(
        [File(name, unwrapped(text, name)) for name, text in zip(names, inputs, strict=True)], options
    )


def unwrapped(text: str, param: str) -> bytes:
    """From a data URI or bare base64; what the URI calls the content does not count."""
    if re.match("(https?|file|ftp)://", text[:10], re.IGNORECASE):
        raise bad_request(f"{param}: addresses are not fetched; send the file itself", param)
    if match := _DATA_URI.match(text):
        text = text[match.end() :]
    elif text[:5].lower() == "data:":
        raise bad_request(f"{param}: a data URI has to be base64", param)
    try:
        data = _decoded(text)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{param}: not base64 ({error})", param, "malformed_base64") from error
    if not data:
        raise bad_request(f"{param}: empty", param, "empty")
    return data


def _decoded(text: str) -> bytes:
    """From base64. Raises ValueError."""
    decoded, rest, padded = bytearray(), b"", False
    for at in range(0, len(text), _BASE64_PIECE):
        part = rest + text[at : at + _BASE64_PIECE].encode("ascii").translate(None, _SPACE)
        if part and padded:
            raise ValueError("Excess data after padding")
        whole, rest = part[: len(part) & ~3], part[len(part) & ~3 :]
        padded = whole.endswith(b"=")
        decoded += binascii.a2b_base64(whole, strict_mode=True)
    if rest:
        raise ValueError("Incorrect padding")
    return bytes(decoded)


def kept(field: str, size: int, before: int) -> int:
    """How many of the next bytes of a field to keep, after so many."""
    return min(size, MAX_FIELD_BYTES - before) if field.partition("[")[0] in SHORTENED else size


def once(items: list[tuple[str, str]]) -> dict[str, Any]:
    """Each option once; lists and objects come in parts. Raises ServiceError."""
    if len(items) > MAX_FIELDS:
        raise bad_request(f"at most {MAX_FIELDS} options are taken")
    values: dict[str, Any] = {}
    for name, value in items:
        part = _PART.fullmatch(name)
        if part is None:
            if name in values:
                raise bad_request("an option is given more than once")
            values[name] = value
            continue
        whole, key = part.groups()
        in_list = not key or key.isdigit()
        parts = values.setdefault(whole, [] if in_list else {})
        if in_list and isinstance(parts, list):
            parts.append(value)
        elif not in_list and isinstance(parts, dict) and key not in parts:
            parts[key] = value
        else:
            raise bad_request("an option is given more than once")
    return values
