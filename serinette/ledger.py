"""A job's own book in Redis, beside RQ's: cancel flag, progress, attempts, outcome and events.

RQ knows that a job is queued, started or over; it forgets all attempts but the last, has no durable cancel and lets two
executions finalise one job (docs/decisions/0002). Gateway, slots and maintenance therefore share this ledger. Every
write that must not race is one Lua script, so it can also ride inside one of RQ's own transactions.

Hash fields: `tenant`, `cancel` (Unix seconds of the request), `attempts` (count), `owner` (id of the attempt in
charge), `attempt:N` (JSON Attempt), `progress` (JSON Progress), `outcome` (JobStatus, set once), `error` (JSON
JobError).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from redis import Redis
from redis.client import Pipeline

from serinette.job import Attempt, AttemptOutcome, JobError, JobStatus, Progress, Result, now
from serinette.names import Keys

# A 30 minute job makes a few hundred events; more than this and the oldest go.
MAX_EVENTS = 1_000

# A claim. Refused (0) once the job has an outcome or its cancel flag is set (-1). ARGV: attempt id, worker, now, max
# events. An earlier claim that nobody ended was given up by the sweep, or is a frozen slot's: it has lost the job now.
_BEGIN = """
if redis.call('HEXISTS', KEYS[1], 'outcome') == 1 then return 0 end
if redis.call('HEXISTS', KEYS[1], 'cancel') == 1 then return -1 end
if redis.call('HEXISTS', KEYS[1], 'owner') == 1 then
    local name = 'attempt:' .. redis.call('HGET', KEYS[1], 'attempts')
    local before = cjson.decode(redis.call('HGET', KEYS[1], name))
    before.outcome = 'superseded'
    before.ended_at = ARGV[3]
    redis.call('HSET', KEYS[1], name, cjson.encode(before))
end
local number = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'attempt:' .. number, cjson.encode({
    number = number, id = ARGV[1], worker = ARGV[2], started_at = ARGV[3], outcome = 'running'}))
redis.call('HDEL', KEYS[1], 'progress')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'type', 'started',
    'data', cjson.encode({attempt = number, worker = ARGV[2]}))
return number
"""

# Progress of the attempt in charge. ARGV: attempt id, Progress JSON, max events.
# Answers 1 written, 0 not (another attempt is in charge, or it is over), -1 written but cancel is requested.
_PROGRESS = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] or redis.call('HEXISTS', KEYS[1], 'outcome') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'progress', ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'type', 'progress', 'data', ARGV[2])
if redis.call('HEXISTS', KEYS[1], 'cancel') == 1 then return -1 end
return 1
"""

# The end of an attempt that is not the end of the job. ARGV: attempt id, outcome, error JSON or '', now, max events.
_END_ATTEMPT = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
local name = 'attempt:' .. redis.call('HGET', KEYS[1], 'attempts')
local attempt = cjson.decode(redis.call('HGET', KEYS[1], name))
attempt.outcome = ARGV[2]
attempt.ended_at = ARGV[4]
if ARGV[3] ~= '' then attempt.error = cjson.decode(ARGV[3]) end
local written = cjson.encode(attempt)
redis.call('HSET', KEYS[1], name, written)
redis.call('HDEL', KEYS[1], 'owner', 'progress')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'type', 'attempt', 'data', written)
return 1
"""

# The end of the job: the first outcome stays, and is told once.
# KEYS: ledger, events, live. ARGV: job id, outcome, error JSON or '', event JSON, TTL seconds, now, max events.
_SETTLE = """
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('HSETNX', KEYS[1], 'outcome', ARGV[2]) == 0 then return 0 end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[3]) end
local number = redis.call('HGET', KEYS[1], 'attempts')
if number and redis.call('HEXISTS', KEYS[1], 'owner') == 1 then
    local name = 'attempt:' .. number
    local attempt = cjson.decode(redis.call('HGET', KEYS[1], name))
    attempt.outcome = ARGV[2]
    attempt.ended_at = ARGV[6]
    if ARGV[3] ~= '' then attempt.error = cjson.decode(ARGV[3]) end
    redis.call('HSET', KEYS[1], name, cjson.encode(attempt))
