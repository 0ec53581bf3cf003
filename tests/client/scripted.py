"""A server that does what it is told, one step for each request: for what a good service never does."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from speech_ssl.client import Client, Retrying

Step = bytes | Callable[[socket.socket], object]
ONCE = Retrying(attempts=1)
MODELS = json.dumps({"object": "list", "data": []}).encode()


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Scripted:
    """`steps`: an answer, or what to do with the connection, which is closed then. The last is repeated."""

    url: str
    steps: list[Step]
    requests: list[Request] = field(default_factory=list)


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers])
    return head.encode() + b"\r\n\r\n" + body


def refusal(status: str, code: str, *headers: str) -> bytes:
    error = {"message": f"no: {code}", "type": "t", "code": code, "param": None}
    return answer(status, json.dumps({"error": error}).encode(), "X-Request-Id: r1", *headers)


def hang_up(connection: socket.socket) -> None:
    """After the request, with no answer."""


def dripping(connection: socket.socket) -> None:
    """An answer that never ends, and of which something comes all the time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


@contextmanager
def scripted(*steps: Step) -> Iterator[Scripted]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Scripted(f"http://127.0.0.1:{listener.getsockname()[1]}", list(steps))
        thread = threading.Thread(target=_serve, args=(listener, server), daemon=True)
        thread.start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)
        assert not thread.is_alive()


def _serve(listener: socket.socket, server: Scripted) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                server.requests.append(_received(connection))
                step = server.steps.pop(0) if len(server.steps) > 1 else server.steps[0]
                if callable(step):
                    step(connection)
                else:
                    connection.sendall(step)
            except OSError:
                continue


def _received(connection: socket.socket) -> Request:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _piece(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (text.split(": ", 1) for text in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += _piece(connection)
    return Request(line, headers, body)


def _piece(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectionError
    return data


class Clock:
    """Goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def retrying(self, attempts: int = 5, retry_for_s: float = 60.0) -> Retrying:
        return Retrying(attempts, retry_for_s, self.sleep, lambda: self.now)


def file_in(request: Request) -> bytes:
    """The file of a form."""
    found = re.search(rb'name="file"; filename="[^"]*"\r\n[^\0]*?\r\n\r\n', request.body)
    assert found
    return request.body[found.end() :].rpartition(b"\r\n--")[0]


@contextmanager
def asking(clock: Clock, *steps: Step) -> Iterator[tuple[Client, Scripted]]:
    """A client whose pauses take no time, and the server it asks."""
    with scripted(*steps) as server, Client(server.url, retrying=clock.retrying()) as client:
        yield client, server
