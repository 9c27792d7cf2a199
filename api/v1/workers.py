"""Who sings, and where nobody does, what holds it."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import QueuePart
from api.queue import Pool
from api.queue.explain import coming, no_worker
from api.v1.answers import problems
from api.v1.queue import WorkerView, worker_view
from serinette.job import now

router = APIRouter(prefix="/v1", tags=["queue"])


class WorkerPoolView(BaseModel):
    """One pool and its workers."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    model: str | None = Field(
        description="Name that jobs ask for its model by; null when neither a worker nor the chart has reported it."
    )
    min_workers: int | None = Field(description="Kept also while nothing waits; null without a chart.")
    max_workers: int | None = Field(description="Most that the chart allows; null without a chart.")
    pods: int | None = Field(description="Worker pods of the pool, but for those that leave; null without a cluster.")
    waiting: int = Field(description="Jobs that wait in its lanes.")
    brake: tuple[str, ...] = Field(description="Why no more workers are started, each `cause: words`; empty as a rule.")
    waiting_for: str | None = Field(
        description="What it takes until a worker is ready, in words; null while one is, or none is needed."
    )
    workers: tuple[WorkerView, ...]


class WorkersView(BaseModel):
    """All pools."""

    pools: tuple[WorkerPoolView, ...]


@router.get("/workers", summary="The workers", responses=problems("queue_unavailable"))
async def workers(queue: QueuePart) -> WorkersView:
    """Every pool that is known, its workers and, where jobs wait and none is ready, what holds them: a start from zero,
    a node without a free GPU, an image, a model that loads, the brake. What only a cluster can report is up to half a
    minute old, and missing outside of one.
    """
    return WorkersView(pools=tuple(_pool(pool) for pool in await queue.pools()))


def _pool(pool: Pool) -> WorkerPoolView:
    held = next((worker.model.name for worker in pool.workers if worker.model), None)
    waiting = sum(pool.waiting.values())
    return WorkerPoolView(
        name=pool.name,
        model=pool.told.published if pool.told else held,
        min_workers=pool.told.min_workers if pool.told else None,
        max_workers=pool.told.max_workers if pool.told else None,
        pods=pool.holdup.pods if pool.holdup else None,
        waiting=waiting,
        brake=pool.brake,
        waiting_for=_waiting_for(pool, needed=waiting > 0),
        workers=tuple(worker_view(worker) for worker in pool.workers),
    )


def _waiting_for(pool: Pool, *, needed: bool) -> str | None:
    if pool.ready:
        return None
    if pool.active:
        return coming(pool, now())
    return no_worker(pool) if needed or (pool.holdup and pool.holdup.pods) else None
