"""The process: a socket that answers while the model loads, and an orderly end on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.app import create_app
from service.engine import Engine, Loader
from service.errors import bad_request
from service.settings import Settings

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 5
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Server(uvicorn.Server):
    """On the first SIGTERM or SIGINT it goes on answering, 503 to what is new, until all requests have
    their answers or `drain_timeout_s` is over; on the second it ends at once."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine
        self._deadline = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._engine.draining:
            self.should_exit = self.force_exit = True
            return
        self._deadline = time.monotonic() + self._engine.settings.drain_timeout_s
        self._engine.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._engine.load_error is not None:
            self.should_exit = True
        if self._deadline and (not self._engine.in_flight or time.monotonic() >= self._deadline):
            self._engine.stopping.set()
            self.should_exit = True
        return await super().on_tick(counter)


class Protocol(H11Protocol):
    """What is not HTTP gets the JSON error too; a client that takes nothing of its answer is cut off."""

    answer_idle_timeout_s = 30.0
    _impatience: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._impatience = self.loop.call_later(self.answer_idle_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._be_patient()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._be_patient()
        super().connection_lost(exc)

    def _be_patient(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def send_400_response(self, msg: str) -> None:
        body = bad_request(msg, code="malformed_http").body()
        headers = [("content-type", "application/json"), ("connection", "close")]
        headers.append(("content-length", str(len(body))))
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ValueError if the address or the model cannot be used."""
    from speech_ssl.inference import load

    serve(settings, lambda: load(settings.model, settings.device, settings.precision))


def serve(settings: Settings, load: Loader) -> None:
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT)
    app = create_app(settings, load)
    engine: Engine = app.state.engine
    config = uvicorn.Config(
        app,
        http=type("Protocol", (Protocol,), {"answer_idle_timeout_s": settings.answer_idle_timeout_s}),
        ws="none",
        lifespan="on",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    with _listening(settings) as listener:
        host, port = listener.getsockname()[:2]
        logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        Server(config, engine).run([listener])
    if (error := engine.load_error) is not None:
        raise error


def _listening(settings: Settings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot listen on {settings.host} port {settings.port}: {reason}") from error
