"""What RQ leaves behind in its registries, and clears only by workers that reap by its own rules."""

from __future__ import annotations

from typing import Any

from redis import Redis
from rq import Queue
from rq.group import Group
from rq.job import Job as RqJob
from rq.worker_registration import clean_worker_registry

from api.maintenance.lanes import lanes
from serinette.job import now
from serinette.names import Keys

_CHUNK = 1_000


def clear(redis: Redis, keys: Keys, retention_s: int) -> None:
    """Forget expired ids and dead workers; give every canceled job an end."""
    for queue in lanes(redis):
        queue.finished_job_registry.cleanup()
        queue.failed_job_registry.cleanup()
        _expire_canceled(redis, queue, retention_s)
        clean_worker_registry(queue)
        # RQ fills it for workers of a single queue. Whoever is in it and in no other place is an orphan, and swept.
        redis.delete(queue.intermediate_queue_key)
    Group.clean_registries(redis)  # RQ gives groups no end: they go with the last of their jobs
    redis.zremrangebyscore(keys.workers, "-inf", now().timestamp())


def _expire_canceled(redis: Redis, queue: Queue, retention_s: int) -> None:
    """RQ keeps canceled hashes for ever and scores them with the time of the cancel; ours with that of their end."""
    registry, at = queue.canceled_job_registry.key, now().timestamp()
    while True:
        due: Any = redis.zrangebyscore(registry, "-inf", at, start=0, num=_CHUNK)
        if not due:
            return
        with redis.pipeline() as pipe:
            for job_id in due:
                pipe.expire(RqJob.key_for(job_id.decode()), retention_s, nx=True)
            pipe.zrem(registry, *due)
            pipe.execute()
