"""The record of one job, as Redis holds it: the fields of one hash, typed.

Written once, at submit: `schema`, `tenant`, `pool` (changed by a move), `lane`, `spec` and `container` (JSON as
queued), `labels`, `dialect` (JSON), `digest`, `timeout_s`, `max_attempts`, `ttl_s` (kept after its end), `webhook`,
`webhook_after_s`, `batch` and `line` (of a batch's job), `traceparent`, `created_at`, `start_by`. By transitions:
`state`, `attempts` (count), `attempt:N` (JSON Attempt, the last ten), `owner` (id of the current attempt), `began`,
`charged`, `gpu_s` (of failed attempts), `cancel`, `progress`, `error`, `result`, `run` (JSON), `usage`, `ended_at`,
`recorded` (job.json is in the store), `called_off`, `erased_at` (when an earlier job with this id was erased); of a
container `placed` (the attempt that has a Kubernetes Job), `ran_s`, `log_at` (time of the last line read). By the
outbox: `deliveries`, `delivery:N`.
All times are Unix seconds of the server's clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from serinette.container import ContainerSpec, Run
from serinette.errors import Expired, InvalidSpec, WorkerLost
from serinette.job import Attempt, AttemptOutcome, Job, JobError, JobStatus, Progress, Record, Result, Usage
from serinette.jobs.script import text
from serinette.names import Lane
from serinette.spec import SCHEMA, GenerationSpec
from serinette.webhook import Delivery

# Longest queued spec whose parsed form is cached: 512 of them take a few megabytes.
_CACHED_CHARACTERS = 4_096


@dataclass(frozen=True, slots=True)
class Entry:
    """One job. `fields` is the hash as it was read, which an attempt writes back to a server that lost it."""

    id: str
    fields: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, job_id: str, flat: Sequence[Any]) -> Entry | None:
        """Parse alternating fields and values as HGETALL returns them; None when there are none."""
        if not flat:
            return None
        if not isinstance(flat[0], str):  # a client without decode_responses returns bytes
            flat = [text(each) for each in flat]
        return cls(job_id, dict(zip(flat[::2], flat[1::2], strict=True)))

    @property
    def tenant(self) -> str:
        """The tenant that owns the job."""
        return self.fields["tenant"]

    @property
    def pool(self) -> str:
        """The pool whose lane the job is or was queued in."""
        return self.fields["pool"]

    @property
    def lane(self) -> Lane:
        """Its priority in the pool."""
        return Lane(self.fields["lane"])

    @property
    def status(self) -> JobStatus:
        """Its state."""
        return JobStatus(self.fields["state"])

    @property
    def wire(self) -> dict[str, Any]:
        """The spec as queued, possibly by another version.

        Raises:
            InvalidSpec: it cannot be read.
        """
        return _wire_of(self.fields.get("spec", ""))

    @property
    def spec(self) -> GenerationSpec:
        """The spec, without fields that this version does not know."""
        raw = self.fields.get("spec", "")
        return _cached_spec(raw) if len(raw) <= _CACHED_CHARACTERS else _spec_of(raw)

    @property
    def container(self) -> ContainerSpec | None:
        """The container's spec; None for a song."""
        found = self.fields.get("container")
        return None if found is None else ContainerSpec.from_wire(json.loads(found))

    @property
    def labels(self) -> dict[str, str]:
        """Labels that its owner gave it."""
        found: dict[str, str] = json.loads(self.fields.get("labels", "{}"))
        return found

    @property
    def dialect(self) -> dict[str, str]:
        """Fields that a dialect needs for its later answers."""
        found: dict[str, str] = json.loads(self.fields.get("dialect", "{}"))
        return found

    @property
    def digest(self) -> str:
        """Digest of the client's request."""
        return self.fields.get("digest", "")

    @property
    def created_at(self) -> datetime:
        """When it was submitted."""
        return _time(self.fields["created_at"])

    @property
    def ended_at(self) -> datetime | None:
        """When it ended."""
        return self._time("ended_at")

    @property
    def start_by(self) -> datetime | None:
        """When it fails as expired unless a worker has claimed it."""
        return self._time("start_by")

    @property
    def timeout_s(self) -> int:
        """Longest run, in seconds."""
        return int(self.fields["timeout_s"])

    @property
    def retries_left(self) -> int:
        """Attempts that may still fail before the job does."""
        return int(self.fields.get("max_attempts", 1)) - 1 - int(self.fields.get("charged", 0))

    @property
    def owner(self) -> str | None:
        """Id of the current attempt."""
        return self.fields.get("owner")

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The last ten attempts, oldest first."""
        count = int(self.fields.get("attempts", 0))
        names = (f"attempt:{number}" for number in range(1, count + 1))
        return tuple(Attempt.model_validate_json(self.fields[name]) for name in names if name in self.fields)

    @property
    def cancel_requested(self) -> bool:
        """Whether a cancel was requested."""
        return "cancel" in self.fields

    @property
    def progress(self) -> Progress | None:
        """Progress of the current attempt."""
        found = self.fields.get("progress")
        return None if found is None else Progress.model_validate_json(found)

    @property
    def error(self) -> JobError | None:
        """Why it failed."""
        found = self.fields.get("error")
        return None if found is None else JobError.model_validate_json(found)

    @property
    def result(self) -> Result | None:
        """The result of a job that succeeded."""
        found = self.fields.get("result")
        return None if found is None else Result.model_validate_json(found)

    @property
    def run(self) -> Run | None:
        """The result of a container."""
        found = self.fields.get("run")
        return None if found is None else Run.model_validate_json(found)

    @property
    def usage(self) -> Usage | None:
        """Usage of the ended job."""
        found = self.fields.get("usage")
        return None if found is None else Usage.model_validate_json(found)

    @property
    def webhook(self) -> str | None:
        """URL that its end is reported to."""
        return self.fields.get("webhook")

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """Delivery attempts of its webhook."""
        numbers = range(1, int(self.fields.get("deliveries", 0)) + 1)
        found = (self.fields.get(f"delivery:{number}") for number in numbers)
        return tuple(Delivery.model_validate_json(each) for each in found if each)

    @property
    def placed(self) -> str | None:
        """Id of the attempt for which a container's Kubernetes Job was created."""
        return self.fields.get("placed")

    @property
    def ran_s(self) -> float:
        """Run time of a canceled container's command when its pod was last observed."""
        return float(self.fields.get("ran_s", 0))

    @property
    def log_at(self) -> str:
        """Time of the last line read from a container's log; '' before the first."""
        return self.fields.get("log_at", "")

    @property
    def called_off(self) -> bool:
        """Whether its id was canceled before a submit, so that no job ever existed."""
        return "called_off" in self.fields

    def is_anothers(self, record: Record) -> bool:
        """Whether a record under this id is of an erased job that had it before, or of another request before this."""
        erased_at = float(self.fields.get("erased_at", 0))
        other = bool(record.digest and self.digest) and record.digest != self.digest
        # Retention, which has not come to it yet, would delete its songs under this job.
        outlived = record.ended_at.timestamp() + int(self.fields["ttl_s"]) <= self.created_at.timestamp()
        earlier = (other and record.created_at < self.created_at) or outlived
        return earlier or record.created_at.timestamp() <= erased_at

    @property
    def traceparent(self) -> str | None:
        """W3C traceparent of the submit."""
        return self.fields.get("traceparent")

    def _time(self, name: str) -> datetime | None:
        found = self.fields.get(name)
        return None if found is None else _time(found)

    def job(self) -> Job:
        """The job as its owner sees it, without its place, ETA and `waiting_for`."""
        status, attempts = self.status, self.attempts
        return Job.model_construct(  # skips validation: the values are typed, and polls come a thousand times a second
            id=self.id,
            tenant=self.tenant,
            status=status,
            spec=self.spec,
            pool=self.pool,
            lane=self.lane,
            labels=self.labels,
            dialect=self.dialect,
            created_at=self.created_at,
            started_at=attempts[-1].started_at if attempts and status is not JobStatus.QUEUED else None,
            ended_at=self.ended_at,
            timeout_s=int(self.fields["timeout_s"]) if "timeout_s" in self.fields else None,
            start_by=self.start_by,
            webhook=self.webhook,
            deliveries=self.deliveries,
            cancel_requested=self.cancel_requested,
            progress=self.progress if status is JobStatus.RUNNING else None,
            attempts=attempts,
            result=self.result if status is JobStatus.SUCCEEDED else None,
            container=self.container,
            run=self.run,
            error=self.error if status is JobStatus.FAILED else None,
            usage=self.usage,
        )

    def expiry(self) -> JobError:
        """The error of a job that no worker claimed in time."""
        by = f" by {self.start_by:%Y-%m-%d %H:%M:%S} UTC" if self.start_by else ""
        message = f"no worker began the job{by}: give a longer start_deadline_s, or submit again when workers are free"
        return JobError(code=Expired.code, message=message)

    def lost(self, *, last: bool) -> JobError:
        """The error of the current attempt when its worker's lease expired."""
        worker, number = (self.attempts[-1].worker, self.attempts[-1].number) if self.attempts else ("unknown", 0)
        what = "no attempts are left; submit the job again" if last else "another attempt follows"
        return JobError(
            code=WorkerLost.code,
            message=f"worker {worker} stopped answering during attempt {number}: {what}",
            retryable=WorkerLost.retryable,
        )


