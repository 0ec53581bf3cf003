"""Files of jobs: written so that they are whole, read back as lines of results."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.errors import ServiceError
from service.v1.answering import Answer
from speech_ssl.files import replacing, sync

logger = logging.getLogger(__name__)

PIECE = 1 << 20


def locked(folder: Path) -> IO[str]:
    """A lock that ends with this process; its children do not have it. Raises ValueError if it is taken."""
    file = (folder / "lock").open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError("another process uses this folder") from error
        raise
    return file


@contextmanager
def storage() -> Iterator[None]:
    """Turns the errors of a disk into what a client is told. Raises ServiceError."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        logger.error("jobs cannot be kept: %s", error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            message = "the service has no room left for jobs"
            raise ServiceError(507, "storage_full", message, headers={"Retry-After": "30"}) from error
        message = "jobs cannot be kept at the moment: the log of the service says why"
        raise ServiceError(503, "storage_failed", message, headers={"Retry-After": "10"}) from error


def results_full() -> ServiceError:
    message = "there is no room left for results: delete jobs whose results have been read"
    return ServiceError(507, "results_full", message, headers={"Retry-After": "30"})


def write_answer(path: Path, answer: Answer, most: int) -> None:
    """What follows `"result": ` in a line of the results. All of it or nothing, also if the power fails.
    Raises ServiceError for one of more than `most` bytes."""
    with replacing(path) as partial, partial.open("wb") as file:
        for piece in _in_line(answer):
            data = piece.encode()
            if (most := most - len(data)) < 0:
                raise results_full()
            file.write(data)


def _in_line(answer: Answer) -> Iterable[str]:
    """JSON; text that is none becomes a string, and what is wrong with the file stands beside it."""
    if answer.media_type == "application/json":
        return answer.text
    text = json.dumps("".join(answer.text))
    if not answer.warnings:
        return [text]
    return [text, ', "warnings": ', json.dumps([warning._asdict() for warning in answer.warnings])]


def made_folder(folder: Path) -> None:
    """With those above it, if they are missing; also if the power fails, it is found in them."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for each in missing:
        sync(each.parent)


def line(position: int, name: str, *, error: str | None, answer: Path) -> Iterator[bytes]:
    """A file's line of the results: its error, JSON as the body of a refusal, or its answer."""
    head = json.dumps({"index": position, "name": name})[:-1].encode() + b", "
    if error is None:
        try:
            with answer.open("rb") as file:
                yield head + b'"result": '
                yield from iter(lambda: file.read(PIECE), b"")
                yield b"}\n"
            return
        except FileNotFoundError:  # deleted while it is being read
            error = ServiceError(404, "job_not_found", "the job has been deleted").body().decode()
    yield head + error[1:].encode() + b"\n"
