"""What the routes share: the engine, the model that was asked for, and whoever waits for an answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import ClientDisconnect, Request

from service.batcher import Stopped
from service.errors import ServiceError, bad_request
from service.models.engine import Engine
from service.record import current

T = TypeVar("T")


async def _engine(request: Request) -> Engine:  # not async, it would be called in a thread
    engine: Engine = request.app.state.engine
    return engine


TheEngine = Annotated[Engine, Depends(_engine)]


def seconds_left(request: Request, engine: Engine) -> float:
    """Until an answer is of no more use: the client's word, within the service's. Raises ServiceError."""
    asked = request.headers.get("x-request-timeout")
    if asked is None:
        return engine.settings.request_timeout_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise bad_request("X-Request-Timeout is a number of seconds, more than 0", "X-Request-Timeout")
    return min(seconds, engine.settings.request_timeout_s)


async def attended(request: Request, engine: Engine, work: Coroutine[Any, Any, T]) -> T:
    """Until it is done, or the client leaves, or the deadline passes, or the service stops. The deadline of a
    request is that of the first work that it is attended in."""
    try:
        seconds = seconds_left(request, engine)
    except ServiceError:
        work.close()
        raise
    record = current()
    record.due = min(record.due, time.monotonic() + seconds)
    task = asyncio.create_task(work)
    left = asyncio.create_task(_disconnect(request))
    stopping = asyncio.create_task(engine.stopping.wait())
    try:
        timeout = record.due - time.monotonic()
        await asyncio.wait({task, left, stopping}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled():
            return task.result()
        if left.done():
            raise ClientDisconnect
        raise Stopped if stopping.done() else TimeoutError
    finally:
        for each in (task, left, stopping):
            each.cancel()
        await asyncio.gather(task, left, stopping, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
