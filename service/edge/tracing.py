"""Traces of requests with OpenTelemetry (extra `otel`), configured by its standard variables.

OpenTelemetry is imported only if an endpoint is set. FastAPI's own instrumentation stays off: it would export
query strings.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from service.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
FLUSH_TIMEOUT_S = 3.0


class Tracing:
    """One span per request, a child of the caller's if it sends a W3C `traceparent`; its children are the
    decoding of each file, the wait in the queue, and the passes of the model."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("speech-ssl", version("speech-ssl"))

    def begin(self, method: str, headers: Mapping[str, str], began: float) -> Span:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers, Context())
        return self._tracer.start_span(method, parent, SpanKind.SERVER, start_time=_epoch(began))

    def end(
        self, span: Span, name: str, record: Record, attributes: Mapping[str, AttributeValue], failed: bool
    ) -> None:
        from opentelemetry.trace import StatusCode

        now = time.monotonic()
        if span.is_recording():
            span.update_name(name)
            span.set_attributes(attributes)
            if failed:
                span.set_status(StatusCode.ERROR)
            self._children(span, record, now)
        span.end(_epoch(now))

    def _children(self, span: Span, record: Record, now: float) -> None:
        from opentelemetry.trace import set_span_in_context

        parts = [("decode", *times) for times in record.decodes]
        parts += [("queue", *times) for times in record.waits(now)]
        parts += [("inference", *times) for times in record.runs()]
        context = set_span_in_context(span)
        for name, began, ended in parts:
            self._tracer.start_span(name, context, start_time=_epoch(began)).end(_epoch(ended))

    def stop(self) -> None:
        """Send what is left, if that works soon: the SDK itself would try for longer."""
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(FLUSH_TIMEOUT_S)


def trace_id(span: Span) -> str:
    return f"{span.get_span_context().trace_id:032x}"


def from_environment() -> Tracing | None:
    """None if no endpoint is set. Raises ValueError for one that cannot be used."""
    name = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if name is None or disabled or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return None
    if not os.environ[name].startswith(("http://", "https://")):
        raise ValueError(f"{name}: an address with http:// or https:// is needed")
    for each in PROTOCOLS:
        if os.environ.get(each, "http/protobuf") != "http/protobuf":
            raise ValueError(f"{each}: only http/protobuf is spoken")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        message = f"{name} asks for traces, which need OpenTelemetry: pip install 'speech-ssl[otel]'"
        raise ValueError(message) from None
    own = Resource({"service.name": "speech-ssl", "service.version": version("speech-ssl")})
    resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _epoch(moment: float) -> int:
    """Nanoseconds since 1970, from seconds of `time.monotonic()`."""
    return time.time_ns() + round((moment - time.monotonic()) * 1e9)
