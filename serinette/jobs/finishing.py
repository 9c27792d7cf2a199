"""How jobs end: the record in the store decides, and the entry in Redis follows it.

`job.json` is put if absent: the first record of a job counts, and every later writer ends the job as that record says.
An end without a song may be decided in Redis alone; the sweeper then writes its `job.json`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from serinette.counters import Additions
from serinette.errors import NotFound
from serinette.job import Attempt, AttemptOutcome, Record, Usage, now
from serinette.jobs import calls
from serinette.jobs.calls import Finished, Outcome
from serinette.jobs.entry import Entry
from serinette.jobs.script import Jobs
from serinette.names import record_key, replacement_key


class RecordStore(Protocol):
    """The store, or a wrapper that retries it. Every method raises StoreUnavailable."""

    def get(self, key: str) -> bytes:
        """Read a small object. Raises NotFound."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""


def record_of(entry: Entry, attempt: Attempt | None, outcome: Outcome, ended_at: datetime | None = None) -> Record:
    """The `job.json` of a job that ends now, or ended at `ended_at`. It ends no earlier than it began: whose clock
    says so is behind.
    """
    ended_at = max(ended_at or now(), attempt.started_at if attempt else entry.created_at)
    if attempt is not None:
        how = AttemptOutcome(outcome.status)
        attempt = attempt.model_copy(update={"outcome": how, "ended_at": ended_at, "error": outcome.error})
    others = (each for each in entry.attempts if attempt is None or each.number != attempt.number)
    return Record(
        job_id=entry.id,
        tenant=entry.tenant,
        pool=entry.pool,
        lane=entry.lane,
        labels=entry.labels,
        dialect=entry.dialect,
        digest=entry.digest,
        spec=entry.spec,
        attempt=attempt,
        attempts=(*others, attempt) if attempt else tuple(others),
        timeout_s=int(entry.fields["timeout_s"]) if "timeout_s" in entry.fields else None,
        webhook=entry.webhook,
        created_at=entry.created_at,
        started_at=attempt.started_at if attempt else None,
        ended_at=ended_at,
        status=outcome.status,
        error=outcome.error,
        usage=entry.usage or _usage(entry, attempt, outcome, ended_at),
        result=outcome.result,
        container=entry.container,
        run=outcome.run,
    )


def _usage(entry: Entry, attempt: Attempt | None, outcome: Outcome, ended_at: datetime) -> Usage:
    began = attempt.started_at if attempt else ended_at
    queue_s = max(0.0, (began - entry.created_at).total_seconds())
    gpu_s = float(entry.fields.get("gpu_s", 0)) + outcome.usage.gpu_s
    return Usage(gpu_s=gpu_s, queue_s=queue_s, size_bytes=outcome.usage.size_bytes)


def find_record(store: RecordStore, tenant: str, job_id: str) -> Record | None:
    """The record of a job in the store, if there is one."""
    try:
        return Record.model_validate_json(store.get(record_key(tenant, job_id)))
    except NotFound:
        return None


def find_end(store: RecordStore, entry: Entry) -> Record | None:
    """The record of this very job in the store, if there is one."""
    found = find_record(store, entry.tenant, entry.id)
    return None if found is None or entry.is_anothers(found) else found


def put_record(store: RecordStore, record: Record, entry: Entry | None = None) -> Record:
    """Write a record unless there is one; returns the record in the store. `entry`: its job; the record and songs of an
    erased job that had the same id before are replaced.
    """
    key, data = record_key(record.tenant, record.job_id), record.model_dump_json().encode()
    if store.put_if_absent(key, data):
        return record
    known = Record.model_validate_json(store.get(key))
    if entry is None or not entry.is_anothers(known):
        return known
    # Of several attempts at once one replaces it: the first to write its record beside it.
    beside = replacement_key(entry.tenant, entry.id, entry.created_at)
    if not store.put_if_absent(beside, data):
        data = store.get(beside)
    store.put(key, data)
    for left in known.keys:
        store.delete(left)
    return Record.model_validate_json(data)


def finish_as(  # noqa: PLR0913  # all that the transition takes
    jobs: Jobs,
    record: Record,
    *,
    gpu_s: float = 0.0,
    additions: Additions = (),
    if_overdue: bool = False,
    by: str = "",
) -> Finished:
    """End a job as its record in the store says. `gpu_s`: engine time of its attempt, where no result reports it.
    `by`: the attempt that calls.
    """
    outcome = Outcome.of(record)
    if outcome.result is None:
        outcome = Outcome(outcome.status, outcome.error, gpu_s=gpu_s, run=outcome.run)
    attempt_id = record.attempt.id if record.attempt else ""
    finish = calls.finish(
        record.job_id,
        attempt_id,
        outcome,
        recorded=True,
        if_overdue=if_overdue,
        additions=additions,
        by=by,
        of=record,
    )
    return jobs(finish)
