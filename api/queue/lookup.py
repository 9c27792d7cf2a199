"""Reads jobs: from Redis, or from the store once Redis has expired them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from api.outages import queue_errors
from api.queue.explanations import eta_s, waiting_for
from api.queue.pool_status import PoolStatusReader
from api.settings import GatewaySettings
from api.turns import Threads, Turns
from serinette.errors import InvalidSpec, Limited, NotFound, StoreUnavailable
from serinette.job import Job, JobError, JobStatus, now
from serinette.jobs import AsyncJobs, Entry, Seen, Shrunk, calls, job_of_record
from serinette.jobs.finishing import find_record
from serinette.jobs.script import text
from serinette.spec import GenerationSpec
from serinette.store import Store
from serinette.views import JobList

_CURSOR = re.compile(r"([0-9]{1,12}\.[0-9]{1,9})_([A-Za-z0-9_-]{1,80})", re.ASCII)
# Most jobs that a filtered list examines in one request before it returns a cursor, and most that it reads at a time.
SCAN_LIMIT = 2_000
SCAN_CHUNK = 200

# Threads that read jobs from the store which Redis has expired; of one tenant at most half.
_RECALLS = 8
# Lists that are read at once, each up to 2,000 jobs long; of one tenant at most half.
_LISTS = 8
_LISTS_OF_TENANT = 4
# Times of a list between two of a tenant's: a filter that matches nothing reads 2,000 jobs on the event loop.
_REST = 19.0
_LONG_LIST = 20
# Short calls: many may wait, since their turn comes soon.
MANY_WAITING = 1_000
_MANY_LISTS = partial(Limited, "too many lists of this tenant are being read at once; wait for them", retry_after_s=1)
ADVICE = "try again, and send a submit with an Idempotency-Key to be sure of one job"
_SLOW_STORE = partial(StoreUnavailable, "the store is slow to answer for jobs that ended a while ago; try again")


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last job examined, and its submit time in Unix seconds in case that job is erased meanwhile."""

    job_id: str
    score: float

    def __str__(self) -> str:
        """The text that the client sends back."""
        return f"{self.score!r}_{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Parse the text that `str` gives.

        Raises:
            InvalidSpec: it is not a valid cursor.
        """
        match = _CURSOR.fullmatch(text)
        if match is None:
            message = "cursor: not valid; send `next_cursor` of the page before unchanged, or leave it out"
            raise InvalidSpec(message, field="cursor")
        return cls(match[2], float(match[1]))


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows. `created_after` is inclusive, `created_before` is not."""

    status: JobStatus | None = None
    label: tuple[str, str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    @property
    def first_score(self) -> str | float:
        """Least score of such a job in the index of jobs."""
        return self.created_after.timestamp() if self.created_after else "-inf"

    def admits(self, found: Entry | Shrunk) -> bool:
        """Whether status and label are those asked for."""
        return (self.status is None or found.status is self.status) and (
            self.label is None or found.labels.get(self.label[0]) == self.label[1]
        )


class JobReader:
    """Reads jobs of all tenants. Every method raises QueueUnavailable when Redis does not answer, and StoreUnavailable
    when the store is needed.
    """

    def __init__(self, jobs: AsyncJobs, store: Store, settings: GatewaySettings) -> None:
        self._jobs = jobs
        self._keys = settings.keys
        self._store = store
        self._pool_status = PoolStatusReader(jobs.redis, settings.keys, settings.pools)
        self.recalls = Threads(_RECALLS, _RECALLS // 2, _SLOW_STORE)
        self._lists = Turns(_LISTS, _LISTS_OF_TENANT, _MANY_LISTS, MANY_WAITING, _REST)

    async def see(self, job_ids: Sequence[str]) -> list[Seen]:
        """Each job as Redis holds it, in one round trip."""
        with queue_errors(ADVICE):
            return await self._jobs(calls.look(job_ids)) if job_ids else []

    async def get(self, tenant: str, job_id: str) -> Job:
        """One job, from Redis or, once expired there, from the store.

        Raises:
            NotFound: this tenant has no such job.
        """
        (seen,) = await self.see([job_id])
        return await self.loaded(tenant, job_id, seen)

    async def loaded(self, tenant: str, job_id: str, seen: Seen) -> Job:
        """The job as Redis has it, or as the store has it. Raises NotFound."""
        job = None
        if not _is_hidden(tenant, seen):
            job = await self.explained(seen) if seen.entry else (await self._recalled(tenant, [job_id]))[0]
        if job is None:
            raise no_such_job(job_id)
        return job

    async def find(self, tenant: str, job_ids: Sequence[str]) -> list[Job | None]:
        """Each of many jobs; None for those that this tenant does not have."""
        async with self._lists.of(tenant) if len(job_ids) > _LONG_LIST else nullcontext():
            seen = dict(zip(job_ids, await self.see(job_ids), strict=True))
            jobs: dict[str, Job | None] = {
                job_id: None if _is_hidden(tenant, each) else await self.explained(each)
                for job_id, each in seen.items()
                if each.entry
            }
            forgotten = [job_id for job_id, each in seen.items() if not each.entry and not _is_hidden(tenant, each)]
            if forgotten:
                jobs |= zip(forgotten, await self._recalled(tenant, forgotten), strict=True)
        return [jobs.get(job_id) for job_id in job_ids]

    async def list(
        self, tenant: str, wanted: JobFilter | None = None, *, cursor: str | None = None, limit: int = 20
    ) -> JobList:
        """A page of the tenant's jobs, newest first, by Redis alone. A filter examines no more than SCAN_LIMIT jobs.

        Raises:
            InvalidSpec: the cursor is not valid.
        """
        with queue_errors(ADVICE):
            async with self._lists.of(tenant):
                return await self._page(tenant, wanted or JobFilter(), cursor, limit)

    async def _page(self, tenant: str, wanted: JobFilter, cursor: str | None, limit: int) -> JobList:
        last = after = Cursor.parse(cursor) if cursor else None
        found: list[Job] = []
        async for last, seen in self._scan(tenant, wanted, after, limit):  # where the page ended
            entry = seen.entry or seen.shrunk
            if entry and not _is_hidden(tenant, seen) and wanted.admits(entry):
                job = await self.explained(seen)
                found.append(job or brief(last.job_id, seen.shrunk))  # type: ignore[arg-type]  # one of them is there
            if len(found) == limit:
                break
        more = last is not None and await self._start(tenant, last) < int(
            await self._jobs.redis.zcount(self._keys.jobs(tenant), wanted.first_score, "+inf")
        )
        return JobList(jobs=tuple(found), next_cursor=str(last) if last and more else None)

    async def explained(self, seen: Seen) -> Job | None:
        """The job, with place, ETA and `waiting_for` until it ends; None if Redis has no entry."""
        return await self.with_place(seen.entry.job(), seen.place) if seen.entry else None

    async def with_place(self, job: Job, ahead: int | None) -> Job:
        """The job with place, ETA and `waiting_for`. `ahead`: jobs before it in its lane, None if it is not queued."""
        if job.status.ended:
            return job
        pool = (await self._pool_status.read((job.pool,))).pools[job.pool]
        at = pool.at or now()
        code, words = waiting_for(job, ahead, pool, at) or (None, None)
        return job.model_copy(
            update={
                "position": None if ahead is None else ahead + 1,
                "eta_s": eta_s(job, ahead, pool, at),
                "waiting_for": words,
                "waiting_code": code,
            }
        )

    async def whole_or_brief(self, job_id: str, shrunk: Shrunk) -> Job:
        """A shrunk job: whole from the store, or brief if the store does not answer."""
        try:
            (job,) = await self._recalled(shrunk.tenant, [job_id])
        except StoreUnavailable:
            job = None
        return job or brief(job_id, shrunk)

    async def _recalled(self, tenant: str, job_ids: Sequence[str]) -> Sequence[Job | None]:
        def read() -> Sequence[Job | None]:
            records = (find_record(self._store, tenant, job_id) for job_id in job_ids)
            return [job_of_record(record) if record else None for record in records]

        return await self.recalls.run(tenant, read)

    async def _scan(
        self, tenant: str, wanted: JobFilter, after: Cursor | None, limit: int
    ) -> AsyncIterator[tuple[Cursor, Seen]]:
        """The tenant's jobs of that time after a cursor, newest first, at most SCAN_LIMIT; `limit`: expected number."""
        index, start = self._keys.jobs(tenant), 0 if after is None else await self._start(tenant, after)
        if wanted.created_before:
            later: Any = await self._jobs.redis.zcount(index, wanted.created_before.timestamp(), "+inf")
            start = max(start, int(later))
        first, chunk = start, min(limit, SCAN_CHUNK)
        while first < start + SCAN_LIMIT:
            chunk = min(chunk, start + SCAN_LIMIT - first)
            rows: Any = await self._jobs.redis.zrange(index, first, first + chunk - 1, desc=True, withscores=True)
            ids = [text(job_id) for job_id, _ in rows]
            for job_id, (_, score), seen in zip(ids, rows, await self.see(ids), strict=True):
                if wanted.created_after and score < wanted.created_after.timestamp():
                    return
                yield Cursor(job_id, score), seen
            if len(rows) < chunk:
                return
            first, chunk = first + chunk, min(2 * chunk, SCAN_CHUNK)

    async def _start(self, tenant: str, after: Cursor) -> int:
        index = self._keys.jobs(tenant)
        rank: Any = await self._jobs.redis.zrevrank(index, after.job_id)
        if rank is None:  # it was erased: continue after all newer jobs
            return int(await self._jobs.redis.zcount(index, f"({after.score}", "+inf"))
        return int(rank) + 1


def brief(job_id: str, shrunk: Shrunk) -> Job:
    """A job from its Shrunk form: without songs, with the start of its prompt. Unknown fields are left unset, so that
    responses omit them (api/v1/answers.py).
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
    """The error for an unknown job."""
    return NotFound(f"there is no job {job_id}; ended jobs are kept for a limited time")


def _is_hidden(tenant: str, seen: Seen) -> bool:
    """Whether Redis knows that the tenant has no such job: it belongs to another tenant, or was called off."""
    if seen.entry is not None:
        return seen.entry.called_off or seen.entry.tenant != tenant
    return seen.shrunk is not None and seen.shrunk.tenant != tenant


def _time(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)
