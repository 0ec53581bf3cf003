"""What surrounds every request: its name, its times, and the limits on its body."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.encoding import milliseconds
from service.engine import Engine
from service.errors import ServiceError, as_service_error, bad_request, overloaded
from service.metrics import Metrics
from service.settings import Settings

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Observe:
    """Names, times and counts requests, and answers 500 for exceptions that nobody expected."""

    def __init__(self, app: ASGIApp, engine: Engine, metrics: Metrics) -> None:
        self.app = app
        self.engine = engine
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(scope)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Total-Time"] = milliseconds(time.perf_counter() - began)
            await send(message)

        work = int(scope["method"] == "POST")
        self.engine.in_flight += work
        try:
            await self.app(scope, receive, sending)
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if status:
                raise
            await as_service_error(error).response()(scope, receive, sending)
        finally:
            self.engine.in_flight -= work
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.requests.labels(route, str(status or 499)).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - began)


class GuardBody:
    """Limits the bytes of a body, of all bodies together, and the pauses of who sends one.

    A length that is declared is judged before a byte is read; the others are counted.
    """

    def __init__(self, app: ASGIApp, engine: Engine, settings: Settings) -> None:
        self.app = app
        self.engine = engine
        self.settings = settings
        self.pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, receive)
        try:
            self._check_declared(scope)
        except ServiceError as error:
            await error.response()(scope, receive, send)
            return
        try:
            await self.app(scope, body.receive, send)
        finally:
            self.pending -= body.size

    def check(self, size: int) -> None:
        if size > self.settings.max_body_bytes:
            most = f"{self.settings.max_body_bytes / (1 << 20):g} MiB"
            raise ServiceError(413, "body_too_large", f"a request may have {most}")
        if size and self.pending > self.settings.max_pending_bytes:
            raise overloaded(1.0)

    def _check_declared(self, scope: Scope) -> None:
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal():
            raise bad_request("the Content-Length is not a number")
        self.check(int(declared))
        if scope["method"] == "POST" and self.engine.in_flight > self.settings.max_requests:
            raise overloaded(1.0)


class _Body:
    def __init__(self, guard: GuardBody, receive: Receive) -> None:
        self._guard = guard
        self._receive = receive
        self._whole = False
        self.size = 0

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._guard.settings.upload_idle_timeout_s):
                message = await self._receive()
        except TimeoutError as error:
            close = {"Connection": "close"}
            raise ServiceError(408, "upload_stalled", "the upload stalled", headers=close) from error
        self._whole = not message.get("more_body", False)
        count = len(message.get("body", b""))
        self.size += count
        self._guard.pending += count
        self._guard.check(self.size)
        return message


def _request_id(scope: Scope) -> str:
    """The client's own, if it is fit for a log."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
