"""Builds the gateway's application from its parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from anyio import CapacityLimiter, from_thread
from fastapi import FastAPI
from redis import Redis
from redis import asyncio as redis_asyncio
from starlette.middleware.cors import CORSMiddleware
from starlette.websockets import WebSocket

from api import health, openapi, problems, v1
from api.auth.keyring import DeclaredFile, Keyring
from api.auth.limits import Accounts, RequestRate
from api.auth.links import Links
from api.batches.service import BatchService, BatchThreads
from api.bodies import Bodies, BodyBounds, BodyLimits
from api.containers import Logs
from api.dependencies import Parts
from api.dialects import DIALECTS, shared_paths
from api.dialects.dialect import MAX_BASE64_BODY_BYTES, Dialect
from api.downloads import Downloads
from api.events import JobEvents
from api.lean_route import RouteIndex
from api.metrics import HttpMetrics, MetricsMiddleware, expose
from api.middleware import AuthMiddleware, CallerLookup, KeyInPathMiddleware
from api.queue import JobQueue
from api.request_checks import RequestChecks
from api.response_headers import ResponseHeaders
from api.settings import GatewaySettings
from api.studio import routes as studio
from api.uploads import Uploads
from serinette import __version__
from serinette.batches.lines import BatchFiles
from serinette.batches.repository import BatchRepository
from serinette.errors import ConfigurationError, NotFound
from serinette.jobs import AsyncJobs, Jobs
from serinette.settings import connect_redis, connect_redis_async
from serinette.store import Store
from serinette.telemetry import new_registry
from serinette.webhook_targets import Targets

# Prefixes of our paths that take files as their body.
UPLOAD_PATHS = ("/v1/uploads", "/v1/files")

# The path that takes JSON Lines, and all paths below it.
BATCH_PATH = "/v1/batches"

# Threads for the store accesses of /readyz, beside those of the queue.
_PROBE_THREADS = 2

# Submits that may wait for the disk of the queue's server at once: each holds a connection for up to a second.
_FSYNC_CONNECTIONS = 256

_READABLE = (
    "Location",
    "ETag",
    "Retry-After",
    "Allow",
    "Content-Range",
    "Content-Disposition",
    "Accept-Ranges",
    "X-Request-Id",
)
_OUR_OWN = ("Idempotency-Replayed", "Preference-Applied")


def create_app(settings: GatewaySettings, dialects: Sequence[Dialect] = DIALECTS) -> FastAPI:
    """The application. It starts whether or not Redis and the store answer.

    Raises:
        ConfigurationError: the settings contradict each other, or name a store that cannot be opened.
    """
    redis = connect_redis(settings)  # used by batches only
    redis_async, for_submits = connect_redis_async(settings), _for_submits(settings)
    parts = _parts(settings, redis, redis_async, for_submits)
    events = parts.events

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reading = asyncio.create_task(events.run())
        yield
        events.close()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await redis_async.aclose()
        if for_submits is not None:
            await for_submits.aclose()
        redis.close()

    routes = [
        # Not by include_router: FastAPI matches a path twice for every nested router.
        *health.router.routes,
        *v1.ROUTES,
        *shared_paths.routes(dialects),
        *(route for dialect in dialects for route in dialect.routes),
        *studio.router.routes,
        *openapi.page_routes(),
    ]
    app = FastAPI(
        routes=[RouteIndex(routes), *routes],
        docs_url=None,
        redoc_url=None,
        title="Serinette",
        version=__version__,
        summary="Songs from prompts: submit a job, follow it, download its songs.",
        lifespan=lifespan,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        separate_input_output_schemas=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours are of serinette.telemetry
    )
    _refuse_prefix_of_ours(settings.root_path, app)
    openapi.name_operations(app)
    openapi.add_heads(app)
    app.state.parts = parts
    problems.install(app, (path for dialect in dialects for path in dialect.paths))
    openapi.complete(app, dialects)
    app.add_api_websocket_route("/{path:path}", _no_socket)
    app.state.metrics = HttpMetrics(new_registry())
    expose(app, app.state.metrics, settings)
    _add_middleware(app, parts, dialects)
    return app


def _refuse_prefix_of_ours(prefix: str, app: FastAPI) -> None:
    for route in app.routes if prefix else ():
        if f"{getattr(route, 'path', '')}/".startswith(f"{prefix}/"):
            raise ConfigurationError(f"root_path: {prefix} begins a path of the API itself; choose another")


def _for_submits(settings: GatewaySettings) -> redis_asyncio.Redis | None:
    return connect_redis_async(settings, _FSYNC_CONNECTIONS) if settings.durability == "fsync" else None


def _parts(
    settings: GatewaySettings,
    redis: Redis,
    redis_async: redis_asyncio.Redis,
    for_submits: redis_asyncio.Redis | None,
) -> Parts:
    store = Store.open(settings)
    declared = DeclaredFile(settings.keys_file, settings.key_cache_s)
    keyring = Keyring(redis_async, settings, declared)
    queue = JobQueue(
        AsyncJobs(redis_async, settings.redis_prefix),
        store,
        settings,
        declared=declared.limits,
        submits=AsyncJobs(for_submits, settings.redis_prefix) if for_submits is not None else None,
    )
    downloads = Downloads(store, queue.store_threads)
    bodies = Bodies(max(settings.max_upload_bytes, settings.max_batch_bytes))
    accounts = Accounts(redis_async, settings.keys, declared)
    return Parts(
        settings=settings,
        queue=queue,
        store=store,
        events=JobEvents(redis_async, settings.keys),
        uploads=Uploads(store, settings, queue.store_threads, bodies),
        bodies=bodies,
        downloads=downloads,
        logs=Logs(redis_async, settings.keys, downloads),
        probes=CapacityLimiter(_PROBE_THREADS),
        callers=CallerLookup(
            RequestRate(redis_async, settings.keys), keyring, Links(redis_async, settings.keys, keyring)
        ),
        accounts=accounts,
        batches=BatchService(
            repository=BatchRepository(Jobs(redis, settings.redis_prefix), settings.keys, settings.retention_s),
            files=BatchFiles(store),
            settings=settings,
            targets=Targets(settings.webhook_networks),
            declared=declared.limits,
            limits=lambda tenant: from_thread.run(accounts.limits, tenant),  # batches are made in threads
        ),
        batch_threads=BatchThreads(),
    )


async def _no_socket(websocket: WebSocket) -> None:
    path = websocket.url.path
    raise NotFound(f"no WebSocket is at {path}; events are at /v1/jobs/{{job_id}}/events")


def _add_middleware(app: FastAPI, parts: Parts, dialects: Sequence[Dialect]) -> None:
    settings = parts.settings
    file_paths = (*UPLOAD_PATHS, *(path for dialect in dialects for path in dialect.file_paths))
    in_base64 = min(MAX_BASE64_BODY_BYTES, settings.max_upload_bytes)
    app.add_middleware(
        BodyBounds,
        bodies=parts.bodies,
        limits=BodyLimits(
            body_bytes=settings.max_body_bytes,
            others={path: in_base64 for dialect in dialects for path in dialect.base64_paths}  # before shorter prefixes
            | {**dict.fromkeys(file_paths, settings.max_upload_bytes), BATCH_PATH: settings.max_batch_bytes},
            text_paths={path for dialect in dialects for path in dialect.base64_paths},
            streamed=(*UPLOAD_PATHS, BATCH_PATH),
        ),
    )
    if settings.auth:
        key_paths = {path for dialect in dialects for path in dialect.key_paths}
        app.add_middleware(AuthMiddleware, callers=parts.callers, body_paths=key_paths)
    if (
        settings.cors_origins or settings.cors_origin_regex
    ):  # outside of authentication, so that pages can read their errors, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_origin_regex=settings.cors_origin_regex,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=("*",),  # whatever libraries add; none of them lets a page do more
            expose_headers=(*_READABLE, *_OUR_OWN),
            max_age=600,
        )
    app.add_middleware(
        MetricsMiddleware, metrics=app.state.metrics
    )  # outside of the others, so that their errors are counted, too
    app.add_middleware(
        KeyInPathMiddleware, allowed=settings.key_in_path
    )  # outside of the others, so that none of them sees a key in a path
    app.add_middleware(RequestChecks, settings=settings)
    app.add_middleware(ResponseHeaders)
