"""The two entries that a slot makes in the books, RQ's and the ledger's: it takes a job, and it ends an attempt.

Each is one MULTI under a WATCH on what decides it. So whoever is killed, wherever, leaves a job that is either in its
lane, or held with a heartbeat that the reaper watches, or ended in both books; and whoever lost the job meanwhile
writes nothing. RQ's own handlers do neither: their claim is three transactions, their failure handler forgets a job if
Redis is away, and two executions of one job both finalise it.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING

from redis.client import Pipeline
from redis.exceptions import ResponseError, WatchError
from rq.executions import Execution
from rq.job import Job
from rq.job import JobStatus as RqStatus
from rq.queue import Queue
from rq.worker.base import WorkerStatus

from gpu_worker.slot.counting import count_claim, count_song
from gpu_worker.slot.drain import Drain
from gpu_worker.slot.hold import Hold
from gpu_worker.slot.verdict import Ending, Verdict, is_suspect
from serinette import busy, logs, traces
from serinette.job import Attempt, AttemptOutcome, JobStatus, Result, now
from serinette.ledger import Entry, Ledger, Outcome, Terms

if TYPE_CHECKING:
    from gpu_worker.slot.worker import SlotWorker

log = logging.getLogger(__name__)

# How long a Redis that answers, and refuses to write (full, or a replica during a failover), is asked again.
_REFUSED_FOR_S = 900.0
_REFUSED_PAUSE_S = 1.0


class Books:
    """RQ's books and the ledger, as one slot writes them."""

    def __init__(self, worker: SlotWorker, ledger: Ledger, retention_s: int, pool: str) -> None:
        self._worker = worker
        self._pod = busy.worker_of(worker.name)
        self._pool = pool
        self._ledger = ledger
        self._retention_s = retention_s

    # -- taking a job

    def claim(self, job: Job, queue: Queue, drain: Drain) -> Hold | None:
        """Take a job that was popped; None when it is not to be sung."""
        made: dict[str, Execution] = {}
        began_s = time.time()
        while True:
            try:
                with logs.about(job=job.id):
                    number, started_at, suspect = self._claim(job, made)
            except WatchError:
                continue
            if number == 0:
                return None
            execution = made[next(reversed(made))]
            self._worker.executions[execution.id] = execution
            attempt = Attempt(number=number, id=execution.id, worker=self._worker.name, started_at=started_at)
            timeout_s = float(job.timeout or queue.DEFAULT_TIMEOUT)
            until_s = time.monotonic() + timeout_s
            return Hold(job, queue, execution, attempt, drain, timeout_s, until_s, suspect, claim_began_s=began_s)

    def _claim(self, job: Job, made: dict[str, Execution]) -> tuple[int, datetime, bool]:
        with self._worker.connection.pipeline() as pipe:
            entry = self._watch(pipe, job)
            if entry.owner in made:  # the answer to our own transaction was lost with its connection
                return entry.attempts[-1].number, entry.attempts[-1].started_at, is_suspect(entry.attempts[:-1])
            refused = self._why_not(pipe, job, entry)
            pipe.multi()
            if refused:
                self._drop(pipe, job, entry)
                pipe.execute()
                log.info("job %s dropped at its claim: %s", job.id, refused)
                return 0, now(), False
            execution = Execution.create(job, self._worker.get_heartbeat_ttl(job), pipe, self._worker.name)
            made[execution.id] = execution
            self._worker.set_state(WorkerStatus.BUSY, pipeline=pipe)
            self._worker.heartbeat(pipeline=pipe)
            job.prepare_for_execution(self._worker.name, pipeline=pipe)
            pipe.persist(job.key)
            place = len(pipe)
            self._ledger.begin_attempt(job.id, execution.id, self._worker.name, pipeline=pipe)
            busy.enter(pipe, self._ledger.keys, self._pool, self._pod, execution.composite_key)
            if not entry.attempts:
                count_claim(pipe, self._ledger.keys, job)
            return int(pipe.execute()[place]), now(), is_suspect(entry.attempts)

    def _watch(self, pipe: Pipeline, job: Job) -> Entry:
        key = self._ledger.keys.ledger(job.id)
        pipe.watch(key, job.key)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        return Entry.parse(pipe.hgetall(key))

    def _why_not(self, pipe: Pipeline, job: Job, entry: Entry) -> str | None:
        if entry.outcome:
            return f"it has {entry.outcome} already"
        if entry.cancel_requested:
            return "it is canceled"
        if entry.expired(now()):
            return "it was to begin earlier"
        if not pipe.exists(job.key):
            return "it was erased"
        # A second copy of its id came into the lane. Its holder beats, or the reaper is about to take the job from it.
        held = f"{job.id}:{entry.owner}"
        if entry.owner and pipe.zscore(job.started_job_registry.key, held) is not None:
            return f"attempt {entry.owner} holds it"
        return None

    def _drop(self, pipe: Pipeline, job: Job, entry: Entry) -> None:
        if entry.cancel_requested and not entry.outcome:
            self._ledger.settle(job.id, Outcome(JobStatus.CANCELED), pipeline=pipe)
            job.set_status(RqStatus.CANCELED, pipeline=pipe)
        elif entry.expired(now()):
            self._ledger.settle(job.id, Outcome(JobStatus.FAILED, entry.expiry()), pipeline=pipe)
            job.set_status(RqStatus.FAILED, pipeline=pipe)
            job.failed_job_registry.add(job, ttl=self._retention_s, pipeline=pipe)
            pipe.expire(job.key, self._retention_s, nx=True)
        if entry.outcome or entry.cancel_requested:
            pipe.expire(job.key, self._retention_s, nx=True)  # RQ gives the hash of a canceled job no end

    def reenter(self, hold: Hold) -> bool:
        """Enter a job again that Redis has lost: it came back empty. What this slot knows of it is all there is."""
        job, meta = hold.job, hold.job.meta
        entry = self._ledger.read(job.id)
        if entry.owner or entry.attempts or entry.outcome or self._worker.connection.exists(job.key):
            return False
        # The ledger first, as a submit does.
        self._ledger.open(job.id, meta["tenant"], hold.created_at, meta["pool"], Terms(webhook=meta.get("webhook")))
        with self._worker.connection.pipeline() as pipe:
            if self._watch(pipe, job).owner or pipe.exists(job.key):
                return False
            pipe.multi()
            pipe.sadd(Queue.redis_queues_keys, hold.queue.key)
            job.save(pipeline=pipe)
            job.prepare_for_execution(self._worker.name, pipeline=pipe)
            ttl_s = self._worker.get_heartbeat_ttl(job)
            hold.execution.save(ttl_s, pipe)
            job.started_job_registry.add_execution(hold.execution, pipeline=pipe, ttl=ttl_s, xx=False)
            self._ledger.begin_attempt(job.id, hold.attempt.id, self._worker.name, pipeline=pipe)
            busy.enter(pipe, self._ledger.keys, self._pool, self._pod, hold.execution.composite_key)
            try:
                pipe.execute()
            except WatchError:  # submitted once more just now: the next beat looks again
                return False
        log.warning("job %s: Redis had lost it, and knows it again", job.id)
        return True

    # -- ending an attempt

    def conclude(self, hold: Hold, verdict: Verdict, result: Result | None = None) -> bool:
        """Write how the attempt ended; False, and nothing but its heartbeat changed, if the job is another's by now."""
        traces.note(outcome=verdict.ending, code=verdict.error.code if verdict.error else "")
        with traces.span("conclude"):
            return self._concluded(hold, verdict, result)

    def _concluded(self, hold: Hold, verdict: Verdict, result: Result | None) -> bool:
        retries_left = hold.job.retries_left
        until_s = time.monotonic() + _REFUSED_FOR_S
        while True:
            hold.job.retries_left = retries_left
            try:
                return self._conclude(hold, verdict, result) or (
                    self.reenter(hold) and self._conclude(hold, verdict, result)
                )
            except WatchError:
                continue
            except ResponseError as error:
                if hold.drain.must_leave or time.monotonic() > until_s:
                    raise
                log.warning("job %s: Redis refuses its end, asking again: %s", hold.job.id, error)
                time.sleep(_REFUSED_PAUSE_S)

    def _conclude(self, hold: Hold, verdict: Verdict, result: Result | None) -> bool:
        job = hold.job
        with self._worker.connection.pipeline() as pipe:
            entry = self._watch(pipe, job)
            in_charge = entry.owner == hold.attempt.id and entry.outcome is None
            pipe.multi()
            if in_charge:
                self._write(pipe, hold, verdict, result)
            self._worker.cleanup_execution(job, pipe, hold.execution)
            busy.leave(pipe, self._ledger.keys, self._pool, self._pod, [hold.execution.composite_key])
            self._worker.heartbeat(pipeline=pipe)  # the counters may have made the worker's key anew, without an end
            pipe.execute()
        return in_charge

    def _write(self, pipe: Pipeline, hold: Hold, verdict: Verdict, result: Result | None) -> None:
        job, error = hold.job, verdict.error
        job.ended_at = now()
        match verdict.ending:
            case Ending.SUCCEEDED if result:
                self._succeed(pipe, hold, result)
            case Ending.RETRIED:
                job.retries_left = (job.retries_left or 1) - 1
                self._ledger.end_attempt(job.id, hold.attempt.id, AttemptOutcome.FAILED, error, pipeline=pipe)
                self._ledger.charge(job.id, hold.unrecorded_gpu_s, pipe)
                self._put_back(pipe, hold)
            case Ending.RETURNED:
                self._ledger.end_attempt(job.id, hold.attempt.id, AttemptOutcome.RETURNED, error, pipeline=pipe)
                self._put_back(pipe, hold)
            case Ending.CANCELED:
                self._fail(pipe, hold, RqStatus.STOPPED, Outcome(JobStatus.CANCELED, gpu_s=hold.unrecorded_gpu_s))
            case _:
                self._fail(pipe, hold, RqStatus.FAILED, Outcome(JobStatus.FAILED, error, gpu_s=hold.unrecorded_gpu_s))

    def _succeed(self, pipe: Pipeline, hold: Hold, result: Result) -> None:
        job = hold.job
        job._result = result.model_dump(mode="json")
        job._handle_success(self._retention_s, pipe, self._worker.name, hold.execution.id, None, job.ended_at)
        job.cleanup(self._retention_s, pipeline=pipe, remove_from_queue=False)
        self._worker.increment_successful_job_count(pipeline=pipe)
        if hold.sang:
            count_song(pipe, self._ledger.keys, job, result, hold.clock)
        self._ledger.settle(job.id, Outcome(JobStatus.SUCCEEDED, result=result), pipeline=pipe)

    def _fail(self, pipe: Pipeline, hold: Hold, status: RqStatus, outcome: Outcome) -> None:
        job, text = hold.job, outcome.error.message if outcome.error else outcome.status
        job.set_status(status, pipeline=pipe)
        job._handle_failure(text, pipe, self._worker.name, hold.execution.id, None, job.ended_at)
        self._worker.increment_failed_job_count(pipeline=pipe)
        self._ledger.settle(job.id, outcome, pipeline=pipe)

    def _put_back(self, pipe: Pipeline, hold: Hold) -> None:
        # Not Job.retry: an interval, which needs a scheduler that nobody runs, would lose the job.
        hold.job.started_at = hold.job.ended_at = hold.job.worker_name = None
        hold.queue._enqueue_job(hold.job, pipeline=pipe, at_front=True)
