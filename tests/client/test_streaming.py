"""Streams of a transcription that go wrong, from a server that does as it is told."""

from __future__ import annotations

import json
import socket

import pytest

from speech_ssl.client import BadAudio, Overloaded, Refused, ServiceError, TimedOut, Unavailable
from tests.client.scripted import Clock, Step, asking, refusal

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event(type="transcript.text.delta", delta=text)


def failure(code: str, kind: str = "server_error") -> bytes:
    return event(error={"message": "no", "type": kind, "code": code, "param": "file[0]"})


def told(*steps: Step, timeout: float = 60) -> tuple[list[str], Exception | None]:
    """What comes before the end, and the error that ends it."""
    heard: list[str] = []
    with asking(Clock(), *steps) as (client, _):
        try:
            heard.extend(client.transcribe_stream(b"wave", timeout=timeout))
        except ServiceError as error:
            return heard, error
    return heard, None


def test_what_is_no_delta_is_passed_over() -> None:
    other = b": a comment\n\nevent: x\n" + event(type="transcript.text.segment", text="x")
    end = event(type="transcript.text.done", text="a b")
    assert told(HEAD + delta("a") + other + delta(" b") + end + DONE) == (["a", " b"], None)


def test_the_beginning_is_tried_again_and_nothing_else() -> None:
    busy = refusal("429 Too Many Requests", "overloaded", "Retry-After: 1")
    assert told(busy, b"", HEAD + delta("a") + DONE) == (["a"], None)
    heard: list[str] = []
    broken = HEAD + delta("a")
    with asking(Clock(), broken) as (client, server):
        with pytest.raises(Unavailable, match="ended in the middle"):
            for piece in client.transcribe_stream(b"wave"):
                heard.append(piece)
        assert heard == ["a"] and len(server.requests) == 1


@pytest.mark.parametrize(
    ("end", "kind", "status"),
    [
        (failure("deadline_exceeded"), TimedOut, 504),
        (failure("draining"), Unavailable, 503),
        (failure("overloaded", "rate_limit_error"), Overloaded, 429),
        (failure("bad_samples", "invalid_request_error"), BadAudio, 422),
        (failure("unsupported_format", "invalid_request_error"), BadAudio, 415),
        (failure("unsupported_task", "invalid_request_error"), Refused, 400),
        (failure("model_not_found", "invalid_request_error"), Refused, 404),
        (failure("model_lost"), Unavailable, 503),
        (failure("internal_error"), ServiceError, 500),
        (b'data: {"error": "no"}\n\n', ServiceError, 500),
        (b"data: nonsense\n\n", ServiceError, 200),
        (b"data: []\n\n", ServiceError, 200),
        (b'data: {"type": "transcript.text.delta"}\n\n', ServiceError, 200),
        (b"data: \xff\n\n", ServiceError, 200),
    ],
)
def test_an_error_in_the_stream(end: bytes, kind: type[ServiceError], status: int) -> None:
    heard, error = told(HEAD + delta("a") + end + DONE)
    assert heard == ["a"] and type(error) is kind
    assert isinstance(error, ServiceError) and error.status == status and error.request_id


def test_a_refusal_before_the_stream() -> None:
    heard, error = told(refusal("400 Bad Request", "invalid_value"))
    assert heard == [] and type(error) is Refused


def test_the_timeout_holds_between_two_pieces() -> None:
    def stall(connection: socket.socket) -> None:
        connection.sendall(HEAD + delta("a"))
        connection.recv(1)  # until the client leaves

    heard, error = told(stall, timeout=1)
    assert heard == ["a"] and type(error) is TimedOut
