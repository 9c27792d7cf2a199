"""Parts of a submit beside the transition: the id of its key, the job as it is answered, the check of the disk."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from serinette.container import ContainerSpec
from serinette.errors import QueueUnavailable
from serinette.job import Job, JobStatus
from serinette.jobs import Submission
from serinette.spec import GenerationSpec


def keyed_job_id(tenant: str, idempotency_key: str, secret: str | None = None) -> str:
    """The job id of an Idempotency-Key: the same key of the same tenant is the same job.

    With the deployment's `secret` other parties cannot compute it (docs/decisions/0013).
    """
    key, message = (tenant, idempotency_key) if secret is None else (secret, f"{tenant}\n{idempotency_key}")
    digest = hmac.digest(key.encode(), message.encode(), hashlib.sha256)
    return str(uuid.UUID(bytes=digest[:16], version=5))


def fresh_job(submission: Submission, created_at_s: float) -> Job:
    """The job of a submission that has just been queued."""
    options, work = submission.options, submission.work
    created_at, deadline_s = datetime.fromtimestamp(created_at_s, UTC), options.start_deadline_s
    is_container = isinstance(work, ContainerSpec)
    return Job(
        id=submission.id,
        tenant=submission.tenant,
        status=JobStatus.QUEUED,
        spec=GenerationSpec() if is_container else work,
        pool=submission.pool,
        lane=options.lane,
        labels=options.labels,
        dialect=dict(submission.dialect),
        created_at=created_at,
        timeout_s=submission.timeout_s,
        start_by=None if deadline_s is None else created_at + timedelta(seconds=deadline_s),
        webhook=options.webhook,
        container=work if is_container else None,
    )


def require_on_disk(answers: Sequence[Any]) -> None:
    """Check WAITAOF's answer, if there is one.

    Raises:
        QueueUnavailable: the write was not on disk within the Redis timeout; it is not undone.
    """
    for answer in answers:  # the write that WAITAOF waits for may be refused, too
        if isinstance(answer, Exception):
            raise _not_on_disk(str(answer)) from answer
    if answers and int(answers[-1][0]) < 1:
        raise _not_on_disk("not within the Redis timeout")


def _not_on_disk(why: str) -> QueueUnavailable:
    return QueueUnavailable(
        f"the queue's server did not confirm that the job is on its disk ({why}); it may still be generated: send the "
        "submit again with its Idempotency-Key, or look for the job in the list"
    )
