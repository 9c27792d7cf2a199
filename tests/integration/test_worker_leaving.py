"""Workers that are asked to leave, that are killed, and that cannot start."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rq import Worker

from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE
from serinette import brake
from serinette.job import AttemptOutcome, JobStatus
from serinette.presence import WorkerStage
from tests.jobs import charged_attempts
from tests.pod import Pod, pod
from tests.processes import below, eventually, eventually_gone


@pytest.fixture
def worker_pod(tmp_path: Path, redis_url: str) -> Iterator[Pod]:
    with pod(tmp_path, redis_url) as made:
        yield made


def test_a_drain_lets_the_song_finish_and_leaves_nothing(worker_pod: Pod) -> None:
    process = worker_pod.start()
    job_id = worker_pod.submit("slow 3")
    worker_pod.wait_step(job_id)
    later = worker_pod.submit()
    processes = below(process.pid)
    busy = worker_pod.settings.keys.busy("default")
    presence = worker_pod.presence()
    assert presence and worker_pod.redis.smembers(busy) == {presence.name.encode()}
    process.terminate()
    worker_pod.wait_stage(WorkerStage.DRAINING)
    assert worker_pod.redis.scard(busy) == 0, "KEDA would start another in its place"
    assert process.wait(30) == 0, worker_pod.log()
    entry = worker_pod.entry(job_id)
    assert entry.status is JobStatus.SUCCEEDED
    assert len(entry.attempts) == 1
    assert worker_pod.board.waiting() == [later], "no new job is taken"
    assert worker_pod.presence() is None
    assert eventually_gone(processes)
    assert list((worker_pod.directory / "work").glob("run-*")) == []


@pytest.mark.parametrize("how", ["its time to drain is over", "it is asked twice"])
def test_a_song_that_cannot_finish_is_given_back(worker_pod: Pod, how: str) -> None:
    in_time = how == "its time to drain is over"
    process = worker_pod.start(drain_timeout_s=1 if in_time else 3600)
    job_id = worker_pod.submit("slow 4", attempts=1)
    worker_pod.wait_step(job_id)
    process.terminate()
    if not in_time:
        time.sleep(1.2)
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, worker_pod.log()
    entry = worker_pod.entry(job_id)
    assert [attempt.outcome for attempt in entry.attempts] == [AttemptOutcome.RETURNED]
    assert worker_pod.board.waiting() == [job_id]
    if in_time:
        worker_pod.start()
        entry = worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)
        assert (charged_attempts(entry), len(entry.attempts)) == (0, 2), "the next worker generates it, uncharged"


def test_a_suspended_worker_takes_nothing_and_leaves_when_asked(worker_pod: Pod) -> None:
    process = worker_pod.start()
    worker_pod.wait_stage()
    rq = str(Path(sys.executable).parent / "rq")
    subprocess.run([rq, "suspend", "--url", worker_pod.redis_url], check=True, capture_output=True)
    assert eventually(lambda: {worker.get_state() for worker in Worker.all(worker_pod.redis)} == {"suspended"})
    job_id = worker_pod.submit()
    time.sleep(1.2)  # longer than an idle slot sleeps
    assert worker_pod.board.waiting() == [job_id]
    process.terminate()
    assert process.wait(10) == 0, worker_pod.log()
    assert worker_pod.board.waiting() == [job_id]


def test_nothing_outlives_a_killed_supervisor_and_two_share_a_work_dir(worker_pod: Pod) -> None:
    one, other = worker_pod.start(), worker_pod.start()
    for process in (one, other):
        worker_pod.child(process, "tests.engines")
        worker_pod.child(process, "gpu_worker.slot")
    ready = "engine ready"
    assert eventually(lambda: worker_pod.log().count(ready) == 2), worker_pod.log()
    processes = below(one.pid)
    one.kill()
    assert eventually_gone(processes)
    worker_pod.wait_over(worker_pod.submit(), JobStatus.SUCCEEDED)
    assert worker_pod.log().count(ready) == 2, "the other engine was not disturbed"
    other.send_signal(signal.SIGINT)
    assert other.wait(15) == 0, "an idle one leaves at once"


def test_a_model_that_cannot_be_configured_ends_the_worker(worker_pod: Pod) -> None:
    process = worker_pod.start(model="unloadable")
    assert process.wait(30) == CONFIGURATION_EXIT_CODE
    assert "cannot be loaded" in worker_pod.log()
    assert worker_pod.presence() is None
    (failure,) = brake.failures(worker_pod.redis, worker_pod.settings.keys, "default")
    assert failure.message == "the engine refuses its configuration; see its log"


def test_an_engine_that_never_gets_ready_is_reported_and_restarted(worker_pod: Pod) -> None:
    worker_pod.start(model="slow 60", engine_start_timeout_s=2)
    job_id = worker_pod.submit()
    assert eventually(lambda: "times in a row" in getattr(worker_pod.presence(), "message", "")), worker_pod.log()
    assert len(brake.failures(worker_pod.redis, worker_pod.settings.keys, "default")) >= 2
    assert worker_pod.entry(job_id).attempts == (), "a job waits for a worker that can generate it"
    assert worker_pod.board.waiting() == [job_id]
