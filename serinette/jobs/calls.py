"""Typed calls of the transitions in transitions/: arguments and parsed answers. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias

from serinette.batch import BatchHeader
from serinette.container import Run
from serinette.counters import WAIT, Additions
from serinette.credentials import Limits
from serinette.job import JobError, JobOptions, JobStatus, Record, Result, Usage
from serinette.jobs.entry import Entry, job_of_record
from serinette.jobs.script import Argument, Call, Reply, text
from serinette.jobs.submission import Submission
from serinette.names import Lane
from serinette.spec import SCHEMA

# Commands that a dead slot sent may still arrive for this long; a later claim is found by its expired lease.
_DEAD_SLOT_KEPT_S = 600
# "No bound" on the jobs in a lane: the largest number that a transition accepts.
_ANY_NUMBER = 10**12
# Most jobs that a look reads beside other calls in their round trip: more would hold them up.
_FEW = 8
_LOOKED_AT = 100
# Kept of a shrunk job's prompt: a hundred thousand shrunk jobs stay in Redis's memory for a week.
_PROMPT_BYTES = 60


class AttemptState(StrEnum):
    """State of a job from the view of one attempt."""

    MINE = "mine"  # the attempt holds the job
    CANCEL = "cancel"  # the attempt holds the job, and a cancel was requested
    WAITS = "waits"  # the job is queued again: its lease expired, or Redis was restored without the claim
    LOST = "lost"  # another attempt holds the job, or the job has ended
    UNKNOWN = "unknown"  # Redis was restored without the job
    RELEASED = "released"  # this call released the job


@dataclass(frozen=True, slots=True)
class Submitted:
    """Answer to a submit: a new job with its place, or one of `known`, `ended`, `refused` and `no_disk`."""

    place: int | None = None  # place of a queued job in its lane, from 0
    created_at: float = 0.0
    known: Entry | None = None
    ended: Shrunk | None = None
    refused: Refusal | None = None
    no_disk: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A limit that was reached. `what` is one of lane, gpu, in_flight, queued, waiting."""

    what: str
    count: float
    bound: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claimed job. `number` counts its attempts from 1."""

    number: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ends. `gpu_s`: engine time of its last attempt, where no result reports it."""

    status: JobStatus
    error: JobError | None = None
    result: Result | None = None
    gpu_s: float = 0.0
    run: Run | None = None

    @classmethod
    def of(cls, record: Record) -> Outcome:
        """The outcome in a record of the store."""
        return cls(record.status, record.error, record.result, run=record.run)

    @property
    def usage(self) -> Usage:
        """Usage of the last attempt."""
        if self.result is None:
            return Usage(gpu_s=self.gpu_s, size_bytes=self.run.size_bytes if self.run else 0)
        return Usage(gpu_s=self.result.timings.generate_s, size_bytes=self.result.size_bytes)

    def event(self) -> str:
        """The terminal event's data, JSON."""
        usage = self.usage
        data: dict[str, Any] = {"status": self.status, "usage": {"gpu_s": usage.gpu_s, "size_bytes": usage.size_bytes}}
        if self.error:
            data["error"] = self.error.model_dump(mode="json")
        if self.result:
            data["artifacts"] = len(self.result.artifacts)
        return json.dumps(data)


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The part of an ended job that Redis keeps after some minutes; the store keeps the whole record."""

    tenant: str
    digest: str
    status: JobStatus
    created_at: float
    ended_at: float
    pool: str
    lane: Lane
    labels: Mapping[str, str]
    prompt: str
    error_code: str
    size_bytes: int

    @classmethod
    def of(cls, entry: Entry) -> Shrunk:
        """Keep the start of the prompt and the fields that lists and filters need."""
        usage = entry.usage
        return cls(
            tenant=entry.tenant,
            digest=entry.digest,
            status=entry.status,
            created_at=round(entry.created_at.timestamp(), 3),
            ended_at=round(entry.ended_at.timestamp(), 3) if entry.ended_at else 0.0,
            pool=entry.pool,
            lane=entry.lane,
            labels=entry.labels,
            prompt=str(entry.wire.get("prompt", "")).encode()[:_PROMPT_BYTES].decode(errors="ignore"),
            error_code=entry.error.code if entry.error else "",
            size_bytes=usage.size_bytes if usage else 0,
        )

    def __str__(self) -> str:
        values = [getattr(self, name) for name in self.__dataclass_fields__]
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def parse(cls, raw: str) -> Shrunk:
        """Read what `str` wrote."""
        values = dict(zip(cls.__dataclass_fields__, json.loads(raw), strict=True))
        return cls(**{**values, "status": JobStatus(values["status"]), "lane": Lane(values["lane"])})


@dataclass(frozen=True, slots=True)
class Seen:
    """One job as Redis has it: the whole entry (with its place in its lane from 0 while queued), shrunk, or absent."""

    entry: Entry | None = None
    place: int | None = None
    shrunk: Shrunk | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The status that a job ended with; None when it is unknown. `decided`: this call ended it."""

    status: JobStatus | None
    decided: bool = False
    held: bool = False  # the job has not ended: another attempt holds it, or its lease has not expired
    erased: bool = False  # the job was erased; if there is one of its id, it was submitted later and is another


