"""JobQueue: all operations on jobs."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from anyio import from_thread
from redis.exceptions import ResponseError

from api.containers import check_container, check_inputs
from api.outages import no_disk, queue_errors
from api.queue.admission import check_audio, check_length, check_lora_and_codes, check_webhook, pool_for, timeout_for
from api.queue.explanations import Pool
from api.queue.lookup import ADVICE, MANY_WAITING, JobReader, no_such_job
from api.queue.retry_after import error_of
from api.queue.submission import fresh_job, keyed_job_id, require_on_disk
from api.settings import GatewaySettings
from api.turns import Threads
from serinette import logs, telemetry
from serinette.batch import BATCH_LABEL
from serinette.container import CONTAINERS_POOL, ContainerSpec
from serinette.credentials import Limits
from serinette.errors import (
    Conflict,
    IdempotencyConflict,
    InvalidSpec,
    NotFinished,
    QueueUnavailable,
    SerinetteError,
    StoreUnavailable,
    Unavailable,
)
from serinette.job import Job, JobOptions, JobStatus
from serinette.jobs import AsyncJobs, Submission, Submitted, calls
from serinette.jobs.script import WRITES
from serinette.names import record_key, song_prefix
from serinette.presence import Presence
from serinette.spec import GenerationSpec
from serinette.store import Store
from serinette.webhook_targets import Targets

log = logging.getLogger(__name__)

# Threads in which submits wait for look-ups of webhooks' hosts; of one tenant at most a quarter.
_WEBHOOK_THREADS = 16
# Threads for blocking calls of the store, by the queue and by downloads and uploads; of one tenant at most half.
_STORE_THREADS = 16
_SLOW_STORE = partial(StoreUnavailable, "the store is slow to answer; try again")
_SLOW_RESOLVER = partial(
    Unavailable, "webhook: too many hosts are being looked up at the moment; try again", field="webhook"
)


class JobQueue(JobReader):
    """Jobs of all tenants on one Redis: what reads them, and what submits, cancels and erases them.

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
        super().__init__(jobs, store, settings)
        self._submits = submits or jobs
        self._settings = settings
        self._declared = declared
        self._targets = Targets(settings.webhook_networks)
        self.store_threads = Threads(_STORE_THREADS, _STORE_THREADS // 2, _SLOW_STORE, MANY_WAITING)
        self.webhook_threads = Threads(_WEBHOOK_THREADS, _WEBHOOK_THREADS // 4, _SLOW_RESOLVER)

    async def submit(
        self,
        tenant: str,
        work: GenerationSpec | ContainerSpec,
        options: JobOptions,
        *,
        idempotency_key: str | None = None,
        dialect: Mapping[str, str] | None = None,
    ) -> tuple[Job, bool]:
        """Queue a song, its seed drawn, or a container; True if the job is new, False if the Idempotency-Key named an
        existing one.

        Raises:
            InvalidSpec: its model, audio or input does not exist, its timeout is longer than its pool allows, its
                webhook's address is not allowed, or the operator does not allow the container.
            Unsupported: it names a webhook, and this deployment delivers none.
            IdempotencyConflict: the key was used with another spec.
            LaneNotAllowed, Limited: a limit of its lane or tenant is reached; nothing was stored.
        """
        submission = Submission(
            id=str(uuid.uuid4()) if idempotency_key is None else self._keyed(tenant, idempotency_key),
            tenant=tenant,
            pool="",
            work=work.seeded() if isinstance(work, GenerationSpec) else work,
            options=options,
            digest=work.digest(),
            timeout_s=0,
            # The operator sets the attempts of a song, the client those of a container.
            max_attempts=work.retries + 1 if isinstance(work, ContainerSpec) else self._settings.max_attempts,
            ttl_s=self._settings.retention_s,
            dialect=dialect or {},
        )
        with queue_errors(ADVICE):
            try:
                pool, timeout_s = await self._admit(submission)
            except SerinetteError:
                # A repeated submit must find its job even if, for instance, its upload was erased meanwhile.
                if idempotency_key is None or (known := await self._known(submission.id)) is None:
                    raise
                return await self._replayed(submission, known), False
            return await self._submitted(submission, pool, timeout_s, keyed=idempotency_key is not None)

    async def _admit(self, submission: Submission) -> tuple[str, int]:
        """The pool of a job that may be queued, and its timeout in seconds."""
        work, options, settings, tenant = submission.work, submission.options, self._settings, submission.tenant
        if isinstance(work, ContainerSpec):
            check_container(tenant, work, options, settings)
            await self._check_webhook(tenant, options.webhook)
            if work.inputs:
                await self._ask_store(check_inputs, tenant, work)
            ceiling_s = settings.ceilings_of(tenant).timeout_s
            return CONTAINERS_POOL, options.timeout_s or min(settings.job_timeout_s, ceiling_s)
        check_lora_and_codes(work, settings.loras)
        pool, workers = await self._pool_for(work.model)
        timeout_s = timeout_for(options.timeout_s, pool, settings)
        check_length(work, pool, workers)
        await self._check_webhook(tenant, options.webhook)
        if work.source_audio is not None or work.reference_audio is not None:
            await self._ask_store(check_audio, tenant, work)
        return pool, timeout_s

    async def _submitted(self, submission: Submission, pool: str, timeout_s: int, *, keyed: bool) -> tuple[Job, bool]:
        tenant, lane = submission.tenant, submission.options.lane
        with telemetry.span("submit", attributes={"job": submission.id, "pool": pool, "lane": lane}):
            submission = replace(submission, pool=pool, timeout_s=timeout_s, carried=telemetry.carried())
            limits, most, wait_ms = self._declared(tenant), self._settings.max_waiting, self._settings.disk_wait_ms
            call = calls.submit(submission, limits=limits, max_waiting=most, fsync=bool(wait_ms))
            found, disk = await self._submits.together(call, wait_ms=wait_ms)
        if found.refused is not None:
            raise error_of(found.refused, tenant, lane, (await self._pool_status.read((pool,))).pools[pool])
        if found.no_disk:
            raise no_disk()
        require_on_disk(disk)
        if found.known or found.ended:
            # Without a key this is our own submit, sent twice because Redis's first answer was lost.
            return await self._replayed(submission, found), not keyed
        with logs.about(job=submission.id):
            log.info("job %s submitted to %s.%s", submission.id, pool, lane)
        return await self.with_place(fresh_job(submission, found.created_at), found.place), True

    async def cancel(self, tenant: str, job_id: str) -> Job:
        """Ask for the job's end: a queued one is canceled at once, a running one stops within a step.

        Raises:
            NotFound: this tenant has no such job.
            Conflict: it has succeeded or failed already. A job that is canceled already is returned.
        """
        look = calls.look([job_id])
        with queue_errors(ADVICE):
            _, (raw,) = await self._jobs.together(calls.cancel(job_id, tenant), look.command(self._keys.prefix))
            if isinstance(raw, ResponseError):
                raise raw
            (seen,) = look.parse(raw)
            if seen.shrunk and seen.shrunk.tenant == tenant:  # its end is known even if the store does not answer
                _require_cancelable(job_id, seen.shrunk.status)
                return await self.whole_or_brief(job_id, seen.shrunk)
            job = await self.loaded(tenant, job_id, seen)
            _require_cancelable(job_id, job.status)
            return job

    async def erase(self, tenant: str, job_id: str) -> None:
        """Erase an ended job, its songs and every trace.

        Raises:
            NotFound: this tenant has no such job.
            NotFinished: it, or its batch, has not ended; cancel it first.
        """
        with queue_errors(ADVICE):
            (seen,) = await self.see([job_id])
            job = seen.entry or seen.shrunk or await self.loaded(tenant, job_id, seen)
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
        with queue_errors(ADVICE):
            pool_status = await self._pool_status.read((self._settings.pool,), fresh=True)
        published = (pool.name for pool in self._settings.pools)
        names = {self._settings.pool, *published, *(worker.pool for worker in pool_status.workers)}
        return tuple(pool_status.pools[name] for name in sorted(names))

    async def require_room(self) -> None:
        """Check that Redis answers, and takes writes. Raises QueueFull where it is out of memory or disk."""
        with queue_errors():
            await self._jobs.redis.eval(WRITES, 0)

    async def _pool_for(self, model: str | None) -> tuple[str, Sequence[Presence]]:
        workers = (await self._pool_status.read()).workers
        try:
            return pool_for(model, self._settings, workers), workers
        except InvalidSpec:  # the cached status may lack a worker that has just started
            workers = (await self._pool_status.read(fresh=True)).workers
            return pool_for(model, self._settings, workers), workers

    async def _check_webhook(self, tenant: str, url: str | None) -> None:
        if url is not None:
            await self.webhook_threads.run(tenant, partial(check_webhook, tenant, url, self._settings, self._targets))

    async def _ask_store(self, check: Callable[..., None], tenant: str, work: GenerationSpec | ContainerSpec) -> None:
        def find_job(job_id: str) -> Job:
            return from_thread.run(self.get, tenant, job_id)

        await self.store_threads.run(tenant, partial(check, tenant, work, self._store, find_job))

    async def _known(self, job_id: str) -> Submitted | None:
        """The answer to a submit of this id if the job exists; waits for the disk if durability is fsync."""
        # WAITAOF needs a write to wait for.
        wait_ms = self._settings.disk_wait_ms
        writes = [("SET", self._keys.synced, job_id)] if wait_ms else []
        (seen,), disk = await self._submits.together(calls.look([job_id]), *writes, wait_ms=wait_ms)
        if seen.entry is None and seen.shrunk is None:
            return None
        require_on_disk(disk)
        return Submitted(seen.place, known=seen.entry, ended=seen.shrunk)

    async def _replayed(self, submission: Submission, found: Submitted) -> Job:
        known = found.known or found.ended
        # "": restored from a record without a digest.
        if known is not None and known.digest not in {"", submission.digest}:
            raise IdempotencyConflict(
                "this Idempotency-Key was used with another spec; use a new key for a new song", field="Idempotency-Key"
            )
        if found.ended:
            return await self.whole_or_brief(submission.id, found.ended)
        if found.known is None or found.known.called_off:
            raise QueueUnavailable("the job of this Idempotency-Key is being erased; try again")
        return await self.with_place(found.known.job(), found.place)

    def _keyed(self, tenant: str, idempotency_key: str) -> str:
        secret = self._settings.idempotency_secret
        return keyed_job_id(tenant, idempotency_key, secret.get_secret_value() if secret else None)


def _delete_all(store: Store, keys: Sequence[str]) -> None:
    for key in keys:
        store.delete(key)


def _require_cancelable(job_id: str, status: JobStatus) -> None:
    if status.ended and status is not JobStatus.CANCELED:
        raise Conflict(f"job {job_id} has {status} already: there is nothing left to cancel")
