"""`job.json`: the write that ends a job. The first attempt to make it wins."""

from __future__ import annotations

import logging

from rq.exceptions import DeserializationError

from gpu_worker.slot.hold import Hold
from gpu_worker.slot.patient_store import PatientStore
from serinette.errors import InvalidSpec, NotFound, StoreUnavailable
from serinette.job import AttemptOutcome, JobStatus, Record, Result, now
from serinette.ledger import Outcome
from serinette.names import record_key
from serinette.spec import SCHEMA, GenerationSpec
from serinette.store import Store

log = logging.getLogger(__name__)


class Ended(Exception):
    """The job has ended without a song, says its record: an attempt that comes later changes nothing."""

    def __init__(self, record: Record) -> None:
        super().__init__(f"job {record.job_id} has {record.status} already")
        self.record = record


def result_of(record: Record) -> Result:
    """What was sung.

    Raises:
        Ended: nothing was.
    """
    if record.result is None:
        raise Ended(record)
    return record.result


def find_record(store: PatientStore, tenant: str, job_id: str) -> Record | None:
    """What an earlier attempt recorded."""
    try:
        return Record.model_validate_json(store.get(record_key(tenant, job_id)))
    except NotFound:
        return None


def make_record(hold: Hold, spec: GenerationSpec, result: Result) -> Record:
    """The record of a result. From now on neither cancel nor deadline ends the attempt."""
    hold.recording = True
    return _record(hold, spec, Outcome(JobStatus.SUCCEEDED, result=result))


def bar(store: Store, hold: Hold, outcome: Outcome) -> Record | None:
    """Record that a job ends without a song, so that an earlier attempt of it, frozen and given up, comes too late with
    one; the record that counts. None: there was no earlier attempt, or the store is away and the ledger alone decides.
    """
    if hold.attempt.number == 1:
        return None
    try:
        record = _record(hold, GenerationSpec.from_wire({**hold.job.kwargs["spec"], "schema": SCHEMA}), outcome)
        return put_record(PatientStore(store, 0, lambda: None), record)
    except (StoreUnavailable, NotFound, InvalidSpec, DeserializationError, LookupError, TypeError) as error:
        log.warning("job %s ends without a record: %s", hold.job.id, error)
        return None


def _record(hold: Hold, spec: GenerationSpec, outcome: Outcome) -> Record:
    meta = hold.job.meta
    ended_at = now()
    return Record(
        job_id=hold.job.id,
        tenant=meta["tenant"],
        pool=meta["pool"],
        lane=meta["lane"],
        labels=meta["labels"],
        dialect=meta["dialect"],
        digest=meta.get("digest", ""),
        spec=spec,
        attempt=hold.attempt.model_copy(
            update={"outcome": AttemptOutcome(outcome.status), "ended_at": ended_at, "error": outcome.error}
        ),
        created_at=hold.created_at,
        started_at=hold.attempt.started_at,
        ended_at=ended_at,
        status=outcome.status,
        error=outcome.error,
        result=outcome.result,
    )


def put_record(store: PatientStore, record: Record) -> Record:
    """Record a result, unless there is a record: that one is answered then."""
    key = record_key(record.tenant, record.job_id)
    if store.put_if_absent(key, record.model_dump_json().encode()):
        return record
    return Record.model_validate_json(store.get(key))
