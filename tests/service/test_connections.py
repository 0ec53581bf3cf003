"""How long a client may take to ask and to be answered, from the first byte on, on real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.edge.connections import Pace, protocols
from service.settings import Settings
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, serving, tone, until

WAV = encoded(tone(0.2))
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(WAV) + WAV
LONG_S = 30.0
"""Until which a connection that has no limit is given up."""


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with closing(socket.create_connection(address, timeout=LONG_S)) as connection:
        yield connection


def address_of(client: httpx.Client) -> tuple[str, int]:
    return client.base_url.host, client.base_url.port or 0


def dripped(connection: socket.socket, data: bytes, every_s: float) -> bytes:
    """What is answered to bytes that come one by one, until the connection is closed."""
    told = bytearray()
    connection.settimeout(every_s)
    began = time.monotonic()
    for byte in data * 1000:
        try:
            connection.sendall(bytes([byte]))
        except OSError:
            return bytes(told)
        try:
            while piece := connection.recv(65536):
                told += piece
            return bytes(told)
        except TimeoutError:
            assert time.monotonic() - began < LONG_S, "it has no limit"
        except OSError:
            return bytes(told)
    raise AssertionError("all of it was taken")


def answer_of(connection: socket.socket) -> bytes:
    told = b""
    while not told.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, told
        told += piece
    return told


def code_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_head_has_its_time_from_the_connection(fake: FakeRuntime) -> None:
    with serving(fake, head_timeout_s=0.3) as client:
        with connected(address_of(client)) as silent:
            assert silent.recv(1) == b""
        with connected(address_of(client)) as half:
            half.sendall(HEAD)
            assert code_of(answer_of(half)) == (408, "request_stalled")
            assert half.recv(1) == b""
        with connected(address_of(client)) as dripping:
            answer = dripped(dripping, b"GET /" + b"a" * 1000, 0.05)
            assert code_of(answer) == (408, "request_stalled")
        assert client.post("/v1/embeddings", content=WAV, headers={"content-type": "audio/wav"}).is_success


def test_a_head_has_its_time_from_the_answer_before(fake: FakeRuntime) -> None:
    with serving(fake, head_timeout_s=0.5) as client:
        with connected(address_of(client)) as kept:
            kept.sendall(WHOLE)
            assert answer_of(kept).startswith(b"HTTP/1.1 200")
            kept.sendall(WHOLE)
            assert answer_of(kept).startswith(b"HTTP/1.1 200")
            assert code_of(dripped(kept, HEAD, 0.05)) == (408, "request_stalled")
        with connected(address_of(client)) as two_at_once:
            two_at_once.sendall(WHOLE + WHOLE + HEAD)
            told = b""
            while piece := two_at_once.recv(65536):
                told += piece
            assert told.count(b"HTTP/1.1 200") == 2 and told.count(b"request_stalled") == 1


def test_a_long_answer_and_a_long_upload_are_not_waiting_for_a_head(fake: FakeRuntime) -> None:
    with serving(fake, head_timeout_s=0.3, min_upload_rate=1) as client:
        fake.open_gate.clear()
        with connected(address_of(client)) as slow:
            for start in range(0, len(WHOLE), len(WHOLE) // 6):
                slow.sendall(WHOLE[start : start + len(WHOLE) // 6])
                time.sleep(0.1)
            time.sleep(0.5)
            fake.open_gate.set()
            assert answer_of(slow).startswith(b"HTTP/1.1 200")


def test_the_rest_of_a_body_that_was_refused_has_its_time_too(fake: FakeRuntime) -> None:
    with serving(fake, head_timeout_s=0.3) as client, connected(address_of(client)) as connection:
        connection.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
        assert code_of(answer_of(connection)) == (413, "body_too_large")
        assert dripped(connection, b"R" * 1000, 0.05) == b""


def test_a_body_has_a_minimum_rate(fake: FakeRuntime) -> None:
    limits = {"upload_idle_timeout_s": 0.5, "min_upload_rate": 1000}
    with serving(fake, **limits) as client, connected(address_of(client)) as connection:
        connection.sendall(HEAD + b"Content-Length: 10000\r\n\r\n")
        assert code_of(dripped(connection, b"R" * 1000, 0.05)) == (408, "upload_stalled")


def test_a_rate_is_one_over_the_whole_time() -> None:
    pace = Pace(100, 10.0)
    for _ in range(1000):  # as fast as it has to be, however it comes
        pace.moved(500, 5.0)
    assert pace.left_s == pytest.approx(10.0)
    pace.moved(1_000_000, 1.0)
    assert pace.left_s == 10.0  # nothing is saved up
    for _ in range(30):
        pace.moved(30, 0.5)
    assert pace.left_s == pytest.approx(10 - 30 * 0.2)


@contextmanager
def answering(body: bytes, **settings: float) -> Iterator[uvicorn.Server]:
    """A service that gives that to everybody, in one piece."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(body)(scope, receive, send)

    http, ws = protocols(Settings(**settings))  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=http, ws=ws, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def asked(server: uvicorn.Server) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    connection.settimeout(LONG_S)
    connection.connect(server.servers[0].sockets[0].getsockname())
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return connection


def test_who_takes_an_answer_slowly_but_steadily_gets_it_all() -> None:
    """Longer than a client may do nothing, and many times faster than it has to be."""
    body = bytes(8 << 20)
    limits = {"answer_idle_timeout_s": 2.0, "min_answer_rate": 100_000}
    with answering(body, **limits) as server, closing(asked(server)) as slow:
        got, began = 0, time.monotonic()
        while piece := slow.recv(100_000):
            got += len(piece)
            time.sleep(max(0.0, began + got / 2e6 - time.monotonic()))
        assert got > len(body)


def test_who_takes_nothing_is_cut_off() -> None:
    """Also of the little that asyncio lets wait, and when the service has closed."""
    taken = taken_by_the_system(8 << 20)
    assert taken < 8 << 20
    size = taken + (40 << 10)
    assert taken_by_the_system(size) < size


def taken_by_the_system(size: int) -> int:
    """Of an answer that its client does not read."""
    limits = {"answer_idle_timeout_s": 0.5, "min_answer_rate": 100_000}
    with answering(bytes(size), **limits) as server, closing(asked(server)) as gone:
        until(lambda: server.server_state.total_requests == 1)
        until(lambda: not server.server_state.connections, LONG_S)
        return sum(map(len, iter(lambda: gone.recv(1 << 20), b"")))
