"""What is known of every request: its id, its times and how it ended, for logs, metrics and traces."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.edge.tracing import Tracing, trace_id
from service.errors import ServiceError, as_service_error, refuse
from service.metrics import Metrics
from service.models.engine import Engine
from service.record import Held, Record, milliseconds, recording

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)
requests = logging.getLogger("service.requests")

PROBES = ("/health/", "/v2/health/", "/metrics")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Observe:
    """Gives requests an id, times, counts, logs and traces them, and answers 500 for unexpected
    exceptions."""

    def __init__(
        self,
        app: ASGIApp,
        engine: Engine,
        metrics: Metrics,
        traces: Tracing | None = None,
        bare_errors: str | None = None,
    ) -> None:
        """bare_errors: prefix of the paths whose errors are `{"error": "a string"}`."""
        self.app = app
        self.engine = engine
        self.metrics = metrics
        self.traces = traces
        self.bare_errors = bare_errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if scope.get("method") == "HEAD":  # the answer to GET without its body, which `send` leaves out
            exchange = _Exchange(scope := {**scope, "method": "GET"}, receive, send, "HEAD")
        else:
            exchange = _Exchange(scope, receive, send)
        exchange.record.held = Held(self.engine.holding)
        if self.bare_errors is not None:
            exchange.record.bare_errors = f"{scope['path']}/".startswith(f"{self.bare_errors}/")
        span = self._span(exchange)
        work, stream = int(exchange.method == "POST"), int(exchange.method == "WEBSOCKET")
        self.engine.requests += work
        self.engine.streams += stream
        self.engine.answering += 1
        with recording(exchange.record), exchange.record.held:
            try:
                if _is_framed_twice(scope, exchange.headers):
                    await refuse(_framed_twice(), scope, exchange.receive, exchange.send)
                else:
                    await self.app(scope, exchange.receive, exchange.send)
            except Exception as error:
                logger.exception("request %s failed", exchange.record.request_id)
                refusal = as_service_error(error)
                if exchange.status:  # it has begun: only logs and metrics can still say so
                    exchange.record.status, exchange.record.code = refusal.status, refusal.code
                    raise
                await refusal.response()(scope, receive, exchange.send)
            finally:
                self.engine.requests -= work
                self.engine.streams -= stream
                self.engine.answering -= 1
                self._tell(exchange, span)

    def _span(self, exchange: _Exchange) -> Span | None:
        if self.traces is None or exchange.is_probe:
            return None
        span = self.traces.begin(exchange.method, exchange.headers, exchange.began)
        exchange.record.trace_id = trace_id(span)
        return span

    def _tell(self, exchange: _Exchange, span: Span | None) -> None:
        route = exchange.route
        self.metrics.requests.labels(route, str(exchange.outcome)).inc()
        self.metrics.request_seconds.labels(route).observe(exchange.seconds)
        if exchange.outcome < 300 and exchange.record.audio_s:
            self.metrics.served_audio.labels(route).inc(exchange.record.audio_s)
        if self.traces and span:
            failed = exchange.outcome >= 500
            name = f"{exchange.method} {route}"
            self.traces.end(span, name, exchange.record, exchange.attributes(), failed)
        level = logging.DEBUG if exchange.is_probe else logging.INFO
        requests.log(level, "request", extra={"fields": exchange.fields()})


class _Exchange:
    """A request and its answer, watched as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, method: str | None = None) -> None:
        self.began = time.monotonic()
        self.headers = Headers(scope=scope)
        self.method: str = method or scope.get("method", "WEBSOCKET")[:16]  # a client may make one up
        self.is_probe = scope["path"].startswith(PROBES)
        self.record = Record(_request_id(self.headers))
        self.status = 0
        self.left = False
        self._ended = False
        self._scope, self._receive, self._send = scope, receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._ended:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"].removeprefix("websocket.")
        if kind == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.record.request_id
            headers["X-Total-Time"] = milliseconds(self.seconds)
        elif kind == "accept":
            self.status = 101
        elif kind == "close":
            self.status = self.status or 403
        elif kind == "http.response.body" and self.method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)
        self._ended |= kind == "http.response.body" and not message.get("more_body", False)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def route(self) -> str:
        """Its template: no log and no metric contains what a client made up."""
        return getattr(self._scope.get("route"), "path_format", "unmatched")

    @property
    def outcome(self) -> int:
        return 499 if self.left else self.record.status or self.status or 499

    def fields(self) -> dict[str, object]:
        """For the log, without unknown ones."""
        record = self.record
        waits, runs = record.waits(time.monotonic()), record.runs()
        known = {
            "request_id": record.request_id,
            "trace_id": record.trace_id,
            "method": self.method,
            "route": self.route,
            "status": self.outcome,
            "code": record.code,
            "ms": round(1000 * self.seconds, 1),
            "queue_ms": _milliseconds(waits) if waits else None,
            "inference_ms": _milliseconds(runs) if runs else None,
            "audio_s": round(record.audio_s, 3) or None,
            "warnings": ",".join(dict.fromkeys(record.warnings)),
            "model": record.model,
            "key": self._scope.get("state", {}).get("key"),
            "client_left": self.left or None,
        }
        return {name: value for name, value in known.items() if value not in (None, "")}

    def attributes(self) -> dict[str, str | int | float]:
        """For the trace, with OpenTelemetry's names where it has them."""
        record = self.record
        said: dict[str, str | int | float] = {
            "http.request.method": self.method,
            "http.route": self.route,
            "http.response.status_code": self.outcome,
            "speech_ssl.request_id": record.request_id,
        }
        if record.code:
            said["error.type"] = record.code
        if record.model:
            said |= {"speech_ssl.model": record.model, "speech_ssl.audio_seconds": record.audio_s}
        return said


def _request_id(headers: Headers) -> str:
    """The client's own, if it is fit for a log."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _is_framed_twice(scope: Scope, headers: Headers) -> bool:
    """Whether a proxy in front may see another end of the body, and the rest as a request of its own: a
    length beside chunks, or chunks in HTTP/1.0 (RFC 9112, 6.1)."""
    return "transfer-encoding" in headers and (
        "content-length" in headers or scope.get("http_version") == "1.0"
    )


def _framed_twice() -> ServiceError:
    message = "Transfer-Encoding beside a Content-Length, or in HTTP/1.0: where the body ends is not certain"
    return ServiceError(400, "malformed_http", message, headers={"Connection": "close"})


def _milliseconds(spans: Sequence[tuple[float, float]]) -> float:
    return round(1000 * sum(ended - began for began, ended in spans), 1)
