"""How a job's end is written in RQ's books, so that they say what the ledger says."""

from __future__ import annotations

from datetime import datetime

from redis.client import Pipeline
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.job_lifecycle import record_job_failure
from rq.queue import Queue

from serinette.container import ContainerSpec
from serinette.errors import WorkerLost
from serinette.job import Attempt, AttemptOutcome, JobError, JobStatus, Record, now
from serinette.ledger import Entry, Outcome
from serinette.names import DEFAULT_POOL, Lane
from serinette.spec import SCHEMA, GenerationSpec

_SAYS = {
    RqStatus.FINISHED: JobStatus.SUCCEEDED,
    RqStatus.FAILED: JobStatus.FAILED,
    RqStatus.STOPPED: JobStatus.CANCELED,
    RqStatus.CANCELED: JobStatus.CANCELED,
}


def lost(entry: Entry, *, last: bool) -> JobError:
    """Why the attempt in charge ended, for the client."""
    worker, number = (entry.attempts[-1].worker, entry.attempts[-1].number) if entry.attempts else ("unknown", 0)
    what = "no attempts are left; submit the job again" if last else "another attempt follows"
    return JobError(
        code=WorkerLost.code,
        message=f"worker {worker} stopped answering during attempt {number}: {what}",
        retryable=WorkerLost.retryable,
    )


def without_song(
    job: RqJob, tenant: str, attempt: Attempt, outcome: Outcome, ended_at: datetime | None = None
) -> Record:
    """The record of a job that ends without a song, now if not said otherwise."""
    meta, ended_at = job.meta, ended_at or now()
    container = job.kwargs.get("container")
    how = AttemptOutcome(outcome.status)
    return Record(
        job_id=job.id,
        tenant=tenant,
        pool=meta.get("pool", DEFAULT_POOL),
        lane=meta.get("lane", Lane.NORMAL),
        labels=meta.get("labels", {}),
        dialect=meta.get("dialect", {}),
        digest=meta.get("digest", ""),
        spec=GenerationSpec.from_wire({**job.kwargs["spec"], "schema": SCHEMA}),
        attempt=attempt.model_copy(update={"outcome": how, "ended_at": ended_at, "error": outcome.error}),
        created_at=meta.get("created_at", attempt.started_at),
        started_at=attempt.started_at,
        ended_at=ended_at,
        status=outcome.status,
        error=outcome.error,
        container=container and ContainerSpec.from_wire(container),
        run=outcome.run,
    )


def adopted(status: RqStatus, entry: Entry) -> Outcome:
    """The outcome of a job that RQ holds for ended and the ledger does not."""
    outcome = _SAYS[status]
    if outcome is not JobStatus.FAILED:
        return Outcome(outcome)
    reasons = [attempt.error for attempt in entry.attempts if attempt.error]
    return Outcome(
        outcome, reasons[-1] if reasons else JobError(code="internal", message="the reason was not recorded")
    )


def close(job: RqJob, queue: Queue, outcome: Outcome, retention_s: int, pipe: Pipeline) -> None:
    """End a job in RQ as `outcome` says, whatever RQ said before, to be forgotten after `retention_s`."""
    queue.remove(job, pipeline=pipe)
    said = _SAYS.get(job.get_status(refresh=False))
    if said is outcome.status:
        pipe.expire(job.key, retention_s, nx=True)
        return
    for registry in (queue.finished_job_registry, queue.failed_job_registry, queue.canceled_job_registry):
        registry.remove(job, pipeline=pipe)
    job.ended_at = job.ended_at or now()
    match outcome.status:
        case JobStatus.SUCCEEDED:
            _succeed(job, outcome, retention_s, pipe)
        case JobStatus.FAILED:
            record_job_failure(job, outcome.error.message if outcome.error else "", pipe)
        case _:
            job.set_status(RqStatus.CANCELED, pipeline=pipe)
            queue.canceled_job_registry.add(job, ttl=retention_s, pipeline=pipe)
            pipe.expire(job.key, retention_s)


def _succeed(job: RqJob, outcome: Outcome, retention_s: int, pipe: Pipeline) -> None:
    if outcome.result:
        job._result = outcome.result.model_dump(mode="json")
        job._handle_success(retention_s, pipe)
    else:  # its result was recorded when it succeeded; readers fall back to job.json if that is gone
        job.set_status(RqStatus.FINISHED, pipeline=pipe)
        job.finished_job_registry.add(job, ttl=retention_s, pipeline=pipe)
    job.cleanup(retention_s, pipeline=pipe, remove_from_queue=False)
