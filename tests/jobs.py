"""Jobs put, moved and seen through the typed face of their record, for tests of every room."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

from serinette.job import Artifact, JobError, JobOptions, JobStatus, Record, Result, Sampling, Timings
from serinette.jobs import Claimed, Entry, Jobs, Lease, Outcome, Submission, calls
from serinette.jobs.finishing import finish_as, put_record, record_of
from serinette.names import Lane, artifact_key
from serinette.spec import AudioFormat, GenerationSpec
from serinette.store import Store

TENANT = "default"


def submission(job_id: str | None = None, **given: Any) -> Submission:
    """A job; `given` are fields of the Submission, its options' and `prompt`."""
    options = {name: given.pop(name) for name in JobOptions.model_fields if name in given and name != "timeout_s"}
    work = given.pop("work", None) or GenerationSpec(prompt=given.pop("prompt", "jazz"), seed=1)
    fields: dict[str, Any] = {
        "tenant": TENANT,
        "pool": "default",
        "digest": work.digest(),
        "timeout_s": 600,
        "max_attempts": 3,
        "ttl_s": 3600,
        **given,
    }
    return Submission(id=job_id or str(uuid.uuid4()), work=work, options=JobOptions(**options), **fields)


def submit(jobs: Jobs, job_id: str | None = None, **given: Any) -> str:
    """Put a job into its lane; its id."""
    made = submission(job_id, **given)
    assert jobs(calls.submit(made)).place is not None
    return made.id


def claim(
    jobs: Jobs, pool: str = "default", *, slot: str = "worker.0.1", lease_s: float = 20, attempt_id: str | None = None
) -> Claimed | None:
    """The next job of a pool, whichever lane it is in."""
    call = calls.claim(attempt_id or uuid.uuid4().hex, Lease(slot, lease_s), pool, list(Lane))
    found = jobs(call)
    return found if isinstance(found, Claimed) else None


def take(jobs: Jobs, job_id: str, *, slot: str = "worker.0.1", lease_s: float = 20) -> Claimed | None:
    """This job, if it waits."""
    found = jobs(calls.take(job_id, uuid.uuid4().hex, Lease(slot, lease_s)))
    return found if isinstance(found, Claimed) else None


def entry(jobs: Jobs, job_id: str) -> Entry:
    """A job's record, which must be whole."""
    found = jobs(calls.look([job_id]))[0].entry
    assert found is not None, f"Redis does not know job {job_id} any more"
    return found


def result(tenant: str, job_id: str, attempt_id: str, songs: Sequence[bytes]) -> Result:
    """Of a job with these songs."""
    artifacts = tuple(
        Artifact(
            index=index,
            key=artifact_key(tenant, job_id, attempt_id, index, "mp3"),
            seed=index,
            format=AudioFormat.MP3,
            content_type="audio/mpeg",
            size_bytes=len(song),
            sha256=hashlib.sha256(song).hexdigest(),
            duration_s=1.0,
            sample_rate=48_000,
            channels=2,
        )
        for index, song in enumerate(songs)
    )
    return Result(
        artifacts=artifacts,
        model="tiny",
        model_revision="0" * 64,
        sampling=Sampling(steps=8, guidance_scale=1.0, shift=3.0, turbo=True),
        timings=Timings(queue_s=0.1, sing_s=1.0, encode_s=0.1, upload_s=0.1, run_s=1.3),
    )


def succeed(jobs: Jobs, store: Store, job_id: str, songs: Sequence[bytes] = (b"song",)) -> Record:
    """End a job that an attempt holds with songs, as its slot does."""
    held = entry(jobs, job_id)
    attempt = held.attempts[-1]
    made = result(held.tenant, job_id, attempt.id, songs)
    for artifact, song in zip(made.artifacts, songs, strict=True):
        store.put(artifact.key, song, artifact.content_type)
    record = put_record(store, record_of(held, attempt, Outcome(JobStatus.SUCCEEDED, result=made)))
    finish_as(jobs, record)
    return record


def fail(jobs: Jobs, store: Store, job_id: str, error: JobError) -> Record:
    """End a job that an attempt holds in failure, as its slot does."""
    held = entry(jobs, job_id)
    record = put_record(store, record_of(held, held.attempts[-1], Outcome(JobStatus.FAILED, error)))
    finish_as(jobs, record)
    return record
