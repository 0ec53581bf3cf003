"""The process: a socket that answers while the model loads, and an orderly end on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from service.app import create_app
from service.edge import connections, logs
from service.metrics import Metrics
from service.models.engine import Engine
from service.models.model import ModelSource
from service.models.registry import DEFAULT
from service.models.runtime import load_model
from service.models.worker import Load, Threads, Worker, give_memory_back, preload
from service.settings import ModelSettings, Settings

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 5
MAX_MESSAGE_BYTES = 1 << 20
COPIES = 2
DRIVER = Path("/proc/driver/nvidia/version")
"""Of a model on the CPU: two with a core each do a fifth more than one with two (LOG.md)."""


class Server(uvicorn.Server):
    """On the first SIGTERM or SIGINT it goes on answering, 503 to what is new, until all requests have
    their answers or `drain_timeout_s` is over; on the second it ends at once. On SIGHUP it loads its models
    anew."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine
        self._deadline = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        gc.freeze()  # what has been imported is not garbage: to look through it took a tenth of the time here
        gc.set_threshold(50_000, 20, 100)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._engine.models.reload_soon)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._engine.draining:
            self.should_exit = self.force_exit = True
            return
        self._deadline = time.monotonic() + self._engine.settings.drain_timeout_s
        self._engine.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._engine.load_error is not None:
            self.should_exit = True
        if self._deadline and (not self._engine.answering or time.monotonic() >= self._deadline):
            self._engine.stopping.set()
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        left_s = math.ceil(self._deadline - time.monotonic())  # for clients that are slow to read
        self.config.timeout_graceful_shutdown = max(SHUTDOWN_TIMEOUT_S, left_s)
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ValueError if the address or a model cannot be used."""
    all_models = {DEFAULT: ModelSettings(source=settings.model), **settings.models}
    device, precision = settings.device, settings.precision
    loads = {
        name: partial(load_model, chosen.source, chosen.device or device, chosen.precision or precision)
        for name, chosen in all_models.items()
    }
    serve(settings, loads)


def serve(settings: Settings, loads: Mapping[str, Load]) -> None:
    """`loads`: of each model in `settings.models`, and of "default". They run in processes of their own."""
    logs.configure(settings)
    give_memory_back()
    threads = preload()
    metrics = Metrics()
    app = create_app(settings, _sources(settings, loads, metrics, threads), metrics)
    engine: Engine = app.state.engine
    http, ws = connections.protocols(settings)
    config = uvicorn.Config(
        app,
        http=http,
        ws=ws,
        ws_max_size=MAX_MESSAGE_BYTES,
        lifespan="on",
        log_config=None,
        access_log=False,  # it has query strings; `service.requests` tells of each request
        server_header=False,
    )
    with _listening(settings) as listener:
        host, port = listener.getsockname()[:2]
        logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        Server(config, engine).run([listener])
    if (error := engine.load_error) is not None:
        raise error


def _sources(
    settings: Settings, loads: Mapping[str, Load], metrics: Metrics, threads: Threads
) -> dict[str, ModelSource]:
    sources = {}
    for name, load in loads.items():
        started = partial(
            Worker,
            partial(logs.told, settings, load),
            timeout_s=settings.batch_timeout_s,
            lost=metrics.lost_workers.inc,
            threads=threads,
        )
        chosen = settings.models.get(name)
        preloaded = chosen is None or chosen.preload
        unload_after_s = None if chosen is None else chosen.unload_after_s
        device = (chosen and chosen.device) or settings.device
        copies = settings.processes or (1 if _is_gpu(device) else min(COPIES, threads.count))
        sources[name] = ModelSource(started, preloaded, unload_after_s, copies)
    return sources


def _is_gpu(device: str) -> bool:
    """Of "auto", whether there is a driver: only the models' processes load PyTorch, which knows better."""
    if device != "auto":
        return device != "cpu"
    return DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def _listening(settings: Settings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot listen on {settings.host} port {settings.port}: {reason}") from error
