"""Failures, from a server that fails as it is told: what is asked again, when, and what is raised."""

from __future__ import annotations

import io
import pickle
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from speech_ssl.client import (
    Audio,
    BadAudio,
    Client,
    Overloaded,
    Refused,
    Retrying,
    ServiceError,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from tests.client.scripted import (
    MODELS,
    Clock,
    Step,
    answer,
    asking,
    dripping,
    file_in,
    hang_up,
    refusal,
    scripted,
)

BUSY = refusal("429 Too Many Requests", "overloaded", "Retry-After: 7")
FINE = answer("200 OK", MODELS)


def break_off(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def error_of(url: str, retrying: Retrying, **options: Any) -> ServiceError:
    with Client(url, retrying=retrying) as client, pytest.raises(ServiceError) as caught:
        client.models(**options)
    return caught.value


def test_retry_after_is_waited_for_and_hardly_more(clock: Clock) -> None:
    with asking(clock, BUSY, BUSY, FINE) as (client, server):
        assert client.models() == ()
    assert len(clock.slept) == 2 and all(7 <= pause <= 7.7 for pause in clock.slept)
    assert len({request.headers["x-request-id"] for request in server.requests}) == 1


@pytest.mark.parametrize("asked", ["0", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_no_time_to_wait_is_not_five_attempts_at_once(clock: Clock, asked: str) -> None:
    busy = refusal("429 Too Many Requests", "overloaded", f"Retry-After: {asked}")
    with scripted(busy) as server:
        assert error_of(server.url, clock.retrying()).retry_after_s == 0
    assert len(server.requests) == 5
    assert clock.slept == [pytest.approx(pause, rel=0.11) for pause in (0.5, 1, 2, 4)]


def test_retry_after_may_be_a_date(clock: Clock) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    loading = refusal("503 Service Unavailable", "loading", f"Retry-After: {date}")
    with asking(clock, loading, FINE) as (client, _):
        client.models()
    assert 20 < clock.slept[0] < 34


@pytest.mark.parametrize(
    "failure",
    [
        hang_up,
        break_off,
        b"nonsense\r\n\r\n",
        refusal("503 Service Unavailable", "loading"),
        answer("502 Bad"),
    ],
    ids=["hang up", "break off", "nonsense", "503", "502"],
)
def test_what_may_pass_is_tried_again(clock: Clock, failure: Step) -> None:
    with asking(clock, failure, failure, FINE) as (client, _):
        assert client.models() == ()
    assert [round(pause, 1) for pause in clock.slept] == [
        pytest.approx(0.5, abs=0.06),
        pytest.approx(1, abs=0.11),
    ]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (refusal("400 Bad Request", "invalid_value"), Refused),
        (refusal("400 Bad Request", "empty"), BadAudio),
        (refusal("401 Unauthorized", "missing_api_key"), Unauthorized),
        (refusal("404 Not Found", "model_not_found"), Refused),
        (refusal("408 Request Timeout", "upload_stalled"), Refused),
        (refusal("413 Content Too Large", "body_too_large"), BadAudio),
        (refusal("422 Unprocessable Content", "too_short"), BadAudio),
        (refusal("500 Internal Server Error", "internal_error"), ServiceError),
        (refusal("503 Service Unavailable", "model_lost", "Retry-After: 1"), Unavailable),
        (refusal("503 Service Unavailable", "not_loaded"), Unavailable),
        (refusal("504 Gateway Timeout", "deadline_exceeded"), TimedOut),
    ],
)
def test_what_would_not_pass_is_raised_at_once(
    clock: Clock, failure: bytes, kind: type[ServiceError]
) -> None:
    with scripted(failure) as server:
        error = error_of(server.url, clock.retrying())
    assert type(error) is kind and not clock.slept and len(server.requests) == 1
    assert error.status == int(failure.split()[1]) and error.request_id == "r1"
    assert error.message == f"no: {error.code}" and f"HTTP {error.status}, {error.code}" in str(error)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error), "it passes between processes"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b"null", b'{"data": [{"id": 3}]}', b"\xff\xfe", b"[" * 100_000]
)
def test_garbage_is_a_service_error(body: bytes) -> None:
    for status in ("200 OK", "404 Not Found", "302 Found", "599 What"):
        with scripted(answer(status, body)) as server:
            error = error_of(server.url, Retrying())
        assert error.status == int(status[:3]) and len(server.requests) == 1
        assert (error.code == "bad_answer") == (status == "200 OK")