def _wire_of(raw: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidSpec("the job's record in Redis cannot be read; submit it again")
    return found


def _spec_of(raw: str) -> GenerationSpec:
    return GenerationSpec.from_wire({**_wire_of(raw), "schema": SCHEMA})


# Polls read the same spec repeatedly, and validating it takes a fifth of a poll.
_cached_spec = lru_cache(maxsize=512)(_spec_of)


def _time(value: str) -> datetime:
    return datetime.fromtimestamp(float(value), UTC)


def job_of_record(record: Record) -> Job:
    """The job of a record in the store."""
    attempt = record.attempt
    if attempt and attempt.outcome is AttemptOutcome.RUNNING:  # the attempt itself wrote the record before it ended
        attempt = attempt.model_copy(update={"outcome": AttemptOutcome.SUCCEEDED, "ended_at": record.ended_at})
    # Older records have neither `attempts` nor the usage of a song.
    usage = record.usage or (_usage_of(record.result) if record.result else None)
    attempts = record.attempts or ((attempt,) if attempt else ())
    return Job.model_validate({**vars(record), "id": record.job_id, "attempts": attempts, "usage": usage})


def _usage_of(result: Result) -> Usage:
    return Usage(gpu_s=result.timings.generate_s, queue_s=result.timings.queue_s, size_bytes=result.size_bytes)
