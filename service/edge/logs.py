"""One line per event on stderr: text for people, or JSON for programs.

Neither contains what a request says: no keys, no names or contents of files, no query strings.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import TypeVar

from service.record import current
from service.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")

_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), 127, 0x85, 0x2028, 0x2029)}


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Only a traceback has lines of its own, never a part of a message."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        said = f"{record.getMessage()}{fields}".translate(_CONTROLS)
        line = f"{_time(record)} {record.levelname} {record.name}: {said}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(settings: Settings) -> None:
    """For the whole process: everything that is logged, or would be printed as a warning or a traceback."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").addFilter(_tells_no_request)
    threading.excepthook = _thread_failed
    if settings.log_format == "json":
        sys.excepthook = _failed


def told(settings: Settings, load: Callable[[], T]) -> T:
    """The result of `load`. In a separate process, its log has the format of the service's."""
    configure(settings)
    return load()


def _tells_no_request(record: logging.LogRecord) -> bool:
    """For a WebSocket uvicorn logs the query, and `websockets` each header, even the key. What may be logged
    is in the lines of `service.requests`."""
    least = logging.WARNING if record.module.startswith("websockets") else logging.INFO
    return record.levelno >= least


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, in UTC."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Those of a request's line; on other lines the current request, if there is one."""
    given: dict[str, object] | None = getattr(record, "fields", None)
    if given is None:
        request_id = current().request_id
        given = {"request_id": request_id} if request_id else {}
    return given


def _failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logger.critical("the process failed", exc_info=(kind, error, trace))


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None:
        info = (failed.exc_type, failed.exc_value, failed.exc_traceback)
        logger.critical("a thread failed", exc_info=info)
