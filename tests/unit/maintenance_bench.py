"""Jobs put by hand into every state that a killed process can leave them in, on a real Valkey with real RQ books."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from redis import Redis
from rq import Queue, Retry
from rq.executions import Execution
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer

from api.maintenance import leftovers
from api.maintenance.deadlines import Deadlines
from api.maintenance.mend import Mender, Patient
from api.maintenance.orphans import Orphans
from api.maintenance.plan import Action
from api.maintenance.reaper import Reaper
from api.maintenance.records import Records
from api.maintenance.strays import Strays
from serinette.job import Artifact, Attempt, AttemptOutcome, JobStatus, Record, Result, Sampling, Timings, now
from serinette.ledger import Entry, Ledger, Outcome
from serinette.names import SING_TASK, Keys, Lane, queue_name, record_key
from serinette.spec import AudioFormat, GenerationSpec
from serinette.store import Store

RETENTION_S = 3600
TENANT = "default"
SPEC = GenerationSpec(prompt="jazz", seed=7)


def a_result(job_id: str) -> Result:
    artifact = Artifact(
        index=0,
        key=f"songs/{TENANT}/{job_id}/a-0.mp3",
        seed=7,
        format=AudioFormat.MP3,
        content_type="audio/mpeg",
        size_bytes=3,
        sha256="00",
        duration_s=1,
        sample_rate=48_000,
        channels=2,
    )
    return Result(
        artifacts=(artifact,),
        model="bundled",
        model_revision="r",
        sampling=Sampling(steps=8, guidance_scale=1, shift=3, turbo=True),
        timings=Timings(queue_s=0, generate_s=1, encode_s=0, upload_s=0, run_s=1),
    )


@dataclass
class Bench:
    """A gateway, a slot and a maintenance process, each a few hand-made moves."""

    redis: Redis
    keys: Keys
    store: Store
    numbers: Any = field(default_factory=count)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.redis, self.keys, RETENTION_S)

    # -- the gateway

    def queue(self, lane: Lane = Lane.NORMAL, pool: str = "default") -> Queue:
        return Queue(queue_name(pool, lane), connection=self.redis, serializer=JSONSerializer)

    def submit(self, *, attempts: int = 3, lane: Lane = Lane.NORMAL, spec: GenerationSpec = SPEC) -> str:
        job_id = f"job-{next(self.numbers)}"
        self.ledger.open(job_id, TENANT, now())
        self.queue(lane).enqueue_call(
            SING_TASK,
            kwargs={"job_id": job_id, "spec": spec.to_wire()},
            job_id=job_id,
            unique=True,
            timeout=60,
            result_ttl=RETENTION_S,
            failure_ttl=RETENTION_S,
            retry=Retry(max=attempts - 1, enqueue_at_front=True) if attempts > 1 else None,
            meta={"tenant": TENANT},
            description="a song",
        )
        return job_id

    # -- a slot

    def pop(self, lane: Lane = Lane.NORMAL) -> str:
        popped: Any = self.redis.lpop(self.queue(lane).key)
        return str(popped.decode())

    def claim(self, job_id: str, attempt_id: str = "attempt-a") -> int:
        return self.ledger.begin_attempt(job_id, attempt_id, "worker-1")

    def hold(self, job_id: str, ttl_s: int = 20, worker: str = "worker-1") -> Execution:
        job = self.rq_job(job_id)
        with self.redis.pipeline() as pipe:
            execution = Execution.create(job, ttl_s, pipe, worker_name=worker)
            job.prepare_for_execution(worker, pipe)
            pipe.persist(job.key)
            pipe.execute()
        return execution

    def beat(self, job_id: str, execution: Execution, ttl_s: int = 20) -> None:
        job = self.rq_job(job_id)
        with self.redis.pipeline() as pipe:
            execution.heartbeat(job.started_job_registry, ttl_s, pipe)
            job.heartbeat(now(), ttl_s, pipeline=pipe, xx=True)
            pipe.execute()

    def begin(self, job_id: str, attempt_id: str = "attempt-a", worker: str = "worker-1") -> Execution:
        assert self.pop() == job_id
        assert self.claim(job_id, attempt_id) > 0
        return self.hold(job_id, worker=worker)

    def succeed(self, job_id: str, execution: Execution) -> None:
        job = self.rq_job(job_id)
        job.ended_at = now()
        job._result = a_result(job_id).model_dump(mode="json")
        with self.redis.pipeline() as pipe:
            job._handle_success(RETENTION_S, pipe)
            job.cleanup(RETENTION_S, pipeline=pipe, remove_from_queue=False)
            execution.delete(job, pipe)
            self.ledger.settle(job_id, Outcome(JobStatus.SUCCEEDED), pipe)
            pipe.execute()

    def record(self, job_id: str) -> None:
        attempt = Attempt(
            number=1, id="attempt-a", worker="worker-1", started_at=now(), outcome=AttemptOutcome.SUCCEEDED
        )
        record = Record(
            job_id=job_id,
            tenant=TENANT,
            spec=SPEC,
            attempt=attempt,
            created_at=now(),
            started_at=now(),
            ended_at=now(),
            result=a_result(job_id),
        )
        assert self.store.put_if_absent(record_key(TENANT, job_id), record.model_dump_json().encode())

    # -- maintenance

    def mend(self, job_id: str, *silent: Execution, lane: Lane = Lane.NORMAL) -> Action:
        wip = self.queue(lane).started_job_registry.key
        scores: dict[str, Any] = {each.composite_key: self.redis.zscore(wip, each.composite_key) for each in silent}
        return Mender(self.redis, self.ledger, self.store).mend(Patient(job_id, self.queue(lane).name, scores))

    def rounds(self, client: Redis | None = None) -> Callable[[], None]:
        """Maintenance that is out of patience: the second call mends whatever has not changed since the first."""
        redis = client or self.redis
        mender = Mender(redis, Ledger(redis, self.keys, RETENTION_S), self.store)
        reaper, orphans = Reaper(redis, self.keys, 0), Orphans(redis, self.keys, 0, slice_s=60)
        records = Records(redis, Ledger(redis, self.keys, RETENTION_S), self.store)
        deadlines = Deadlines(redis, self.keys)
        strays = Strays(redis, self.keys, RETENTION_S)

        def once() -> None:
            at_s = time.monotonic() + 1e6  # whenever it looks, sweeping is due
            for patient in (*reaper.find(at_s), *deadlines.find(), *orphans.find(at_s)):
                mender.mend(patient)
            records.step()
            strays.step()
            leftovers.clear(redis, self.keys, RETENTION_S)

        return once

    # -- what is seen

    def rq_job(self, job_id: str) -> RqJob:
        return RqJob.fetch(job_id, self.redis, JSONSerializer)

    def entry(self, job_id: str) -> Entry:
        return self.ledger.read(job_id)

    def events(self, job_id: str) -> list[str]:
        found: Any = self.redis.xrange(self.keys.events(job_id))
        return [fields[b"type"].decode() for _, fields in found]

    def waiting(self, lane: Lane = Lane.NORMAL) -> list[str]:
        return self.queue(lane).get_job_ids()

    def held(self, lane: Lane = Lane.NORMAL) -> list[str]:
        return list(self.queue(lane).started_job_registry.get_job_ids(cleanup=False))

    def live(self) -> list[str]:
        found: Any = self.redis.zrange(self.keys.live, 0, -1)
        return [job_id.decode() for job_id in found]


_ENDS = {
    JobStatus.SUCCEEDED: {RqStatus.FINISHED},
    JobStatus.FAILED: {RqStatus.FAILED},
    JobStatus.CANCELED: {RqStatus.CANCELED, RqStatus.STOPPED},
}


def assert_over(bench: Bench, job_id: str, outcome: JobStatus) -> None:
    """Both books agree, the end was told once, and nothing is left but what expires."""
    job = bench.rq_job(job_id)
    assert bench.entry(job_id).outcome is outcome
    assert job.get_status() in _ENDS[outcome]
    assert bench.events(job_id).count(outcome) == 1
    assert job_id not in [*bench.waiting(), *bench.held(), *bench.live()]
    keys = [job.key, bench.keys.ledger(job_id), bench.keys.events(job_id), f"rq:results:{job_id}"]
    left_s = {key: bench.redis.ttl(key) for key in keys if bench.redis.exists(key)}
    assert all(0 < ttl_s <= RETENTION_S for ttl_s in left_s.values()), left_s
