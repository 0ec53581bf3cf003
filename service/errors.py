"""The error contract: every refusal is JSON `{error: {message, type, code, param}}`."""

from __future__ import annotations

import http
import json
import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from service.batcher import Again, Overloaded, Stopped, TooLarge
from service.record import current
from speech_ssl.audio import AudioError
from speech_ssl.inference.card import ChoiceError

logger = logging.getLogger(__name__)

_AUDIO_STATUS = {"unsupported_format": 415, "empty": 400}  # the other codes: 422
_CLIENT_CLOSED_REQUEST = 499


class ServiceError(Exception):
    """An answer other than success. `code` is for programs; `param` names the option or the file."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, "application/json")

    def body(self) -> bytes:
        """ASCII, for what a client sent may not be encodable. Noted as what the request was answered."""
        record = current()
        record.code = self.code
        if record.bare_errors:
            return json.dumps({"error": self.message}).encode()
        error = {"message": self.message, "type": _type(self.status), "code": self.code, "param": self.param}
        return json.dumps({"error": error}).encode()


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ServiceError:
    return ServiceError(400, code, message, param=param)


def overloaded(retry_after_s: float) -> ServiceError:
    seconds = whole_seconds(retry_after_s)
    message = f"the service is busy: try again in {seconds} s"
    return ServiceError(429, "overloaded", message, headers={"Retry-After": str(seconds)})


def whole_seconds(seconds: float) -> int:
    """For Retry-After: rounded up, at least one."""
    return max(1, math.ceil(seconds))


def unavailable(code: str, message: str, retry_after_s: float | None = None) -> ServiceError:
    headers = None if retry_after_s is None else {"Retry-After": str(whole_seconds(retry_after_s))}
    return ServiceError(503, code, message, headers=headers)


async def refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """In the words of HTTP; also to who wants a WebSocket."""
    if scope["type"] == "http":
        await error.response()(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await WebSocket(scope, receive, send).send_denial_response(error.response())
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})


def gone() -> Response:
    """For a client that left: nobody reads it, but logs and metrics do."""
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


def as_service_error(error: Exception, param: str | None = None) -> ServiceError:
    """What a client is told of an exception; 500 for those that nobody expected."""
    match error:
        case ServiceError():
            return error
        case AudioError():
            return ServiceError(_AUDIO_STATUS.get(error.code, 422), error.code, str(error), param=param)
        case TooLarge():
            return ServiceError(422, "too_long", str(error), param=param)
        case Overloaded():
            return overloaded(error.retry_after_s)
        case Stopped():
            return unavailable("draining", "the service is shutting down")
        case Again():
            # No Retry-After: who goes by it would end one process after the other.
            lost = "the model's process was lost with this request, twice: send it without this file"
            return ServiceError(503, "model_lost", lost)
        case TimeoutError():
            return ServiceError(504, "deadline_exceeded", "there was no answer in time")
        case ValidationError() | ChoiceError():
            return _malformed(error)
        case HTTPException():
            return _from_status(error)
    return ServiceError(500, "internal_error", "the service failed: its log says why")


def failed_midway(error: Exception) -> ServiceError:
    """`as_service_error`, of an answer that had begun: what its status cannot say any more, logs and metrics
    do."""
    refusal = as_service_error(error)
    current().status = refusal.status
    if refusal.status == 500:
        logger.error("request %s failed", current().request_id, exc_info=error)
    return refusal


def install(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        return as_service_error(error).response()

    async def invalid(request: Request, error: Exception) -> Response:
        return bad_request(str(error)).response()

    async def left(request: Request, error: Exception) -> Response:
        return gone()

    for kind in (
        ServiceError,
        AudioError,
        ChoiceError,
        TooLarge,
        Overloaded,
        Stopped,
        Again,
        TimeoutError,
        HTTPException,
        ValidationError,
    ):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, left)


def _malformed(error: ValidationError | ChoiceError) -> ServiceError:
    if isinstance(error, ChoiceError):
        return bad_request(str(error), error.param, error.code)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][0])[:80] if first["loc"] else None
    return bad_request(f"{name or 'the request'}: {wording(first)}", name)


def wording(first: ErrorDetails) -> str:
    """What a validator says, but for what only its makers understand."""
    unknown = first["type"] == "extra_forbidden"
    return "not permitted: there is no option of this name" if unknown else first["msg"]


def _from_status(error: HTTPException) -> ServiceError:
    """The framework's own refusals: 404 for a path, 405 for a method."""
    phrase = http.HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    return ServiceError(error.status_code, code, error.detail or phrase, headers=error.headers)


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
