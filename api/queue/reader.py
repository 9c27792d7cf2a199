"""What Redis knows of jobs and pools, read in as few round trips as there are questions. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job as RqJob
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.results import Result as RqResult
from rq.serializers import JSONSerializer

from api.holdups import Holdup
from api.queue.cursors import Cursor
from api.queue.explain import Place, Pool, eta_s, waiting_for
from api.queue.sighting import Sighting
from serinette.brake import in_force
from serinette.job import Job, JobStatus, Result, now
from serinette.ledger import Entry, Ledger
from serinette.names import Lane, queue_name
from serinette.pools import PoolFacts, of_name
from serinette.presence import Pace, Presence, present

# LPOS of a million waiting jobs takes 21 ms of Redis's one thread: places are sought near the head only.
POSITION_DEPTH = 1_000
# A filtered list looks at so many jobs in one request, at most so many at a time, before it hands out a cursor instead.
SCAN_LIMIT = 2_000
SCAN_CHUNK = 200

# Counting a registry through RQ reaps it as a side effect: only the names of their keys are RQ's here.
_ENDED = (FinishedJobRegistry, FailedJobRegistry, CanceledJobRegistry)


class Reader:
    """Reads of jobs and pools on one Redis."""

    def __init__(self, redis: Redis, ledger: Ledger, told: Sequence[PoolFacts] = ()) -> None:
        """`told`: the pools that are known without their workers."""
        self._redis = redis
        self._told = told
        self._ledger = ledger
        self._keys = ledger.keys

    def see(self, job_ids: Sequence[str]) -> list[Sighting | None]:
        """Each job as Redis holds it, in one round trip; None for those it does not."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(RqJob.key_for(job_id))
                self._ledger.read_into(job_id, pipe)
                pipe.xrevrange(_results_key(job_id), count=1)
            raw = pipe.execute()
        return [self._sighting(job_id, raw[3 * i : 3 * i + 3]) for i, job_id in enumerate(job_ids)]

    def scan(self, tenant: str, after: Cursor | None, limit: int) -> Iterator[tuple[Cursor, Sighting | None]]:
        """The tenant's jobs behind a cursor, newest first, no more than SCAN_LIMIT of them; `limit` will likely do."""
        index = self._keys.jobs(tenant)
        start = self._start(index, after)
        first, chunk = start, min(limit, SCAN_CHUNK)
        while first < start + SCAN_LIMIT:
            chunk = min(chunk, start + SCAN_LIMIT - first)
            rows: Any = self._redis.zrange(index, first, first + chunk - 1, desc=True, withscores=True)
            ids = [job_id.decode() for job_id, _ in rows]
            for job_id, (_, score), sighting in zip(ids, rows, self.see(ids), strict=True):
                yield Cursor(job_id, score), sighting
            if len(rows) < chunk:
                return
            first, chunk = first + chunk, min(2 * chunk, SCAN_CHUNK)

    def more(self, tenant: str, after: Cursor) -> bool:
        """Whether the tenant has jobs behind the cursor."""
        index = self._keys.jobs(tenant)
        return self._start(index, after) < int(self._redis.zcard(index))

    def workers(self) -> tuple[Presence, ...]:
        """All workers that are up, of all pools."""
        return tuple(present(self._redis, self._keys))

    def pools(self, names: Sequence[str], workers: Sequence[Presence]) -> dict[str, Pool]:
        """Counts of each pool, in one round trip."""
        return self._pools_and_indexes(names, workers, ())[0]

    def explained(self, jobs: Sequence[Job]) -> tuple[Job, ...]:
        """The jobs; those that have not ended with place, ETA and what they wait for."""
        names = sorted({job.pool for job in jobs if not job.status.ended})
        if not names:
            return tuple(jobs)
        queued = [job for job in jobs if job.status is JobStatus.QUEUED]
        pools, indexes = self._pools_and_indexes(names, self.workers(), queued)
        return tuple(job if job.status.ended else _explain(job, indexes.get(job.id), pools[job.pool]) for job in jobs)

    def _sighting(self, job_id: str, raw: Sequence[Any]) -> Sighting | None:
        fields, entry, results = raw
        rq_job = RqJob(job_id, self._redis, JSONSerializer)
        try:
            rq_job.restore(fields)
        except NoSuchJobError:
            return None
        result = None
        for result_id, payload in results:
            last = RqResult.restore(job_id, result_id.decode(), payload, self._redis, JSONSerializer)
            if last.type is RqResult.Type.SUCCESSFUL and last.return_value:
                result = Result.model_validate(last.return_value)
        status = rq_job.get_status(refresh=False)
        return Sighting(
            job_id,
            status.value,
            rq_job.meta,
            rq_job.kwargs["spec"],
            result,
            Entry.parse(entry),
            rq_job.kwargs.get("container"),
        )

    def _start(self, index: str, after: Cursor | None) -> int:
        if after is None:
            return 0
        rank: Any = self._redis.zrevrank(index, after.job_id)
        if rank is None:  # erased since: go on behind all that are newer
            return int(self._redis.zcount(index, f"({after.score}", "+inf"))
        return int(rank) + 1

    def _pools_and_indexes(
        self, names: Sequence[str], workers: Sequence[Presence], queued: Sequence[Job]
    ) -> tuple[dict[str, Pool], dict[str, int | None]]:
        """The pools, and where in their lanes the jobs are, near the head."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job in queued:
                lane = Queue(queue_name(job.pool, job.lane), self._redis, serializer=JSONSerializer)
                pipe.lpos(lane.key, job.id, maxlen=POSITION_DEPTH)
            for name in names:
                self._count_into(name, pipe)
            raw = pipe.execute()
        indexes, counts = raw[: len(queued)], raw[len(queued) :]
        size = len(counts) // len(names) if names else 0
        pools = {
            name: _pool(name, counts[i * size : (i + 1) * size], workers, of_name(self._told, name))
            for i, name in enumerate(names)
        }
        return pools, dict(zip((job.id for job in queued), indexes, strict=True))

    def _count_into(self, pool: str, pipe: Pipeline) -> None:
        at = now().timestamp()
        queues = [Queue(queue_name(pool, lane), self._redis, serializer=JSONSerializer) for lane in Lane]
        for queue in queues:
            pipe.llen(queue.key)
            pipe.zcard(StartedJobRegistry(queue=queue).key)
            for registry in _ENDED:
                pipe.zcount(registry(queue=queue).key, at, "+inf")
        pipe.hmget(self._keys.pace(pool), [Pace.RUN, Pace.COLD_START])
        pipe.smembers(self._keys.brake(pool))
        pipe.hget(self._keys.holdups, pool)


def _results_key(job_id: str) -> str:
    return str(RqResult.get_key(job_id))  # type: ignore[no-untyped-call]  # RQ ships it untyped


def _pool(name: str, raw: Sequence[Any], workers: Sequence[Presence], told: PoolFacts | None) -> Pool:
    *counts, (pace_s, cold_start_s), reasons, holdup = raw
    waiting, running, succeeded, failed, canceled = (counts[i::5] for i in range(5))
    return Pool(
        name=name,
        waiting=dict(zip(Lane, waiting, strict=True)),
        running=sum(running),
        succeeded=sum(succeeded),
        unsuccessful=sum(failed) + sum(canceled),
        workers=tuple(worker for worker in workers if worker.pool == name),
        pace_s=None if pace_s is None else float(pace_s),
        cold_start_s=None if cold_start_s is None else float(cold_start_s),
        brake=in_force(reasons),
        holdup=None if holdup is None else Holdup.model_validate_json(holdup),
        told=told,
    )


def _explain(job: Job, index: int | None, pool: Pool) -> Job:
    place = Place(index, deep=index is None and pool.waiting[job.lane] > POSITION_DEPTH)
    at = now()
    return job.model_copy(
        update={
            "position": None if index is None else index + 1,
            "eta_s": eta_s(job, place, pool, at),
            "waiting_for": waiting_for(job, place, pool, at),
        }
    )
