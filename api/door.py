"""The way to jobs, for every dialect: what needs the store waits in threads of its own, so that one that hangs holds
up no look at the queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import anyio
from anyio import CapacityLimiter

from api.lookups import Lookups
from api.queue import Elsewhere, JobQueue, Seen, no_such_job
from api.threads import Threads
from serinette.container import ContainerSpec
from serinette.errors import StoreUnavailable, Unavailable
from serinette.job import Job, JobOptions
from serinette.spec import GenerationSpec

# Those that ask the store for jobs that Redis has forgotten, and those that look up the hosts of webhooks.
_RECALLS = 8
_WEBHOOKS = 8


class Door:
    """Songs' way in and out."""

    def __init__(self, queue: JobQueue, store_threads: CapacityLimiter) -> None:
        self._queue = queue
        self.store_threads = store_threads
        self.recalls = Threads(_RECALLS, _slow_store)
        self.webhooks = Threads(_WEBHOOKS, _slow_lookups)
        self._lookups = Lookups(self._glance)

    async def submit(
        self,
        tenant: str,
        spec: GenerationSpec,
        options: JobOptions,
        *,
        idempotency_key: str | None = None,
        dialect: Mapping[str, str] | None = None,
    ) -> tuple[Job, bool]:
        """`JobQueue.submit`. Only a song that works on audio needs the store, which is asked for that audio; and only
        one with a webhook a resolver, which may be a stranger's.
        """
        act = partial(self._queue.submit, tenant, spec, options, idempotency_key=idempotency_key, dialect=dialect)
        if options.webhook is not None:
            return await self.webhooks.run(act)
        works_on_audio = spec.source_audio is not None or spec.reference_audio is not None
        return await anyio.to_thread.run_sync(act, limiter=self.store_threads if works_on_audio else None)

    async def submit_container(
        self, tenant: str, spec: ContainerSpec, options: JobOptions, *, idempotency_key: str | None = None
    ) -> tuple[Job, bool]:
        """`JobQueue.submit_container`. The store is asked for its inputs."""
        act = partial(self._queue.submit_container, tenant, spec, options, idempotency_key=idempotency_key)
        if options.webhook is not None:
            return await self.webhooks.run(act)
        return await anyio.to_thread.run_sync(act, limiter=self.store_threads if spec.inputs else None)

    async def get(self, tenant: str, job_id: str) -> Job:
        """`JobQueue.get`."""
        seen = await self._lookups.get(tenant, job_id)
        if seen is Elsewhere.STORE:
            return await self.recalls.run(partial(self._queue.get, tenant, job_id))
        if seen is None:
            raise no_such_job(job_id)
        return seen

    async def find(self, tenant: str, job_ids: Sequence[str]) -> list[Job | None]:
        """`JobQueue.find`."""
        found = dict(zip(job_ids, await self._glance(tenant, job_ids), strict=True))
        if forgotten := [job_id for job_id in job_ids if found[job_id] is Elsewhere.STORE]:
            recalled = await self.recalls.run(partial(self._queue.find, tenant, forgotten))
            found |= dict(zip(forgotten, recalled, strict=True))
        return [job if isinstance(job, Job) else None for job in map(found.__getitem__, job_ids)]

    async def cancel(self, tenant: str, job_id: str) -> Job:
        """`JobQueue.cancel`."""
        act = partial(self._queue.cancel, tenant, job_id)
        if await self._lookups.get(tenant, job_id) is Elsewhere.STORE:
            return await self.recalls.run(act)
        return await anyio.to_thread.run_sync(act)

    async def erase(self, tenant: str, job_id: str) -> None:
        """`JobQueue.erase`."""
        await anyio.to_thread.run_sync(self._queue.erase, tenant, job_id, limiter=self.store_threads)

    async def _glance(self, tenant: str, job_ids: Sequence[str]) -> Sequence[Seen]:
        return await anyio.to_thread.run_sync(self._queue.glance, tenant, job_ids)


def _slow_store() -> Unavailable:
    return StoreUnavailable("the store is slow to answer for jobs that ended long ago; try again")


def _slow_lookups() -> Unavailable:
    message = "webhook: too many hosts are being looked up just now; try again"
    return Unavailable(message, field="webhook")
