"""The gateway put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import document, problems
from api.dependencies import Parts
from api.events import JobEvents
from api.intake import Intake
from api.limits import BodyLimit
from api.metrics import HttpMetrics, Observed, expose
from api.queue import JobQueue
from api.routes import gradio, health, v1
from api.settings import GatewaySettings
from serinette import __version__
from serinette.exposition import new_registry
from serinette.ledger import Ledger
from serinette.settings import connect_redis, connect_redis_async
from serinette.store import Store

# Prefixes of the paths that take audio files as their body.
UPLOAD_PATHS = ("/v1/uploads", "/generate_music_with_audio")

_READABLE = ("Location", "ETag", "Retry-After", "Allow", "Content-Range", "Content-Disposition", "Accept-Ranges")
_OUR_OWN = ("Idempotency-Replayed", "Preference-Applied")
_SENDABLE = ("Authorization", "Content-Type", "Idempotency-Key", "Prefer", "Last-Event-ID", "Range", "If-None-Match")


def create_app(settings: GatewaySettings) -> FastAPI:
    """The application. Starts without Redis and store: they may come later, and go.

    Raises:
        ConfigurationError: the settings contradict each other, or name a store that cannot be opened.
    """
    redis, redis_async = connect_redis(settings), connect_redis_async(settings)
    store = Store.open(settings)
    queue = JobQueue(redis, store, Ledger(redis, settings.keys, settings.retention_s), settings)
    events = JobEvents(redis_async, settings.keys)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reading = asyncio.create_task(events.run())
        yield
        events.close()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await redis_async.aclose()
        redis.close()

    app = FastAPI(
        title="Serinette",
        version=__version__,
        summary="Songs from prompts: post one, follow it, fetch it.",
        lifespan=lifespan,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        separate_input_output_schemas=False,
    )
    app.state.parts = Parts(settings, queue, store, events, Intake(store, settings), anyio.CapacityLimiter(2))
    problems.install(app)
    app.include_router(v1.router)
    app.include_router(gradio.router)
    app.include_router(health.router)
    document.complete(app)
    _add_middleware(app, settings)
    app.state.metrics = HttpMetrics(new_registry())
    expose(app, app.state.metrics, settings)
    app.add_middleware(Observed, metrics=app.state.metrics)  # outermost: refusals by others are answers too
    return app


def _add_middleware(app: FastAPI, settings: GatewaySettings) -> None:
    app.add_middleware(
        BodyLimit,
        body_bytes=settings.max_body_bytes,
        upload_bytes=settings.max_upload_bytes,
        upload_paths=UPLOAD_PATHS,
    )
    if settings.cors_origins:  # outermost, so that refusals can be read by pages too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=_SENDABLE,
            expose_headers=(*_READABLE, *_OUR_OWN),
            max_age=600,
        )
