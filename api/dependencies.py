"""The gateway's parts as FastAPI dependencies: built once by `create_app`, passed to routes.

All dependencies are coroutines: FastAPI runs others in threads, all of which may be waiting for Redis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Header
from starlette.requests import HTTPConnection

from api.auth.keyring import NO_KEY, Caller, CallerCheck
from api.auth.limits import Accounts
from api.batches.service import BatchService, BatchThreads
from api.bodies import Bodies
from api.containers import Logs
from api.downloads import Downloads
from api.events import JobEvents
from api.middleware import CALLER, CallerLookup
from api.queue import JobQueue
from api.settings import GatewaySettings
from api.uploads import Uploads
from serinette.credentials import Limits
from serinette.errors import Unauthorized, Unsupported
from serinette.job import Job
from serinette.names import DEFAULT_TENANT, Right
from serinette.store import Store
from serinette.webhook import is_loopback


@dataclass(frozen=True, slots=True)
class Parts:
    """The gateway's parts. All are safe to share between requests."""

    settings: GatewaySettings
    queue: JobQueue
    store: Store
    events: JobEvents
    uploads: Uploads
    bodies: Bodies
    downloads: Downloads
    logs: Logs
    probes: CapacityLimiter  # bounds the threads that probes of a hanging store occupy
    callers: CallerLookup
    accounts: Accounts
    batches: BatchService
    batch_threads: BatchThreads


def idempotency_key_header(description: str) -> Any:  # noqa: ANN401  # FastAPI's own declaration
    """The parameter of a call that may be sent again."""
    return Header(alias="Idempotency-Key", pattern=r"^[\x20-\x7e]{1,255}$", description=description)


def parts_of(connection: HTTPConnection) -> Parts:
    """The gateway's parts, also for requests without a caller."""
    parts: Parts = connection.app.state.parts
    return parts


def caller_of(connection: HTTPConnection) -> Caller:
    """The caller that AuthMiddleware found. Without authentication every caller is the default tenant.

    Raises:
        Unauthorized: authentication is on, and this path has no caller.
    """
    found: Caller | None = connection.scope.get(CALLER)
    if found is not None:
        return found
    settings = parts_of(connection).settings
    if settings.auth:
        raise Unauthorized("this path needs no key and has no tenant")
    # Without keys on this machine alone, who calls runs the server.
    rights = tuple(Right) if is_loopback(settings.host) else ()
    return Caller(DEFAULT_TENANT, NO_KEY, Limits(), rights)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request's caller and the gateway's parts. Frequent routes take it from the request by `context_of`, because
    FastAPI's dependencies cost them as much as Redis does.
    """

    parts: Parts
    caller: Caller

    @property
    def tenant(self) -> str:
        """Owner of the jobs, uploads and files that the request may access."""
        return self.caller.tenant

    @property
    def queue(self) -> JobQueue:
        """The jobs."""
        return self.parts.queue

    @property
    def settings(self) -> GatewaySettings:
        """Settings of this gateway."""
        return self.parts.settings

    @property
    def caller_check(self) -> CallerCheck:
        """Check of the caller's key while the request goes on."""
        return CallerCheck(self.parts.callers.keyring, self.caller)

    async def wait(self, job: Job, wait_s: float | None) -> Job:
        """The job as it is when it ends, or after `wait_s`, at most the server's bound, whichever comes first.

        Raises:
            Unauthorized: the caller's key was revoked meanwhile.
        """
        if not wait_s or job.status.ended:
            return job
        await self.parts.events.wait_for_end(job.id, min(wait_s, self.settings.max_wait_s), self.caller_check)
        await self.caller_check.require()
        return await self.queue.get(self.tenant, job.id)

    async def hold(self, job: Job, wait_s: float | None, *, refuse: bool) -> Job:
        """As `wait`, for a request that does nothing else: beyond those that a tenant may have, it is answered at once.

        Raises:
            Limited: that, with `refuse`.
        """
        waits = self.parts.events.waits
        if not wait_s or job.status.ended or not (refuse or waits.has_turn(self.tenant)):
            return job
        async with waits.of(self.tenant):
            return await self.wait(job, wait_s)


def context_of(connection: HTTPConnection) -> RequestContext:
    """Context of a request. Raises Unauthorized: authentication is on, and this path has no caller."""
    return RequestContext(parts_of(connection), caller_of(connection))


async def _parts(connection: HTTPConnection) -> Parts:
    return parts_of(connection)


async def _context(connection: HTTPConnection) -> RequestContext:
    return context_of(connection)


PartsPart = Annotated[Parts, Depends(_parts)]
ContextPart = Annotated[RequestContext, Depends(_context)]


async def containers_only(context: ContextPart) -> None:
    """Check that this deployment runs containers.

    Raises:
        Unsupported: it does not.
    """
    if not context.settings.containers:
        raise Unsupported(
            "containers run on a cluster, and this deployment takes none: its operator must give it one and set "
            "SERINETTE_CONTAINERS with an allow-list of images (docs/containers.md); on a laptop, run the image "
            "with podman or docker"
        )
