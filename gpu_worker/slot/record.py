"""`job.json`: the write that ends a job. The first attempt to make it wins."""

from __future__ import annotations

from gpu_worker.slot.hold import Hold
from gpu_worker.slot.patient_store import PatientStore
from serinette.errors import NotFound
from serinette.job import AttemptOutcome, Record, Result, now
from serinette.names import record_key
from serinette.spec import GenerationSpec


def find_record(store: PatientStore, tenant: str, job_id: str) -> Record | None:
    """What an earlier attempt recorded."""
    try:
        return Record.model_validate_json(store.get(record_key(tenant, job_id)))
    except NotFound:
        return None


def make_record(job_id: str, hold: Hold, spec: GenerationSpec, result: Result) -> Record:
    """The record of a result. From now on neither cancel nor deadline ends the attempt."""
    hold.recording = True
    meta = hold.job.meta
    ended_at = now()
    return Record(
        job_id=job_id,
        tenant=meta["tenant"],
        pool=meta["pool"],
        lane=meta["lane"],
        labels=meta["labels"],
        dialect=meta["dialect"],
        spec=spec,
        attempt=hold.attempt.model_copy(update={"outcome": AttemptOutcome.SUCCEEDED, "ended_at": ended_at}),
        created_at=hold.created_at,
        started_at=hold.attempt.started_at,
        ended_at=ended_at,
        result=result,
    )


def put_record(store: PatientStore, record: Record) -> Record:
    """Record a result, unless there is a record: that one is answered then."""
    key = record_key(record.tenant, record.job_id)
    if store.put_if_absent(key, record.model_dump_json().encode()):
        return record
    return Record.model_validate_json(store.get(key))
