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
from api.auth.links import Links
from api.batches.service import BatchService, BatchThreads
from api.containers import Logs, check_taken
from api.downloads import Downloads
from api.events import JobEvents
from api.middleware import CALLER, CallerLookup
from api.queue import JobQueue
from api.settings import GatewaySettings
from api.uploads import Uploads
from serinette.credentials import Limits
from serinette.errors import Unauthorized
from serinette.names import DEFAULT_TENANT
from serinette.store import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """The gateway's parts. All are safe to share between requests."""

    settings: GatewaySettings
    queue: JobQueue
    store: Store
    events: JobEvents
    uploads: Uploads
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


def _parts(connection: HTTPConnection) -> Parts:
    parts: Parts = connection.app.state.parts
    return parts


async def _settings(connection: HTTPConnection) -> GatewaySettings:
    return _parts(connection).settings


async def _queue(connection: HTTPConnection) -> JobQueue:
    return _parts(connection).queue


async def _store(connection: HTTPConnection) -> Store:
    return _parts(connection).store


async def _events(connection: HTTPConnection) -> JobEvents:
    return _parts(connection).events


async def _uploads(connection: HTTPConnection) -> Uploads:
    return _parts(connection).uploads


async def _downloads(connection: HTTPConnection) -> Downloads:
    return _parts(connection).downloads


async def _logs(connection: HTTPConnection) -> Logs:
    return _parts(connection).logs


async def _probes(connection: HTTPConnection) -> CapacityLimiter:
    return _parts(connection).probes


async def _accounts(connection: HTTPConnection) -> Accounts:
    return _parts(connection).accounts


async def _batches(connection: HTTPConnection) -> BatchService:
    return _parts(connection).batches


async def _batch_threads(connection: HTTPConnection) -> BatchThreads:
    return _parts(connection).batch_threads


async def _links(connection: HTTPConnection) -> Links:
    return _parts(connection).callers.links


async def caller(connection: HTTPConnection) -> Caller:
    """See `caller_of`."""
    return caller_of(connection)


def caller_of(connection: HTTPConnection) -> Caller:
    """The caller that AuthMiddleware found. Without authentication every caller is the default tenant.

    Raises:
        Unauthorized: authentication is on, and this path has no caller.
    """
    found: Caller | None = connection.scope.get(CALLER)
    if found is None and _parts(connection).settings.auth:
        raise Unauthorized("this path needs no key and has no tenant")
    return found or Caller(DEFAULT_TENANT, NO_KEY, Limits())


CallerPart = Annotated[Caller, Depends(caller)]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request's caller and the gateway's parts. Frequent routes take it from the request directly, because
    FastAPI's dependencies cost them as much as Redis does.
    """

    parts: Parts
    caller: Caller

    @property
    def tenant(self) -> str:
        """Owner of the jobs, uploads and files that the request may access."""
        return self.caller.tenant

    @property
    def caller_check(self) -> CallerCheck:
        """Check of the caller's key while the request goes on."""
        return CallerCheck(self.parts.callers.keyring, self.caller)


def context_of(connection: HTTPConnection) -> RequestContext:
    """Context of a request. Raises Unauthorized: authentication is on, and this path has no caller."""
    return RequestContext(_parts(connection), caller_of(connection))


async def _caller_check(connection: HTTPConnection, caller: CallerPart) -> CallerCheck:
    return CallerCheck(_parts(connection).callers.keyring, caller)


async def tenant(caller: CallerPart) -> str:
    """Owner of the jobs, uploads and files that a request may access."""
    return caller.tenant


async def containers_only(connection: HTTPConnection) -> None:
    """Check that this deployment runs containers.

    Raises:
        Unsupported: it does not.
    """
    check_taken(_parts(connection).settings)


SettingsPart = Annotated[GatewaySettings, Depends(_settings)]
QueuePart = Annotated[JobQueue, Depends(_queue)]
StorePart = Annotated[Store, Depends(_store)]
EventsPart = Annotated[JobEvents, Depends(_events)]
UploadsPart = Annotated[Uploads, Depends(_uploads)]
DownloadsPart = Annotated[Downloads, Depends(_downloads)]
LogsPart = Annotated[Logs, Depends(_logs)]
ProbesPart = Annotated[CapacityLimiter, Depends(_probes)]
AccountsPart = Annotated[Accounts, Depends(_accounts)]
BatchesPart = Annotated[BatchService, Depends(_batches)]
BatchThreadsPart = Annotated[BatchThreads, Depends(_batch_threads)]
LinksPart = Annotated[Links, Depends(_links)]
CallerCheckPart = Annotated[CallerCheck, Depends(_caller_check)]
TenantPart = Annotated[str, Depends(tenant)]
