"""Jobs in any state, made by the transitions alone: what tests of one room need of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4

from redis import Redis
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from serinette.container import ContainerSpec
from serinette.job import AttemptOutcome, JobOptions, JobStatus
from serinette.jobs import AttemptState, Claimed, Entry, Jobs, Lease, Outcome, Submission, calls
from serinette.names import DEFAULT_POOL, Keys, Lane
from serinette.spec import AudioFormat, GenerationSpec

TENANT = "default"
TTL_S = 3600
Work = GenerationSpec | ContainerSpec
_slots = count(1)


def submission(job_id: str | None = None, work: Work | None = None, **given: Any) -> Submission:
    """A job of the default tenant and pool; `given` are fields of Submission or of JobOptions."""
    options = {name: given.pop(name) for name in list(given) if name in JobOptions.model_fields and name != "timeout_s"}
    fields: dict[str, Any] = {
        "tenant": TENANT,
        "pool": DEFAULT_POOL,
        "digest": "",
        "timeout_s": 60,
        "max_attempts": 3,
        "ttl_s": TTL_S,
        **given,
    }
    spec = work or GenerationSpec(prompt="jazz", seed=7, duration_s=1, format=AudioFormat.WAV)
    return Submission(id=job_id or str(uuid4()), work=spec, options=JobOptions(**options), **fields)


@dataclass(frozen=True, slots=True)
class Board:
    """The jobs on one Redis, for tests to set up and look at."""

    redis: Redis
    keys: Keys

    @property
    def jobs(self) -> Jobs:
        """The transitions."""
        return Jobs(self.redis, self.keys.prefix)

    def submit(self, job_id: str | None = None, work: Work | None = None, **given: Any) -> str:
        """Put a job into its lane; its id."""
        made = submission(job_id, work, **given)
        assert self.jobs(calls.submit(made)).place is not None
        return made.id

    def claim(self, slot: str | None = None, *, lease_s: float = 20.0, pool: str = DEFAULT_POOL) -> Claimed | None:
        """Take the next job, highest lane first, with a slot of its own unless one is named."""
        lease = Lease(slot or f"pod-{next(_slots)}.0.test", lease_s)
        claimed = self.jobs(calls.claim(uuid4().hex, lease, pool, list(Lane)))
        return claimed if isinstance(claimed, Claimed) else None

    def lease_of(self, claimed: Claimed, lease_s: float = 20.0) -> Lease:
        """How a claimed job is held."""
        return Lease(claimed.entry.attempts[-1].worker, lease_s)

    def beat(self, claimed: Claimed, progress: str = "") -> AttemptState:
        """Keep a claimed job, and report progress (JSON)."""
        attempt_id = claimed.entry.owner or ""
        return self.jobs(calls.beat(claimed.entry.id, attempt_id, self.lease_of(claimed), progress))

    def finish(self, claimed: Claimed, outcome: Outcome, *, recorded: bool = False) -> None:
        """End a claimed job."""
        self.jobs(calls.finish(claimed.entry.id, claimed.entry.owner or "", outcome, recorded=recorded))

    def cancel(self, job_id: str, tenant: str = TENANT) -> str:
        """Ask for a job's end; its state."""
        return self.jobs(calls.cancel(job_id, tenant))

    def entry(self, job_id: str) -> Entry:
        """A job's record, which must be there."""
        entry = self.jobs(calls.look([job_id]))[0].entry
        assert entry is not None, f"there is no record of {job_id}"
        return entry

    def waiting(self, lane: Lane = Lane.NORMAL, pool: str = DEFAULT_POOL) -> list[str]:
        """What waits in a lane, in its order."""
        found: Any = self.redis.zrange(self.keys.waiting(pool, lane), 0, -1)
        return [job_id.decode() for job_id in found]

    def leases(self) -> dict[str, float]:
        """Attempts, `job:attempt`, by when their lease runs out."""
        found: Any = self.redis.zrange(self.keys.leases, 0, -1, withscores=True)
        return {member.decode(): score for member, score in found}

    def events(self, job_id: str) -> list[str]:
        """Types of a job's events."""
        found: Any = self.redis.xrange(self.keys.events(job_id))
        return [fields[b"type"].decode() for _, fields in found]

    def lapse_leases(self) -> None:
        """As if a whole lease had passed without a heartbeat, and a controller had watched."""
        for member in self.leases():
            self.redis.zadd(self.keys.leases, {member: 0})

    def state(self) -> Mapping[str, Any]:
        """All that Redis holds, to see that nothing changed."""
        found: Any = self.redis.keys()
        return {key.decode(): self.redis.dump(key) for key in sorted(found)}


RQ_STATUS = {
    JobStatus.QUEUED: "queued",
    JobStatus.RUNNING: "started",
    JobStatus.SUCCEEDED: "finished",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "canceled",
}


def charged_attempts(entry: Entry) -> int:
    """Attempts that ended in a failure of their own; hand-backs are no attempts."""
    return sum(attempt.outcome is AttemptOutcome.FAILED for attempt in entry.attempts)


def assert_ended(board: Board, job_id: str, status: JobStatus, ttl_s: int = 7 * 86_400) -> None:
    """The job has ended so, once, RQ says the same, and nothing is left of it but what expires."""
    entry, redis, keys = board.entry(job_id), board.redis, board.keys
    assert (entry.status, entry.owner) == (status, None), entry.fields
    assert RqJob.fetch(job_id, redis, JSONSerializer).get_status() == RQ_STATUS[status]
    assert board.events(job_id).count(status) == 1
    assert job_id not in board.waiting(entry.lane, entry.pool)
    assert [member for member in board.leases() if member.startswith(f"{job_id}:")] == []
    queue = f"{entry.pool}.{entry.lane}"
    started: Any = redis.zrange(f"rq:wip:{queue}", 0, -1)
    assert [member for member in started if member.startswith(job_id.encode())] == []
    indexes = (keys.live, keys.in_flight(entry.tenant), keys.running(entry.tenant), keys.deadlines)
    assert [index for index in indexes if redis.zscore(index, job_id) is not None] == []
    left_s = {key: redis.ttl(key) for key in (f"rq:job:{job_id}", keys.job(job_id), keys.events(job_id))}
    assert all(0 < each <= ttl_s for each in left_s.values()), left_s


def submit(jobs: Jobs, job_id: str | None = None, **given: Any) -> str:
    """Put a job into its lane; its id."""
    made = submission(job_id, given.pop("work", None), **given)
    assert jobs(calls.submit(made)).place is not None
    return made.id


def take(jobs: Jobs, job_id: str, *, slot: str = "worker.0.1", lease_s: float = 20) -> Claimed | None:
    """This job, if it waits."""
    found = jobs(calls.take(job_id, uuid4().hex, Lease(slot, lease_s)))
    return found if isinstance(found, Claimed) else None


def entry(jobs: Jobs, job_id: str) -> Entry:
    """A job's record, which must be whole."""
    found = jobs(calls.look([job_id]))[0].entry
    assert found is not None, f"Redis does not know job {job_id} any more"
    return found
