"""The transitions, each with its arguments and its answer: what transitions.lua takes and says, typed. Without I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from serinette.container import Run
from serinette.counters import WAIT, Additions
from serinette.credentials import Limits
from serinette.job import JobError, JobOptions, JobStatus, Record, Result, Usage
from serinette.jobs.entry import Entry, job_of_record
from serinette.jobs.script import Argument, Call, Reply, text
from serinette.jobs.submission import Submission
from serinette.names import Lane
from serinette.spec import SCHEMA

# A dead slot's last words may still be on their way to the server; whatever comes later is found by its lease.
_DEAD_SLOT_KEPT_S = 600
# Of jobs in a lane: the largest number that a transition takes.
_ANY_NUMBER = 10**12
# Of a shrunk job's prompt: a hundred thousand of them lie in memory for a week.
_PROMPT_BYTES = 60


class AttemptState(StrEnum):
    """What an attempt hears of its job."""

    MINE = "mine"
    CANCEL = "cancel"  # mine, and its owner wants it to end
    WAITS = "waits"  # it is in its lane: the lease ran out, or the server came back without the claim
    LOST = "lost"  # another attempt has it, or it has ended
    UNKNOWN = "unknown"  # the server came back without it
    RELEASED = "released"  # by this very call


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a submit: a new job with its place, or one of `known`, `ended`, `refused` and `no_disk`."""

    place: int | None = None  # in its lane, from 0, of a job that waits
    created_at: float = 0.0
    known: Entry | None = None
    ended: Shrunk | None = None
    refused: Refusal | None = None
    no_disk: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bound that is reached. `what` is one of lane, gpu, in_flight, queued, waiting."""

    what: str
    count: float
    bound: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that an attempt holds now. `number` is the attempt's, from 1."""

    number: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ends. `gpu_s` is what its last attempt took of the engine, should it have no result that says so."""

    status: JobStatus
    error: JobError | None = None
    result: Result | None = None
    gpu_s: float = 0.0
    run: Run | None = None

    @classmethod
    def of(cls, record: Record) -> Outcome:
        """What a record says."""
        return cls(record.status, record.error, record.result, run=record.run)

    @property
    def usage(self) -> Usage:
        """Of the attempt that counts."""
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
    """What Redis still knows of a job that ended a while ago; the rest lies in the store."""

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
        """The beginning of its prompt, and what lists and filters ask for."""
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
    """One job as Redis has it: whole, with its place in its lane from 0 while it waits, or shrunk; or not at all."""

    entry: Entry | None = None
    place: int | None = None
    shrunk: Shrunk | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What a job has ended as; None where it is not known. `decided`: by this call."""

    status: JobStatus | None
    decided: bool = False
    held: bool = False  # it has not: another attempt is in charge, or its lease has not run out


@dataclass(frozen=True, slots=True)
class Lease:
    """How a slot holds a job; `lease_s` 0: for ever. `worker_s`: how long RQ knows the slot without another word."""

    slot: str
    lease_s: float
    worker_s: float = field(default=60.0)


def submit(
    submission: Submission, *, limits: Limits | None = None, max_waiting: int | None = None, fsync: bool = False
) -> Call[Submitted]:
    """Put a job into its lane, unless a bound forbids it or it is there. `limits`: where Redis does not know them."""
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
    """Take the next job. Without one, whether to ask again at once. The same attempt is answered the same job."""
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
    """Take this job, if it waits."""
    arguments: list[Argument] = [job_id, attempt_id, lease.slot, lease.lease_s]
    return Call("take", arguments, _claimed)


def beat(job_id: str, attempt_id: str, lease: Lease, progress: str = "") -> Call[AttemptState]:
    """Keep the lease, and report progress (JSON) if there is any."""
    arguments: list[Argument] = [job_id, attempt_id, lease.slot, lease.lease_s, lease.worker_s, progress]
    return Call("beat", arguments, _attempt_state)


def note(job_id: str, attempt_id: str, field: Literal["placed", "ran_s"], value: Argument) -> Call[AttemptState]:
    """Keep something of the attempt in charge, a container's."""
    return Call("note", [job_id, attempt_id, field, value], _attempt_state)


def log(job_id: str, attempt_id: str, after: str, lines: tuple[str, str], event: str) -> Call[AttemptState]:
    """Add `lines`, text and the time of the last, to a container's log, unless another has added to it since it was
    read up to `after`.
    """
    return Call("log", [job_id, attempt_id, after, *lines, event], _attempt_state)


def resume(entry: Entry, attempt_id: str, lease: Lease, rq_fields: Mapping[str, Argument]) -> Call[AttemptState]:
    """Give the whole record back to a server that came back without it."""
    flat, record = _flat(rq_fields), _flat(entry.fields)
    arguments: list[Argument] = [entry.id, attempt_id, lease.slot, lease.lease_s, len(flat)]
    return Call("resume", [*arguments, *flat, *record], _attempt_state)


