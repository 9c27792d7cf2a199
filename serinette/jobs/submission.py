"""A job as it is submitted: the fields of its record, and those of RQ's hash, which RQ's own `Job` makes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from redis import Redis
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer

from serinette.container import ContainerSpec
from serinette.job import JobOptions
from serinette.names import Lane, queue_name
from serinette.spec import SCHEMA, GenerationSpec
from serinette.webhook import DELIVERY_DELAY_S


def generate(job_id: str) -> None:
    """What RQ's hash names as the function of a job, for RQ's own tools to show.

    Raises:
        RuntimeError: always. A stray `rq worker` has taken the job; it goes back to its lane.
    """
    raise RuntimeError(f"job {job_id} is for python -m gpu_worker, not for rq worker; it is put back")


_FUNCTION = f"{__name__}.{generate.__name__}"


@dataclass(frozen=True)
class Submission:
    """One job. `digest` is of what the client wrote; `carried` is where its trace began; `batch` is the batch that it
    belongs to, and which of its lines it is, from 0.
    """

    id: str
    tenant: str
    pool: str
    work: GenerationSpec | ContainerSpec
    options: JobOptions
    digest: str
    timeout_s: int
    max_attempts: int
    ttl_s: int
    dialect: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, str] = field(default_factory=dict)
    batch: tuple[str, int] | None = None

    @cached_property
    def fields(self) -> dict[str, Any]:
        """Of the record, but for what the transition writes."""
        container = self.work if isinstance(self.work, ContainerSpec) else None
        spec = GenerationSpec() if isinstance(self.work, ContainerSpec) else self.work
        options = self.options
        fields: dict[str, Any] = {
            "schema": SCHEMA,
            "tenant": self.tenant,
            "pool": self.pool,
            "lane": options.lane.value,
            "spec": _json(spec.to_wire()),
            "digest": self.digest,
            "timeout_s": self.timeout_s,
            "max_attempts": self.max_attempts,
            "ttl_s": self.ttl_s,
            **self.carried,
        }
        if options.labels:
            fields["labels"] = _json(options.labels)
        if self.dialect:
            fields["dialect"] = _json(dict(self.dialect))
        if options.webhook:
            fields |= {"webhook": options.webhook, "webhook_after_s": DELIVERY_DELAY_S}
        if options.start_deadline_s is not None:
            fields["start_in_s"] = options.start_deadline_s
        if self.batch is not None:
            fields["batch"], fields["line"] = self.batch
        if container is not None:
            fields["container"] = _json(container.to_wire())
        return fields

    @cached_property
    def rq_fields(self) -> dict[str, Any]:
        """Of RQ's hash: enough for RQ's own tools. The spec stands in the record alone."""
        kind = "container" if isinstance(self.work, ContainerSpec) else "song"
        return rq_fields_of(
            self.id, self.pool, self.options.lane, kind, (self.timeout_s, self.ttl_s, self.max_attempts)
        )


def rq_fields_of(job_id: str, pool: str, lane: Lane, kind: str, limits: tuple[int, int, int]) -> dict[str, Any]:
    """RQ's hash of a job. `limits`: longest run and life after its end in seconds, and most attempts."""
    fields = dict(_rq_template(pool, lane, kind, limits))
    call = (_FUNCTION, None, (), {"job_id": job_id})
    # As RQ packs a call; a test compares it with what RQ's own Job makes.
    fields["data"] = zlib.compress(JSONSerializer.dumps(call))  # type: ignore[no-untyped-call]  # RQ ships it untyped
    return fields


@lru_cache(256)
def _rq_template(pool: str, lane: Lane, kind: str, limits: tuple[int, int, int]) -> tuple[tuple[str, Any], ...]:
    """What RQ's own Job writes of such a job, whatever its id: making one takes a tenth of a submit."""
    timeout_s, ttl_s, max_attempts = limits
    job = RqJob.create(
        _FUNCTION,
        id="any",
        connection=Redis(),  # which is never asked
        serializer=JSONSerializer,
        origin=queue_name(pool, lane),
        status=RqStatus.QUEUED,
        timeout=timeout_s,
        result_ttl=ttl_s,
        failure_ttl=ttl_s,
        description=f"a {kind}",  # RQ's own would be the whole call
    )
    if max_attempts > 1:
        job.retries_left = max_attempts - 1
    fields: dict[str, Any] = job.to_dict()
    # The transition writes its own times.
    return tuple((name, value) for name, value in fields.items() if value not in ("", None) and name != "created_at")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


__all__ = ["Submission", "generate", "rq_fields_of"]
