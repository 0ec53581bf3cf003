"""What the log says of requests, in which form, and what it never says."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.auth import made
from service.edge.logs import JsonFormatter, TextFormatter
from service.edge.observe import Observe
from service.metrics import Metrics
from service.record import Holding, Record, recording
from tests.service.fakes import FakeRuntime
from tests.service.support import ROOT, encoded, serving, tone, until

URL = "/v1/embeddings"
LOUD = encoded(tone(1.0) * 2)
Lines = Callable[..., list[dict[str, Any]]]
RFC_3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    """The lines of one logger in the JSON log of this process."""
    caplog.set_level(logging.DEBUG, logger="service")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.getLogger("service").addHandler(handler)

    def read(logger: str = "service.requests") -> list[dict[str, Any]]:
        said = [json.loads(line) for line in stream.getvalue().splitlines()]
        return [line for line in said if line["logger"] == logger]

    yield read
    logging.getLogger("service").removeHandler(handler)


def record_of(message: str, *args: object, **more: Any) -> logging.LogRecord:
    return logging.getLogger("test").makeRecord("test", logging.WARNING, "f", 1, message, args, **more)


def raised() -> Any:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        return sys.exc_info()


def test_a_line_is_an_object_or_text_and_never_two():
    hostile = record_of("a %s", "b\nc\u2028d\x1b[31m\u0085", exc_info=None)
    text, line = TextFormatter().format(hostile), JsonFormatter().format(hostile)
    assert len(text.splitlines()) == len(line.splitlines()) == 1 and "\x1b" not in text + line
    assert re.fullmatch(rf"{RFC_3339} WARNING test: a b\\nc\\u2028d\\x1b\[31m\\x85", text)
    said = json.loads(line)
    assert re.fullmatch(RFC_3339, said.pop("time"))
    assert said == {"level": "warning", "logger": "test", "message": "a b\nc\u2028d\x1b[31m\u0085"}
    failed = json.loads(JsonFormatter().format(record_of("no", exc_info=raised())))
    assert failed["exception"].startswith("Traceback") and "two\nlines" in failed["exception"]
    with recording(Record("id-1")):
        assert json.loads(JsonFormatter().format(record_of("x", exc_info=None)))["request_id"] == "id-1"
    fields = record_of("request", exc_info=None, extra={"fields": {"status": 200, "ms": 1.5}})
    assert TextFormatter().format(fields).endswith("WARNING test: request status=200 ms=1.5")


def test_a_request_is_one_line_with_what_is_known(lines, fake):
    with serving(fake) as client:
        answer = client.post(f"{URL}?layer=2", files={"file": ("name.wav", encoded(tone(1.5)))})
        client.post(URL, content=b"no audio", headers={"content-type": "audio/wav"})
        client.get("/health/live")
        until(lambda: len(lines()) == 3)
    first, second, probe = lines()
    took = {name: first.pop(name) for name in ("ms", "queue_ms", "inference_ms")}
    assert took["ms"] >= took["inference_ms"] > 0 and took["queue_ms"] >= 0
    assert re.fullmatch(RFC_3339, first.pop("time"))
    assert first == {
        "level": "info",
        "logger": "service.requests",
        "message": "request",
        "request_id": answer.headers["x-request-id"],
        "method": "POST",
        "route": URL,
        "status": 200,
        "audio_s": 1.5,
        "model": "fake",
    }
    assert (second["status"], second["code"]) == (415, "unsupported_format")
    assert (probe["route"], probe["level"]) == ("/health/live", "debug")


def test_a_failure_is_told_with_its_request(lines, fake):
    with serving(fake) as client:
        fake.poison = RuntimeError
        headers = {"content-type": "audio/wav", "x-request-id": "mine"}
        assert client.post(URL, content=LOUD, headers=headers).status_code == 500
        until(lines)
    (request,), (failure,) = lines(), lines("service.edge.observe")
    assert (request["status"], request["code"], request["request_id"]) == (500, "internal_error", "mine")
    assert failure["request_id"] == "mine" and "RuntimeError" in failure["exception"]


def observed(app: Any, scope: dict[str, Any], messages: list[Message]) -> list[Message]:
    """What goes out when `app` is served these messages through Observe."""
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    engine: Any = SimpleNamespace(requests=0, streams=0, answering=0, holding=Holding(0))
    whole = {"type": "http", "method": "POST", "path": "/", "headers": []} | scope
    asyncio.run(Observe(app, engine, Metrics())(whole, receive, send))
    assert engine.requests == engine.streams == 0
    return sent


def test_whose_key_it_was_and_who_left_early(lines):
    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"key": "anna"}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"

    observed(streaming, {}, [{"type": "http.disconnect"}])
    (line,) = lines()
    assert (line["key"], line["status"], line["client_left"]) == ("anna", 499, True)


def test_an_answer_that_fails_midway_is_a_failure(lines):
    async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError):
        observed(breaking, {}, [])
    (request,), (failure,) = lines(), lines("service.edge.observe")
    assert (request["status"], request["code"]) == (500, "internal_error")
    assert "midway" in failure["exception"]


def test_streams_are_requests_too(lines):
    async def talking(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close", "code": 1008})

    for app in (talking, refusing):
        observed(app, {"type": "websocket", "method": "WEBSOCKET"}, [])
    assert [(line["method"], line["status"]) for line in lines()] == [("WEBSOCKET", 101), ("WEBSOCKET", 403)]


def test_all_of_a_process_is_json_and_tells_no_secrets(start, tmp_path):
    key, line = made("anna")
    (tmp_path / "keys.txt").write_text(line)
    process = start(
        "tests.service.fakes",
        SPEECH_SSL_LOG_FORMAT="json",
        SPEECH_SSL_LOG_LEVEL="debug",
        SPEECH_SSL_API_KEYS=str(tmp_path / "keys.txt"),
    )
    client = process.ready()
    headers = {"authorization": f"Bearer {key}"}
    title = encoded(tone(1.0), format="MP3", subtype="MPEG_LAYER_III")
    damaged = (
        b"ID3\x03\0\0\0\0\0\x1aTIT2\0\0\0\x10\0\0\0secret-content!" + title[:100] + b"secret-content" * 99
    )
    files = {"file": ("secret-name.wav", encoded(tone(1.0)))}
    assert client.post(f"{URL}?layer=2", files=files, headers=headers).status_code == 200
    client.post(f"{URL}?secret-query=1", files={"file": ("secret-name.mp3", damaged)}, headers=headers)
    client.post(URL, files={"file": ("secret-name.mp3", damaged)}, headers=headers)
    client.get("/secret-path?secret-query=1", headers={"authorization": "Bearer secret-key"})
    stream = f"{str(client.base_url).replace('http', 'ws', 1).rstrip('/')}/v1/audio/stream?secret-query=1"
    with connect(stream, proxy=None, additional_headers=headers) as opened:
        assert json.loads(opened.recv(timeout=60))["error"]["param"] == "secret-query"
    with pytest.raises(InvalidStatus):
        connect(stream, proxy=None, additional_headers={"x-api-key": "secret-key"})
    process.terminate()
    assert process.popen.wait(60) == 0
    log = process.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    of_the_model = "tests.service.fakes"
    assert {"uvicorn.error", "service.server", "service.requests", of_the_model} <= {
        line["logger"] for line in lines
    }
    assert "secret" not in log and key not in log and key[:8] not in log
    statuses = [line["status"] for line in lines if line["logger"] == "service.requests"]
    assert statuses.count(401) == 2 and statuses.count(200) >= 2 and 400 in statuses


@pytest.mark.parametrize("failure", ["thread", "main", "warning"])
def test_what_python_would_print_is_json_too(failure):
    code = """
import sys, threading, warnings
from service.edge import logs
from service.settings import Settings

logs.configure(Settings(log_format="json"))
def fail():
    raise RuntimeError("no")
match sys.argv[1]:
    case "thread":
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    case "main":
        fail()
    case "warning":
        warnings.warn("no")
"""
    done = subprocess.run([sys.executable, "-c", code, failure], cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    said = json.loads(line)
    assert said["level"] == ("warning" if failure == "warning" else "critical")
    assert "no" in said.get("exception", said["message"])


def test_text_has_the_same_fields(start):
    process = start("tests.service.fakes")
    process.ready().post(URL, content=LOUD, headers={"content-type": "audio/wav"})
    process.terminate()
    process.popen.wait(60)
    (line,) = [line for line in process.log.read_text().splitlines() if "service.requests" in line]
    assert re.match(
        rf"{RFC_3339} INFO service\.requests: request request_id=\w+ method=POST route={URL} ", line
    )
    assert FakeRuntime.name in line
