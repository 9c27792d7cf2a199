"""Enters in Redis what only the store remembers: after Redis was lost, every job with a record can be listed again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError
from rq import Queue
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer

from api.batches.book import Book
from api.batches.shelf import Shelf
from api.maintenance.closing import close
from api.queue.entry import job_kwargs
from api.queue.sighting import job_of_record
from serinette.batch import BatchHeader, LineStatus
from serinette.errors import NotFound
from serinette.job import Record, now
from serinette.ledger import Ledger, Outcome
from serinette.names import CONTAIN_TASK, SING_TASK, queue_name
from serinette.store import Store

log = logging.getLogger(__name__)


class Restore:
    """One pass over the store. May be repeated, and may run while the house serves: what Redis knows is left alone."""

    def __init__(self, redis: Redis, store: Store, ledger: Ledger) -> None:
        self._redis = redis
        self._store = store
        self._ledger = ledger
        self._shelf = Shelf(store)

    def __call__(self) -> int:
        """How many jobs Redis knows again.

        Raises:
            StoreUnavailable, RedisError: it was cut short; begin again.
        """
        count = sum(self._enter(record) for record in self._records())
        self._enter_batches()  # behind the jobs: a line whose job Redis knows is not released again
        log.info("restored jobs=%d", count)
        return count

    def _enter_batches(self) -> None:
        """Have every batch that has not ended go on from its first line: those that have jobs are gone over quickly."""
        rounds: dict[str, int] = {}
        for found in self._store.list("batches"):
            owner, _, results = found.key.partition("/results/")
            name = "/".join(owner.split("/")[1:3])
            rounds[name] = max(rounds.get(name, 0), int(results[:4] or 0))
        for name, round in rounds.items():
            with suppress(NotFound):
                self._enter_batch(self._shelf.header(*name.split("/")), round)

    def _enter_batch(self, header: BatchHeader, round: int) -> None:
        with suppress(NotFound):
            if self._shelf.ended(header.tenant, header.id).round >= round:
                return
        before = (line for part in range(header.parts) for line in self._shelf.results(header, round - 1, part))
        completed = sum(line.status is LineStatus.SUCCEEDED for line in before) if round else 0
        book = Book(self._redis, self._ledger.keys, self._ledger.ttl_s)
        if book.enter(header, header.total + 2**31, round=round, completed=completed, restored=1):
            log.info("restored batch=%s round=%d", header.id, round)

    def _records(self) -> Iterator[Record]:
        for found in self._store.list("songs"):
            if not found.key.endswith("/job.json"):
                continue
            try:
                yield Record.model_validate_json(self._store.get(found.key))
            except NotFound:  # retention took it just now
                continue
            except ValidationError as error:
                log.warning("%s cannot be read: %s", found.key, error)

    def _enter(self, record: Record) -> bool:
        left_s = int((record.ended_at + timedelta(seconds=self._ledger.ttl_s) - now()).total_seconds())
        keys, job_id = self._ledger.keys, record.job_id
        if left_s <= 0:  # about to be deleted
            return False
        job, queue = self._job(record, left_s)
        with self._redis.pipeline() as pipe:
            try:
                pipe.watch(job.key, keys.ledger(job_id))  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                if pipe.exists(job.key, keys.ledger(job_id)):
                    return False
                pipe.multi()
                job.save(pipeline=pipe)
                pipe.sadd(Queue.redis_queues_keys, queue.key)
                self._enter_ledger(record, left_s, pipe)
                close(job, queue, Outcome.of(record), left_s, pipe)
                pipe.execute()
            except WatchError:  # submitted once more just now
                return False
        return True

    def _enter_ledger(self, record: Record, left_s: int, pipe: Pipeline) -> None:
        """Not by settling: no usage is counted twice, and no webhook is told again."""
        keys, job_id, attempt = self._ledger.keys, record.job_id, record.attempt
        fields: dict[Any, Any] = {
            "tenant": record.tenant,
            "pool": record.pool,
            "outcome": record.status,
            "attempts": attempt.number,
            f"attempt:{attempt.number}": attempt.model_dump_json(),
            "ended_at": record.ended_at.isoformat(),
        }
        if usage := job_of_record(record).usage:
            fields["usage"] = usage.model_dump_json()
        if record.run:
            fields["run"] = record.run.model_dump_json()
        if record.error:
            fields["error"] = record.error.model_dump_json()
        pipe.hset(keys.ledger(job_id), mapping=fields)
        pipe.expire(keys.ledger(job_id), left_s)
        pipe.xadd(keys.events(job_id), {"type": record.status, "data": Outcome.of(record).event()})
        pipe.expire(keys.events(job_id), left_s)
        pipe.zadd(keys.jobs(record.tenant), {job_id: record.created_at.timestamp()})

    def _job(self, record: Record, left_s: int) -> tuple[RqJob, Queue]:
        lane = Queue(queue_name(record.pool, record.lane), connection=self._redis, serializer=JSONSerializer)
        job = RqJob.create(
            CONTAIN_TASK if record.container else SING_TASK,
            kwargs=job_kwargs(record.job_id, record.spec, record.container),
            id=record.job_id,
            connection=self._redis,
            serializer=JSONSerializer,
            origin=lane.name,
            status=RqStatus.STARTED,
            result_ttl=left_s,
            failure_ttl=left_s,  # RQ's own is a year, and the reason of a failure it would keep for ever
            description="a container" if record.container else "a song",
            meta={
                "tenant": record.tenant,
                "pool": record.pool,
                "lane": record.lane,
                "labels": record.labels,
                "dialect": record.dialect,
                "digest": record.digest,
                "timeout_s": None,
                "created_at": record.created_at.isoformat(),
            },
        )
        job.created_at, job.started_at, job.ended_at = record.created_at, record.started_at, record.ended_at
        return job, lane
