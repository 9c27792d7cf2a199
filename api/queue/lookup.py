"""Jobs as their owner may know them: out of Redis, or of the store once that has forgotten them. Changes nothing."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from api.outages import Threads
from api.queue.explanations import eta_s, waiting_for
from api.queue.pool_status import PoolStatusReader
from serinette.errors import InvalidSpec, NotFound, StoreUnavailable, Unavailable
from serinette.job import Job, JobError, JobStatus, now
from serinette.jobs import AsyncJobs, Seen, Shrunk, calls, job_of_record
from serinette.jobs.finishing import find_record
from serinette.jobs.script import text
from serinette.names import Keys
from serinette.spec import GenerationSpec
from serinette.store import Store

# A filtered list looks at so many jobs in one request, at most so many at a time, before it hands out a cursor instead.
SCAN_LIMIT = 2_000
SCAN_CHUNK = 200

# Threads that ask the store for jobs that Redis has forgotten.
_RECALLS = 8


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last job looked at, and its submit time in Unix seconds should that job be erased meanwhile."""

    job_id: str
    score: float

    def encode(self) -> str:
        """As the client gets it: URL-safe, to be handed back as it is."""
        return base64.urlsafe_b64encode(json.dumps([self.job_id, self.score]).encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, encoded: str) -> Cursor:
        """Read what `encode` wrote.

        Raises:
            InvalidSpec: it is not a cursor that we gave.
        """
        try:
            job_id, score = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
            if not isinstance(job_id, str) or not job_id.isascii():
                raise TypeError("the id is not text")
            return cls(job_id, float(score))
        except (binascii.Error, ValueError, TypeError, RecursionError) as error:
            message = "cursor: not one that we gave; use `next_cursor` of the page before as it is, or leave it out"
            raise InvalidSpec(message, field="cursor") from error


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first. With a cursor there may be more, even if this page is short."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


class Lookup:
    """Reads jobs. Raises RedisError when Redis does not answer, and StoreUnavailable when the store is needed."""

    def __init__(self, jobs: AsyncJobs, keys: Keys, store: Store, pool_status: PoolStatusReader) -> None:
        self._jobs = jobs
        self._keys = keys
        self._store = store
        self._pool_status = pool_status
        self.recalls = Threads(_RECALLS, _slow_store)

    async def see(self, job_ids: Sequence[str]) -> list[Seen]:
        """Each job as Redis holds it, in one round trip."""
        return await self._jobs(calls.look(job_ids)) if job_ids else []

    async def load(self, tenant: str, job_id: str) -> Job:
        """One job, whole. Raises NotFound: this tenant has no such job."""
        (seen,) = await self.see([job_id])
        return await self.loaded(tenant, job_id, seen)

    async def loaded(self, tenant: str, job_id: str, seen: Seen) -> Job:
        """What was seen, or what the store says. Raises NotFound."""
        job = None
        if not _is_hidden(tenant, seen):
            job = await self.explained(seen) if seen.entry else (await self._recalled(tenant, [job_id]))[0]
        if job is None:
            raise no_such_job(job_id)
        return job

    async def find(self, tenant: str, job_ids: Sequence[str]) -> list[Job | None]:
        """Each of many jobs; None for those that this tenant does not have."""
        seen = dict(zip(job_ids, await self.see(job_ids), strict=True))
        jobs: dict[str, Job | None] = {
            job_id: None if _is_hidden(tenant, each) else await self.explained(each)
            for job_id, each in seen.items()
            if each.entry
        }
        if forgotten := [job_id for job_id, each in seen.items() if not each.entry and not _is_hidden(tenant, each)]:
            jobs |= zip(forgotten, await self._recalled(tenant, forgotten), strict=True)
        return [jobs.get(job_id) for job_id in job_ids]

    async def page(
        self, tenant: str, status: JobStatus | None, label: tuple[str, str] | None, cursor: str | None, limit: int
    ) -> Page:
        """A page of the tenant's jobs, newest first, out of Redis alone. Raises InvalidSpec: a cursor not of ours."""
        last = after = Cursor.decode(cursor) if cursor else None
        found: list[Job] = []
        async for last, seen in self._scan(tenant, after, limit):  # where the page ended
            if _matches(seen, tenant, status, label):
                job = await self.explained(seen)
                found.append(job or brief(last.job_id, seen.shrunk))  # type: ignore[arg-type]  # one of them is there
            if len(found) == limit:
                break
        more = last is not None and await self._start(tenant, last) < int(
            await self._jobs.redis.zcard(self._keys.jobs(tenant))
        )
        return Page(tuple(found), last.encode() if last and more else None)

    async def explained(self, seen: Seen) -> Job | None:
        """The job, and while it has not ended its place, ETA and what it waits for; None where Redis has no record."""
        return await self.with_place(seen.entry.job(), seen.place) if seen.entry else None

    async def with_place(self, job: Job, ahead: int | None) -> Job:
        """The job with what it waits for. `ahead`: the jobs before it in its lane, of one that waits there."""
        if job.status.ended:
            return job
        pool = (await self._pool_status.read((job.pool,))).pools[job.pool]
        at = now()
        return job.model_copy(
            update={
                "position": None if ahead is None else ahead + 1,
                "eta_s": eta_s(job, ahead, pool, at),
                "waiting_for": waiting_for(job, ahead, pool, at),
            }
        )

    async def whole_or_brief(self, job_id: str, shrunk: Shrunk) -> Job:
        """A job that Redis knows in brief: whole where the store answers, since that must hide no end."""
        try:
            (job,) = await self._recalled(shrunk.tenant, [job_id])
        except StoreUnavailable:
            job = None
        return job or brief(job_id, shrunk)

    async def _recalled(self, tenant: str, job_ids: Sequence[str]) -> list[Job | None]:
        def read() -> list[Job | None]:
            records = (find_record(self._store, tenant, job_id) for job_id in job_ids)
            return [job_of_record(record) if record else None for record in records]

        return await self.recalls.run(read)

    async def _scan(self, tenant: str, after: Cursor | None, limit: int) -> AsyncIterator[tuple[Cursor, Seen]]:
        """The tenant's jobs behind a cursor, newest first, no more than SCAN_LIMIT of them; `limit` will likely do."""
        start = 0 if after is None else await self._start(tenant, after)
        first, chunk = start, min(limit, SCAN_CHUNK)
        while first < start + SCAN_LIMIT:
            chunk = min(chunk, start + SCAN_LIMIT - first)
            rows: Any = await self._jobs.redis.zrange(
                self._keys.jobs(tenant), first, first + chunk - 1, desc=True, withscores=True
            )
            ids = [text(job_id) for job_id, _ in rows]
            for job_id, (_, score), seen in zip(ids, rows, await self.see(ids), strict=True):
                yield Cursor(job_id, score), seen
            if len(rows) < chunk:
                return
            first, chunk = first + chunk, min(2 * chunk, SCAN_CHUNK)

    async def _start(self, tenant: str, after: Cursor) -> int:
        index = self._keys.jobs(tenant)
        rank: Any = await self._jobs.redis.zrevrank(index, after.job_id)
        if rank is None:  # erased since: go on behind all that are newer
            return int(await self._jobs.redis.zcount(index, f"({after.score}", "+inf"))
        return int(rank) + 1


