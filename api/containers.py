"""Containers as jobs, in the gateway: checks before a container is queued, and downloads of its log."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from redis import asyncio as redis_asyncio
from starlette.responses import Response

from api.downloads import SANDBOX, Downloads, FileRequest, OtherFile, names_etag
from api.outages import queue_errors
from api.turns import Turns
from serinette.container import ContainerSpec, Input, allowed_by
from serinette.errors import InvalidSpec, Limited, NotFound
from serinette.job import Job, JobOptions
from serinette.names import Keys, upload_file_key, upload_record_key
from serinette.settings import ContainerSettings
from serinette.store import Store


def check_container(tenant: str, spec: ContainerSpec, options: JobOptions, settings: ContainerSettings) -> None:
    """Check that the operator allows the container.

    Raises:
        InvalidSpec: an image, secret or pool that is not published, or resources above the tenant's ceilings; `field`
            names it.
    """
    if not allowed_by(spec.image, settings.containers_images):
        raise _not_allowed("image", spec.image, settings.containers_images)
    if spec.writable_root and not allowed_by(spec.image, settings.containers_writable_images):
        raise InvalidSpec(
            f"writable_root: image {spec.image} may not; write below /outputs or /tmp instead", field="writable_root"
        )
    for name in spec.secrets.values():
        if name not in settings.containers_secrets:
            raise _not_allowed("secrets", name, settings.containers_secrets)
    if spec.pool is not None and spec.pool not in settings.containers_machines:
        raise _not_allowed("pool", spec.pool, settings.containers_machines)
    settings.ceilings_of(tenant).check(spec, options.timeout_s)
    if spec.gpus > settings.containers_max_gpus:
        most = settings.containers_max_gpus
        raise InvalidSpec(f"gpus: all containers together may hold {most} here, not {spec.gpus}", field="gpus")


def _not_allowed(field: str, name: str, known: Collection[str]) -> InvalidSpec:
    published = f"allowed here are {', '.join(sorted(known))}" if known else "none is allowed here"
    return InvalidSpec(f"{field}: {name} is not allowed; {published}", field=field)


def check_inputs(tenant: str, spec: ContainerSpec, store: Store, find_job: Callable[[str], Job]) -> None:
    """Check that all inputs exist and belong to the tenant. Inputs of other tenants are reported as missing.

    Raises:
        InvalidSpec: an input is missing.
    """
    for each in spec.inputs:
        try:
            _check_input(tenant, each, store, find_job)
        except NotFound as error:
            source = each.artifact or each.upload or each.prefix
            raise InvalidSpec(f"inputs: {each.path}: there is no {source} of yours", field="inputs") from error


def _check_input(tenant: str, given: Input, store: Store, find_job: Callable[[str], Job]) -> None:
    root, _, rest = (given.prefix or "").partition("/")
    upload = given.upload or (rest.rstrip("/") if root == "uploads" else None)
    if upload:
        try:
            store.head(upload_record_key(tenant, upload))
        except NotFound:
            store.head(upload_file_key(tenant, upload))
        return
    job_id, _, index = (given.artifact or f"{rest.rstrip('/')}/").partition("/")
    job = find_job(job_id)
    if not job.status.ended:
        raise InvalidSpec(f"inputs: {given.path}: job {job_id} is {job.status}; wait for its end", field="inputs")
    if index and int(index) not in {song.index for song in (job.result.artifacts if job.result else ())}:
        raise NotFound(f"job {job_id} has no song {index}")


_TEXT = "text/plain; charset=utf-8"
# Logs read from Redis at once, each up to its bound of some MiB; of one tenant at most half.
_LOG_READS = 8
_MANY_READS = partial(Limited, "too many logs of this tenant are being read at once; wait for them", retry_after_s=1)


@dataclass(frozen=True, slots=True)
class Logs:
    """Containers' logs: from Redis while they grow, from the store when the job has ended."""

    redis: redis_asyncio.Redis
    keys: Keys
    downloads: Downloads
    reads: Turns = field(default_factory=lambda: Turns(_LOG_READS, _LOG_READS // 2, _MANY_READS))

    async def serve(self, job: Job, file_request: FileRequest) -> Response:
        """The log so far, or all of it once the job has ended. Its ETag is the number of the attempt, each of which has
        a log of its own, and the log's bytes.

        Raises:
            NotFound: the job is a song.
            Gone: its file was erased.
        """
        if job.container is None:
            raise NotFound(f"job {job.id} is a song and has no log; follow /v1/jobs/{job.id}/events")
        if job.status.ended and job.run and job.run.log_key:
            size_bytes, attempt = job.run.log_size_bytes, job.attempts[-1].number if job.attempts else 0
            kept = OtherFile(job.run.log_key, size_bytes, f"{attempt}-{size_bytes}", _TEXT)
            return await self.downloads.serve(kept, file_request, f"{job.id}.log", download=True)
        async with self.reads.of(job.tenant):
            with queue_errors():
                async with self.redis.pipeline(transaction=True) as pipe:  # another attempt begins a new log
                    pipe.hget(self.keys.job(job.id), "attempts")
                    pipe.get(self.keys.log(job.id))
                    attempt, log = await pipe.execute()
        text = (log or "").encode()
        headers = {"ETag": f'"{attempt or 0}-{len(text)}"', "Cache-Control": "private, no-cache"}
        headers["Content-Security-Policy"] = SANDBOX
        if names_etag(file_request.if_none_match, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(text, 200, headers, _TEXT)
