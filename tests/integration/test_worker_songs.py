"""A worker pod of real processes: songs, and what goes wrong while they are generated. One pod for all of these."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest
from rq.job import JobStatus as RqStatus

from serinette.job import AttemptOutcome, JobStatus
from serinette.media import decode, read_song_tags
from serinette.presence import pace
from serinette.spec import AudioFormat
from tests import servers
from tests.jobs import TENANT, charged_attempts
from tests.pod import Pod, pod
from tests.processes import eventually

STALL_TIMEOUT_S = 3


@dataclass
class Worker:
    pod: Pod
    process: subprocess.Popen[bytes]

    def engine(self) -> psutil.Process:
        return self.pod.child(self.process, "tests.engines")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    directory = tmp_path_factory.mktemp("pod")
    settings = {"slots": 2, "stall_timeout_s": STALL_TIMEOUT_S}
    with servers.valkey(directory / "valkey") as server, pod(directory, server.connection_url, settings) as made:
        process = made.start()
        made.wait_stage()
        yield Worker(made, process)


def test_a_song_is_generated_stored_recorded_and_reported(worker: Worker) -> None:
    pod = worker.pod
    job_id = pod.submit("jazz piano", variations=2, format=AudioFormat.MP3)
    entry = pod.wait_over(job_id, JobStatus.SUCCEEDED)
    record = pod.record(job_id)
    result = entry.result
    assert result
    assert pod.rq_job(job_id).get_status() is RqStatus.FINISHED
    assert record.result == result
    assert record.attempt and record.attempt.id == entry.attempts[0].id
    assert [artifact.seed for artifact in result.artifacts] == [7, 8]
    for artifact in result.artifacts:
        data = pod.store.get(artifact.key)
        assert hashlib.sha256(data).hexdigest() == artifact.sha256
        assert len(data) == artifact.size_bytes
        assert decode(io.BytesIO(data), 48_000, 2, 60).shape[1] >= 48_000
        tags = read_song_tags(io.BytesIO(data))
        assert tags and (tags.job_id, tags.seed, tags.model) == (job_id, artifact.seed, "sine")
    assert result.timings.run_s >= result.timings.generate_s > 0
    assert pace(pod.redis, pod.settings.keys, "default")
    assert pod.leases() == {}
    assert not pod.redis.zscore(pod.settings.keys.live, job_id)
    assert 0 < pod.redis.ttl(f"rq:job:{job_id}") <= pod.settings.retention_s
    types = pod.events(job_id)
    assert types[0] == "started"
    assert types[-1] == "succeeded"
    assert "progress" in types


def test_presence_reports_the_model_and_the_busy_slots(worker: Worker) -> None:
    pod = worker.pod
    assert eventually(lambda: pod.wait_stage().busy_slots == 0)
    seen = pod.wait_stage()
    assert seen.model and (seen.model.name, seen.device, seen.slots) == ("sine", "an imagined one", 2)
    job_id = pod.submit("slow 2")
    assert eventually(lambda: pod.wait_stage().busy_slots == 1)
    pod.wait_over(job_id, JobStatus.SUCCEEDED)
    assert eventually(lambda: pod.wait_stage().busy_slots == 0)


def test_cancel_stops_a_running_job_within_a_step(worker: Worker) -> None:
    pod, engine = worker.pod, worker.engine().pid
    running = pod.submit("slow 8")
    pod.wait_step(running)
    waiting = pod.submit("slow 8")
    assert eventually(lambda: pod.entry(waiting).owner is not None)
    for job_id in (waiting, running):
        pod.cancel(job_id)
    for job_id in (waiting, running):
        entry = pod.wait_over(job_id, JobStatus.CANCELED)
        assert entry.attempts[0].outcome is AttemptOutcome.CANCELED
        assert pod.rq_job(job_id).get_status() is RqStatus.CANCELED
        assert list(pod.store.list(f"songs/{TENANT}/{job_id}")) == []
    assert worker.engine().pid == engine, "a cancel does not cost the warm model"


def test_a_killed_engine_costs_one_attempt_and_a_bystander_none(worker: Worker) -> None:
    pod, engine = worker.pod, worker.engine()
    running = pod.submit("slow 2")
    pod.wait_step(running)
    bystander = pod.submit()
    assert eventually(lambda: pod.entry(bystander).owner is not None)
    engine.kill()
    entry = pod.wait_over(running, JobStatus.SUCCEEDED)
    assert [attempt.outcome for attempt in entry.attempts] == [AttemptOutcome.FAILED, AttemptOutcome.SUCCEEDED]
    assert entry.attempts[0].error and entry.attempts[0].error.code == "engine_crashed"
    assert pod.rq_job(running).retries_left == 1
    assert len(pod.wait_over(bystander, JobStatus.SUCCEEDED).attempts) == 1


def test_a_poison_job_fails_after_its_attempts_and_harms_no_other(worker: Worker) -> None:
    pod = worker.pod
    poison, neighbor = pod.submit("crash", attempts=2), pod.submit()
    entry = pod.wait_over(poison, JobStatus.FAILED)
    assert entry.error and entry.error.code == "engine_crashed"
    assert charged_attempts(entry) == len(entry.attempts) == 2
    assert pod.rq_job(poison).get_status() is RqStatus.FAILED
    assert charged_attempts(pod.wait_over(neighbor, JobStatus.SUCCEEDED)) == 0


def test_a_hung_engine_ends_at_the_jobs_timeout_and_the_next_job_is_generated(worker: Worker) -> None:
    pod, engine = worker.pod, worker.engine()
    hung = pod.submit("hang", timeout_s=1)
    entry = pod.wait_over(hung, JobStatus.FAILED)
    assert entry.error and entry.error.code == "timeout"
    assert len(entry.attempts) == 1
    assert len(pod.wait_over(pod.submit(), JobStatus.SUCCEEDED).attempts) == 1
    assert worker.engine().pid != engine.pid


def test_a_silent_engine_is_killed_and_the_song_generated_again(worker: Worker) -> None:
    pod, engine = worker.pod, worker.engine()
    job_id = pod.submit("slow 2")
    pod.wait_step(job_id)
    engine.suspend()
    entry = pod.wait_over(job_id, JobStatus.SUCCEEDED)
    assert [attempt.error.code for attempt in entry.attempts if attempt.error] == ["engine_stalled"]
    assert entry.attempts[-1].outcome is AttemptOutcome.SUCCEEDED


@pytest.mark.parametrize(("prompt", "code"), [("oom", "out_of_memory"), ("nan", "invalid_output"), ("bug", "internal")])
def test_what_would_fail_again_is_not_tried_again(worker: Worker, prompt: str, code: str) -> None:
    entry = worker.pod.wait_over(worker.pod.submit(prompt), JobStatus.FAILED)
    assert entry.error and entry.error.code == code
    assert len(entry.attempts) == 1


def test_a_killed_slot_leaves_a_lease_that_runs_out_and_comes_back(worker: Worker) -> None:
    pod = worker.pod
    job_id = pod.submit("slow 6")
    pod.wait_step(job_id)
    slot_name = pod.entry(job_id).attempts[0].worker.rpartition(".")[0]
    slot = pod.child(worker.process, slot_name)
    os.kill(slot.pid, signal.SIGKILL)
    attempt = f"{job_id}:{pod.entry(job_id).owner}"
    assert pod.leases().keys() == {attempt}
    assert eventually(lambda: pod.leases() == {attempt: 0}), "its supervisor saw it die"
    assert eventually(lambda: pod.child(worker.process, slot_name).pid != slot.pid)
    time.sleep(pod.settings.heartbeat_s * 2)
    assert pod.leases() == {attempt: 0}, "no one beats for the dead"
    pod.wait_over(pod.submit(), JobStatus.SUCCEEDED)