def test_attempts_and_time_have_limits(clock: Clock) -> None:
    with scripted(BUSY) as server:
        error = error_of(server.url, clock.retrying(attempts=3))
        assert type(error) is Overloaded and error.retry_after_s == 7 and len(server.requests) == 3
        clock.now = 0
        assert type(error_of(server.url, clock.retrying(attempts=99, retry_for_s=20))) is Overloaded
        assert len(server.requests) == 3 + 3 and clock.now < 20


def test_a_pause_that_the_deadline_cuts_is_not_begun(clock: Clock) -> None:
    with scripted(BUSY) as server:
        assert type(error_of(server.url, clock.retrying(), timeout=5)) is Overloaded
    assert not clock.slept and float(server.requests[0].headers["x-request-timeout"]) <= 5


@pytest.mark.parametrize("asked", ["9" * 400, "soon", "-1", "1.5", "Fri, 99 Nov 2026 00:00:00 GMT", ""])
def test_a_retry_after_that_is_none(asked: str) -> None:
    """Or more than anyone would wait for."""
    clock = Clock()
    busy = refusal("429 Too Many Requests", "overloaded", f"Retry-After: {asked}")
    with scripted(busy) as server:
        assert type(error_of(server.url, clock.retrying(attempts=3))) is Overloaded
    assert len(clock.slept) == (0 if asked.isdecimal() else 2) and clock.now < 2


def test_nobody_listens(clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = error_of(f"http://name:secret@127.0.0.1:{port}", clock.retrying())
    assert type(error) is Unavailable and error.status is None and len(clock.slept) == 4
    assert f"no connection to http://127.0.0.1:{port}: " in str(error)


def stall(connection: socket.socket) -> None:
    connection.recv(1)  # until the client leaves


@pytest.mark.parametrize("step", [stall, dripping], ids=["says nothing", "drips"])
def test_the_timeout_bounds_the_whole_call(step: Callable[[socket.socket], None]) -> None:
    with scripted(hang_up, step) as server:
        began = time.monotonic()
        error = error_of(server.url, Retrying(), timeout=1.5)
        assert 1.4 < time.monotonic() - began < 30
    sent = [float(request.headers["x-request-timeout"]) for request in server.requests]
    assert len(sent) == 2 and sent[1] < sent[0] - 0.4, "each attempt is told what is left"
    assert type(error) is TimedOut and "within 1.5 s" in str(error) and error.status is None
    assert error.request_id == server.requests[0].headers["x-request-id"]


def test_no_timeout_is_no_header() -> None:
    with scripted(FINE) as server, Client(server.url, timeout=None) as client:
        client.models()
        client.models(timeout=60)
    first, second = (request.headers for request in server.requests)
    assert "x-request-timeout" not in first and 59 < float(second["x-request-timeout"]) <= 60


def test_files_are_sent_whole_again(clock: Clock, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    path = tmp_path / "a file.wav"
    path.write_bytes(data)
    pipe = cast(BinaryIO, Unseekable(data))
    with path.open("rb") as file:
        file.seek(100)
        kinds: list[Audio] = [path, str(path), data, file, pipe]
        for audio in kinds:
            with (
                asking(clock, BUSY, hang_up, BUSY, refusal("422 No", "x")) as (client, server),
                pytest.raises(BadAudio),
            ):
                client.embed(audio)
            assert [file_in(request) == data for request in server.requests] == [True] * 4
        assert not file.closed


class Unseekable(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        return self._data.readinto(buffer)


class Changing(io.BytesIO):
    def __init__(self, by: int) -> None:
        super().__init__(b"a" * 1000)
        self._by = by

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        return data[: self._by] if self._by < 0 else data + data[: self._by]


@pytest.mark.parametrize("by", [-1, 1])
def test_a_file_that_changes_meanwhile(by: int) -> None:
    changed = pytest.raises(ValueError, match="changed while it was sent")
    with scripted(FINE) as server, Client(server.url) as client, changed:
        client.embed(Changing(by))
    assert server.requests == []


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"retry_for_s": -1}, {"retry_for_s": float("nan")}])
def test_limits_that_are_none(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Retrying(**wrong)  # type: ignore[arg-type]
