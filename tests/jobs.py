"""Jobs put, moved and seen through the typed face of their record, for tests of every room."""

from __future__ import annotations

import uuid
from typing import Any

from serinette.job import JobOptions
from serinette.jobs import Claimed, Entry, Jobs, Lease, Submission, calls
from serinette.names import Lane
from serinette.spec import GenerationSpec

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
