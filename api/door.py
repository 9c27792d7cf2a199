"""What is done with jobs that needs the store, in threads of its own: one that hangs holds up no look at the queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import anyio
from anyio import CapacityLimiter

from api.queue import JobQueue
from serinette.job import Job, JobOptions
from serinette.spec import GenerationSpec


@dataclass(frozen=True, slots=True)
class Door:
    """Songs' way in and out, for every dialect."""

    queue: JobQueue
    store_threads: CapacityLimiter

    async def submit(
        self,
        tenant: str,
        spec: GenerationSpec,
        options: JobOptions,
        *,
        idempotency_key: str | None = None,
        dialect: Mapping[str, str] | None = None,
    ) -> tuple[Job, bool]:
        """`JobQueue.submit`. Only a song that works on audio needs the store, which is asked for that audio."""
        act = partial(self.queue.submit, tenant, spec, options, idempotency_key=idempotency_key, dialect=dialect)
        works_on_audio = spec.source_audio is not None or spec.reference_audio is not None
        return await anyio.to_thread.run_sync(act, limiter=self.store_threads if works_on_audio else None)

    async def erase(self, tenant: str, job_id: str) -> None:
        """`JobQueue.erase`."""
        await anyio.to_thread.run_sync(self.queue.erase, tenant, job_id, limiter=self.store_threads)