@dataclass(frozen=True, slots=True)
class Lease:
    """Lease of a slot on a job; `lease_s` 0 never expires. `worker_s`: TTL of RQ's worker key for the slot."""

    slot: str
    lease_s: float
    worker_s: float = field(default=60.0)


def submit(
    submission: Submission, *, limits: Limits | None = None, max_waiting: int | None = None, fsync: bool = False
) -> Call[Submitted]:
    """Queue a job unless a limit is reached or it exists. `limits`: the tenant's, if Redis does not have them."""
    rq_fields, record = _flat(submission.rq_fields), _flat(submission.fields)
    arguments: list[Argument] = [submission.id, limits.model_dump_json() if limits else ""]
    arguments += [_ANY_NUMBER if max_waiting is None else max_waiting, "1" if fsync else "", len(rq_fields)]

    def parse(answer: Reply) -> Submitted:
        kind, rest = text(answer[0]), answer[1:]
        match kind:
            case "new":
                return Submitted(place=int(rest[0]) - 1, created_at=float(rest[1]))
            case "known":
                place = text(rest[0])
                return Submitted(int(place) if place else None, known=Entry.parse(submission.id, rest[1:]))
            case "ended":
                return Submitted(ended=Shrunk.parse(text(rest[0])))
            case "refused":
                return Submitted(refused=Refusal(text(rest[0]), float(rest[1]), text(rest[2])))
            case _:
                return Submitted(no_disk=True)

    return Call("submit", [*arguments, *rq_fields, *record], parse)


def claim(  # noqa: PLR0913  # all that the transition takes
    attempt_id: str, lease: Lease, pool: str, lanes: Sequence[Lane], *, woken: bool = False, schema: int = SCHEMA
) -> Call[Claimed | bool]:
    """Claim the next job; without one, the answer is whether to ask again at once. A repeated call of the same attempt
    returns the same job.
    """
    bounds = " ".join(f"{bound:g}" for bound in WAIT.bounds)
    arguments: list[Argument] = [
        attempt_id,
        lease.slot,
        lease.lease_s,
        schema,
        pool,
        "1" if woken else "",
        bounds,
        *lanes,
    ]
    return Call("claim", arguments, _claimed)


def take(job_id: str, attempt_id: str, lease: Lease) -> Call[Claimed | bool]:
    """Claim this job if it is queued."""
    arguments: list[Argument] = [job_id, attempt_id, lease.slot, lease.lease_s]
    return Call("take", arguments, _claimed)


def beat(job_id: str, attempt_id: str, lease: Lease, progress: str = "") -> Call[AttemptState]:
    """Renew the lease and report progress (JSON, may be empty)."""
    arguments: list[Argument] = [job_id, attempt_id, lease.slot, lease.lease_s, lease.worker_s, progress]
    return Call("beat", arguments, _attempt_state)


def resume(entry: Entry, attempt_id: str, lease: Lease, rq_fields: Mapping[str, Argument]) -> Call[AttemptState]:
    """Restore the whole record of a running job on a server that lost it."""
    flat, record = _flat(rq_fields), _flat(entry.fields)
    arguments: list[Argument] = [entry.id, attempt_id, lease.slot, lease.lease_s, len(flat)]
    return Call("resume", [*arguments, *flat, *record], _attempt_state)


