"""Overload, slow and gone clients, poison: what the service does when things go wrong, on real sockets."""

from __future__ import annotations

import gc
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, error_of, serving, serving_app, tone, until

WAV = encoded(tone(1.0))
LOUD = encoded(np.ones(16_000, np.float32))
URL = "/v1/embeddings"
RAW = {"content-type": "audio/wav"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
PART = b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"


def post(client: httpx.Client, data: bytes = WAV) -> httpx.Response:
    return client.post(URL, content=data, headers=RAW)


def gauge(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^speech_ssl_{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def open_request(client: httpx.Client, data: bytes, *, declared=None, query: str = "") -> socket.socket:
    """A raw connection on which a request has been sent: its answer is still to come."""
    head = f"POST {URL}{query} HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\n"
    head += f"Content-Length: {len(data) if declared is None else declared}\r\n\r\n"
    return connect(client, head.encode() + data)


def connect(client: httpx.Client, data: bytes) -> socket.socket:
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)
    connections.append(connection)
    connection.sendall(data)
    return connection


connections: list[socket.socket] = []


@pytest.fixture(autouse=True)
def no_connection_stays():
    yield
    while connections:
        connections.pop().close()


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(4096).split()[1])


def all_of(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(4096), b""))


def test_declared_and_counted_bytes_beyond_the_limit(fake):
    def chunks(first: bytes = b"R") -> Iterator[bytes]:
        yield first
        for _ in range(40):
            yield b"R" * 1000

    with serving(fake, max_body_bytes=20_000) as client:
        good = encoded(tone(0.2), subtype="PCM_16")
        answers = [
            post(client, b"R" * 20_001),
            client.post(URL, content=chunks(), headers=RAW),
            client.post(URL, files={"file": ("a", b"R" * 20_001)}),
            client.post(
                URL, content=chunks(PART), headers={"content-type": "multipart/form-data; boundary=x"}
            ),
            client.post(URL, content=chunks(), headers={"content-type": "application/json"}),
            client.post("/nothing", content=b"R" * 20_001),
        ]
        for answer in answers:
            assert answer.status_code == 413
            assert error_of(answer)["code"] == "body_too_large"
            assert post(client, good).status_code == 200  # on the same connection
        waiting = open_request(client, b"", declared=1 << 40)  # judged before a byte is sent
        assert status_of(waiting) == 413


def test_a_connection_is_kept_after_errors(fake):
    with serving(fake) as client, httpx.Client(base_url=client.base_url, trust_env=False) as one:
        ports = set()
        for data in (WAV, b"", b"junk", WAV[:40], WAV, LOUD[:50], WAV):
            answer = post(one, data)
            stream = answer.extensions["network_stream"]
            ports.add(stream.get_extra_info("socket").getsockname()[1])
        assert answer.status_code == 200
        assert len(ports) == 1


def test_a_poisoned_clip_fails_alone_among_those_it_was_batched_with(fake):
    fake.poison = ValueError
    with serving(fake, max_batch_s=20.0) as client, ThreadPoolExecutor(8) as pool:
        fake.open_gate.clear()
        first = pool.submit(post, client)
        assert fake.entered.acquire(timeout=60)  # the warm-up
        assert fake.entered.acquire(timeout=60)
        others = [pool.submit(post, client, LOUD if index == 2 else WAV) for index in range(6)]
        until(lambda: gauge(client, "queued_audio_seconds") == 7.0)
        fake.open_gate.set()
        assert first.result().status_code == 200
        statuses = [other.result().status_code for other in others]
        assert statuses == [200, 200, 422, 200, 200, 200]
        assert error_of(others[2].result())["message"] == "a sample this loud"
        assert max(map(len, fake.passes)) == 6  # they were one batch
        fake.poison = RuntimeError  # that is nobody's input
        answer = post(client, LOUD)
        assert (answer.status_code, error_of(answer)["type"]) == (500, "server_error")
        assert post(client).status_code == 200


def test_an_answer_that_is_not_finite_is_refused(fake):
    fake.frames = lambda wave, layer: np.full((3, 5), np.inf, np.float32)
    with serving(fake) as client:
        for pooling in ("mean", "none"):
            answer = client.post(URL, params={"pooling": pooling}, content=WAV, headers=RAW)
            assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_samples")


