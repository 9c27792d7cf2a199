"""Containers as jobs, in the gateway: what is checked before one may enter the queue, and its log on its way out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from redis import asyncio as redis_asyncio
from starlette.responses import Response

from api.downloads import Downloads, FileRequest, names_etag
from api.outages import queue_errors
from serinette.container import ContainerSpec, Input, allowed_by
from serinette.container_settings import ContainerSettings
from serinette.errors import InvalidSpec, NotFound, Unsupported
from serinette.job import Job, JobOptions
from serinette.names import Keys, upload_file_key, upload_record_key
from serinette.store import Store

# -- what may enter the queue, beyond a spec's own bounds


def check_taken(settings: ContainerSettings) -> None:
    """See that containers run here at all.

    Raises:
        Unsupported: they do not.
    """
    if not settings.containers:
        raise Unsupported(
            "containers run on a cluster, and this deployment takes none: its operator must give it one and set "
            "SERINETTE_CONTAINERS with an allow-list of images (docs/containers.md); on a laptop, run the image "
            "with podman or docker"
        )


def check_container(tenant: str, spec: ContainerSpec, options: JobOptions, settings: ContainerSettings) -> None:
    """See that the operator allows what is file_request.

    Raises:
        InvalidSpec: an image, secret or pool that is not published, or more than the tenant's ceilings; `field` names
            it.
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
    """See that the inputs are the tenant's own and there. Another tenant's are answered as if they were not there.

    Raises:
        InvalidSpec: one is not.
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


# -- logs: out of Redis while they grow, out of the store when the job has ended

_TEXT = "text/plain; charset=utf-8"
# A LogPosition as text.
LOG_POSITION = r"^[0-9]{1,9}-[0-9]{1,12}$"


@dataclass(frozen=True, slots=True)
class LogPosition:
    """How far a log was read: so many bytes of that of one attempt, each of which has a log of its own."""

    attempt: int
    size_bytes: int

    @classmethod
    def parse(cls, text: str) -> LogPosition:
        """Read what `str` wrote, which is the log's ETag."""
        attempt, _, size_bytes = text.partition("-")
        return cls(int(attempt), int(size_bytes))

    def __str__(self) -> str:
        return f"{self.attempt}-{self.size_bytes}"

    @property
    def headers(self) -> dict[str, str]:
        """Of an answer that ends here."""
        return {"ETag": f'"{self}"', "Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class _StoredLog:
    key: str
    size_bytes: int
    etag: str
    content_type: str = _TEXT


@dataclass(frozen=True, slots=True)
class Logs:
    """Containers' logs."""

    redis: redis_asyncio.Redis
    keys: Keys
    downloads: Downloads

    async def serve(self, job: Job, file_request: FileRequest, after: LogPosition | None) -> Response:
        """The log so far, or what was written behind `after`: 206, or 204 when that is nothing. All of it again where
        another attempt has begun another log.

        Raises:
            NotFound: the job is a song.
            Gone: its file was erased.
        """
        if job.container is None:
            raise NotFound(f"job {job.id} is a song and has no log; follow /v1/jobs/{job.id}/events")
        if job.status.ended and job.run and job.run.log_key:
            return await self._stored(job, job.run.log_key, job.run.log_size_bytes, file_request, after)
        start = after.size_bytes if after else 0
        with queue_errors():
            attempt, text = await self._read(job.id, start)
            if after and after.attempt != attempt:
                start = 0
                attempt, text = await self._read(job.id, start)
        return _live(text, start, LogPosition(attempt, start + len(text)), file_request)

    async def _stored(
        self, job: Job, key: str, size_bytes: int, file_request: FileRequest, after: LogPosition | None
    ) -> Response:
        end = LogPosition(job.attempts[-1].number if job.attempts else 0, size_bytes)
        if after and after.attempt == end.attempt:
            if after.size_bytes >= size_bytes:
                return Response(status_code=204, headers=end.headers)
            file_request = replace(file_request, range=f"bytes={after.size_bytes}-", if_range=None, if_none_match=None)
        return await self.downloads.serve(
            _StoredLog(key, size_bytes, str(end)), file_request, f"{job.id}.log", download=False
        )

    async def _read(self, job_id: str, start: int) -> tuple[int, bytes]:
        """Number of the last attempt, and its log from byte `start` on."""
        while True:
            async with self.redis.pipeline(transaction=False) as pipe:
                pipe.hget(self.keys.job(job_id), "attempts")
                # Bytes: a piece may begin and end within a letter.
                pipe.execute_command("GETRANGE", self.keys.log(job_id), start, -1, NEVER_DECODE=True)
                pipe.hget(self.keys.job(job_id), "attempts")
                before, text, attempt = await pipe.execute()
            if before == attempt:  # else another attempt began another log in between
                return int(attempt or 0), text


def _live(text: bytes, start: int, end: LogPosition, file_request: FileRequest) -> Response:
    headers = end.headers
    if start and not text:
        return Response(status_code=204, headers=headers)
    if start:
        headers["Content-Range"] = f"bytes {start}-{end.size_bytes - 1}/{end.size_bytes}"
        return Response(text, 206, headers, _TEXT)
    if names_etag(file_request.if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(text, 200, headers, _TEXT)
