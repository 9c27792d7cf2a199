"""A job to be submitted: the fields of its record, and those of RQ's hash as RQ's own `Job` builds them."""

from __future__ import annotations

import json
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
from serinette.spec import GenerationSpec
from serinette.webhook import DELIVERY_DELAY_S


def generate(job_id: str) -> None:
    """The function that RQ's hash names, shown by RQ's own tools.

    Raises:
        RuntimeError: always. An `rq worker` was started by mistake and took the job, which goes back to its lane.
    """
    raise RuntimeError(f"job {job_id} is for python -m gpu_worker, not for rq worker; it is put back")


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_FUNCTION = f"{__name__}.{generate.__name__}"


@dataclass(frozen=True)
class Submission:
    """One job. `digest`: digest of the client's request. `carried`: trace context. `batch`: id of its batch and its
    line there, from 0.
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
        """Fields of the record, without those that the transition writes."""
        container = self.work if isinstance(self.work, ContainerSpec) else None
        spec = GenerationSpec() if isinstance(self.work, ContainerSpec) else self.work
        options = self.options
        fields: dict[str, Any] = {
            "schema": spec.needs_schema,
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
        """Fields of RQ's hash, enough for RQ's own tools. Only the record holds the spec."""
        kind = "container" if isinstance(self.work, ContainerSpec) else "song"
        return rq_fields_of(
            self.id, self.pool, self.options.lane, kind, (self.timeout_s, self.ttl_s, self.max_attempts)
        )


def rq_fields_of(job_id: str, pool: str, lane: Lane, kind: str, limits: tuple[int, int, int]) -> dict[str, Any]:
    """RQ's hash of a job. `limits`: longest run in seconds, retention after its end in seconds, most attempts."""
    fields = dict(_rq_template(pool, lane, kind, limits))
    call = (_FUNCTION, None, (), {"job_id": job_id})
    # Not compressed, which RQ reads as well: it would not become shorter.
    fields["data"] = JSONSerializer.dumps(call)  # type: ignore[no-untyped-call]  # RQ ships it untyped
    return fields


@lru_cache(256)
def _rq_template(pool: str, lane: Lane, kind: str, limits: tuple[int, int, int]) -> tuple[tuple[str, Any], ...]:
    """The fields of RQ's own Job that do not depend on the id, cached: building a Job takes a tenth of a submit."""
    timeout_s, ttl_s, max_attempts = limits
    job = RqJob.create(
        _FUNCTION,
        id="any",
        connection=Redis(),  # required by RQ, never used
        serializer=JSONSerializer,
        origin=queue_name(pool, lane),
        status=RqStatus.QUEUED,
        timeout=timeout_s,
        result_ttl=ttl_s,
        failure_ttl=ttl_s,
        description=f"a {kind}",  # RQ's default is the whole call
    )
    if max_attempts > 1:
        job.retries_left = max_attempts - 1
    fields: dict[str, Any] = job.to_dict()
    # The transition writes its own times.
    return tuple((name, value) for name, value in fields.items() if value not in ("", None) and name != "created_at")


__all__ = ["Submission", "generate", "rq_fields_of"]
