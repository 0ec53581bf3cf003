"""Prometheus metrics, in a registry of each app's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.batcher import BatchReport

CONTENT_TYPE = CONTENT_TYPE_LATEST
_TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SECONDS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
_PARTS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5)


class Metrics:
    """Outcomes are status codes; 499 is a client that left."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and outcome.", "route", "outcome")
        self.request_seconds = self._histogram(
            "request_seconds", "Time from request to answer.", _TIMES, "route"
        )
        self.decode_failures = self._counter("decode_failures", "Refused files by reason.", "code")
        self.lost_decoders = self._counter("lost_decoders", "Decoders that died or had to be ended.")
        self._audio = self._counter("audio_seconds", "Audio run through the model.")
        self._waited = self._histogram("wait_seconds", "Time that a window waited.", _TIMES)
        self._ran = self._histogram("run_seconds", "Time that a batch ran.", _TIMES)
        self._batch = self._histogram("batch_audio_seconds", "Audio in a batch.", _SECONDS)
        self._padding = self._histogram("batch_padding_ratio", "Part of a batch that is padding.", _PARTS)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A value that is read when the metrics are."""
        Gauge(name, text, namespace="speech_ssl", registry=self._registry).set_function(value)

    def observe_batch(self, report: BatchReport) -> None:
        self._audio.inc(report.seconds)
        self._ran.observe(report.run_s)
        self._batch.observe(report.seconds)
        self._padding.observe(1 - report.seconds / report.padded_s)
        for seconds in report.waited_s:
            self._waited.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="speech_ssl", registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace="speech_ssl", registry=self._registry, buckets=buckets)
