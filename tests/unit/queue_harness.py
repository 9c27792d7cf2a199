"""A queue on a Valkey and a store: tests submit jobs as routes do, and drive them by hand."""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis

from api.queue import JobQueue
from api.settings import GatewaySettings
from serinette.job import Job, JobOptions, now
from serinette.jobs import AsyncJobs
from serinette.names import Keys
from serinette.presence import Model, Presence, WorkerStage, announce
from serinette.settings import connect_redis, connect_redis_async
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.gateways import HandSlot

ME = "default"
SPEC = GenerationSpec(prompt="jazz")
OPTIONS = JobOptions()


@dataclass
class QueueHarness:
    """A queue, its Redis and its store."""

    queue: JobQueue
    slot: HandSlot
    redis: Redis
    jobs: AsyncJobs
    store: Store
    keys: Keys

    async def submit(
        self, spec: GenerationSpec = SPEC, tenant: str = ME, key: str | None = None, **options: object
    ) -> Job:
        return (await self.queue.submit(tenant, spec, JobOptions.model_validate(options), idempotency_key=key))[0]


def open_queue(redis_url: str, store_url: str, **settings: object) -> QueueHarness:
    given = GatewaySettings.model_validate({"redis_url": redis_url, "store_url": store_url, **settings})
    redis, store = connect_redis(given), Store.open(given)
    jobs = AsyncJobs(connect_redis_async(given), given.redis_prefix)
    queue = JobQueue(jobs, store, given)
    return QueueHarness(queue, HandSlot(redis, store, given.keys), redis, jobs, store, given.keys)


def model(name: str) -> Model:
    return Model(
        name=name,
        revision="r",
        turbo=True,
        sample_rate=48_000,
        channels=2,
        default_steps=8,
        default_guidance_scale=1,
        default_shift=3,
        max_duration_s=600,
        tasks=("text2music",),
    )


def report_worker(
    harness: QueueHarness, name: str = "w", pool: str = "default", model_name: str = "tiny", busy: int = 0
) -> None:
    stage = WorkerStage.READY
    announce(
        harness.redis,
        harness.keys,
        Presence(
            name=name, pool=pool, stage=stage, slots=1, busy_slots=busy, model=model(model_name), started_at=now()
        ),
    )
