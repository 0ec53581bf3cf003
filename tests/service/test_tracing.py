"""Traces, as a collector gets them over the wire; and nothing of it where no collector is named."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.service.support import ROOT, START_S, encoded, tone, until

URL = "/v1/embeddings"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Receives OTLP over HTTP, as a collector does."""

    def __init__(self) -> None:
        self.resources: list[dict[str, str]] = []
        self.spans: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                    outer.resources.append({a.key: a.value.string_value for a in each.resource.attributes})
                    outer.spans += [span for scope in each.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_request_is_a_trace_of_its_parts_under_the_callers(start, collector):
    process = start(
        "tests.service.fakes",
        SPEECH_SSL_LOG_FORMAT="json",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.address,
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
    )
    client = process.ready()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    files = [("file", (f"{i}.wav", encoded(tone(1.0)))) for i in range(2)]
    assert client.post(f"{URL}?layer=1", files=files, headers=headers).status_code == 200
    until(lambda: collector.named(f"POST {URL}"))
    client.post(URL, content=b"no audio", headers={"content-type": "audio/wav"})
    process.terminate()
    assert process.popen.wait(60) == 0

    first, second = collector.named(f"POST {URL}")  # the second was sent at the end
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert first.kind == first.SPAN_KIND_SERVER and first.status.code == first.status.STATUS_CODE_UNSET
    said = attributes(first)
    assert (said["http.route"], said["http.response.status_code"]) == (URL, 200)
    assert (said["speech_ssl.model"], said["speech_ssl.audio_seconds"]) == ("fake", 2.0)
    children = [span for span in collector.spans if span.parent_span_id == first.span_id]
    assert sorted(span.name for span in children) == ["decode", "decode", "inference", "queue"]
    slack = 10**6
    for span in children:
        assert span.trace_id == first.trace_id
        assert first.start_time_unix_nano - slack <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= first.end_time_unix_nano + slack

    assert second.trace_id.hex() != TRACE and not second.parent_span_id
    assert attributes(second)["error.type"] == "unsupported_format"
    assert not [span for span in collector.spans if "health" in span.name or "http send" in span.name]
    assert collector.resources[0]["service.name"] == "speech-ssl"
    assert collector.resources[0]["deployment.environment.name"] == "test"
    assert f'"trace_id": "{TRACE}"' in process.log.read_text()
    assert "layer=1" not in str(collector.spans)


def test_a_collector_that_is_away_delays_nothing_for_long(start):
    process = start(
        "tests.service.fakes",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_TRACES_SAMPLER="always_on",
    )
    assert process.ready().post(URL, files={"file": encoded(tone(1.0))}).status_code == 200
    process.terminate()
    assert process.popen.wait(60) == 0
    assert "Traceback" not in process.log.read_text()


BLOCKED = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry.sdk"):
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
runpy.run_module("service", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
            "error: OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, which need OpenTelemetry: "
            "pip install 'speech-ssl[otel]'",
        ),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector:4318"},
            "error: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: an address with http:// or https:// is needed",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "error: OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf is spoken",
        ),
    ],
)
def test_what_cannot_be_is_one_line(environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", BLOCKED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_S)
    assert (done.returncode, done.stderr.splitlines()) == (2, [message])


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_a_collector_the_sdk_is_not_even_imported(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = """
import sys
from service.app import create_app
from service.settings import Settings
from tests.service.fakes import FakeRuntime

create_app(Settings(), FakeRuntime())
sys.exit("opentelemetry.sdk" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=START_S).returncode == 0
