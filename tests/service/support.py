"""What the tests of the service share: audio, checks, and servers in a thread or a process."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray

from service.app import create_app
from service.edge.connections import protocols
from service.models.model import ModelSource
from service.models.registry import DEFAULT
from service.models.runtime import ModelRuntime
from service.settings import Settings

START_S = 300  # of a process, on a machine that is busy with other things
ROOT = Path(__file__).resolve().parents[2]
Wave = NDArray[np.float32]


def tone(seconds: float, *, frequency: float = 220.0, rate: int = 16_000) -> Wave:
    time_s = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time_s) * (0.2 + time_s / seconds)).astype(np.float32)


def encoded(wave: Wave, *, rate: int = 16_000, format: str = "WAV", subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=format, subtype=subtype)
    return file.getvalue()


def error_of(response: httpx.Response) -> dict[str, object]:
    """The error, after a check that its shape is that of the contract."""
    assert response.headers["content-type"].startswith("application/json"), response.text[:300]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert all(isinstance(body["error"][key], str) for key in ("message", "type", "code"))
    assert body["error"]["message"]
    return dict(body["error"])


def until(condition: Callable[[], object], timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def serving(
    runtime: ModelRuntime | Callable[[], ModelRuntime], **settings: Any
) -> AbstractContextManager[httpx.Client]:
    """The application on a real socket, in a thread of this process, so that its model can be handled."""
    settings = {"decode_threads": 1, **settings}  # each is a process, which takes a moment to start
    models = {DEFAULT: ModelSource(runtime)} if callable(runtime) else runtime
    return serving_app(create_app(Settings(**settings), models))


@contextmanager
def serving_app(app: FastAPI) -> Iterator[httpx.Client]:
    http, ws = protocols(app.state.engine.settings)
    config = uvicorn.Config(app, port=0, http=http, ws=ws, log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "it did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def of_models(process: Process) -> list[int]:
    """Its processes that hold models: children of the one that forks them."""
    return [each for child in children(process.popen.pid) for each in children(child)]


class Process:
    """A service process on a free port of this machine; ended by its own id."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self.log = log
        environment = {
            "SPEECH_SSL_PORT": "0",
            "SPEECH_SSL_PROCESSES": "1",
            "SPEECH_SSL_PRECISION": "fp32",
            "OMP_NUM_THREADS": "1",
        } | environment
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=os.environ | environment,
                stderr=stderr,
                stdout=subprocess.DEVNULL,
            )
        self.client = httpx.Client(timeout=90, trust_env=False)

    def listening(self) -> str:
        """Its address, once there is one."""
        pattern = re.compile(r"listening on (http://[\w.:\[\]-]+)")
        until(lambda: pattern.search(self.log.read_text()) or self.popen.poll() is not None, START_S)
        found = pattern.search(self.log.read_text())
        assert found, self.log.read_text()
        self.client.base_url = httpx.URL(found[1])
        return found[1]

    def ready(self) -> httpx.Client:
        self.listening()
        try:
            until(lambda: self.client.get("/health/ready").status_code == 200, START_S)
        except httpx.TransportError as error:
            self.popen.wait(60)
            raise AssertionError(f"{error!r}, and it said:\n{self.log.read_text()}") from error
        return self.client

    def metric(self, name: str) -> float:
        text = self.client.get("/metrics").text
        found = re.search(rf"^speech_ssl_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def close(self) -> None:
        self.client.close()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)
