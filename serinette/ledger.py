"""A job's own book in Redis, beside RQ's: cancel flag, progress, attempts, outcome and events.

RQ knows that a job is queued, started or over; it forgets all attempts but the last, has no durable cancel and lets two
executions finalise one job (docs/decisions/0002). Gateway, slots and maintenance therefore share this ledger. Every
write that must not race is one Lua script, so it can also ride inside one of RQ's own transactions.

Hash fields: `tenant`, `pool`, `cancel` (Unix seconds of the request), `attempts` (count), `owner` (id of the attempt in
charge), `attempt:N` (JSON Attempt), `began` (Unix seconds of the last attempt's start), `gpu_s` (of failed attempts),
`usage` (JSON Usage), `progress` (JSON Progress), `outcome` (JobStatus, set once), `error` (JSON
JobError), `start_by` (Unix seconds), `webhook` (URL), `deliveries` (count), `delivery:N` (JSON Delivery). Of containers
also `run` (JSON Run), `placed` (id of the attempt that got a Kubernetes Job), `log_at` (time of the last line read),
`ran_s` (of a canceled one, as long as its pod was seen).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from redis.client import Pipeline

from serinette import scripts
from serinette.container import Run
from serinette.errors import Expired
from serinette.job import Attempt, AttemptOutcome, JobError, JobStatus, Progress, Record, Result, Usage, now
from serinette.names import DEFAULT_POOL, Keys
from serinette.tally import COUNT_SCRIPT
from serinette.usage import BOOK_SCRIPT
from serinette.webhook import Delivery

# A 30 minute job makes a few hundred events; more than this and the oldest go.
MAX_EVENTS = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger holds of one job."""

    tenant: str | None = None
    cancel_requested: bool = False
    owner: str | None = None
    attempts: tuple[Attempt, ...] = ()
    progress: Progress | None = None
    outcome: JobStatus | None = None
    error: JobError | None = None
    ended_at: datetime | None = None
    start_by: datetime | None = None
    webhook: str | None = None
    deliveries: tuple[Delivery, ...] = ()
    usage: Usage | None = None
    run: Run | None = None
    placed: str | None = None

    @classmethod
    def parse(cls, raw: Mapping[Any, Any]) -> Entry:
        """Read the hash as `HGETALL` gives it; a missing job is an empty entry."""
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        numbers = range(1, int(fields.get("attempts", 0)) + 1)
        attempts = tuple(
            Attempt.model_validate_json(fields[f"attempt:{n}"]) for n in numbers if f"attempt:{n}" in fields
        )
        tries = range(1, int(fields.get("deliveries", 0)) + 1)
        return cls(
            tenant=fields.get("tenant"),
            cancel_requested="cancel" in fields,
            owner=fields.get("owner"),
            attempts=attempts,
            progress=Progress.model_validate_json(fields["progress"]) if "progress" in fields else None,
            outcome=JobStatus(fields["outcome"]) if "outcome" in fields else None,
            error=JobError.model_validate_json(fields["error"]) if "error" in fields else None,
            ended_at=datetime.fromisoformat(fields["ended_at"]) if "ended_at" in fields else None,
            start_by=datetime.fromtimestamp(float(fields["start_by"]), UTC) if "start_by" in fields else None,
            webhook=fields.get("webhook"),
            deliveries=tuple(
                Delivery.model_validate_json(fields[f"delivery:{n}"]) for n in tries if f"delivery:{n}" in fields
            ),
            usage=Usage.model_validate_json(fields["usage"]) if "usage" in fields else None,
            run=Run.model_validate_json(fields["run"]) if "run" in fields else None,
            placed=fields.get("placed"),
        )

    def expired(self, at: datetime) -> bool:
        """Whether nobody began the job, and its time to be begun is over."""
        return not self.attempts and self.outcome is None and self.start_by is not None and at >= self.start_by

    def expiry(self) -> JobError:
        """Why an expired job failed, for the client."""
        by = f" by {self.start_by:%Y-%m-%d %H:%M:%S} UTC" if self.start_by else ""
        message = f"no worker began the job{by}: give a longer start_deadline_s, or submit again when workers are free"
        return JobError(code=Expired.code, message=message)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a submit asks of a job's end: by when it must have begun, and where the end is told."""

    start_by: datetime | None = None
    webhook: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ends. `gpu_s` is what its last attempt took of the engine, should it have no result to tell."""

    status: JobStatus
    error: JobError | None = None
    result: Result | None = None
    gpu_s: float = 0.0
    run: Run | None = None

    @classmethod
    def of(cls, record: Record) -> Outcome:
        """What a record says."""
        return cls(record.status, record.error, record.result, run=record.run)

    def event(self) -> str:
        """The terminal event's data, JSON."""
        data: dict[str, Any] = {"status": self.status, "usage": self._usage()}
        if self.error:
            data["error"] = self.error.model_dump(mode="json")
        if self.result:
            data["artifacts"] = len(self.result.artifacts)
        return json.dumps(data)

    def _usage(self) -> dict[str, float]:
        """Of the attempt that counts; the ledger's script reads it from the event."""
        if self.result is None:
            return {"gpu_s": self.gpu_s, "size_bytes": self.run.size_bytes if self.run else 0}
        return {"gpu_s": self.result.timings.generate_s, "size_bytes": self.result.size_bytes}


