"""Walks over all keys, slowly: every job that RQ would keep for ever is a live one, and nothing else stays for ever."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis import Redis
from rq.job import JOB_ID_PATTERN
from rq.job import Job as RqJob
from rq.utils import str_to_date

from api.maintenance.lanes import is_lane
from serinette.job import now
from serinette.names import Keys
from serinette.outbox import Outbox

# Keys looked at in one step: about a millisecond of Redis.
_STEP = 1_000
_NO_EXPIRY = -1


class Strays:
    """The last net: whatever died between whichever two writes, its traces are found here within a walk."""

    def __init__(self, redis: Redis, keys: Keys, retention_s: int) -> None:
        self._redis = redis
        self._keys = keys
        self._retention_s = retention_s
        self._outbox = Outbox(redis, keys)
        self._cursor = 0

    def step(self) -> bool:
        """Look at the next keys; True at the end of a walk."""
        answer: Any = self._redis.scan(self._cursor, count=_STEP)
        self._cursor, found = int(answer[0]), [key.decode() for key in answer[1]]
        self._reenter(_ids(found, RqJob.redis_job_namespace_prefix))
        self._post(_ids(found, self._keys.ledger("")))
        for family in (self._keys.ledger, self._keys.events):
            self._expire({family(job_id): job_id for job_id in _ids(found, family(""))})
        for tenant in _ids(found, self._keys.jobs("")):
            self._prune(self._keys.jobs(tenant))
        return self._cursor == 0

    def _reenter(self, job_ids: list[str]) -> None:
        """Enter among the live ones each job of ours that neither is there nor will expire."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.ttl(RqJob.key_for(job_id))
                pipe.zscore(self._keys.live, job_id)
                pipe.hmget(RqJob.key_for(job_id), ["origin", "created_at"])
            answers = pipe.execute()
        for job_id, ttl, live, (origin, created) in zip(job_ids, *_columns(answers, 3), strict=True):
            if ttl == _NO_EXPIRY and live is None and origin and is_lane(origin.decode()):
                submitted = str_to_date(created) if created else now()
                self._redis.zadd(self._keys.live, {job_id: submitted.timestamp()}, nx=True)

    def _post(self, job_ids: list[str]) -> None:
        """Enter in the outbox each end that nobody tried to tell: a worker of before webhooks has settled the job."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(self._keys.ledger(job_id), ["webhook", "outcome", "deliveries"])
            answers = pipe.execute()
        for job_id, (webhook, outcome, deliveries) in zip(job_ids, answers, strict=True):
            if webhook and outcome and deliveries is None:
                self._outbox.post(job_id)  # which looks again: it may be told at this very moment

    def _expire(self, owners: dict[str, str]) -> None:
        """Give an end to each key of ours that belongs to no job."""
        with self._redis.pipeline(transaction=False) as pipe:
            for key, job_id in owners.items():
                pipe.ttl(key)
                pipe.zscore(self._keys.live, job_id)
                pipe.exists(RqJob.key_for(job_id))
            answers = pipe.execute()
        for key, ttl, live, known in zip(owners, *_columns(answers, 3), strict=True):
            if ttl == _NO_EXPIRY and live is None and not known:
                self._redis.expire(key, self._retention_s, nx=True)

    def _prune(self, index: str) -> None:
        """Drop the jobs that RQ has forgotten from a tenant's list."""
        old: Any = self._redis.zrangebyscore(index, "-inf", now().timestamp() - self._retention_s)
        for first in range(0, len(old), _STEP):
            chunk = old[first : first + _STEP]
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in chunk:
                    pipe.exists(RqJob.key_for(job_id.decode()))
                gone = [job_id for job_id, known in zip(chunk, pipe.execute(), strict=True) if not known]
            if gone:
                self._redis.zrem(index, *gone)


def _ids(keys: Iterable[str], prefix: str) -> list[str]:
    ids = (key.removeprefix(prefix) for key in keys if key.startswith(prefix))
    return [found for found in ids if JOB_ID_PATTERN.fullmatch(found)]


def _columns(answers: list[Any], width: int) -> list[list[Any]]:
    return [answers[column::width] for column in range(width)]
