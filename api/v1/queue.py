"""The queue, the workers, and the models that can be asked for."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter

from api.dependencies import ContextPart
from api.queue import Pool
from api.queue.explanations import Waiting, coming, expected_s, no_more, not_taken
from api.settings import GatewaySettings
from serinette.job import WaitingCode
from serinette.presence import Model
from serinette.spec import MAX_VARIATIONS
from serinette.views import (
    LaneView,
    ModelDefaults,
    ModelLimits,
    ModelView,
    PoolView,
    QueueView,
    WorkerPoolView,
    WorkersView,
    WorkerView,
)

router = APIRouter(prefix="/v1", tags=["queue"])


@router.get("/queue", summary="The queue")
async def get_queue(context: ContextPart) -> QueueView:
    """Every pool: its lanes, what runs, its workers, and how long a song submitted now would take."""
    return QueueView(pools=tuple(_pool(pool) for pool in await context.queue.pools()))


@router.get("/workers", summary="The workers")
async def list_workers(context: ContextPart) -> WorkersView:
    """Every pool that is known, its workers and, where jobs wait and none is ready, what holds them: a start from zero,
    a node without a free GPU, an image, a model that loads, the brake. What only a cluster can report is up to half a
    minute old, and missing outside of one.
    """
    return WorkersView(pools=tuple(worker_pool_view(pool) for pool in await context.queue.pools()))


def _pool(pool: Pool) -> PoolView:
    return PoolView(
        name=pool.name,
        lanes=tuple(
            LaneView(lane=lane, waiting=waiting, eta_s=expected_s(lane, waiting, pool))
            for lane, waiting in pool.waiting.items()
        ),
        running=pool.running,
        free_slots=pool.free_slots,
        pace_s=pool.pace_s,
        workers=tuple(map(WorkerView.model_validate, pool.workers)),
    )


def model_views(pools: Sequence[Pool], settings: GatewaySettings) -> tuple[ModelView, ...]:
    """The models that workers hold, and those that pools at zero would. GET /v1/models is in dialects/shared_paths.py:
    other servers have that path too.
    """
    held: dict[tuple[str, str], tuple[Model, int]] = {}
    for pool in pools:
        for worker in pool.workers:
            if worker.model:
                _, count = held.get((pool.name, worker.model.name), (worker.model, 0))
                held[pool.name, worker.model.name] = worker.model, count + 1
    views = [_model(pool, model, count, settings.pool) for (pool, _), (model, count) in held.items()]
    views += [
        ModelView(name=pool.published, pool=pool.name, default=pool.name == settings.pool, workers=0)
        for pool in settings.pools
        if (pool.name, pool.published) not in held
    ]
    return tuple(sorted(views, key=lambda view: (view.pool, view.name)))


def _model(pool: str, model: Model, workers: int, default_pool: str) -> ModelView:
    return ModelView(
        **model.model_dump(include=ModelView.model_fields.keys() & Model.model_fields.keys()),
        pool=pool,
        default=pool == default_pool,
        defaults=ModelDefaults(
            steps=model.default_steps, guidance_scale=model.default_guidance_scale, shift=model.default_shift
        ),
        limits=ModelLimits(max_duration_s=model.max_duration_s, max_variations=MAX_VARIATIONS),
        workers=workers,
    )


def worker_pool_view(pool: Pool) -> WorkerPoolView:
    """A pool and its workers, as clients see them."""
    held = next((worker.model.name for worker in pool.workers if worker.model), None)
    waiting = sum(pool.waiting.values())
    code, words = _waiting_for(pool, waits=waiting > 0) or (None, None)
    return WorkerPoolView(
        name=pool.name,
        model=pool.facts.published if pool.facts else held,
        min_workers=pool.facts.min_workers if pool.facts else None,
        max_workers=pool.facts.max_workers if pool.facts else None,
        pods=pool.holdup.pods if pool.holdup else None,
        waiting=waiting,
        brake=pool.brake,
        waiting_for=words,
        waiting_code=code,
        workers=tuple(map(WorkerView.model_validate, pool.workers)),
    )


def _waiting_for(pool: Pool, *, waits: bool) -> Waiting | None:
    needed = waits or bool(pool.holdup and pool.holdup.pods)
    if (needed or pool.active) and (held := not_taken(pool)):
        return held
    if pool.ready:
        stuck = waits and not pool.free_slots and no_more(pool)
        return (WaitingCode.SLOT, f"a free worker{no_more(pool)}") if stuck else None
    return coming(pool, pool.at) if pool.active else None