@dataclass(frozen=True, slots=True)
class Ledger:
    """All writes to and reads of the ledgers on one Redis."""

    redis: Redis
    keys: Keys
    ttl_s: int = field(default=7 * 86_400)

    def open(
        self,
        job_id: str,
        tenant: str,
        created_at: datetime,
        pool: str = DEFAULT_POOL,
        terms: Terms | None = None,
    ) -> None:
        """Enter a job among the live ones, before RQ gets it: a submit cut short is then found by the sweep.

        Of several submits of one job the first says by when it must begin and where its end is told.
        """
        ledger, score = self.keys.ledger(job_id), {job_id: created_at.timestamp()}
        with self.redis.pipeline(transaction=True) as pipe:
            for index in (self.keys.live, self.keys.jobs(tenant), self.keys.in_flight(tenant)):
                pipe.zadd(index, score, nx=True)
            pipe.hset(ledger, mapping={"tenant": tenant, "pool": pool})
            if terms and terms.start_by:
                pipe.hsetnx(ledger, "start_by", str(terms.start_by.timestamp()))
                pipe.zadd(self.keys.deadlines, {job_id: terms.start_by.timestamp()}, nx=True)
            if terms and terms.webhook:
                pipe.hsetnx(ledger, "webhook", terms.webhook)
            pipe.execute()

    def begin_attempt(self, job_id: str, attempt_id: str, worker: str, pipeline: Pipeline | None = None) -> int:
        """Claim: the attempt's number from 1; 0 if the job is over, -1 if its cancel flag is set.

        In a `pipeline` the answer comes with its results, not here.
        """
        keys = [self.keys.ledger(job_id), self.keys.events(job_id), self.keys.tally]
        arguments: list[str | int] = [attempt_id, worker, now().isoformat(), MAX_EVENTS]
        told = (pipeline or self.redis).eval(COUNT_SCRIPT + BOOK_SCRIPT + scripts.BEGIN, 3, *keys, *arguments)
        return int(told) if pipeline is None else 0

    def progress(self, job_id: str, attempt_id: str, progress: Progress) -> int:
        """Tell progress: 1 told, -1 told and cancel is requested, 0 this attempt is no longer in charge."""
        keys = [self.keys.ledger(job_id), self.keys.events(job_id)]
        return int(self.redis.eval(scripts.PROGRESS, 2, *keys, attempt_id, progress.model_dump_json(), MAX_EVENTS))

    def end_attempt(
        self,
        job_id: str,
        attempt_id: str,
        outcome: AttemptOutcome,
        error: JobError | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        """Close an attempt while the job goes on; rides in `pipeline` if given."""
        keys = [self.keys.ledger(job_id), self.keys.events(job_id), self.keys.tally]
        text = error.model_dump_json() if error else ""
        arguments: list[str | int] = [attempt_id, outcome, text, now().isoformat(), MAX_EVENTS]
        (pipeline or self.redis).eval(COUNT_SCRIPT + BOOK_SCRIPT + scripts.END_ATTEMPT, 3, *keys, *arguments)

    def charge(self, job_id: str, gpu_s: float, pipeline: Pipeline) -> None:
        """Add what a failed attempt took of the engine to what its job took; rides in the attempt's end."""
        pipeline.hincrbyfloat(self.keys.ledger(job_id), "gpu_s", gpu_s)

    def settle(self, job_id: str, outcome: Outcome, pipeline: Pipeline | None = None) -> bool:
        """End the job; True if this call decided it. In a `pipeline` the answer comes with its results, not here."""
        keys = [self.keys.ledger(job_id), self.keys.events(job_id), self.keys.live, self.keys.tally]
        error = outcome.error.model_dump_json() if outcome.error else ""
        arguments: list[str | int] = [job_id, outcome.status, error, outcome.event(), self.ttl_s]
        arguments += [now().isoformat(), MAX_EVENTS]
        arguments += [self.keys.unrecorded, self.keys.webhooks]  # the script looks for the second in the last place
        told = (pipeline or self.redis).eval(COUNT_SCRIPT + BOOK_SCRIPT + scripts.SETTLE, 4, *keys, *arguments)
        return pipeline is None and told == 1

    def request_cancel(self, job_id: str) -> bool:
        """Set the durable cancel flag and tell whoever sings it; False if the job is over already."""
        keys = [self.keys.ledger(job_id), self.keys.events(job_id)]
        if not self.redis.eval(scripts.REQUEST_CANCEL, 2, *keys, now().timestamp(), MAX_EVENTS):
            return False
        self.redis.publish(self.keys.cancels, job_id)
        return True

    def call_off(self, job_id: str, tenant: str, submitted_as: str, error: JobError) -> bool:
        """See that a job which nobody has submitted is never begun; False if somebody has.

        `submitted_as`: RQ's key of it.
        """
        keys = [self.keys.ledger(job_id), submitted_as, self.keys.live, self.keys.in_flight(tenant)]
        arguments: list[str | int] = [
            job_id,
            JobStatus.CANCELED,
            error.model_dump_json(),
            now().isoformat(),
            self.ttl_s,
        ]
        return bool(self.redis.eval(scripts.CALL_OFF, 4, *keys, *arguments))

    def read(self, job_id: str) -> Entry:
        """The entry of one job."""
        return Entry.parse(self.redis.hgetall(self.keys.ledger(job_id)))

    def log(self, job_id: str, start: int = 0) -> tuple[int, bytes]:
        """Number of a container's last attempt and its log from byte `start` on, both at one moment."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hget(self.keys.ledger(job_id), "attempts")
            pipe.getrange(self.keys.log(job_id), start, -1)
            number, text = pipe.execute()
        return int(number or 0), bytes(text)

    def read_into(self, job_id: str, pipeline: Pipeline) -> None:
        """Queue the read on a pipeline; parse its result with `Entry.parse`."""
        pipeline.hgetall(self.keys.ledger(job_id))

    def forget(self, job_id: str, tenant: str, pipeline: Pipeline | None = None) -> None:
        """Erase all trace of a job that has ended or never began; rides in `pipeline` if given."""
        pipe = self.redis.pipeline(transaction=True) if pipeline is None else pipeline
        pipe.delete(self.keys.ledger(job_id), self.keys.events(job_id), self.keys.log(job_id))
        for index in (self.keys.live, self.keys.unrecorded, self.keys.deadlines):
            pipe.zrem(index, job_id)
        for index in (self.keys.jobs(tenant), self.keys.in_flight(tenant), self.keys.running(tenant)):
            pipe.zrem(index, job_id)
        if pipeline is None:
            pipe.execute()
