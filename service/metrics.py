"""Prometheus metrics, in a registry of each app's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

import speech_ssl
from service.batches import BatchReport

CONTENT_TYPE = CONTENT_TYPE_LATEST
_TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SECONDS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
_PARTS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5)


class Metrics:
    """Outcomes are status codes; 499 is a client that left. docs/observability.md describes them all."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of the text, and nobody asks for it
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        build = Info("build", "What runs.", namespace="speech_ssl", registry=self._registry)
        build.info({"version": speech_ssl.__version__})
        self.requests = self._counter("requests", "Requests by route and outcome.", "route", "outcome")
        self.request_seconds = self._histogram(
            "request_seconds", "Time from request to answer.", _TIMES, "route"
        )
        self.served_audio = self._counter(
            "served_audio_seconds", "Audio of requests that were answered with 2xx.", "route"
        )
        self.decode_seconds = self._histogram(
            "decode_seconds", "Time to decode a file, the wait for a decoder included.", _TIMES
        )
        self.decode_failures = self._counter("decode_failures", "Refused files by reason.", "code")
        self.decode_warnings = self._counter("decode_warnings", "Files used with a warning, by it.", "code")
        self.lost_decoders = self._counter("lost_decoders", "Decoders that died or had to be ended.")
        self.lost_workers = self._counter("lost_workers", "Processes of models that died or hung.")
        self._audio = self._counter("audio_seconds", "Audio run through the model.")
        self._waited = self._histogram("wait_seconds", "Time that a window waited.", _TIMES)
        self._ran = self._histogram("run_seconds", "Time that a batch ran.", _TIMES)
        self._batch = self._histogram("batch_audio_seconds", "Audio in a batch.", _SECONDS)
        self._windows = self._histogram("batch_windows", "Windows in a batch.", _COUNTS)
        self._padding = self._histogram("batch_padding_ratio", "Part of a batch that is padding.", _PARTS)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A value that is read when the metrics are."""
        Gauge(name, text, namespace="speech_ssl", registry=self._registry).set_function(value)

    def gauges(self, name: str, text: str, label: str, values: Mapping[str, Callable[[], float]]) -> None:
        """The same for several values, told apart by a label."""
        gauge = Gauge(name, text, [label], namespace="speech_ssl", registry=self._registry)
        for said, value in values.items():
            gauge.labels(said).set_function(value)

    def observe_batch(self, report: BatchReport) -> None:
        self._audio.inc(report.seconds)
        self._ran.observe(report.run_s)
        self._batch.observe(report.seconds)
        self._windows.observe(report.items)
        self._padding.observe(1 - report.seconds / report.padded_s)
        for seconds in report.waited_s:
            self._waited.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="speech_ssl", registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace="speech_ssl", registry=self._registry, buckets=buckets)
