"""What is going on, and what can be sung."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from api.dependencies import QueuePart, SettingsPart
from api.queue import Pool
from api.queue.explain import expected_s
from api.routes.acestep.envelope import Envelope
from api.routes.acestep.inventory import Inventory, inventory
from api.routes.v1.answers import problems
from serinette.names import Lane
from serinette.presence import Model, Presence, WorkerStage
from serinette.spec import MAX_VARIATIONS

router = APIRouter(tags=["queue"])


class LaneView(BaseModel):
    """One lane of a pool."""

    lane: Lane
    waiting: int
    eta_s: float | None = Field(description="Seconds in which a song submitted now is likely ready; null when unknown.")


class WorkerView(BaseModel):
    """One worker."""

    name: str
    stage: WorkerStage
    slots: int
    busy_slots: int
    device: str
    model: str | None
    message: str
    started_at: AwareDatetime


class PoolView(BaseModel):
    """One pool."""

    name: str
    lanes: tuple[LaneView, ...] = Field(description="Highest first.")
    running: int
    free_slots: int
    pace_s: float | None = Field(description="Moving average of a job's running time; null before the first song.")
    workers: tuple[WorkerView, ...]


class QueueView(BaseModel):
    """All pools."""

    pools: tuple[PoolView, ...]


class ModelDefaults(BaseModel):
    """What a spec's nulls stand for."""

    steps: int
    guidance_scale: float
    shift: float


class ModelLimits(BaseModel):
    """What a spec may ask for."""

    max_duration_s: float
    max_variations: int


class ModelView(BaseModel):
    """A model that workers hold. What only they can tell is null (no tasks) while none of its pool is up."""

    model_config = ConfigDict(protected_namespaces=())

    name: str = Field(description="Give it as `model`.")
    pool: str
    default: bool = Field(description="Whether a spec without `model` is sung by it.")
    revision: str | None = None
    turbo: bool | None = None
    sample_rate: int | None = None
    channels: int | None = None
    tasks: tuple[str, ...] = ()
    defaults: ModelDefaults | None = None
    limits: ModelLimits | None = None
    workers: int = Field(description="That are up; 0: a job that asks for it starts one.")


class ModelList(Envelope[Inventory]):
    """All models: `models` for our clients; the rest is how ACE-Step 1.5 tells them at this path."""

    models: tuple[ModelView, ...]


@router.get("/queue", summary="The queue", responses=problems("queue_unavailable"))
async def look(queue: QueuePart) -> QueueView:
    """Every pool: its lanes, what runs, its workers, and how long a song submitted now would take."""
    return QueueView(pools=tuple(_pool(pool) for pool in await queue.pools()))


@router.get("/models", summary="The models", responses=problems("queue_unavailable"))
async def models(queue: QueuePart, settings: SettingsPart) -> ModelList:
    """What can be asked for: what workers that are up hold, and what pools at zero would.

    Empty where the gateway is told of no pools and no worker is up; jobs without `model` are accepted all the same.
    """
    held: dict[tuple[str, str], tuple[Model, int]] = {}
    pools = await queue.pools()
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
    return ModelList(
        models=tuple(sorted(views, key=lambda view: (view.pool, view.name))),
        data=inventory(pools, settings.pool),
    )


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
        workers=tuple(worker_view(worker) for worker in pool.workers),
    )


def worker_view(worker: Presence) -> WorkerView:
    """A worker, as clients see it."""
    return WorkerView(
        name=worker.name,
        stage=worker.stage,
        slots=worker.slots,
        busy_slots=worker.busy_slots,
        device=worker.device,
        model=worker.model.name if worker.model else None,
        message=worker.message,
        started_at=worker.started_at,
    )


def _model(pool: str, model: Model, workers: int, default_pool: str) -> ModelView:
    return ModelView(
        name=model.name,
        pool=pool,
        default=pool == default_pool,
        revision=model.revision,
        turbo=model.turbo,
        sample_rate=model.sample_rate,
        channels=model.channels,
        tasks=model.tasks,
        defaults=ModelDefaults(
            steps=model.default_steps, guidance_scale=model.default_guidance_scale, shift=model.default_shift
        ),
        limits=ModelLimits(max_duration_s=model.max_duration_s, max_variations=MAX_VARIATIONS),
        workers=workers,
    )
