"""Submits: the checks, then one call of the transition, which includes the wait for the disk."""

from __future__ import annotations

import hashlib
import hmac
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from anyio import from_thread

from api.containers import check_container, check_inputs, check_taken
from api.outages import no_disk
from api.queue.admission import check_audio, check_length, check_lora_and_codes, check_webhook, pool_for, timeout_for
from api.queue.lookup import Lookup
from api.queue.pool_status import PoolStatusReader
from api.queue.retry_after import error_of
from api.settings import GatewaySettings
from api.turns import Threads
from serinette import logs, telemetry
from serinette.container import CONTAINERS_POOL, ContainerSpec
from serinette.credentials import Limits
from serinette.errors import IdempotencyConflict, InvalidSpec, QueueUnavailable, SerinetteError, Unavailable
from serinette.job import Job, JobOptions, JobStatus
from serinette.jobs import AsyncJobs, Submission, Submitted, calls
from serinette.jobs.script import Argument
from serinette.presence import Presence
from serinette.spec import GenerationSpec
from serinette.store import Store
from serinette.webhook_targets import Targets

log = logging.getLogger(__name__)

# Threads in which submits wait for look-ups of webhooks' hosts; of one tenant at most a quarter.
_WEBHOOK_THREADS = 16
# Share of the Redis timeout that WAITAOF may take; the rest is for the network.
_DISK_SHARE = 0.8

Command = tuple[Argument, ...]
# Returns the pool and the timeout in seconds, or raises.
Check = Callable[[], Awaitable[tuple[str, int]]]


