"""Has the store say what became of each job: that it ended without a song, and of its songs the winner's alone."""

from __future__ import annotations

import logging
import time
from typing import Any

from redis import Redis
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from api.maintenance.closing import without_song
from api.maintenance.trouble import Trouble
from serinette.errors import InvalidSpec, NotFound, StoreUnavailable
from serinette.job import JobStatus, Record
from serinette.ledger import Entry, Ledger, Outcome
from serinette.names import record_key, song_prefix
from serinette.store import Store

log = logging.getLogger(__name__)

_CHUNK = 50
# A store that is down takes seconds to say so, and the round must go on.
_STORE_PAUSE_S = 10.0


class Records:
    """Whoever ends a job while an earlier attempt of it may only be frozen asks the store first, if it is there. Where
    it was not (a slot that must not wait), or could not be asked (a cancel at the gateway), the ledger has decided
    alone; then the job is among the unrecorded, and the store is told here. A song that got in between is taken back:
    clients were told otherwise. And a slot that died between its song and its record has left a song that is nobody's.
    """

    def __init__(self, redis: Redis, ledger: Ledger, store: Store) -> None:
        self._redis = redis
        self._ledger = ledger
        self._store = store
        self._trouble = Trouble(log, "recording ends")
        self._next_s = 0.0

    def step(self) -> None:
        """Record some. Raises RedisError; a store that is away is waited for."""
        if time.monotonic() < self._next_s:
            return
        found: Any = self._redis.zrange(self._ledger.keys.unrecorded, 0, _CHUNK - 1)
        try:
            for job_id in found:
                self._tell(job_id.decode())
        except StoreUnavailable as error:
            self._trouble.note(error)
            self._next_s = time.monotonic() + _STORE_PAUSE_S
        else:
            self._trouble.note(None)

    def _tell(self, job_id: str) -> None:
        entry = self._ledger.read(job_id)
        if entry.tenant and entry.outcome:
            if record := self._record(job_id, entry):
                self._put(record)
            self._clear(entry.tenant, job_id)
            if self._ledger.read(job_id).outcome is None:  # erased meanwhile
                self._store.delete_prefix(song_prefix(entry.tenant, job_id))
        self._redis.zrem(self._ledger.keys.unrecorded, job_id)

    def _clear(self, tenant: str, job_id: str) -> None:
        """Erase songs that the record does not name. From the record on no other attempt can win."""
        try:
            record = Record.model_validate_json(self._store.get(record_key(tenant, job_id)))
        except NotFound:
            return
        kept = {record_key(tenant, job_id), *record.keys}
        for found in self._store.list(song_prefix(tenant, job_id)):
            if found.key not in kept:
                self._store.delete(found.key)
                log.info("deleted key=%s: the song of an attempt that did not win", found.key)

    def _record(self, job_id: str, entry: Entry) -> Record | None:
        if entry.outcome in {None, JobStatus.SUCCEEDED} or not entry.attempts or not entry.tenant:
            return None
        outcome = Outcome(entry.outcome, entry.error, run=entry.run)
        try:
            job = RqJob.fetch(job_id, self._redis, JSONSerializer)
            return without_song(job, entry.tenant, entry.attempts[-1], outcome, entry.ended_at)
        except (NoSuchJobError, DeserializationError, InvalidSpec, LookupError, TypeError) as error:
            log.warning("job=%s ended, and stays without a record: %s", job_id, error)
            return None

    def _put(self, record: Record) -> None:
        key, text = record_key(record.tenant, record.job_id), record.model_dump_json().encode()
        if self._store.put_if_absent(key, text):
            log.info("recorded job=%s %s", record.job_id, record.status)
            return
        known = Record.model_validate_json(self._store.get(key))
        if known.status is record.status:
            return
        log.warning("job=%s has %s; a record of %s came later and goes", record.job_id, record.status, known.status)
        self._store.put(key, text)
        for lost in known.keys:
            self._store.delete(lost)