def brief(job_id: str, shrunk: Shrunk) -> Job:
    """A job by what Redis keeps of it some minutes after its end: no song, and of its prompt the beginning. What is not
    known is left unset, so that answers leave it out (api/v1/answers.py).
    """
    error = JobError(code=shrunk.error_code, message=f"GET /v1/jobs/{job_id} says what went wrong")
    return Job(
        id=job_id,
        tenant=shrunk.tenant,
        status=shrunk.status,
        spec=GenerationSpec(prompt=shrunk.prompt) if shrunk.prompt else GenerationSpec(),  # a container has none
        pool=shrunk.pool,
        lane=shrunk.lane,
        labels=dict(shrunk.labels),
        created_at=_time(shrunk.created_at),
        ended_at=_time(shrunk.ended_at),
        error=error if shrunk.error_code else None,
    )


def no_such_job(job_id: str) -> NotFound:
    """The answer to a request for it."""
    return NotFound(f"there is no job {job_id}; ended jobs are kept for a limited time")


def _is_hidden(tenant: str, seen: Seen) -> bool:
    """Whether Redis knows that the tenant has no such job: it is another's, or never was one."""
    if seen.entry is not None:
        return seen.entry.called_off or seen.entry.tenant != tenant
    return seen.shrunk is not None and seen.shrunk.tenant != tenant


def _matches(seen: Seen, tenant: str, status: JobStatus | None, label: tuple[str, str] | None) -> bool:
    """Whether a list with these filters shows the job."""
    found = seen.entry or seen.shrunk
    return (
        found is not None
        and not _is_hidden(tenant, seen)
        and (status is None or found.status is status)
        and (label is None or found.labels.get(label[0]) == label[1])
    )


def _time(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


def _slow_store() -> Unavailable:
    return StoreUnavailable("the store is slow to answer for jobs that ended a while ago; try again")


__all__ = ["Cursor", "Lookup", "Page", "brief", "no_such_job"]