def release(  # noqa: PLR0913  # all that the transition takes
    job_id: str, attempt_id: str, error: JobError | None, *, charged: bool, gpu_s: float = 0.0, if_overdue: bool = False
) -> Call[AttemptState]:
    """End an attempt and put its job at the front of its lane. `charged`: the attempt failed and counts."""
    outcome = "failed" if charged else "returned"
    arguments: list[Argument] = [job_id, attempt_id, outcome, *_reason(error), gpu_s, "1" if if_overdue else ""]
    return Call("release", arguments, _attempt_state)


def finish(  # noqa: PLR0913  # all that the transition takes
    job_id: str,
    attempt_id: str,
    outcome: Outcome,
    *,
    recorded: bool,
    if_overdue: bool = False,
    additions: Additions = (),
    by: str = "",
    of: Record | Entry | None = None,
) -> Call[Finished]:
    """End a job. `attempt_id`: the attempt that produced the outcome, or ''. `recorded`: job.json is in the store.
    `by`: the attempt that calls, whose marks are removed. `of`: what the caller knows of the job, which may be erased.
    """
    usage = outcome.usage
    arguments: list[Argument] = [job_id, attempt_id, outcome.status, *_reason(outcome.error)]
    arguments += [outcome.result.model_dump_json() if outcome.result else "", outcome.event()]
    arguments += [usage.gpu_s, usage.size_bytes, "1" if recorded else "", "1" if if_overdue else ""]
    arguments += [outcome.run.model_dump_json() if outcome.run else "", by]
    arguments += [_unix(of.created_at), of.digest] if of else ["", ""]
    for name, amount in additions:
        arguments += [name, amount]

    def parse(answer: Reply) -> Finished:
        kind, state = text(answer[0]), text(answer[1])
        if kind in {"held", "erased"}:
            return Finished(None, held=kind == "held", erased=kind == "erased")
        return Finished(JobStatus(state) if state else None, len(answer) > 2 and int(answer[2]) == 1)

    return Call("finish", arguments, parse)


def recorded(entry: Entry) -> Call[str]:
    """Mark that the store has the record of this ended job. Answers `marked`, `shrunk`, `gone` (erased: the sweeper
    deletes what was put), or `other`: it was erased, and submitted anew.
    """
    return Call("recorded", [entry.id, entry.status, entry.fields["created_at"]], text)


def cancel(job_id: str, tenant: str) -> Call[str]:
    """Cancel a queued job, or request it of a running one. Answers the job's state, `unknown`, or `ended` if shrunk."""
    return Call("cancel", [job_id, tenant, Outcome(JobStatus.CANCELED).event()], text)


def call_off(job_id: str, tenant: str, error: JobError, ttl_s: int) -> Call[bool]:
    """Prevent a job id from being submitted later; if it already was, cancel that job and answer False."""
    arguments: list[Argument] = [job_id, tenant, Outcome(JobStatus.CANCELED).event(), error.model_dump_json()]
    arguments += ["ttl_s", ttl_s]
    return Call("cancel", arguments, lambda answer: text(answer) == "called_off")


def overdue(lease_s: float, most: int = 100) -> Call[list[tuple[str, str]]]:
    """Jobs whose lease expired, with their current attempts."""

    def parse(answer: Reply) -> list[tuple[str, str]]:
        return [(job_id, attempt) for job_id, _, attempt in (text(each).rpartition(":") for each in answer)]

    return Call("overdue", [lease_s, most], parse)


def lapse(slot: str) -> Call[int]:
    """Expire the leases of a slot whose process has ended."""
    return Call("lapse", [slot, _DEAD_SLOT_KEPT_S], int)


def heal(queue: str, most: int = 10) -> Call[int]:
    """Put the oldest queued jobs of a lane back into RQ's list if they are missing there; answers how many."""
    return Call("heal", [queue, most], int)


def move(job_id: str, from_pool: str, to_pool: str) -> Call[bool]:
    """Move a queued job to another pool; False if it is no longer queued."""
    return Call("move", [job_id, from_pool, to_pool], bool)


def restore(record: Record, left_s: int) -> Call[bool]:
    """Restore an ended job from its record in the store, kept for `left_s`; False if Redis knows it."""
    made = Submission(
        id=record.job_id,
        tenant=record.tenant,
        pool=record.pool,
        work=record.container or record.spec,
        options=JobOptions.model_construct(lane=record.lane, labels=record.labels, webhook=record.webhook),
        digest=record.digest,
        timeout_s=record.timeout_s or 0,
        max_attempts=1,
        ttl_s=left_s,
        dialect=record.dialect,
    )
    unknown = {"max_attempts"} if record.timeout_s else {"max_attempts", "timeout_s"}
    kept = {name: value for name, value in made.fields.items() if name not in unknown}
    rq_fields, fields = _flat(made.rq_fields), _flat({**kept, **_ended_fields(record)})
    arguments: list[Argument] = [record.job_id, record.status, left_s, Outcome.of(record).event(), len(rq_fields)]
    return Call("restore", [*arguments, *rq_fields, *fields], bool)


