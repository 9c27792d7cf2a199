"""Puts the `job.json` of each job that ended without one, and erases the songs of attempts that did not win.

When the store could not be asked, or need not be, Redis alone has decided an end without a song; then the job is among
the unrecorded until its `job.json` is in the store. A song that was stored meanwhile is deleted, as clients have seen
otherwise. And a slot that died between its song and its record has left a song that belongs to no record.

Erased jobs are among them for a minute: what was being written as they were erased is deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import RedisError

from controller.leader_election import FailureLog
from serinette.errors import StoreUnavailable
from serinette.job import JobStatus, Record
from serinette.jobs import Entry, Jobs, Outcome, Seen, calls
from serinette.jobs.finishing import find_end, put_record, record_of
from serinette.jobs.script import text
from serinette.names import Keys, record_key, song_prefix
from serinette.store import Store

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_CHUNK = 50
# So long after its erasure a job is deleted once more, for a process that died as it wrote.
_AGAIN_S = 60.0
_TOGETHER = 8
# A store that hangs needs ten seconds to say so. The watch over leases must not wait for it: a gap in the watch gives
# every lease another life.
_WAIT_S = 3.0
_PAUSE_S = 10.0


class StoreCalls:
    """Calls the store several times at once, waits for a while at most, and leaves it alone when it is away."""

    def __init__(self, store: Store, wait_s: float = _WAIT_S, pause_s: float = _PAUSE_S) -> None:
        self._store = store
        self._wait_s = wait_s
        self._pause_s = pause_s
        self._threads = ThreadPoolExecutor(_TOGETHER, thread_name_prefix="store")
        self._failures = FailureLog(log, "asking the store")
        self._not_before_s = 0.0

    def run(self, requests: Sequence[Callable[[Store], Answer]]) -> list[Answer | Exception]:
        """The answer to each, or what went wrong: StoreUnavailable where none came. A call may be repeated later."""
        if time.monotonic() < self._not_before_s:
            return [StoreUnavailable("the store did not answer a moment ago") for _ in requests]
        asked = [self._threads.submit(request, self._store) for request in requests]
        done, _ = wait(asked, self._wait_s)
        late = StoreUnavailable(f"the store did not answer within {self._wait_s:g} s")
        for each in asked:
            each.cancel()
        answers: list[Answer | Exception] = []
        for each in asked:
            error = each.exception() if each in done else late
            answers.append(each.result() if error is None else error if isinstance(error, Exception) else late)
        errors = (each for each in answers if isinstance(each, StoreUnavailable) and each is not late)
        away = late if asked and not done else next(errors, None)
        self._failures.note(away)
        self._not_before_s = time.monotonic() + self._pause_s if away else 0.0
        return answers


class UnrecordedEnds:
    """Works off the index of unrecorded ends, some at a time, in any number of replicas."""

    def __init__(self, jobs: Jobs, keys: Keys, store_calls: StoreCalls, most: int = _CHUNK) -> None:
        """`most`: looked at in one round."""
        self._jobs = jobs
        self._keys = keys
        self._store_calls = store_calls
        self._most = most

    def __call__(self) -> int:
        """Record some ends; how many. Raises RedisError; what a store that is away does not answer waits."""
        seconds, micros = self._jobs.redis.time()
        found: Any = self._jobs.redis.zrange(
            self._keys.unrecorded, "-inf", seconds + micros / 1e6, byscore=True, offset=0, num=self._most
        )
        if not found:
            return 0
        ids = [job_id.decode() for job_id in found]
        # To the end of what is due: those that the store does not answer hide no others.
        self._jobs.redis.zadd(self._keys.unrecorded, dict.fromkeys(ids, seconds), xx=True)
        requests: dict[str, Callable[[Store], bool]] = {}
        found_jobs: list[Seen] = self._jobs(calls.look(ids))
        for job_id, seen in zip(ids, found_jobs, strict=True):
            if seen.entry is not None and seen.entry.status.ended:
                requests[job_id] = partial(self._record, seen.entry, seconds)
            elif seen == Seen() and (erased := self._jobs.redis.get(self._keys.erased_job(job_id))):
                requests[job_id] = partial(self._delete_again, job_id, text(erased), seconds)
            else:  # forgotten, or submitted anew
                self._drop(job_id, seconds)
        answers = self._store_calls.run(list(requests.values()))
        for job_id, answer in zip(requests, answers, strict=True):
            if isinstance(answer, Exception) and not isinstance(answer, StoreUnavailable | RedisError):
                log.error("job=%s ended, and stays without a record", job_id, exc_info=answer)
                self._drop(job_id, seconds)
        return sum(answer is True for answer in answers)

    def _record(self, entry: Entry, at: int, store: Store) -> bool:
        """In a thread that may outlive its round: so the thread itself asks whether the job was erased meanwhile."""
        if record_end(entry, store):
            return self._jobs(calls.recorded(entry)) == "marked"
        self._drop(entry.id, at)
        return False

    def _delete_again(self, job_id: str, erased: str, at: int, store: Store) -> bool:
        """Delete what was written as, or after, the job was erased: now, and once more after a minute."""
        erased_at, tenant = erased.split(" ")
        found = [each.key for each in store.list(song_prefix(tenant, job_id))]
        if self._jobs(calls.look([job_id])) == [Seen()]:
            for key in found:
                store.delete(key)
        again_at = float(erased_at) + _AGAIN_S
        self._drop(job_id, at, again_at if again_at > at else None)
        return False

    def _drop(self, job_id: str, at: int, again_at: float | None = None) -> None:
        """Take an id out of the index, or until `again_at`, unless it was entered anew since `at`."""
        index = self._keys.unrecorded
        change = ("ZREM", index, job_id) if again_at is None else ("ZADD", index, again_at, job_id)
        self._jobs(calls.guarded([(("ZSCORE", index, job_id), at)], [change]))


def record_end(entry: Entry, store: Store) -> bool:
    """Have the store say what Redis says of an ended job; False of a song whose record is not there.

    Raises:
        StoreUnavailable: it does not answer. And whatever a spec that cannot be read raises.
    """
    record = _put(entry, store)
    if record is not None and entry.attempts:
        _erase_others(store, record)
    return record is not None


def _put(entry: Entry, store: Store) -> Record | None:
    if entry.status is JobStatus.SUCCEEDED:
        return find_end(store, entry)
    last = entry.attempts[-1] if entry.attempts else None
    ours = record_of(entry, last, Outcome(entry.status, entry.error, run=entry.run), entry.ended_at)
    known = put_record(store, ours, entry)
    if known.status is entry.status:
        return known
    log.warning("job=%s is %s; a later record that says %s is replaced", entry.id, entry.status, known.status)
    store.put(record_key(entry.tenant, entry.id), ours.model_dump_json().encode())
    for lost in known.keys:
        store.delete(lost)
    return ours


def _erase_others(store: Store, record: Record) -> None:
    """Erase songs that the record does not name. From the record on no other attempt can win."""
    kept = {record_key(record.tenant, record.job_id), *record.keys}
    for found in store.list(song_prefix(record.tenant, record.job_id)):
        if found.key not in kept:
            store.delete(found.key)
            log.info("deleted key=%s: the song of an attempt that did not win", found.key)