@dataclass(frozen=True, slots=True)
class Work:
    """A song or container to submit, with its options."""

    tenant: str
    what: GenerationSpec | ContainerSpec
    options: JobOptions
    idempotency_key: str | None = None
    dialect: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submitter:
    """Checks and queues jobs. Raises RedisError when Redis does not answer.

    A hanging store or resolver delays only the submits that need it: they wait in separate threads. `declared` returns
    the limits of tenants in the declared file.
    """

    jobs: AsyncJobs
    store: Store
    settings: GatewaySettings
    lookup: Lookup
    pool_status: PoolStatusReader
    declared: Callable[[str], Limits | None]
    store_threads: Threads
    targets: Targets
    webhook_threads: Threads = field(
        default_factory=lambda: Threads(_WEBHOOK_THREADS, _WEBHOOK_THREADS // 4, _slow_resolver)
    )

    async def song(self, work: Work, spec: GenerationSpec) -> tuple[Job, bool]:
        """See JobQueue.submit."""

        async def check() -> tuple[str, int]:
            check_lora_and_codes(spec, self.settings.loras)
            pool, workers = await self._pool_for(spec.model)
            timeout_s = timeout_for(work.options.timeout_s, pool, self.settings)
            check_length(spec, pool, workers)
            await self._check_webhook(work)
            if spec.source_audio is not None or spec.reference_audio is not None:
                await self._ask_store(check_audio, work.tenant, spec)
            return pool, timeout_s

        return await self._submitted(work, check)

    async def container(self, work: Work, spec: ContainerSpec) -> tuple[Job, bool]:
        """See JobQueue.submit_container."""
        check_taken(self.settings)

        async def check() -> tuple[str, int]:
            check_container(work.tenant, spec, work.options, self.settings)
            await self._check_webhook(work)
            if spec.inputs:
                await self._ask_store(check_inputs, work.tenant, spec)
            ceiling_s = self.settings.ceilings_of(work.tenant).timeout_s
            return CONTAINERS_POOL, work.options.timeout_s or min(self.settings.job_timeout_s, ceiling_s)

        return await self._submitted(work, check)

    async def _submitted(self, work: Work, check: Check) -> tuple[Job, bool]:
        key = work.idempotency_key
        job_id = str(uuid.uuid4()) if key is None else self._keyed(work.tenant, key)
        try:
            pool, timeout_s = await check()
        except SerinetteError:
            # A repeated submit must find its job even if, for instance, its upload was erased meanwhile.
            if key is None or (known := await self._known(job_id)) is None:
                raise
            return await self._replayed(work, job_id, known), False
        with telemetry.span("submit", attributes={"job": job_id, "pool": pool, "lane": work.options.lane}):
            submission = self._submission(job_id, work, pool, timeout_s)
            limits, most = self.declared(work.tenant), self.settings.max_waiting
            call = calls.submit(submission, limits=limits, max_waiting=most, fsync=bool(self._wait_ms))
            found, disk = await self.jobs.together(call, wait_ms=self._wait_ms)
        if found.refused is not None:
            seen = (await self.pool_status.read((pool,))).pools[pool]
            raise error_of(found.refused, work.tenant, work.options.lane, seen)
        if found.no_disk:
            raise no_disk()
        _require_on_disk(disk)
        if found.known or found.ended:
            # Without a key this is our own submit, sent twice because Redis's first answer was lost.
            return await self._replayed(work, job_id, found), key is None
        with logs.about(job=job_id):
            log.info("job %s submitted to %s.%s", job_id, pool, work.options.lane)
        return await self.lookup.with_place(_fresh(submission, found.created_at), found.place), True

    def _submission(self, job_id: str, work: Work, pool: str, timeout_s: int) -> Submission:
        what = work.what
        # The operator sets the attempts of a song, the client those of a container.
        max_attempts = what.retries + 1 if isinstance(what, ContainerSpec) else self.settings.max_attempts
        return Submission(
            id=job_id,
            tenant=work.tenant,
            pool=pool,
            work=what.seeded() if isinstance(what, GenerationSpec) else what,
            options=work.options,
            digest=what.digest(),
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            ttl_s=self.settings.retention_s,
            dialect=work.dialect,
            carried=telemetry.carried(),
        )

    async def _pool_for(self, model: str | None) -> tuple[str, Sequence[Presence]]:
        workers = (await self.pool_status.read()).workers
        try:
            return pool_for(model, self.settings, workers), workers
        except InvalidSpec:  # the cached status may lack a worker that has just started
            workers = (await self.pool_status.read(fresh=True)).workers
            return pool_for(model, self.settings, workers), workers

    async def _check_webhook(self, work: Work) -> None:
        if (url := work.options.webhook) is not None:
            check = partial(check_webhook, work.tenant, url, self.settings, self.targets)
            await self.webhook_threads.run(work.tenant, check)

    async def _ask_store(self, check: Callable[..., None], tenant: str, spec: GenerationSpec | ContainerSpec) -> None:
        def find_job(job_id: str) -> Job:
            return from_thread.run(self.lookup.load, tenant, job_id)

        await self.store_threads.run(tenant, partial(check, tenant, spec, self.store, find_job))

    @property
    def _wait_ms(self) -> int:
        """How long a submit waits for the disk, in milliseconds; 0 unless durability is fsync."""
        return int(self.settings.redis_timeout_s * 1000 * _DISK_SHARE) if self.settings.durability == "fsync" else 0

    async def _known(self, job_id: str) -> Submitted | None:
        """The answer to a submit of this id if the job exists; waits for the disk if durability is fsync."""
        # WAITAOF needs a write to wait for.
        writes: Sequence[Command] = [("SET", self.settings.keys.synced, job_id)] if self._wait_ms else []
        (seen,), disk = await self.jobs.together(calls.look([job_id]), *writes, wait_ms=self._wait_ms)
        if seen.entry is None and seen.shrunk is None:
            return None
        _require_on_disk(disk)
        return Submitted(seen.place, known=seen.entry, ended=seen.shrunk)

    async def _replayed(self, work: Work, job_id: str, found: Submitted) -> Job:
        known = found.known or found.ended
        # "": restored from a record without a digest.
        if known is not None and known.digest not in {"", work.what.digest()}:
            raise IdempotencyConflict(
                "this Idempotency-Key was used with another spec; use a new key for a new song", field="Idempotency-Key"
            )
        if found.ended:
            return await self.lookup.whole_or_brief(job_id, found.ended)
        if found.known is None or found.known.called_off:
            raise QueueUnavailable("the job of this Idempotency-Key is being erased; try again")
        return await self.lookup.with_place(found.known.job(), found.place)

    def _keyed(self, tenant: str, idempotency_key: str) -> str:
        secret = self.settings.idempotency_secret
        return keyed_job_id(tenant, idempotency_key, secret.get_secret_value() if secret else None)


def keyed_job_id(tenant: str, idempotency_key: str, secret: str | None = None) -> str:
    """The job id of an Idempotency-Key: the same key of the same tenant is the same job.

    With the deployment's `secret` other parties cannot compute it (docs/decisions/0013).
    """
    key, message = (tenant, idempotency_key) if secret is None else (secret, f"{tenant}\n{idempotency_key}")
    digest = hmac.digest(key.encode(), message.encode(), hashlib.sha256)
    return str(uuid.UUID(bytes=digest[:16], version=5))


def _fresh(submission: Submission, created_at_s: float) -> Job:
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


def _require_on_disk(answers: Sequence[Any]) -> None:
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


def _slow_resolver() -> Unavailable:
    return Unavailable("webhook: too many hosts are being looked up at the moment; try again", field="webhook")
