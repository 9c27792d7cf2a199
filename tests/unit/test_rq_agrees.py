"""RQ's own tools see what the record says, in every state that a job goes through."""

from __future__ import annotations

import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from redis import Redis
from rq import Queue, Worker
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.registry import BaseRegistry
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from serinette.job import JobError, JobStatus
from serinette.jobs import AttemptState, Claimed, Outcome, calls
from serinette.jobs.finishing import finish_as, record_of
from serinette.jobs.submission import rq_fields_of
from serinette.names import Keys, Lane
from tests.jobs import RQ_STATUS, Board
from tests.unit.slot_bench import a_result

QUEUE = "default.normal"
SLOT = "pod-1.0.abc"
FAILURE = JobError(code="timeout", message="too long")


@dataclass
class View:
    """RQ's tools beside the record."""

    board: Board
    worker: Worker = field(init=False)

    def __post_init__(self) -> None:
        self.worker = Worker([self.queue], name=SLOT, connection=self.board.redis, serializer=JSONSerializer)
        self.worker.register_birth()  # type: ignore[no-untyped-call]  # RQ's
        self.worker.set_state(WorkerStatus.IDLE)  # as a slot does that is ready

    @property
    def queue(self) -> Queue:
        return Queue(QUEUE, connection=self.board.redis, serializer=JSONSerializer)

    def claim(self) -> Claimed:
        claimed = self.board.claim(SLOT)
        assert claimed
        return claimed

    def job(self, job_id: str) -> RqJob:
        return RqJob.fetch(job_id, self.board.redis, JSONSerializer)

    def assert_agrees(self, *job_ids: str) -> None:
        """Of these jobs, all that there are."""
        entries = {job_id: self.board.entry(job_id) for job_id in job_ids}
        for job_id, entry in entries.items():
            self._assert_job(job_id, entry)
        queue = self.queue

        def of(*states: JobStatus) -> set[str]:
            return {job_id for job_id, entry in entries.items() if entry.status in states}

        assert queue.count == len(of(JobStatus.QUEUED)) == len(self.board.waiting())
        assert queue.get_job_ids() == self.board.waiting()
        registries: list[tuple[BaseRegistry, set[str]]] = [
            (queue.started_job_registry, of(JobStatus.RUNNING)),
            (queue.finished_job_registry, of(JobStatus.SUCCEEDED)),
            (queue.failed_job_registry, of(JobStatus.FAILED)),
            (queue.canceled_job_registry, of(JobStatus.CANCELED)),
            (queue.deferred_job_registry, set()),
            (queue.scheduled_job_registry, set()),
        ]
        for registry, ids in registries:
            assert set(registry.get_job_ids()) == ids, registry.key  # with RQ's own cleaning
            assert registry.get_job_count() == len(ids)
        [worker] = Worker.all(self.board.redis)
        running = of(JobStatus.RUNNING)
        assert worker.name == SLOT
        assert worker.get_state() == (WorkerStatus.BUSY if running else WorkerStatus.IDLE)
        current = worker.get_current_job_id()
        assert current in running if running else current is None

    def _assert_job(self, job_id: str, entry: Any) -> None:
        job = self.job(job_id)
        assert job.get_status() == RQ_STATUS[entry.status]
        assert job.kwargs == {"job_id": job_id}
        assert job.origin == QUEUE
        assert near(job.created_at, entry.created_at)
        assert near(job.enqueued_at, None) is False
        running = entry.status is JobStatus.RUNNING
        last = entry.attempts[-1] if entry.attempts else None
        if running:
            assert last and near(job.started_at, last.started_at)
            assert job.worker_name == last.worker
            assert near(job.last_heartbeat, None) is False
            [execution] = job.get_executions()
            assert (execution.id, execution.job_id) == (entry.owner, job_id)
        else:
            assert job.get_executions() == []
        if entry.status is JobStatus.QUEUED:
            assert (job.started_at, job.worker_name, job.get_position() is not None) == (None, None, True)
        assert near(job.ended_at, entry.ended_at)
        if entry.status.ended:
            assert job.result_ttl and 0 < self.board.redis.ttl(job.key) <= job.result_ttl
        else:
            assert self.board.redis.ttl(job.key) == -1
            assert (job.retries_left or 0) == entry.retries_left


