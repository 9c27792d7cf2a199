"""What maintenance writes of containers in RQ's books and the ledger: it takes a job, and it ends an attempt.

Each is one MULTI under a WATCH on what decides it, as a slot's are (gpu_worker/slot/books.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from api.containers.settings import ContainerSettings
from api.maintenance.closing import close
from api.maintenance.containers.judging import Patience
from api.maintenance.containers.plan import Held, Waiting
from api.maintenance.lanes import lane_queue
from serinette.container import CONTAINERS_POOL, ContainerSpec
from serinette.job import Attempt, AttemptOutcome, JobError, Progress, Stage, now
from serinette.ledger import MAX_EVENTS, Entry, Ledger, Outcome
from serinette.names import Lane, queue_name

WORKER = "controller-containers"

# RQ forgets an execution by its score; a Kubernetes Job may wait for a machine for days.
_HELD_FOR_S = 30 * 86_400

# KEYS: log, ledger, events. ARGV: text, time of its last line, event JSON, max events, TTL seconds.
# Written only if nobody went on from the same place. ARGV[6]: the time that was read from.
_APPEND = """
if (redis.call('HGET', KEYS[2], 'log_at') or '') ~= ARGV[6] then return 0 end
redis.call('APPEND', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('HSET', KEYS[2], 'log_at', ARGV[2])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'type', 'log', 'data', ARGV[3])
return 1
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A held job with all that is known of it."""

    held: Held
    job: RqJob
    queue: Queue
    entry: Entry
    spec: ContainerSpec
    execution: str  # `job:attempt`

    @property
    def attempt(self) -> Attempt:
        """The one in charge."""
        return self.entry.attempts[-1]


class Books:
    """RQ's books and the ledger."""

    def __init__(self, redis: Redis, ledger: Ledger, settings: ContainerSettings) -> None:
        self._redis = redis
        self._ledger = ledger
        self._settings = settings

    def held(self) -> list[Case]:
        """All attempts that run, or are about to."""
        return [case for queue in self._lanes() for case in self._held_in(queue)]

    def _held_in(self, queue: Queue) -> Iterator[Case]:
        members: Any = self._redis.zrange(queue.started_job_registry.key, 0, -1)
        for member in members:
            execution = member.decode()
            job_id, _, attempt_id = execution.partition(":")
            try:
                job = RqJob.fetch(job_id, self._redis, JSONSerializer)
            except NoSuchJobError:  # erased by hand, or lost with Redis: whoever looks for strays finds the rest
                self._redis.zrem(queue.started_job_registry.key, member)
                continue
            entry = self._ledger.read(job_id)
            if entry.owner != attempt_id or entry.outcome:
                with self._redis.pipeline() as pipe:
                    Execution.from_composite_key(execution, self._redis).delete(job, pipe)
                    pipe.execute()
                continue
            yield self._case(job, queue, entry, execution)

    def _case(self, job: RqJob, queue: Queue, entry: Entry, execution: str) -> Case:
        spec = ContainerSpec.from_wire(job.kwargs["container"])
        start_s, grace_s = self._settings.containers_start_s, self._settings.containers_grace_s
        held = Held(
            job_id=job.id,
            attempt_id=entry.attempts[-1].id,
            attempt=entry.attempts[-1].number,
            gpus=spec.gpus,
            retries_left=job.retries_left or 0,
            placed=entry.placed == entry.attempts[-1].id,
            canceled=entry.cancel_requested,
            patience=Patience(job.meta["timeout_s"], start_s, grace_s),
        )
        return Case(held, job, queue, entry, spec, execution)

    def waiting(self, most: int) -> list[Waiting]:
        """The heads of the lanes, highest first."""
        found: list[Waiting] = []
        for queue in self._lanes():
            ids: Any = self._redis.lrange(queue.key, 0, most - 1)
            jobs = RqJob.fetch_many([each.decode() for each in ids], self._redis, JSONSerializer)
            found += [Waiting(job.id, ContainerSpec.from_wire(job.kwargs["container"]).gpus) for job in jobs if job]
        return found

    def claim(self, job_id: str) -> bool:
        """Take a job out of its lane and begin an attempt; False if it is not there to be taken."""
        try:
            job = RqJob.fetch(job_id, self._redis, JSONSerializer)
        except NoSuchJobError:
            return False
        queue = lane_queue(job.origin, self._redis)
        ledger = self._ledger.keys.ledger(job_id)
        with self._redis.pipeline() as pipe:
            try:
                pipe.watch(ledger, job.key)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                entry = Entry.parse(pipe.hgetall(ledger))
                if pipe.lpos(queue.key, job_id) is None:
                    return False
                pipe.multi()
                pipe.lrem(queue.key, 0, job_id)
                if not (entry.outcome or entry.cancel_requested or entry.expired(now())):
                    execution = Execution.create(job, _HELD_FOR_S, pipe, WORKER)
                    job.prepare_for_execution(WORKER, pipeline=pipe)
                    pipe.persist(job.key)
                    pipe.hdel(ledger, "log_at", "ran_s")
                    pipe.delete(self._ledger.keys.log(job_id))
                    self._ledger.begin_attempt(job_id, execution.id, WORKER, pipeline=pipe)
                pipe.execute()
            except WatchError:
                return False
        return True

    def placed(self, case: Case) -> None:
        """Its Kubernetes Job was made: from now on one that is not there was deleted."""
        self._redis.hset(self._ledger.keys.ledger(case.job.id), "placed", case.held.attempt_id)

    def note_run(self, case: Case, run_s: float) -> None:
        """How long a canceled one has run so far: its pod is gone when the job ends."""
        self._redis.hset(self._ledger.keys.ledger(case.job.id), "ran_s", run_s)

    def run_s(self, case: Case) -> float:
        """What was noted, in seconds."""
        noted: Any = self._redis.hget(self._ledger.keys.ledger(case.job.id), "ran_s")
        return float(noted or 0)

    def tell(self, case: Case, stage: Stage) -> None:
        """Where it is, if that is news."""
        if case.entry.progress is None or case.entry.progress.stage is not stage:
            self._ledger.progress(case.job.id, case.held.attempt_id, Progress(stage=stage, at=now()))

    # -- its log

    def log_place(self, job_id: str) -> tuple[str, int]:
        """Time of the last line that was read, and how long the log is."""
        keys = self._ledger.keys
        at: Any = self._redis.hget(keys.ledger(job_id), "log_at")
        size: Any = self._redis.strlen(keys.log(job_id))
        return (at or b"").decode(), int(size)

    def append_log(self, job_id: str, after: str, text: str, last: str, event: str) -> None:
        """Add lines behind those up to `after`."""
        keys = self._ledger.keys
        names = (keys.log(job_id), keys.ledger(job_id), keys.events(job_id))
        self._redis.eval(_APPEND, 3, *names, text, last, event, MAX_EVENTS, self._ledger.ttl_s, after)

    def log(self, job_id: str) -> bytes:
        """All that was read."""
        return self._ledger.log(job_id)[1]

    # -- its end

    def again(self, case: Case, outcome: AttemptOutcome, error: JobError | None, gpu_s: float) -> bool:
        """End the attempt and put the job to the front of its lane; charged unless it is returned."""

        def write(pipe: Pipeline) -> None:
            job = case.job
            if outcome is AttemptOutcome.FAILED:
                job.retries_left = max((job.retries_left or 0) - 1, 0)
                self._ledger.charge(job.id, gpu_s, pipe)
            self._ledger.end_attempt(job.id, case.held.attempt_id, outcome, error, pipeline=pipe)
            job.started_at = job.ended_at = job.worker_name = None
            case.queue._enqueue_job(job, pipeline=pipe, at_front=True)

        return self._written(case, write)

    def settle(self, case: Case, outcome: Outcome) -> bool:
        """End the job."""

        def write(pipe: Pipeline) -> None:
            if outcome.run:
                pipe.hset(self._ledger.keys.ledger(case.job.id), "run", outcome.run.model_dump_json())
            self._ledger.settle(case.job.id, outcome, pipeline=pipe)
            close(case.job, case.queue, outcome, self._ledger.ttl_s, pipe)
            pipe.expire(self._ledger.keys.log(case.job.id), self._ledger.ttl_s)

        return self._written(case, write)

    def _written(self, case: Case, write: Callable[[Pipeline], None]) -> bool:
        ledger = self._ledger.keys.ledger(case.job.id)
        with self._redis.pipeline() as pipe:
            try:
                pipe.watch(ledger, case.job.key)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                entry = Entry.parse(pipe.hgetall(ledger))
                if entry.owner != case.held.attempt_id or entry.outcome:
                    return False
                pipe.multi()
                write(pipe)
                Execution.from_composite_key(case.execution, self._redis).delete(case.job, pipe)
                pipe.execute()
            except WatchError:  # a cancel came, or a line of its log: the next round looks again
                return False
        return True

    def _lanes(self) -> list[Queue]:
        return [lane_queue(queue_name(CONTAINERS_POOL, lane), self._redis) for lane in Lane]
