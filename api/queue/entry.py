"""How a job is entered in RQ, all that never changes of it, and how a canceled one leaves its lane."""

from __future__ import annotations

import hashlib
import hmac
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from redis import Redis
from rq import Queue, Retry
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as RqJob
from rq.registry import CanceledJobRegistry
from rq.serializers import JSONSerializer

from serinette import logs, traces
from serinette.container import ContainerSpec
from serinette.job import JobOptions, now
from serinette.ledger import Terms
from serinette.names import CONTAIN_TASK, SING_TASK, queue_name
from serinette.spec import GenerationSpec

log = logging.getLogger(__name__)


class Keeping(Protocol):
    """How often a job is tried, and how long it is kept: of the gateway's settings."""

    @property
    def max_attempts(self) -> int:
        """Attempts before it fails for good."""

    @property
    def retention_s(self) -> int:
        """From its end."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is submitted."""

    what: GenerationSpec | ContainerSpec
    options: JobOptions
    idempotency_key: str | None = None
    dialect: Mapping[str, str] = field(default_factory=dict)


def meta_of(
    tenant: str, pool: str, spec: GenerationSpec | ContainerSpec, options: JobOptions, dialect: Mapping[str, str]
) -> dict[str, Any]:
    """What is kept beside the song, but its timeout."""
    return {
        "tenant": tenant,
        "pool": pool,
        "lane": options.lane,
        "labels": options.labels,
        "digest": spec.digest(),
        "dialect": dict(dialect),
        "webhook": options.webhook,
        "created_at": now().isoformat(),
    }


def enqueue(
    redis: Redis, job_id: str, work: GenerationSpec | ContainerSpec, meta: dict[str, Any], settings: Keeping
) -> None:
    """Put a job into its lane.

    Raises:
        DuplicateJobError: RQ has a job of this id.
    """
    spec, container = parted(work)
    # A song is tried as often as the settings say, a container as often as its client does.
    retries = settings.max_attempts - 1 if container is None else container.retries
    lane = Queue(queue_name(meta["pool"], meta["lane"]), redis, serializer=JSONSerializer)
    with traces.span("submit", told={"job": job_id, "pool": meta["pool"], "lane": meta["lane"]}):
        lane.enqueue_call(
            CONTAIN_TASK if container else SING_TASK,
            kwargs=job_kwargs(job_id, spec, container),
            job_id=job_id,
            unique=True,
            timeout=meta["timeout_s"],
            result_ttl=settings.retention_s,
            failure_ttl=settings.retention_s,
            retry=Retry(max=retries, enqueue_at_front=True) if retries else None,
            meta=meta | traces.carried(),
            description="a container" if container else "a song",  # RQ's default would repeat the whole spec
        )
    with logs.about(job=job_id):
        log.info("job %s submitted to %s", job_id, lane.name)


def parted(work: GenerationSpec | ContainerSpec) -> tuple[GenerationSpec, ContainerSpec | None]:
    """The song; or an empty one, so that whoever reads specs finds nothing in it, and the container."""
    return (GenerationSpec(), work) if isinstance(work, ContainerSpec) else (work, None)


def terms_of(options: JobOptions) -> Terms:
    """What a submit asks of the job's end."""
    deadline_s = options.start_deadline_s
    return Terms(None if deadline_s is None else now() + timedelta(seconds=deadline_s), options.webhook)


def job_kwargs(job_id: str, spec: GenerationSpec, container: ContainerSpec | None) -> dict[str, Any]:
    """What RQ keeps of the work itself."""
    kwargs: dict[str, Any] = {"job_id": job_id, "spec": spec.to_wire()}
    return kwargs if container is None else {**kwargs, "container": container.to_wire()}


def keyed_job_id(tenant: str, idempotency_key: str, secret: str | None = None) -> str:
    """The job id that an Idempotency-Key stands for: the same key of the same tenant is the same job.

    With the deployment's `secret` nobody else can compute it (docs/decisions/0013).
    """
    key, said = (tenant, idempotency_key) if secret is None else (secret, f"{tenant}\n{idempotency_key}")
    digest = hmac.digest(key.encode(), said.encode(), hashlib.sha256)
    return str(uuid.UUID(bytes=digest[:16], version=5))


def fetched(redis: Redis, job_id: str) -> RqJob | None:
    """RQ's entry of a job."""
    try:
        return RqJob.fetch(job_id, redis, JSONSerializer)
    except NoSuchJobError:
        return None


def drop_from_lane(redis: Redis, job_id: str, retention_s: int) -> None:
    """Take a canceled job out of its lane."""
    rq_job = fetched(redis, job_id)
    if rq_job is None:
        return
    try:
        rq_job.cancel()
    except (InvalidJobOperation, NoSuchJobError):
        return
    # RQ keeps canceled jobs for ever; the score says until when we do, as in its other registries.
    registry = CanceledJobRegistry(rq_job.origin, redis, serializer=JSONSerializer)
    at = now().timestamp()
    with redis.pipeline() as pipe:
        pipe.expire(rq_job.key, retention_s)
        pipe.zadd(registry.key, {job_id: at + retention_s})
        pipe.zremrangebyscore(registry.key, "-inf", at)
        pipe.execute()