def release(  # noqa: PLR0913  # all that the transition takes
    job_id: str, attempt_id: str, error: JobError | None, *, charged: bool, gpu_s: float = 0.0, if_overdue: bool = False
) -> Call[AttemptState]:
    """End an attempt and put its job to the front of its lane; a charged one has failed."""
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
) -> Call[Finished]:
    """End a job. `attempt_id`: of the attempt that the outcome is of, or ''. `recorded`: job.json lies in the store.
    `by`: of the attempt that asks, which holds the job no more.
    """
    usage = outcome.usage
    arguments: list[Argument] = [job_id, attempt_id, outcome.status, *_reason(outcome.error)]
    arguments += [outcome.result.model_dump_json() if outcome.result else "", outcome.event()]
    arguments += [usage.gpu_s, usage.size_bytes, "1" if recorded else "", "1" if if_overdue else ""]
    arguments += [outcome.run.model_dump_json() if outcome.run else "", by]
    for name, amount in additions:
        arguments += [name, amount]

    def parse(answer: Reply) -> Finished:
        kind, state = text(answer[0]), text(answer[1])
        if kind == "held":
            return Finished(None, held=True)
        return Finished(JobStatus(state) if state else None, len(answer) > 2 and int(answer[2]) == 1)

    return Call("finish", arguments, parse)


def recorded(job_id: str, status: JobStatus) -> Call[str]:
    """Note that the store says how the job ended. Answers `marked`, `shrunk`, `other` where it has not ended so, or
    `gone`: it was erased.
    """
    return Call("recorded", [job_id, status], text)


def cancel(job_id: str, tenant: str) -> Call[str]:
    """End a job that waits; have one that runs end. Answers its state, `unknown`, or `ended` of one that has shrunk."""
    return Call("cancel", [job_id, tenant, Outcome(JobStatus.CANCELED).event()], text)


def call_off(job_id: str, tenant: str, error: JobError, ttl_s: int) -> Call[bool]:
    """See that a job which has not been submitted never is; False, and it is canceled, if it has been."""
    arguments: list[Argument] = [job_id, tenant, Outcome(JobStatus.CANCELED).event(), error.model_dump_json()]
    arguments += ["ttl_s", ttl_s]
    return Call("cancel", arguments, lambda answer: text(answer) == "called_off")


def overdue(lease_s: float, most: int = 100) -> Call[list[tuple[str, str]]]:
    """Jobs, and the attempts in charge of them, whose lease ran out while it was watched."""

    def parse(answer: Reply) -> list[tuple[str, str]]:
        return [(job_id, attempt) for job_id, _, attempt in (text(each).rpartition(":") for each in answer)]

    return Call("overdue", [lease_s, most], parse)


def lapse(slot: str) -> Call[int]:
    """A slot's process was seen to end: its leases run out now."""
    return Call("lapse", [slot, _DEAD_SLOT_KEPT_S], int)


def heal(queue: str, most: int = 10) -> Call[int]:
    """Put the oldest that wait in a lane back into RQ's list where they are not in it; how many."""
    return Call("heal", [queue, most], int)


def move(job_id: str, from_pool: str, to_pool: str) -> Call[bool]:
    """Have a job wait in another pool; False if it does not wait any more."""
    return Call("move", [job_id, from_pool, to_pool], bool)


def restore(record: Record, left_s: int) -> Call[bool]:
    """Enter an ended job that the store alone remembers, for `left_s` more; False if it is known."""
    made = Submission(
        id=record.job_id,
        tenant=record.tenant,
        pool=record.pool,
        work=record.container or record.spec,
        options=JobOptions.model_construct(lane=record.lane, labels=record.labels),
        digest=record.digest,
        timeout_s=0,
        max_attempts=1,
        ttl_s=left_s,
        dialect=record.dialect,
    )
    unknown = {"timeout_s", "max_attempts"}
    kept = {name: value for name, value in made.fields.items() if name not in unknown}
    rq_fields, fields = _flat(made.rq_fields), _flat({**kept, **_ended_fields(record)})
    arguments: list[Argument] = [record.job_id, record.status, left_s, Outcome.of(record).event(), len(rq_fields)]
    return Call("restore", [*arguments, *rq_fields, *fields], bool)


def shrink(entry: Entry) -> Call[bool]:
    """Forget most of an ended job that the store remembers; False if it is still needed whole."""
    return Call("shrink", [entry.id, str(Shrunk.of(entry))], bool)


def erase(job_id: str, tenant: str) -> Call[bool]:
    """Forget all of an ended job; False if it has not ended."""
    return Call("erase", [job_id, tenant], bool)


def look(job_ids: Sequence[str]) -> Call[list[Seen]]:
    """Each of several jobs."""

    def parse(answer: Reply) -> list[Seen]:
        return [_seen(job_id, *each) for job_id, each in zip(job_ids, answer, strict=True)]

    return Call("look", list(job_ids), parse)


def enter_batch(
    batch_id: str, tenant: str, created_at: float, max_unfinished: int, fields: Mapping[str, Argument]
) -> Call[bool | None]:
    """Begin a batch. False: it is there; None: its tenant has as many unfinished ones as it may."""
    answers = {"new": True, "known": False}
    arguments: list[Argument] = [batch_id, tenant, created_at, max_unfinished, *_flat(fields)]
    return Call("enter_batch", arguments, lambda answer: answers.get(text(answer)))


Command: TypeAlias = Sequence[object]


def guarded(guards: Sequence[tuple[Command, object]], commands: Sequence[Command]) -> Call[bool]:
    """Run commands if each guard, a command that reads, gives the answer beside it ('' for none); whether they ran."""
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
    if attempt := record.attempt:
        fields |= {"attempts": attempt.number, f"attempt:{attempt.number}": attempt.model_dump_json()}
    for name, value in (("error", record.error), ("result", record.result), ("run", record.run)):
        if value is not None:
            fields[name] = value.model_dump_json()
    if usage := job_of_record(record).usage:
        fields["usage"] = usage.model_dump_json()
    return fields


def _unix(at: datetime) -> float:
    return at.timestamp()
