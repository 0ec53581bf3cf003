"""The HTTP service as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import errors
from service.auth import Keys
from service.edge import tracing
from service.edge.guards import GuardBody, GuardOrigin, Hosts, RequireKey
from service.edge.observe import Observe
from service.jobs import routes as routes_jobs
from service.jobs.runner import Jobs
from service.metrics import Metrics
from service.models.engine import Engine
from service.models.model import ModelSource
from service.models.registry import DEFAULT
from service.models.runtime import ModelRuntime
from service.open_inference import routes as routes_v2
from service.playground import routes as routes_playground
from service.settings import Settings
from service.shares import Shares
from service.stream import routes as routes_stream
from service.v1 import routes, routes_audio

DESCRIPTION = "Self-supervised representations of audio: vectors of clips and of their frames."


def create_app(
    settings: Settings, models: ModelRuntime | Mapping[str, ModelSource], metrics: Metrics | None = None
) -> FastAPI:
    """`models`: one, ready when the application has started; or where they come from, by name and with one
    called "default": while that is being loaded, the application answers 503. Raises ValueError and OSError
    for a file of keys, and ValueError for an address for traces, that cannot be used."""
    metrics = metrics or Metrics()
    sources = models if isinstance(models, Mapping) else {DEFAULT: ModelSource(lambda: models)}
    engine = Engine(settings, sources, metrics)
    traces = tracing.from_environment()
    jobs = Jobs(settings, engine, metrics, settings.jobs_dir) if settings.jobs_dir is not None else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        started = engine.start()
        if not isinstance(models, Mapping):
            await asyncio.wrap_future(started)
        if jobs is not None:
            jobs.start()
        try:
            yield
        finally:
            if jobs is not None:
                await jobs.stop()
            await engine.stop()
            if traces is not None:
                await asyncio.to_thread(traces.stop)

    app = FastAPI(
        title="speech-ssl",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        docs_url=None,  # its pages run scripts from elsewhere: routes_playground has one of our own
        redoc_url=None,
        redirect_slashes=False,  # it would lead to whatever Host says
    )
    app.state.engine = engine
    app.state.metrics = metrics
    app.state.jobs = jobs
    app.include_router(routes.router)
    app.include_router(routes_audio.router)
    app.include_router(routes_stream.router)
    app.include_router(routes_jobs.router)
    app.include_router(routes_v2.router)
    app.include_router(routes_playground.router)
    errors.install(app)
    to_disk = None if jobs is None else routes_jobs.PATH
    app.add_middleware(GuardBody, engine=engine, settings=settings, to_disk=to_disk)
    if settings.api_keys is not None:
        keys = Keys.read(settings.api_keys)
        shares = Shares(settings.key_max_requests, settings.key_max_queue_s, settings.key_max_streams)
        app.add_middleware(RequireKey, keys=keys, shares=shares, public_page=settings.public_page)
    hosts = Hosts.of("*" if settings.allowed_hosts is None and settings.api_keys else settings.allowed_hosts)
    app.add_middleware(GuardOrigin, hosts=hosts)
    bare_errors = "/v2" if settings.v2_errors == "string" else None
    app.add_middleware(  # added last: outermost
        Observe, engine=engine, metrics=metrics, traces=traces, bare_errors=bare_errors
    )
    return app
