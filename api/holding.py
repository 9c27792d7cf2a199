"""Requests that wait for a song: `Prefer: wait=N` (RFC 7240)."""

from __future__ import annotations

import re

from api.events import JobEvents
from api.queue import JobQueue
from api.tenancy.keyring import Standing
from serinette.job import Job

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE | re.ASCII)


def preferred_wait_s(prefer: str | None, max_wait_s: float) -> float | None:
    """Seconds that the client would wait, bounded; None when it does not say so in words we know."""
    match = _WAIT.search(prefer or "")
    return None if match is None else min(float(match[1]), max_wait_s)


async def held(queue: JobQueue, events: JobEvents, standing: Standing, job: Job, wait_s: float | None) -> Job:
    """The job as it is when it ends, or after `wait_s`, whichever comes first.

    Raises:
        Unauthorized: the caller's key was revoked meanwhile.
    """
    if not wait_s or job.status.ended:
        return job
    await events.wait_for_end(job.id, wait_s, standing)
    await standing.require()
    return await queue.get(job.tenant, job.id)
