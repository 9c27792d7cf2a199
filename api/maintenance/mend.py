"""Carries out what the plan says about one job: read, decide and write as one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from api.maintenance.closing import adopted, close, lost, without_song
from api.maintenance.homes import Homes
from api.maintenance.lanes import lane_queue
from api.maintenance.plan import ASK_STORE_FIRST, Action, Situation, decide
from api.maintenance.trouble import Trouble
from serinette.errors import NotFound, StoreUnavailable
from serinette.job import AttemptOutcome, JobError, JobStatus, Record, now
from serinette.ledger import Entry, Ledger, Outcome
from serinette.names import Lane, queue_name, record_key
from serinette.store import Store

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Ends without a song, of jobs that an attempt held.
_BARS: dict[Action, Callable[[Entry], Outcome]] = {
    Action.FAIL: lambda entry: Outcome(JobStatus.FAILED, lost(entry, last=True)),
    Action.CANCEL: lambda _: Outcome(JobStatus.CANCELED),
}
_BARRED = frozenset({*_BARS, Action.STRAND})

# A job that changes under our eyes so often is alive.
_TRIES = 5
# A store that is down takes seconds to say so; jobs that need no answer of it must not wait for those that do.
_STORE_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Patient:
    """A job that may be in trouble."""

    job_id: str
    lane: str | None = None  # queue that its executions are registered in, should RQ have lost the job
    # Executions (`job:execution`) whose heartbeat stopped, with the score it stopped at.
    silent: Mapping[str, float] = field(default_factory=dict)
    homeless: bool = False  # its pool was removed


@dataclass(frozen=True, slots=True)
class _Case:
    """One job as read inside the watch, and what the plan makes of it."""

    job_id: str
    job: RqJob | None
    queue: Queue | None
    entry: Entry
    silent: tuple[str, ...]  # members of the started registry to take out
    seen: Situation


class Mender:
    """Mends one job at a time; any number of replicas may do so at once.

    Everything is written in one MULTI under a WATCH on the job's two hashes. Every claim, heartbeat, retry and end
    writes at least one of them, so whoever moves the job in between makes this attempt start over.
    """

    def __init__(self, redis: Redis, ledger: Ledger, store: Store, homes: Homes | None = None) -> None:
        self._redis = redis
        self._homes = homes or Homes()
        self._ledger = ledger
        self._store = store
        self._trouble = Trouble(log, "asking the store")
        self._ask_again_s = 0.0

    def mend(self, patient: Patient) -> Action:
        """Do what the job needs; what was done.

        Raises:
            StoreUnavailable: the store must be asked first and does not answer; nothing was written.
        """
        job_id = patient.job_id
        for _ in range(_TRIES):
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                        RqJob.key_for(job_id), self._ledger.keys.ledger(job_id)
                    )
                    case = self._read(pipe, patient)
                    action, record = self._decide(case)
                    if action is Action.LEAVE and not case.silent:
                        return action
                    pipe.multi()
                    self._write(pipe, case, action, record)
                    pipe.execute()
                except WatchError:
                    continue
            log.info("%s job=%s attempts=%d silent=%d", action, job_id, len(case.entry.attempts), len(case.silent))
            return action
        return Action.LEAVE

    def _read(self, pipe: Pipeline, patient: Patient) -> _Case:
        job_id = patient.job_id
        entry = Entry.parse(pipe.hgetall(self._ledger.keys.ledger(job_id)))
        job = self._restored(job_id, pipe.hgetall(RqJob.key_for(job_id)), entry)
        name = job.origin if job else patient.lane
        queue = lane_queue(name, self._redis) if name else None
        held = _executions(pipe, queue, job_id) if queue else {}
        dead = tuple(member for member, score in held.items() if patient.silent.get(member) == score)
        at = now().timestamp()
        submitted: float | None = pipe.zscore(self._ledger.keys.live, job_id)
        seen = Situation(
            status=job.get_status(refresh=False) if job else None,
            waiting=queue is not None and _waits(pipe, queue, job_id, at),
            beating=len(held) > len(dead),
            can_retry=job is not None and job.should_retry,
            outcome=entry.outcome,
            cancel_requested=entry.cancel_requested,
            owner=entry.owner,
            expired=entry.expired(now()),
            homeless=patient.homeless,
            has_home=patient.homeless and job is not None and self._homes.of(job) is not None,
            age_s=at - submitted if submitted is not None else 0.0,
        )
        return _Case(job_id, job, queue, entry, dead, seen)

    def _restored(self, job_id: str, raw: Mapping[Any, Any], entry: Entry) -> RqJob | None:
        job = RqJob(job_id, self._redis, JSONSerializer)
        try:
            job.restore(raw)
        except NoSuchJobError:
            return None
        except Exception:
            if entry.outcome is None:
                raise  # a slot will settle it when it meets it; perhaps a newer one can read it
            return None
        return job

    def _decide(self, case: _Case) -> tuple[Action, Record | None]:
        action = decide(case.seen)
        tenant = case.entry.tenant or (case.job and case.job.meta.get("tenant"))
        may_be_sung = action is Action.FORGET or case.entry.attempts
        if action in ASK_STORE_FIRST and tenant and may_be_sung and (record := self._record(tenant, case.job_id)):
            return Action.SUCCEED, record
        if action in _BARRED and tenant and case.job and case.entry.attempts:
            # The attempt that is given up may only be frozen: from now on a song that it records comes too late.
            outcome = self._outcome(case, action)
            key, bar = record_key(tenant, case.job_id), without_song(case.job, tenant, case.entry.attempts[-1], outcome)
            if not self._asked(lambda: self._store.put_if_absent(key, bar.model_dump_json().encode())):
                return self._decide(case)
        return action, None

    def _record(self, tenant: str, job_id: str) -> Record | None:
        key = record_key(tenant, job_id)
        if time.monotonic() < self._ask_again_s:
            raise StoreUnavailable(f"the store did not answer a moment ago; {key} must wait")
        try:
            return Record.model_validate_json(self._asked(lambda: self._store.get(key)))
        except NotFound:
            return None

    def _asked(self, question: Callable[[], Answer]) -> Answer:
        try:
            answer = question()
        except StoreUnavailable as error:
            self._trouble.note(error)
            self._ask_again_s = time.monotonic() + _STORE_PAUSE_S
            raise
        self._trouble.note(None)
        return answer

    def _write(self, pipe: Pipeline, case: _Case, action: Action, record: Record | None) -> None:
        _take_out(pipe, case)
        match action:
            case Action.FINISH if case.entry.outcome:
                self._end(pipe, case, Outcome(case.entry.outcome, case.entry.error))
            case Action.ADOPT if case.seen.status:
                self._end(pipe, case, adopted(case.seen.status, case.entry))
            case Action.CANCEL | Action.FAIL | Action.STRAND:
                self._end(pipe, case, self._outcome(case, action))
            case Action.MOVE:
                self._move(pipe, case)
            case Action.EXPIRE:
                self._end(pipe, case, Outcome(JobStatus.FAILED, case.entry.expiry()))
            case Action.SUCCEED if record:
                self._end(pipe, case, Outcome.of(record))
            case Action.RELEASE:
                self._end_attempt(pipe, case, AttemptOutcome.RETURNED)
            case Action.PUT_BACK:
                _to_front(pipe, case)
            case Action.RETRY if case.job and case.job.retries_left:
                self._end_attempt(pipe, case, AttemptOutcome.FAILED, lost(case.entry, last=False))
                case.job.retries_left -= 1
                _to_front(pipe, case)
            case Action.FORGET if case.entry.tenant:
                self._ledger.forget(case.job_id, case.entry.tenant, pipeline=pipe)
            case Action.FORGET:
                pipe.zrem(self._ledger.keys.live, case.job_id)

    def _outcome(self, case: _Case, action: Action) -> Outcome:
        if action is Action.STRAND and case.job:
            return self._homes.stranded(case.job)
        return _BARS[action](case.entry)

    def _move(self, pipe: Pipeline, case: _Case) -> None:
        """To the back of the lane of its new pool: whoever waits there came for it."""
        if case.job is None or case.queue is None or (pool := self._homes.of(case.job)) is None:
            return
        case.queue.remove(case.job, pipeline=pipe)
        case.job.meta = {**case.job.meta, "pool": pool}
        pipe.hset(self._ledger.keys.ledger(case.job_id), "pool", pool)
        lane = lane_queue(queue_name(pool, Lane(case.queue.name.rpartition(".")[2])), self._redis)
        lane._enqueue_job(case.job, pipeline=pipe)

    def _end(self, pipe: Pipeline, case: _Case, outcome: Outcome) -> None:
        # Once decided, the outcome stays and settling again only takes the job from the live ones.
        self._ledger.settle(case.job_id, outcome, pipeline=pipe)
        if case.job and case.queue:
            close(case.job, case.queue, outcome, self._ledger.ttl_s, pipe)
        else:  # none, or one that cannot be read
            pipe.expire(RqJob.key_for(case.job_id), self._ledger.ttl_s, nx=True)

    def _end_attempt(self, pipe: Pipeline, case: _Case, outcome: AttemptOutcome, error: JobError | None = None) -> None:
        if case.entry.owner:
            self._ledger.end_attempt(case.job_id, case.entry.owner, outcome, error, pipeline=pipe)


def _executions(pipe: Pipeline, queue: Queue, job_id: str) -> dict[str, float]:
    """Executions of a job that its lane takes for running, with the time their heartbeat holds until."""
    entries: Any = pipe.zrange(queue.started_job_registry.key, 0, -1, withscores=True)
    return {entry.decode(): score for entry, score in entries if entry.startswith(f"{job_id}:".encode())}


def _waits(pipe: Pipeline, queue: Queue, job_id: str, at: float) -> bool:
    due: Any = pipe.zscore(queue.scheduled_job_registry.key, job_id)
    return pipe.lpos(queue.key, job_id) is not None or (due is not None and due > at)


def _take_out(pipe: Pipeline, case: _Case) -> None:
    for member in case.silent:
        if case.job:
            Execution.from_composite_key(member, case.job.connection).delete(case.job, pipe)
        elif case.queue:
            pipe.zrem(case.queue.started_job_registry.key, member)


def _to_front(pipe: Pipeline, case: _Case) -> None:
    """Front of its lane, as if it had not been claimed."""
    if case.job and case.queue:
        case.job.started_at = case.job.ended_at = case.job.worker_name = None
        case.queue.scheduled_job_registry.remove(case.job, pipeline=pipe)
        case.queue._enqueue_job(case.job, pipeline=pipe, at_front=True)
