"""What the routes share: the engine, the model that was asked for, and whoever waits for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import ClientDisconnect, Request

from service.batcher import Stopped
from service.engine import Engine, Runtime
from service.errors import ServiceError, bad_request

T = TypeVar("T")


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


TheEngine = Annotated[Engine, Depends(_engine)]


def checked_model(runtime: Runtime, name: str) -> None:
    if name not in ("default", runtime.name):
        message = f"there is no model {name[:80]!r} here; /v1/models lists what there is"
        raise ServiceError(404, "model_not_found", message, param="model")


def checked_layer(runtime: Runtime, layer: int) -> int:
    try:
        return runtime.check_layer(layer)
    except ValueError as error:
        raise bad_request(str(error), "layer") from error


async def attended(request: Request, engine: Engine, work: Coroutine[Any, Any, T]) -> T:
    """Until it is done, or the client leaves, or the deadline passes, or the service stops."""
    task = asyncio.create_task(work)
    left = asyncio.create_task(_disconnect(request))
    stopping = asyncio.create_task(engine.stopping.wait())
    timeout = engine.settings.request_timeout_s
    try:
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
