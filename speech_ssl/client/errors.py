"""What can go wrong with the service. What is wrong on this side is a ValueError, TypeError or OSError."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx


class ServiceError(Exception):
    """No answer, or none that can be used. status: None where none came. code: for programs, see
    docs/service.md. param: the option or the file at fault. request_id: for the service's log."""

    retry_after_s: float | None = None
    """How long the service asks to wait."""

    def __init__(
        self,
        message: str,
        code: str = "error",
        status: int | None = None,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.param = param
        self.request_id = request_id

    def __str__(self) -> str:
        status = "" if self.status is None else f"HTTP {self.status}, "
        request = "" if self.request_id is None else f", request {self.request_id}"
        return f"{self.message} ({status}{self.code}{request})"


class Refused(ServiceError):
    """The request is at fault: it would be refused again."""


class BadAudio(Refused):
    """The file is at fault: empty, too large, too long, too short, damaged, or of no known format."""


class Unauthorized(Refused):
    """There is no API key, or not a known one."""


class Overloaded(ServiceError):
    """The service has too much to do, and had after all attempts."""


class Unavailable(ServiceError):
    """There is no service, or it loads or ends, or the connection broke."""


class TimedOut(ServiceError):
    """The service or the client's own clock gave up."""


_KINDS: dict[int, type[ServiceError]] = {
    401: Unauthorized,
    403: Unauthorized,
    413: BadAudio,
    415: BadAudio,
    422: BadAudio,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: TimedOut,
}
_CODES = {
    401: ("missing_api_key", "invalid_api_key"),
    403: ("cross_origin",),
    404: ("model_not_found", "version_not_found", "job_not_found", "not_found"),
    408: ("upload_stalled", "request_stalled"),
    409: ("idempotency_key_reused",),
    413: ("body_too_large",),
    415: ("unsupported_format", "unsupported_content_type", "unsupported_charset"),
    421: ("unknown_host",),
    422: (
        "undecodable",
        "too_long",
        "too_short",
        "too_many_channels",
        "bad_rate",
        "bad_samples",
        "unprocessable",
    ),
    429: ("overloaded", "too_many_jobs"),
    501: ("jobs_off",),
    503: ("draining", "loading", "restarting", "not_loaded", "model_lost", "storage_failed"),
    504: ("deadline_exceeded",),
    507: ("storage_full", "results_full"),
}
_STATUSES = {code: status for status, codes in _CODES.items() for code in codes}
"""Of errors that come without one. Others are 400, or the service's own fault."""

NOT_CONNECTED, CONNECTION_LOST = "not_connected", "connection_lost"


def of_response(response: httpx.Response) -> ServiceError:
    """Of a proxy's pages too, which are not JSON."""
    request_id = response.headers.get("x-request-id") or response.request.headers.get("x-request-id")
    error = _made(_explanation(response.content), response.status_code, request_id)
    error.retry_after_s = _retry_after_s(response.headers.get("retry-after"))
    return error


def of_event(explanation: object, request_id: str | None) -> ServiceError:
    """Of an error within an answer, a stream or the results of a job, whose own status is 200."""
    given = explanation if isinstance(explanation, Mapping) else {}
    other = 400 if given.get("type") == "invalid_request_error" else 500
    return _made(given, _STATUSES.get(str(given.get("code")), other), request_id)


def unreadable(answer: bytes, request_id: str | None) -> ServiceError:
    """Of a success, whose answer is none."""
    message = f"this cannot be read: {answer[:80].decode('utf-8', 'replace')!r}"
    return ServiceError(message, "bad_answer", 200, request_id=request_id)


def of_transport(error: httpx.HTTPError | httpx.StreamError, request: httpx.Request) -> ServiceError:
    request_id = request.headers.get("x-request-id")
    why = str(error) or type(error).__name__
    place = f"{request.url.scheme}://{request.url.netloc.decode('ascii').rpartition('@')[2]}"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unavailable(f"there is no connection to {place}: {why}", NOT_CONNECTED, request_id=request_id)
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        return Unavailable(f"the connection to {place} broke: {why}", CONNECTION_LOST, request_id=request_id)
    return ServiceError(f"the request to {place} failed: {why}", "request_failed", request_id=request_id)


def _made(given: Mapping[str, object], status: int, request_id: str | None) -> ServiceError:
    phrase = http.client.responses.get(status, "No success")
    code = str(given.get("code") or phrase.lower().replace(" ", "_"))
    message = str(given.get("message") or f"{phrase}, with no explanation: is this a speech-ssl service?")
    param = given.get("param")
    kind = _KINDS.get(status, Refused if 400 <= status < 500 else ServiceError)
    if code == "empty":
        kind = BadAudio
    return kind(message, code, status, None if param is None else str(param), request_id)


def _explanation(body: bytes) -> Mapping[str, object]:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def _retry_after_s(value: str | None) -> float | None:
    """Seconds, or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max((date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)