def shrink(entry: Entry) -> Call[bool]:
    """Replace the entry of an ended, recorded job by its Shrunk form; False if the whole entry is still needed."""
    return Call("shrink", [entry.id, str(Shrunk.of(entry)), entry.fields["created_at"]], bool)


def erase(job_id: str, tenant: str) -> Call[bool]:
    """Delete all of an ended job; False if it has not ended."""
    return Call("erase", [job_id, tenant], bool)


def look(job_ids: Sequence[str]) -> Call[list[Seen]]:
    """Read several jobs."""

    def parse(answer: Reply) -> list[Seen]:
        return [_seen(job_id, *each) for job_id, each in zip(job_ids, answer, strict=True)]

    return Call("look", list(job_ids), parse, alone=len(job_ids) > _FEW)


def looks(job_ids: Sequence[str]) -> Iterator[Call[list[Seen]]]:
    """Read many jobs, some in each call: the server serves no other client while it reads those of one."""
    return (look(job_ids[first : first + _LOOKED_AT]) for first in range(0, len(job_ids), _LOOKED_AT))


class BatchEntry(StrEnum):
    """What came of creating a batch: `full`: its tenant has as many unfinished ones as it may; `no_aof`: no disk."""

    NEW = "new"
    KNOWN = "known"
    FULL = "full"
    NO_AOF = "no_aof"


def enter_batch(
    header: BatchHeader, max_unfinished: int, fields: Mapping[str, Argument], *, fsync: bool
) -> Call[BatchEntry]:
    """Create a batch."""
    arguments: list[Argument] = [header.id, header.tenant, header.created_at.timestamp(), max_unfinished]
    arguments += ["1" if fsync else "", *_flat(fields)]
    return Call("enter_batch", arguments, lambda answer: BatchEntry(text(answer)))


Command: TypeAlias = Sequence[object]


def guarded(guards: Sequence[tuple[Command, object]], commands: Sequence[Command]) -> Call[bool]:
    """Run `commands` if each guard (a reading command and the expected answer, '' for nil) holds; whether they ran."""
    given = [[list(map(str, command)), str(answer)] for command, answer in guards]
    wanted = [list(map(str, command)) for command in commands]
    return Call("guarded", [json.dumps(given), json.dumps(wanted)], bool)


def _seen(job_id: str, flat: Sequence[Any], place: Reply, shrunk: Reply) -> Seen:
    known = text(shrunk)
    return Seen(Entry.parse(job_id, flat), int(place) if text(place) else None, Shrunk.parse(known) if known else None)


def _claimed(answer: Reply) -> Claimed | bool:
    if text(answer[0]) != "job":
        return text(answer[0]) == "more"
    entry = Entry.parse(text(answer[1]), answer[3:])
    return entry is not None and Claimed(int(answer[2]), entry)


def _attempt_state(answer: Reply) -> AttemptState:
    return AttemptState(text(answer))


def _reason(error: JobError | None) -> tuple[str, str]:
    return (error.model_dump_json(), error.code) if error else ("", "")


def _flat(fields: Mapping[str, Any]) -> list[Argument]:
    return [part for pair in fields.items() for part in pair]


def _ended_fields(record: Record) -> dict[str, Argument]:
    fields: dict[str, Argument] = {
        "created_at": _unix(record.created_at),
        "ended_at": _unix(record.ended_at),
    }
    job = job_of_record(record)
    if job.attempts:
        fields["attempts"] = job.attempts[-1].number
        fields |= {f"attempt:{attempt.number}": attempt.model_dump_json() for attempt in job.attempts}
    for name, value in (("error", record.error), ("result", record.result), ("run", record.run)):
        if value is not None:
            fields[name] = value.model_dump_json()
    if job.usage:
        fields["usage"] = job.usage.model_dump_json()
    return fields


def _unix(at: datetime) -> float:
    return at.timestamp()
