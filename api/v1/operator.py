"""What an operator looks at, read-only: pools and what holds them, failures, and every tenant's usage."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from api.auth.limits import Accounts
from api.dependencies import ContextPart
from api.outages import queue_errors
from api.problems import problems
from api.queue import Pool
from api.v1.queue import worker_pool_view
from api.v1.usage import QueryDay, span_of, total_of
from serinette.credentials import Limits
from serinette.errors import Forbidden
from serinette.job import JobStatus
from serinette.jobs.registries import ask_heads, oldest_s
from serinette.names import Lane, Right
from serinette.usage import Sums
from serinette.views import WorkerPoolView

router = APIRouter(prefix="/v1", tags=["operator"])

MOST_DAYS = 93


async def may_read(context: ContextPart) -> None:
    """Check the right of the caller's key.

    Raises:
        Forbidden: it does not have it.
    """
    if Right.OPERATOR_READ not in context.caller.rights:
        raise Forbidden(
            f"this key has no right {Right.OPERATOR_READ}; `serinette keys create --right` makes one that has"
        )


class OperatorLane(BaseModel):
    """One lane of a pool."""

    lane: Lane
    waiting: int
    oldest_s: float | None = Field(description="Seconds since the submit of its oldest job; null when none waits.")


class FailureCount(BaseModel):
    """Failed jobs of one cause."""

    code: str
    jobs: int


class OperatorPool(WorkerPoolView):
    """One pool: its workers and what holds them, its lanes and its failures."""

    lanes: tuple[OperatorLane, ...] = Field(description="Highest first.")
    running: int
    pace_s: float | None = Field(description="Moving average of a job's running time; null before the first song.")
    succeeded: int = Field(description="Since the queue's server began.")
    failures: tuple[FailureCount, ...] = Field(description="Since the queue's server began; most frequent first.")


class TenantUsage(BaseModel):
    """What one tenant used, and may."""

    tenant: str
    total: Sums
    limits: Limits


class OperatorView(BaseModel):
    """All pools and tenants."""

    pools: tuple[OperatorPool, ...]
    since: date
    until: date
    tenants: tuple[TenantUsage, ...] = Field(
        description="Tenants that have a key or limits, and `default`; most GPU-seconds first."
    )


@router.get(
    "/operator", summary="All pools and tenants", dependencies=[Depends(may_read)], responses=problems("forbidden")
)
async def get_operator_view(
    context: ContextPart,
    since: Annotated[QueryDay, Query(description="First UTC day of the usage; else 29 days before `until`.")] = None,
    until: Annotated[QueryDay, Query(description="Last UTC day of the usage; else today.")] = None,
) -> OperatorView:
    """Of every pool the workers and what holds them, the lanes and the age of their oldest job, the scale-up brake, and
    failures by code; of every tenant the usage. Needs a key with the right `operator:read`.
    """
    accounts = context.parts.accounts
    days = span_of(since, until, await accounts.today(), MOST_DAYS)
    pools = sorted(await context.queue.pools(), key=lambda pool: pool.name)
    ages = await _oldest(accounts, pools)
    tenants = await accounts.everyone(days)
    used = [
        TenantUsage(tenant=name, total=total_of(found), limits=await accounts.limits(name))
        for name, found in tenants.items()
    ]
    return OperatorView(
        pools=tuple(_pool(pool, ages[pool.name]) for pool in pools),
        since=days[0],
        until=days[-1],
        tenants=tuple(sorted(used, key=lambda each: (-each.total.gpu_s, each.tenant))),
    )


def _pool(pool: Pool, oldest: Sequence[float | None]) -> OperatorPool:
    failures = [(code, jobs) for (outcome, code), jobs in pool.ended.items() if outcome == JobStatus.FAILED]
    return OperatorPool(
        **dict(worker_pool_view(pool)),
        lanes=tuple(
            OperatorLane(lane=lane, waiting=waiting, oldest_s=age_s)
            for (lane, waiting), age_s in zip(pool.waiting.items(), oldest, strict=True)
        ),
        running=pool.running,
        pace_s=pool.pace_s,
        succeeded=pool.succeeded,
        failures=tuple(
            FailureCount(code=code or "unknown", jobs=jobs)
            for code, jobs in sorted(failures, key=lambda each: (-each[1], each[0]))
        ),
    )


async def _oldest(accounts: Accounts, pools: Sequence[Pool]) -> dict[str, list[float | None]]:
    """Ages of the oldest job of each lane, by pool, in two round trips."""
    places = [(pool.name, lane) for pool in pools for lane in pool.waiting]
    redis, keys = accounts.redis, accounts.keys
    with queue_errors():
        async with redis.pipeline(transaction=False) as pipe:
            for name, lane in places:
                ask_heads(pipe, keys.waiting(name, lane))
            heads: Any = await pipe.execute()
        async with redis.pipeline(transaction=False) as pipe:
            for first, never_ran in zip(heads[::2], heads[1::2], strict=True):
                pipe.zmscore(keys.live, [*first, *never_ran] or [""])
            pipe.time()
            *scores, (at_s, _) = await pipe.execute()
    ages: dict[str, list[float | None]] = {pool.name: [] for pool in pools}
    for (name, _), found in zip(places, scores, strict=True):
        ages[name].append(oldest_s(found, at_s))
    return ages