def test_a_full_queue_is_429_with_retry_after(fake):
    with serving(fake, max_queue_s=6.0, max_clip_s=100.0) as client, ThreadPoolExecutor(8) as pool:
        fake.open_gate.clear()
        running = [pool.submit(post, client, encoded(tone(2.0))) for _ in range(2)]
        until(lambda: gauge(client, "queued_audio_seconds") == 4.0)
        refused = post(client, encoded(tone(2.5)))
        assert (refused.status_code, error_of(refused)["code"]) == (429, "overloaded")
        assert error_of(refused)["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        assert gauge(client, "queued_audio_seconds") == 4.0  # what was decoded is given back
        running.append(pool.submit(post, client, encoded(tone(1.5))))
        until(lambda: gauge(client, "queued_audio_seconds") == 5.5)
        early = open_request(client, b"", declared=1000)  # there is not a second left: no byte is waited for
        assert status_of(early) == 429
        fake.open_gate.set()
        assert [each.result().status_code for each in running] == [200] * 3
        hopeless = post(client, encoded(tone(7.0)))
        assert (hopeless.status_code, error_of(hopeless)["code"]) == (422, "too_long")
        assert post(client).status_code == 200


def test_a_flood_gets_429_and_an_honest_time_to_come_back(fake):
    fake.slowness = 0.1
    with serving(fake, max_queue_s=10.0) as client:
        flooded(client)


def flooded(client: httpx.Client) -> None:
    clip = encoded(tone(2.0), subtype="PCM_16")
    assert post(client, clip).status_code == 200  # it knows its speed now
    with ThreadPoolExecutor(24) as pool:
        flood = [pool.submit(post, client, clip) for _ in range(24)]
        answers = [each.result() for each in flood]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and len(refused) < 24
    assert {answer.status_code for answer in answers} == {200, 429}
    vectors = {str(answer.json()["data"]) for answer in answers if answer.status_code == 200}
    assert len(vectors) == 1
    waits = {int(answer.headers["retry-after"]) for answer in refused}
    assert 1 <= min(waits) <= max(waits) <= 20  # 10 s of audio, at up to 10 times real time
    time.sleep(2 * max(waits))
    assert post(client, clip).status_code == 200
    assert gauge(client, "queued_audio_seconds") == 0


def test_too_many_requests_and_pending_bytes_are_429(fake):
    with serving(fake, max_requests=3, max_pending_bytes=100_000) as client:
        slow = [open_request(client, b"R" * 40_000, declared=50_000) for _ in range(2)]
        until(lambda: gauge(client, "in_flight_requests") == 2)
        until(lambda: post(client).status_code == 429)  # 80 kB are there: 64 more are too many
        slow.append(open_request(client, b"R", declared=50_000))
        until(lambda: gauge(client, "in_flight_requests") == 3)
        answer = post(client, b"R")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert client.get("/health/ready").status_code == 200
        for each in slow:
            each.close()
        until(lambda: gauge(client, "in_flight_requests") == 0)
        assert post(client).status_code == 200


def test_a_gone_client_frees_the_queue(fake):
    with serving(fake) as client:
        fake.open_gate.clear()
        running = open_request(client, WAV)
        until(lambda: gauge(client, "queued_audio_seconds") == 1.0)
        waiting = [open_request(client, encoded(tone(9.0))) for _ in range(3)]
        until(lambda: gauge(client, "queued_audio_seconds") > 28.0)
        for each in waiting:
            each.close()
        until(lambda: gauge(client, "queued_audio_seconds") == 1.0)
        fake.open_gate.set()
        assert status_of(running) == 200
        until(lambda: gauge(client, "in_flight_requests") == 0)
        assert fake.passes[1:] == [[1.0]]  # beside the warm-up: nothing of theirs was run
        counted = client.get("/metrics").text
        assert 'speech_ssl_requests_total{outcome="499",route="/v1/embeddings"} 3.0' in counted


def test_a_client_that_goes_while_sending_or_being_decoded(fake, monkeypatch):
    blocks = []

    def endless(self: object, source: bytes, **options: object) -> Iterator[np.ndarray]:
        while len(blocks) < 2000:
            time.sleep(0.01)
            blocks.append(time.monotonic())
            yield np.zeros(1600, np.float32)

    with serving(fake, decode_threads=1) as client:
        halfway = open_request(client, WAV[:1000], declared=len(WAV))
        until(lambda: gauge(client, "in_flight_requests") == 1)
        halfway.close()
        until(lambda: gauge(client, "in_flight_requests") == 0)
        with monkeypatch.context() as patch:
            patch.setattr("service.models.engine.Sandbox.stream", endless)
            decoding = open_request(client, WAV)
            until(lambda: gauge(client, "queued_audio_seconds") > 0)
            decoding.close()
            until(lambda: gauge(client, "in_flight_requests") == 0)
        assert 0 < len(blocks) < 2000
        assert gauge(client, "queued_audio_seconds") == 0
        assert fake.passes[1:] == []
        assert post(client).status_code == 200


def test_a_short_clip_overtakes_a_long_file(fake):
    fake.slowness = 0.01
    with serving(fake, max_clip_s=4000.0) as client, ThreadPoolExecutor(1) as pool:
        five_minutes = encoded(np.zeros(300 * 8000, np.int16), rate=8000, format="FLAC", subtype="PCM_16")
        long = pool.submit(post, client, five_minutes)
        until(lambda: len(fake.passes) > 3)
        assert post(client).status_code == 200
        assert not long.done()
        assert long.result().status_code == 200


def test_the_deadline_is_504(fake):
    with serving(fake, request_timeout_s=0.2) as client:
        fake.open_gate.clear()
        answer = post(client)
        assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")
        answer = post(client)
        fake.open_gate.set()
        until(lambda: gauge(client, "queued_audio_seconds") == 0)
        until(lambda: post(client).status_code == 200)  # a busy machine may need several tries


def test_a_stalled_upload_is_408(fake):
    with serving(fake, upload_idle_timeout_s=0.2) as client:
        connection = open_request(client, WAV[:100], declared=len(WAV))
        answer = all_of(connection)
        assert b" 408 " in answer.splitlines()[0] and b'"code": "upload_stalled"' in answer
        assert post(client).status_code == 200


def test_a_client_that_does_not_read_is_cut_off(fake):
    limits = {"max_requests": 1, "max_frames_s": 4000, "answer_idle_timeout_s": 0.3}
    with serving(fake, **limits) as client, suppress(ConnectionResetError):
        clip = encoded(tone(3500.0, rate=4_000), rate=4_000, format="FLAC", subtype="PCM_16")
        connection = open_request(client, clip, query="?pooling=none")
        until(lambda: post(client).status_code == 429)
        until(lambda: post(client).status_code == 200)
        assert not all_of(connection).endswith(b"0\r\n\r\n")  # what was under way may still come


def test_temporary_files_do_not_stay(fake, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    big = encoded(tone(40.0))  # beyond what is held in memory
    rolled: list[object] = []
    rollover = tempfile.SpooledTemporaryFile.rollover

    def noting(file: tempfile.SpooledTemporaryFile[bytes]) -> None:
        rollover(file)
        rolled.append(file)

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", noting)
    with serving(fake) as client:
        assert client.post(URL, files={"file": ("a", big)}).status_code == 200
        assert client.post(URL, files={"file": ("a", b"x" + big)}).status_code == 415
        assert client.post(URL, files={"other": ("a", big)}).status_code == 400
        cut = PART + big
        assert client.post(URL, content=cut, headers=FORM).status_code == 400
        until(lambda: all(getattr(file, "closed", False) for file in rolled))
    assert len(rolled) == 4
    assert list(tmp_path.iterdir()) == []
    gc.collect()


def test_draining_refuses_what_is_new(fake):
    app = create_app(Settings(), fake)
    with serving_app(app) as client, ThreadPoolExecutor(1) as pool:
        fake.open_gate.clear()
        running = pool.submit(post, client)
        until(lambda: gauge(client, "queued_audio_seconds") == 1.0)
        app.state.engine.drain()
        for answer in (post(client), client.get("/health/ready"), client.get("/v1/models")):
            assert (answer.status_code, error_of(answer)["code"]) == (503, "draining")
        assert client.get("/health/live").status_code == 200
        assert gauge(client, "ready") == 0
        fake.open_gate.set()
        assert running.result().status_code == 200


def test_loading_is_503_until_the_model_is_warm(fake):
    let_load = threading.Event()

    def load() -> FakeRuntime:
        assert let_load.wait(60)
        return fake

    with serving(load) as client:
        assert client.get("/health/live").status_code == 200
        for answer in (post(client), client.get("/health/ready"), client.get("/v1/models")):
            assert (answer.status_code, error_of(answer)["code"]) == (503, "loading")
        fake.open_gate.clear()
        let_load.set()
        assert fake.entered.acquire(timeout=60)  # warming up
        assert client.get("/health/ready").status_code == 503
        fake.open_gate.set()
        until(lambda: client.get("/health/ready").status_code == 200)
        assert post(client).status_code == 200


@pytest.mark.parametrize("noise", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_what_is_not_http_gets_the_json_error(fake, noise):
    with serving(fake) as client:
        head, _, body = all_of(connect(client, noise)).partition(b"\r\n\r\n")
        assert b" 400 " in head.splitlines()[0]
        assert b'"code": "malformed_http"' in body
