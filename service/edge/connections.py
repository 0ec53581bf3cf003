"""Connections from their first byte on: how slow a client may be, in asking and in reading its answer."""

from __future__ import annotations

import asyncio
import http
import logging
import socket
from contextlib import suppress
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from service.errors import ServiceError, bad_request
from service.settings import Settings

logger = logging.getLogger(__name__)

UNSENT = 128 << 10
"""Bytes of an answer that the system buffers beyond what is in transit. By default it buffers megabytes, and
signals when a third is free again: a client that reads 40 kB a second then seems to stand still for half a
minute."""
LOOKS = 4
"""Looks at what a client has read, within the time that it may be slow."""


class Pace:
    """The time it has left: `patience_s` at first and at most, and a second more for each `rate` bytes.

    So a pause may be `patience_s` long. A client that sends less than `rate` bytes a second uses up its time,
    however short its pauses are; fast sending earns no longer pause."""

    def __init__(self, rate: float, patience_s: float) -> None:
        self._rate, self._patience_s = rate, patience_s
        self.left_s = patience_s

    def moved(self, size: int, seconds: float) -> None:
        """After so many bytes, and so long a wait for them."""
        self.left_s = min(self.left_s - seconds + size / self._rate, self._patience_s)


def stalled(settings: Settings) -> ServiceError:
    """The error for a client that sends too slowly."""
    slow = f"less than {settings.min_upload_rate} bytes a second came, or none for"
    message = f"the upload stalled: {slow} {settings.upload_idle_timeout_s:g} s"
    return ServiceError(408, "upload_stalled", message, headers={"Connection": "close"})


class _Answering(asyncio.Protocol):
    """Disconnects a client that reads its answer more slowly than `min_answer_rate` for
    `answer_idle_timeout_s`; also while the rest is sent after the service has closed."""

    settings: Settings
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _look_again: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._pace = Pace(self.settings.min_answer_rate, self.settings.answer_idle_timeout_s)
        # Paused is then who has not taken all, and at most one piece of an answer waits here.
        self.transport.set_write_buffer_limits(high=0)
        with suppress(OSError, AttributeError):  # of what is no TCP
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waiting, self._since = self.transport.get_write_buffer_size(), self.loop.time()
        self._watch()

    def resume_writing(self) -> None:
        self._seen()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_looking()
        super().connection_lost(exc)

    def _watch(self) -> None:
        soon = min(self._pace.left_s, self.settings.answer_idle_timeout_s / LOOKS)
        self._look_again = self.loop.call_later(soon, self._look)

    def _look(self) -> None:
        self._seen()
        if self._pace.left_s <= 0:
            logger.info("a client that does not read its answer is disconnected")
            self.transport.abort()
        elif self._waiting:
            self._watch()

    def _seen(self) -> None:
        """What has been read since the last look."""
        if self._look_again is not None:
            self._stop_looking()
            before, began = self._waiting, self._since
            self._waiting, self._since = self.transport.get_write_buffer_size(), self.loop.time()
            self._pace.moved(max(before - self._waiting, 0), self._since - began)

    def _stop_looking(self) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None


class Protocol(_Answering, H11Protocol):
    """HTTP. Anything else gets the JSON error too. From the connection, or the end of an answer, until the
    next head is complete, at most `head_timeout_s` may pass, including the rest of a body that was
    refused."""

    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        """Parts of it do not restart the time."""
        if self.conn.our_state not in (h11.IDLE, h11.DONE):
            self._stop_waiting()
        elif self._head_due is None:
            self._head_due = self.loop.call_later(self.settings.head_timeout_s, self._is_late)

    def _stop_waiting(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _is_late(self) -> None:
        begun, _ = self.conn.trailing_data
        if self.conn.our_state is h11.IDLE and begun and not self.transport.is_closing():
            self._refuse(ServiceError(408, "request_stalled", "the head of the request did not come in time"))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(bad_request(msg, code="malformed_http"))

    def _refuse(self, error: ServiceError) -> None:
        body = error.body()
        headers = [("content-type", "application/json"), ("connection", "close")]
        headers.append(("content-length", str(len(body))))
        reason = http.HTTPStatus(error.status).phrase.encode()
        response = h11.Response(status_code=error.status, headers=headers, reason=reason)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Stream(_Answering, WebSocketsSansIOProtocol):
    """A WebSocket. What it receives is up to the route."""


def protocols(settings: Settings) -> tuple[type[Protocol], type[Stream]]:
    """For HTTP and for WebSockets."""
    limits = {"settings": settings}
    return type("Protocol", (Protocol,), limits), type("Stream", (Stream,), limits)