def near(found: datetime | None, expected: datetime | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return abs(found.replace(tzinfo=found.tzinfo or UTC) - expected).total_seconds() < 0.01


@pytest.fixture
def view(redis: Redis, keys: Keys) -> View:
    return View(Board(redis, keys))


def test_a_song_from_its_submit_to_its_shrinking(view: View) -> None:
    board = view.board
    job_id = board.submit()
    view.assert_agrees(job_id)
    claimed = view.claim()
    view.assert_agrees(job_id)
    assert board.beat(claimed, '{"stage": "denoising"}') is AttemptState.MINE
    view.assert_agrees(job_id)
    outcome = Outcome(JobStatus.SUCCEEDED, result=a_result(job_id))
    finish_as(board.jobs, record_of(claimed.entry, claimed.entry.attempts[-1], outcome))
    view.assert_agrees(job_id)
    assert (view.worker.successful_job_count, view.worker.failed_job_count) == (0, 0)
    view.worker.refresh()  # type: ignore[no-untyped-call]  # RQ's
    assert view.worker.successful_job_count == 1
    assert board.jobs(calls.shrink(board.entry(job_id)))
    view.assert_agrees()
    assert not RqJob.exists(job_id, board.redis)


def test_a_job_that_is_given_back_retried_and_fails(view: View) -> None:
    board = view.board
    job_id, behind = board.submit(max_attempts=2), board.submit()
    owner = view.claim().entry.owner or ""
    board.jobs(calls.release(job_id, owner, None, charged=False))
    view.assert_agrees(job_id, behind)
    owner = view.claim().entry.owner or ""
    board.jobs(calls.release(job_id, owner, FAILURE, charged=True))
    view.assert_agrees(job_id, behind)
    board.finish(view.claim(), Outcome(JobStatus.FAILED, FAILURE))
    view.assert_agrees(job_id, behind)
    view.worker.refresh()  # type: ignore[no-untyped-call]  # RQ's
    assert view.worker.failed_job_count == 1


def test_a_job_that_waits_is_canceled(view: View) -> None:
    canceled, other = view.board.submit(), view.board.submit()
    view.board.cancel(canceled)
    view.assert_agrees(canceled, other)


def test_a_job_that_runs_is_canceled(view: View) -> None:
    job_id = view.board.submit()
    claimed = view.claim()
    assert view.board.cancel(job_id) == "running"
    view.assert_agrees(job_id)
    assert view.board.beat(claimed) is AttemptState.CANCEL
    view.board.finish(claimed, Outcome(JobStatus.CANCELED))
    view.assert_agrees(job_id)


def test_a_job_whose_worker_is_lost(view: View) -> None:
    board = view.board
    job_id = board.submit()
    view.claim()
    board.jobs(calls.overdue(20))
    board.jobs(calls.lapse(SLOT))
    [(lost, owner)] = board.jobs(calls.overdue(20))
    assert board.jobs(calls.release(lost, owner, board.entry(lost).lost(last=False), charged=True, if_overdue=True))
    view.assert_agrees(job_id)


def test_a_job_that_is_restored_to_an_empty_server(view: View) -> None:
    board = view.board
    job_id = board.submit()
    claimed = view.claim()
    board.redis.flushdb()
    view.worker.register_birth()  # type: ignore[no-untyped-call]  # RQ's
    rq_fields = rq_fields_of(job_id, "default", claimed.entry.lane, "song", (60, 3600, 3))
    board.jobs(calls.resume(claimed.entry, claimed.entry.owner or "", board.lease_of(claimed), rq_fields))
    board.redis.hset(f"rq:job:{job_id}", "enqueued_at", "2026-01-01T00:00:00.000000Z")  # the true time is lost
    view.assert_agrees(job_id)
    board.finish(claimed, Outcome(JobStatus.FAILED, FAILURE))
    view.assert_agrees(job_id)


@pytest.mark.parametrize(("max_attempts", "kind"), [(1, "song"), (3, "container")])
def test_the_hash_is_as_rq_itself_would_write_it(redis: Redis, max_attempts: int, kind: str) -> None:
    """Its constant part is made once by RQ, and what belongs to one job is filled in here."""
    job = RqJob.create(
        "serinette.jobs.submission.generate",
        kwargs={"job_id": "job-1"},
        id="job-1",
        connection=redis,
        serializer=JSONSerializer,
        origin=QUEUE,
        status=RqStatus.QUEUED,
        timeout=60,
        result_ttl=3600,
        failure_ttl=3600,
        description=f"a {kind}",
    )
    if max_attempts > 1:
        job.retries_left = max_attempts - 1
    fields: dict[str, Any] = job.to_dict()
    wanted = {name: value for name, value in fields.items() if value not in ("", None) and name != "created_at"}
    wanted["data"] = zlib.decompress(wanted["data"])
    for job_id in ("job-0", "job-1"):  # the second one from the template
        made = rq_fields_of(job_id, "default", Lane.NORMAL, kind, (60, 3600, max_attempts))
    assert made == wanted


def rq(view: View, *command: str) -> str:
    port = view.board.redis.connection_pool.connection_kwargs["port"]
    line = [sys.executable, "-m", "rq.cli", *command, "--url", f"redis://127.0.0.1:{port}/0"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_rq_info_shows_the_truth_and_changes_nothing(view: View) -> None:
    """It pushes an execution whose score lies in the past back into its lane, and reaps what it finds expired."""
    board = view.board
    running, waiting, failed = board.submit(), board.submit(), board.submit()
    view.claim()
    board.cancel(failed)
    view.assert_agrees(running, waiting, failed)
    before = board.state()
    shown = rq(view, "info", "--raw")
    assert board.state() == before
    assert f"queue {QUEUE} 1" in shown
    assert SLOT in shown
