"""A Job as its owner sees it, put together from what the queue or the store knows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, TypeAlias

from api.queue.entry import parted
from api.queue.explain import status_of
from serinette.container import ContainerSpec
from serinette.errors import NotFound
from serinette.job import AttemptOutcome, Job, JobStatus, Record, Result, Usage
from serinette.ledger import Entry, Terms
from serinette.names import Lane
from serinette.spec import SCHEMA, GenerationSpec


@dataclass(frozen=True, slots=True)
class Sighting:
    """One job as Redis holds it: what RQ keeps of it, and our ledger's entry."""

    job_id: str
    rq_status: str
    meta: Mapping[str, Any]
    spec: Mapping[str, Any]
    result: Result | None
    entry: Entry
    container: Mapping[str, Any] | None = None

    @property
    def status(self) -> JobStatus:
        """The state in our words."""
        return status_of(self.rq_status, self.entry)

    @property
    def whole(self) -> bool:
        """Whether Redis knows all of it: of a job that succeeded it may have forgotten the result."""
        return bool(self.result or self.entry.run) or self.status is not JobStatus.SUCCEEDED

    def job(self) -> Job:
        """The job, without its place, ETA and what it waits for."""
        status, entry, meta = self.status, self.entry, self.meta
        # A newer gateway may have written it: to show a spec, the fields known here are enough.
        spec = GenerationSpec.from_wire({**self.spec, "schema": SCHEMA})
        return Job(
            id=self.job_id,
            tenant=meta["tenant"],
            status=status,
            spec=spec,
            pool=meta["pool"],
            lane=Lane(meta["lane"]),
            labels=meta["labels"],
            dialect=meta["dialect"],
            created_at=datetime.fromisoformat(meta["created_at"]),
            started_at=entry.attempts[-1].started_at if entry.attempts and status is not JobStatus.QUEUED else None,
            ended_at=entry.ended_at,
            timeout_s=meta["timeout_s"],
            start_by=entry.start_by,
            webhook=entry.webhook,
            deliveries=entry.deliveries,
            cancel_requested=entry.cancel_requested,
            progress=entry.progress if status is JobStatus.RUNNING else None,
            attempts=entry.attempts,
            result=self.result if status is JobStatus.SUCCEEDED else None,
            container=None if self.container is None else ContainerSpec.from_wire(dict(self.container)),
            run=entry.run,
            error=entry.error if status is JobStatus.FAILED else None,
            usage=entry.usage,
        )


def job_of_record(record: Record) -> Job:
    """A job that only the store remembers."""
    attempt = record.attempt
    if attempt.outcome is AttemptOutcome.RUNNING:  # the record is written by the attempt that it tells of
        attempt = attempt.model_copy(update={"outcome": AttemptOutcome.SUCCEEDED, "ended_at": record.ended_at})
    return Job(
        id=record.job_id,
        tenant=record.tenant,
        status=record.status,
        spec=record.spec,
        pool=record.pool,
        lane=record.lane,
        labels=record.labels,
        dialect=record.dialect,
        created_at=record.created_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        attempts=(attempt,),
        result=record.result,
        container=record.container,
        run=record.run,
        error=record.error,
        usage=_usage(record.result) if record.result else None,
    )


def _usage(result: Result) -> Usage:
    return Usage(gpu_s=result.timings.generate_s, queue_s=result.timings.queue_s, size_bytes=result.size_bytes)


def matches(sighting: Sighting, tenant: str, status: JobStatus | None, label: tuple[str, str] | None) -> bool:
    """Whether a list with these filters shows the job."""
    return (
        sighting.meta["tenant"] == tenant
        and (status is None or sighting.status is status)
        and (label is None or sighting.meta["labels"].get(label[0]) == label[1])
    )


def fresh_sighting(
    job_id: str, meta: Mapping[str, Any], work: GenerationSpec | ContainerSpec, terms: Terms
) -> Sighting:
    """A job that has just been put into its lane."""
    spec, container = parted(work)
    entry = Entry(start_by=terms.start_by, webhook=terms.webhook)
    return Sighting(job_id, "queued", meta, spec.to_wire(), None, entry, container.to_wire() if container else None)


class Elsewhere(Enum):
    """Not in Redis: perhaps there."""

    STORE = "store"


# What Redis knows of a job; None: it is another tenant's.
Seen: TypeAlias = Job | Elsewhere | None


def seen_by(tenant: str, sighting: Sighting | None) -> Seen:
    """What a tenant may know of what Redis does."""
    if sighting is not None and sighting.meta["tenant"] != tenant:
        return None
    if sighting is not None and sighting.whole:
        return sighting.job()
    return Elsewhere.STORE


def no_such_job(job_id: str) -> NotFound:
    """What to tell whoever asked for it."""
    return NotFound(f"there is no job {job_id}; ended jobs are kept for a limited time")
