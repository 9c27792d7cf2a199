"""All of one tenant erased: keys, jobs, songs, uploads, batches, usage, and what is left to deliver.

An operator's call, with the rights of a controller. It can be called again after whatever happened.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from serinette import credentials
from serinette.batch import BatchStatus
from serinette.batches.repository import BatchRepository
from serinette.errors import Conflict
from serinette.jobs import Jobs, calls
from serinette.jobs.script import text
from serinette.names import Keys
from serinette.presence import redis_time
from serinette.settings import SharedSettings
from serinette.store import Store
from serinette.usage import DAYS_KEPT, day_number

_PAUSE_S = 0.25
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Erased:
    """What was there."""

    keys: int
    jobs: int
    batches: int
    objects: int


def erase_tenant(redis: Redis, store: Store, settings: SharedSettings, tenant: str, timeout_s: float = 60) -> Erased:
    """Revoke the tenant's keys, cancel what has not ended, and erase everything of it.

    Raises:
        Conflict: some of its jobs or batches have not ended within the time; nothing is erased but the keys.
    """
    keys, jobs = settings.keys, Jobs(redis, settings.redis_prefix)
    revoked = [one.id for one in credentials.list_credentials(redis, keys) if one.tenant == tenant]
    for key_id in revoked:
        redis.hdel(keys.credentials, key_id)
    _end_all(jobs, keys, tenant, settings.retention_s, time.monotonic() + timeout_s)
    repository = BatchRepository(jobs, keys, settings.retention_s)
    batch_ids = _members(redis, keys.tenant_batches(tenant))
    for batch_id in batch_ids:
        repository.forget(batch_id)
    objects = _erase_objects(store, tenant)
    job_ids = _members(redis, keys.jobs(tenant))
    for job_id in job_ids:
        jobs(calls.erase(job_id, tenant))
    _erase_rest(redis, keys, tenant, [*job_ids, *batch_ids])
    objects += _erase_objects(store, tenant)  # a controller may have recorded an end meanwhile
    return Erased(len(revoked), len(job_ids), len(batch_ids), objects)


def _end_all(jobs: Jobs, keys: Keys, tenant: str, ttl_s: int, until_s: float) -> None:
    repository = BatchRepository(jobs, keys, ttl_s)
    while True:
        batches = [one for one in repository.newest(tenant, 10_000) if not one.status.ended]
        for batch in batches:
            if batch.status in {BatchStatus.IN_PROGRESS, BatchStatus.PAUSED}:
                repository.move(batch, BatchStatus.CANCELING)
        unfinished = _members(jobs.redis, keys.in_flight(tenant))
        for job_id in unfinished:
            jobs(calls.cancel(job_id, tenant))
        unfinished = _members(jobs.redis, keys.in_flight(tenant))
        if not unfinished and not batches:
            return
        if time.monotonic() > until_s:
            raise Conflict(
                f"{len(unfinished)} jobs and {len(batches)} batches of tenant {tenant} are canceled and have not ended "
                "yet; its keys are revoked. Let a controller and the workers run, and call this again"
            )
        time.sleep(_PAUSE_S)


def _erase_objects(store: Store, tenant: str) -> int:
    return sum(store.delete_prefix(f"{kind}/{tenant}") for kind in ("songs", "uploads", "batches"))


def _erase_rest(redis: Redis, keys: Keys, tenant: str, names: Sequence[str]) -> None:
    """What is indexed by the tenant, and entries of its jobs and batches elsewhere."""
    today = day_number(redis_time(redis).date())
    usage = [keys.usage(tenant, day) for day in range(today - DAYS_KEPT - 1, today + 2)]
    with redis.pipeline(transaction=False) as pipe:
        for first in range(0, len(names), _CHUNK):
            pipe.zrem(keys.webhooks, *names[first : first + _CHUNK])
            pipe.zrem(keys.unrecorded, *names[first : first + _CHUNK])
        pipe.delete(keys.jobs(tenant), keys.in_flight(tenant), keys.running(tenant), keys.tenant_batches(tenant))
        pipe.delete(keys.rate(tenant), *usage)
        pipe.hdel(keys.tenants, tenant)
        pipe.execute()


def _members(redis: Redis, index: str) -> list[str]:
    found: Any = redis.zrange(index, 0, -1)
    return [text(each) for each in found]
