"""JobQueue: all operations on jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from redis.exceptions import ResponseError

from api.outages import queue_errors
from api.queue.explanations import Pool
from api.queue.lookup import EVERY_JOB, JobFilter, Lookup, Page, no_such_job
from api.queue.pool_status import PoolStatusReader
from api.queue.submission import Submitter, Work
from api.settings import GatewaySettings
from api.turns import Threads, Turns
from serinette.batch import BATCH_LABEL
from serinette.container import ContainerSpec
from serinette.credentials import Limits
from serinette.errors import Conflict, Limited, NotFinished, StoreUnavailable, Unavailable
from serinette.job import Job, JobOptions, JobStatus
from serinette.jobs import AsyncJobs, calls
from serinette.names import record_key, song_prefix
from serinette.spec import GenerationSpec
from serinette.store import Store
from serinette.webhook_targets import Targets

_ADVICE = "try again, and send a submit with an Idempotency-Key to be sure of one job"

# Threads for blocking calls of the store, by the queue and by downloads and uploads; of one tenant at most half.
_STORE_THREADS = 16
# Lists that are read at once, each up to 2,000 jobs long; of one tenant at most half.
_LISTS = 8
_LONG_LIST = 20
# A script that does nothing, but that Redis refuses when it would refuse a write.
_WRITES = "#!lua\nreturn 1"
# Short calls: many may wait, since their turn comes soon.
_MANY_WAITING = 1_000


class JobQueue:
    """Jobs of all tenants on one Redis.

    Every method raises QueueUnavailable when Redis does not answer, and those that need the store StoreUnavailable. A
    hanging store or resolver delays only the calls that need it: they wait in separate threads.
    """

    def __init__(
        self,
        jobs: AsyncJobs,
        store: Store,
        settings: GatewaySettings,
        *,
        declared: Callable[[str], Limits | None] = lambda _: None,
        submits: AsyncJobs | None = None,
    ) -> None:
        """`declared` returns the limits of tenants in the declared file. `submits`: separate connections for submits,
        because waiting for the disk holds one for up to a second.
        """
        self._jobs = jobs
        self._store = store
        self._settings = settings
        self._keys = settings.keys
        self.store_threads = Threads(_STORE_THREADS, _STORE_THREADS // 2, _slow_store, _MANY_WAITING)
        self._lists = Turns(_LISTS, _LISTS // 2, _too_many_lists, _MANY_WAITING)
        self._pool_status = PoolStatusReader(jobs.redis, settings.keys, settings.pools)
        self._lookup = Lookup(jobs, settings.keys, store, self._pool_status)
        self._submitter = Submitter(
            jobs=submits or jobs,
            store=store,
            settings=settings,
            lookup=self._lookup,
            pool_status=self._pool_status,
            declared=declared,
            store_threads=self.store_threads,
            targets=Targets(settings.webhook_networks),
        )

    @property
    def recalls(self) -> Threads:
        """Threads that read jobs from the store which Redis has expired."""
        return self._lookup.recalls

    @property
    def webhook_threads(self) -> Threads:
        """Threads that resolve the hosts of webhooks."""
        return self._submitter.webhook_threads

    async def submit(
        self,
        tenant: str,
        spec: GenerationSpec,
        options: JobOptions,
        *,
        idempotency_key: str | None = None,
        dialect: Mapping[str, str] | None = None,
    ) -> tuple[Job, bool]:
        """Queue a job, its seed drawn; True if it is new, False if the Idempotency-Key named an existing one.

        Raises:
            InvalidSpec: its model or audio does not exist, its timeout is longer than its pool allows, or its webhook's
                address is not allowed.
            Unsupported: it names a webhook, and this deployment delivers none.
            IdempotencyConflict: the key was used with another spec.
            LaneNotAllowed, Limited: a limit of its lane or tenant is reached; nothing was stored.
        """
        with queue_errors(_ADVICE):
            return await self._submitter.song(Work(tenant, spec, options, idempotency_key, dialect or {}), spec)

    async def submit_container(
        self, tenant: str, spec: ContainerSpec, options: JobOptions, *, idempotency_key: str | None = None
    ) -> tuple[Job, bool]:
        """As `submit`, for a container.

        Raises:
            Unsupported: this deployment runs no containers.
            InvalidSpec: the operator does not allow it, or an input does not exist.
        """
        with queue_errors(_ADVICE):
            return await self._submitter.container(Work(tenant, spec, options, idempotency_key), spec)

    async def get(self, tenant: str, job_id: str) -> Job:
        """One job, from Redis or, once expired there, from the store.

        Raises:
            NotFound: this tenant has no such job.
        """
        with queue_errors(_ADVICE):
            return await self._lookup.load(tenant, job_id)

    async def find(self, tenant: str, job_ids: Sequence[str]) -> Sequence[Job | None]:
        """Each of many jobs; None for those that this tenant does not have."""
        with queue_errors(_ADVICE):
            if len(job_ids) <= _LONG_LIST:
                return await self._lookup.find(tenant, job_ids)
            async with self._lists.of(tenant):
                return await self._lookup.find(tenant, job_ids)

    async def list(
        self,
        tenant: str,
        wanted: JobFilter = EVERY_JOB,
        *,
        cursor: str | None = None,
        limit: int = 20,
    ) -> Page:
        """A page of the tenant's jobs, newest first. A filter examines no more than SCAN_LIMIT jobs.

        Raises:
            InvalidSpec: the cursor is not valid.
        """
        with queue_errors(_ADVICE):
            async with self._lists.of(tenant):
                return await self._lookup.page(tenant, wanted, cursor, limit)

    async def cancel(self, tenant: str, job_id: str) -> Job:
        """Ask for the job's end: a queued one is canceled at once, a running one stops within a step.

        Raises:
            NotFound: this tenant has no such job.
            Conflict: it has succeeded or failed already. A job that is canceled already is returned.
        """
        look = calls.look([job_id])
        with queue_errors(_ADVICE):
            _, (raw,) = await self._jobs.together(calls.cancel(job_id, tenant), look.command(self._keys.prefix))
            if isinstance(raw, ResponseError):
                raise raw
            (seen,) = look.parse(raw)
            if seen.shrunk and seen.shrunk.tenant == tenant:  # its end is known even if the store does not answer
                _require_cancelable(job_id, seen.shrunk.status)
                return await self._lookup.whole_or_brief(job_id, seen.shrunk)
            job = await self._lookup.loaded(tenant, job_id, seen)
            _require_cancelable(job_id, job.status)
            return job

    async def erase(self, tenant: str, job_id: str) -> None:
        """Erase an ended job, its songs and every trace.

        Raises:
            NotFound: this tenant has no such job.
            NotFinished: it, or its batch, has not ended; cancel it first.
        """
        with queue_errors(_ADVICE):
            (seen,) = await self._lookup.see([job_id])
            job = seen.entry or seen.shrunk or await self._lookup.loaded(tenant, job_id, seen)
            if job.tenant != tenant or (seen.entry and seen.entry.called_off):
                raise no_such_job(job_id)
            if not job.status.ended:
                raise NotFinished(f"job {job_id} is {job.status}: cancel it, or wait for its end, then erase it")
            batch_id = job.labels.get(BATCH_LABEL, "")
            if await self._jobs.redis.zscore(self._keys.batches, batch_id) is not None:
                raise NotFinished(f"job {job_id} is a line of batch {batch_id}: erase it when that has ended")
            # Listed before: none of these belongs to a job that is submitted with this id afterwards.
            prefix = song_prefix(tenant, job_id)
            found = await self.store_threads.run(tenant, lambda: [each.key for each in self._store.list(prefix)])
            if not await self._jobs(calls.erase(job_id, tenant)):
                raise NotFinished(f"job {job_id} was submitted again just now: cancel it, or wait for its end")
            # If this process dies from here on, or the store does, the controller deletes them.
            # Its record is the last, so that a repetition finds the rest; a controller may have written it meanwhile.
            last = record_key(tenant, job_id)
            doomed = [*(key for key in found if key != last), last]
            await self.store_threads.run(tenant, partial(_delete_all, self._store, doomed))

    async def pools(self) -> tuple[Pool, ...]:
        """Current status of the default pool, every published pool and every pool with a worker."""
        with queue_errors(_ADVICE):
            pool_status = await self._pool_status.read((self._settings.pool,), fresh=True)
        published = (pool.name for pool in self._settings.pools)
        names = {self._settings.pool, *published, *(worker.pool for worker in pool_status.workers)}
        return tuple(pool_status.pools[name] for name in sorted(names))

    async def require_room(self) -> None:
        """Check that Redis answers, and takes writes. Raises QueueFull where it is out of memory or disk."""
        with queue_errors():
            await self._jobs.redis.eval(_WRITES, 0)


def _slow_store() -> Unavailable:
    return StoreUnavailable("the store is slow to answer; try again")


def _too_many_lists() -> Limited:
    return Limited("too many lists of this tenant are being read at once; wait for them", retry_after_s=1)


def _delete_all(store: Store, keys: Sequence[str]) -> None:
    for key in keys:
        store.delete(key)


def _require_cancelable(job_id: str, status: JobStatus) -> None:
    if status.ended and status is not JobStatus.CANCELED:
        raise Conflict(f"job {job_id} has {status} already: there is nothing left to cancel")