end
redis.call('HSET', KEYS[1], 'ended_at', ARGV[6])
redis.call('HDEL', KEYS[1], 'owner', 'progress')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'type', ARGV[2], 'data', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
"""

# KEYS: ledger, events. ARGV: now, max events. Answers 0 when the job is over, 1 when the flag is (or was) set.
_REQUEST_CANCEL = """
if redis.call('HEXISTS', KEYS[1], 'outcome') == 1 then return 0 end
if redis.call('HSETNX', KEYS[1], 'cancel', ARGV[1]) == 1 then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'type', 'cancel_requested', 'data', '{}')
end
return 1
"""


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

    @classmethod
    def parse(cls, raw: Mapping[Any, Any]) -> Entry:
        """Read the hash as `HGETALL` gives it; a missing job is an empty entry."""
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        numbers = range(1, int(fields.get("attempts", 0)) + 1)
        attempts = tuple(
            Attempt.model_validate_json(fields[f"attempt:{n}"]) for n in numbers if f"attempt:{n}" in fields
        )
        return cls(
            tenant=fields.get("tenant"),
            cancel_requested="cancel" in fields,
            owner=fields.get("owner"),
            attempts=attempts,
            progress=Progress.model_validate_json(fields["progress"]) if "progress" in fields else None,
            outcome=JobStatus(fields["outcome"]) if "outcome" in fields else None,
            error=JobError.model_validate_json(fields["error"]) if "error" in fields else None,
            ended_at=datetime.fromisoformat(fields["ended_at"]) if "ended_at" in fields else None,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ends."""

    status: JobStatus
    error: JobError | None = None
    result: Result | None = None

    def event(self) -> str:
        """The terminal event's data, JSON."""
        data: dict[str, Any] = {"status": self.status}
        if self.error:
            data["error"] = self.error.model_dump(mode="json")
        if self.result:
            data["artifacts"] = len(self.result.artifacts)
        return json.dumps(data)


@dataclass(frozen=True, slots=True)
class Ledger:
    """All writes to and reads of the ledgers on one Redis."""

    redis: Redis
    keys: Keys
    ttl_s: int = field(default=7 * 86_400)

    def open(self, job_id: str, tenant: str, created_at: datetime) -> None:
        """Enter a job among the live ones, before RQ gets it: a submit cut short is then found by the sweep."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.zadd(self.keys.live, {job_id: created_at.timestamp()}, nx=True)
            pipe.zadd(self.keys.jobs(tenant), {job_id: created_at.timestamp()}, nx=True)
            pipe.hset(self.keys.ledger(job_id), "tenant", tenant)
            pipe.execute()

    def begin_attempt(self, job_id: str, attempt_id: str, worker: str, pipeline: Pipeline | None = None) -> int:
        """Claim: the attempt's number from 1; 0 if the job is over, -1 if its cancel flag is set.

        In a `pipeline` the answer comes with its results, not here.
        """
        keys = [self.keys.ledger(job_id), self.keys.events(job_id)]
        told = (pipeline or self.redis).eval(_BEGIN, 2, *keys, attempt_id, worker, now().isoformat(), MAX_EVENTS)
        return int(told) if pipeline is None else 0

    def progress(self, job_id: str, attempt_id: str, progress: Progress) -> int:
        """Tell progress: 1 told, -1 told and cancel is requested, 0 this attempt is no longer in charge."""
        keys = [self.keys.ledger(job_id), self.keys.events(job_id)]
        return int(self.redis.eval(_PROGRESS, 2, *keys, attempt_id, progress.model_dump_json(), MAX_EVENTS))

    def end_attempt(
        self,
        job_id: str,
        attempt_id: str,
        outcome: AttemptOutcome,
        error: JobError | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        """Close an attempt while the job goes on; rides in `pipeline` if given."""
        keys = [self.keys.ledger(job_id), self.keys.events(job_id)]
        text = error.model_dump_json() if error else ""
        (pipeline or self.redis).eval(_END_ATTEMPT, 2, *keys, attempt_id, outcome, text, now().isoformat(), MAX_EVENTS)

    def settle(self, job_id: str, outcome: Outcome, pipeline: Pipeline | None = None) -> bool:
        """End the job; True if this call decided it. In a `pipeline` the answer comes with its results, not here."""
        keys = [self.keys.ledger(job_id), self.keys.events(job_id), self.keys.live]
        error = outcome.error.model_dump_json() if outcome.error else ""
        told = (pipeline or self.redis).eval(
            _SETTLE, 3, *keys, job_id, outcome.status, error, outcome.event(), self.ttl_s, now().isoformat(), MAX_EVENTS
        )
        return pipeline is None and told == 1

    def request_cancel(self, job_id: str) -> bool:
        """Set the durable cancel flag and tell whoever sings it; False if the job is over already."""
        keys = [self.keys.ledger(job_id), self.keys.events(job_id)]
        if not self.redis.eval(_REQUEST_CANCEL, 2, *keys, now().timestamp(), MAX_EVENTS):
            return False
        self.redis.publish(self.keys.cancels, job_id)
        return True

    def read(self, job_id: str) -> Entry:
        """The entry of one job."""
        return Entry.parse(self.redis.hgetall(self.keys.ledger(job_id)))

    def read_into(self, job_id: str, pipeline: Pipeline) -> None:
        """Queue the read on a pipeline; parse its result with `Entry.parse`."""
        pipeline.hgetall(self.keys.ledger(job_id))

    def forget(self, job_id: str, tenant: str, pipeline: Pipeline | None = None) -> None:
        """Erase all trace of a job that has ended or never began; rides in `pipeline` if given."""
        pipe = self.redis.pipeline(transaction=True) if pipeline is None else pipeline
        pipe.delete(self.keys.ledger(job_id), self.keys.events(job_id))
        pipe.zrem(self.keys.live, job_id)
        pipe.zrem(self.keys.jobs(tenant), job_id)
        if pipeline is None:
            pipe.execute()
