"""The HTTP service as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import errors, routes, routes_audio
from service.auth import Keys, RequireKey
from service.engine import Engine, Loader, Runtime
from service.metrics import Metrics
from service.middleware import GuardBody, Observe
from service.settings import Settings

DESCRIPTION = "Self-supervised representations of audio: vectors of clips and of their frames."


def create_app(settings: Settings, runtime: Runtime | Loader) -> FastAPI:
    """`runtime`: a model, ready when the application has started; or a function that loads one, in the
    thread that will run it, while the application answers 503. Raises ValueError and OSError for a file of
    keys that cannot be used."""
    metrics = Metrics()
    load = runtime if callable(runtime) else lambda: runtime
    engine = Engine(settings, load, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        started = engine.start()
        if not callable(runtime):
            await asyncio.wrap_future(started)
        try:
            yield
        finally:
            await engine.stop()

    app = FastAPI(title="speech-ssl", description=DESCRIPTION, version="1", lifespan=lifespan)
    app.state.engine = engine
    app.state.metrics = metrics
    app.include_router(routes.router)
    app.include_router(routes_audio.router)
    errors.install(app)
    app.add_middleware(GuardBody, engine=engine, settings=settings)
    if settings.api_keys is not None:
        app.add_middleware(RequireKey, keys=Keys.read(settings.api_keys))
    app.add_middleware(Observe, engine=engine, metrics=metrics)  # added last: outermost
    return app
