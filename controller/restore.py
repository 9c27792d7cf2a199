"""Enters in Redis what only the store remembers: after Redis was lost, every job with a record can be listed again."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from itertools import islice

from pydantic import ValidationError
from redis import Redis

from serinette.batch import BatchHeader, LineStatus
from serinette.batches.lines import BatchFiles
from serinette.batches.repository import BatchRepository
from serinette.errors import NotFound
from serinette.job import Record, now
from serinette.jobs import Call, Jobs, calls
from serinette.jobs.calls import BatchEntry
from serinette.names import Keys
from serinette.store import Store

log = logging.getLogger(__name__)

_CHUNK = 100
_TOGETHER = 16


class Restore:
    """One pass over the store. May be repeated, and may run while the rest serves: what Redis knows is left alone."""

    def __init__(self, redis: Redis, store: Store, keys: Keys, retention_s: int) -> None:
        self._redis = redis
        self._keys = keys
        self._jobs = Jobs(redis, keys.prefix)
        self._store = store
        self._retention_s = retention_s
        self._files = BatchFiles(store)

    def __call__(self) -> int:
        """How many jobs Redis knows again.

        Raises:
            StoreUnavailable, RedisError: it was cut short; begin again.
        """
        count = 0
        names = (found.key for found in self._store.list("songs") if found.key.endswith("/job.json"))
        with ThreadPoolExecutor(_TOGETHER) as threads:
            while chunk := list(islice(names, _CHUNK)):
                entering = list(filter(None, threads.map(self._enter, chunk)))
                count += sum(self._jobs.many(entering)) if entering else 0
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
                self._enter_batch(self._files.header(*name.split("/")), round)

    def _enter_batch(self, header: BatchHeader, round: int) -> None:
        with suppress(NotFound):
            if self._files.ended(header.tenant, header.id).round >= round:
                return
        before = (line for part in range(header.parts) for line in self._files.results(header, round - 1, part))
        completed = sum(line.status is LineStatus.SUCCEEDED for line in before) if round else 0
        repository = BatchRepository(self._jobs, self._keys, self._retention_s)
        entered = repository.enter(header, header.total + 2**31, round=round, completed=completed, restored=1)
        if entered is BatchEntry.NEW:
            log.info("restored batch=%s round=%d", header.id, round)

    def _enter(self, key: str) -> Call[bool] | None:
        try:
            record = Record.model_validate_json(self._store.get(key))
        except NotFound:  # retention took it just now
            return None
        except ValidationError as error:
            log.warning("%s cannot be read: %s", key, error)
            return None
        left_s = int((record.ended_at + timedelta(seconds=self._retention_s) - now()).total_seconds())
        return calls.restore(record, left_s) if left_s > 0 else None  # or it is about to be deleted
