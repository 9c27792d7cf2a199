"""What dies comes back: real processes killed, stores and Redis taken away, each song generated exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from rq.job import JobStatus as RqStatus

from serinette.job import AttemptOutcome, JobStatus
from serinette.jobs import Entry
from serinette.leash import leashed
from serinette.names import record_key, song_prefix
from serinette.presence import WorkerStage, present
from tests import servers, stack
from tests.jobs import TENANT
from tests.pod import Pod, pod
from tests.processes import below, eventually

# The defaults' order of things, ten times as fast.
QUICK = {
    "heartbeat_s": 0.5,
    "heartbeat_ttl_s": 2,
    "interval_s": 0.2,
    "lease_s": 2,
    "redis_timeout_s": 2,
}
SUCCEEDED, FAILED = AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED


@dataclass
class Deployment:
    """A worker pod and controllers, killed and started as a test likes."""

    pod: Pod
    controllers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_controller(self) -> subprocess.Popen[bytes]:
        """Start a controller."""
        with (self.pod.directory / "controller.log").open("ab") as log:
            controller = subprocess.Popen(
                leashed([sys.executable, "-m", "controller"]),
                env=self.pod.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.controllers.append(controller)
        return controller

    def log(self) -> str:
        return (self.pod.directory / "controller.log").read_text(errors="replace")

    def wait_waiting(self, job_id: str, timeout_s: float = 30) -> None:
        """Wait until a job is back in its lane."""

        def back() -> bool:
            return job_id in self.pod.board.waiting()

        assert eventually(back, timeout_s), (
            f"never back: {self.pod.entry(job_id).fields}\n{self.log()}\n{self.pod.log()}"
        )

    def wait_generated(self, job_id: str, *attempts: AttemptOutcome, timeout_s: float = 60) -> Entry:
        """Wait for a job's success; it has these attempts, one record, one song, and one terminal event."""
        entry = self.pod.wait_over(job_id, JobStatus.SUCCEEDED, timeout_s)
        assert [attempt.outcome for attempt in entry.attempts] == list(attempts), self.pod.log()
        record = self.pod.record(job_id)
        (artifact,) = record.artifacts
        left = {found.key for found in self.pod.store.list(song_prefix(TENANT, job_id))}
        assert left == {artifact.key, record_key(TENANT, job_id)}
        reported: Any = self.pod.redis.xrange(self.pod.settings.keys.events(job_id))
        assert [fields[b"type"] for _, fields in reported].count(b"succeeded") == 1
        assert job_id not in [*self.pod.board.waiting(), *self.pod.held()]
        assert self.pod.redis.zscore(self.pod.settings.keys.live, job_id) is None
        return entry


@contextmanager
def deploy(directory: Path, redis_url: str, **settings: object) -> Iterator[Deployment]:
    with pod(directory, redis_url, {**QUICK, **settings}) as made:
        deployment = Deployment(made)
        try:
            yield deployment
        finally:
            for controller in deployment.controllers:
                controller.kill()
                controller.wait()


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)


def ready(deployment: Deployment) -> int:
    workers = present(deployment.pod.redis, deployment.pod.settings.keys)
    return sum(worker.stage is WorkerStage.READY for worker in workers)


@pytest.fixture
def deployment(tmp_path: Path, redis_url: str) -> Iterator[Deployment]:
    """One controller and no worker yet."""
    with deploy(tmp_path, redis_url) as made:
        made.start_controller()
        yield made


def test_a_popped_job_is_generated_although_its_popper_died_and_so_is_a_killed_slots(deployment: Deployment) -> None:
    lost = deployment.pod.submit()
    popped: Any = deployment.pod.redis.blpop(deployment.pod.lane().key, 1)
    assert popped[1].decode() == lost
    worker = deployment.pod.start()
    deployment.wait_generated(lost, SUCCEEDED)

    first = deployment.pod.submit("slow 2")
    deployment.pod.wait_step(first)
    # Put to the front when its slot was seen to die: before the one that was submitted later.
    _, behind = deployment.pod.submit("slow 5"), deployment.pod.submit()
    kill(deployment.pod.child(worker, "gpu_worker.slot"))
    entry = deployment.wait_generated(first, FAILED, SUCCEEDED)
    assert entry.attempts[0].error is not None and entry.attempts[0].error.code == "worker_lost"
    last = deployment.wait_generated(behind, SUCCEEDED)
    assert entry.ended_at is not None and last.ended_at is not None
    assert entry.ended_at < last.ended_at, "a retry goes to the front of its lane"


def test_a_killed_slots_job_waits_for_no_heartbeat(tmp_path: Path, redis_url: str) -> None:
    """Its supervisor saw it die and says so: heartbeats that hold for minutes are not waited for."""
    with deploy(tmp_path, redis_url, heartbeat_s=30, heartbeat_ttl_s=300) as deployment:
        deployment.start_controller()
        worker = deployment.pod.start(slots=2)
        job_id, neighbour = deployment.pod.submit("slow 3"), deployment.pod.submit("slow 3")
        deployment.pod.wait_step(job_id)
        assert eventually(lambda: deployment.pod.entry(neighbour).owner)
        kill(deployment.pod.child(worker, deployment.pod.entry(job_id).attempts[0].worker))
        entry = deployment.wait_generated(job_id, FAILED, SUCCEEDED)
        assert entry.attempts[0].error is not None and entry.attempts[0].error.code == "worker_lost"
        deployment.wait_generated(neighbour, SUCCEEDED)


def test_a_lost_job_is_taken_up_by_an_idle_worker(deployment: Deployment) -> None:
    """A worker that was idle all along neither delays the reaper nor needs a wake-up."""
    both = [deployment.pod.start(work_dir=deployment.pod.directory / name) for name in ("one", "other")]
    assert eventually(lambda: ready(deployment) == 2, 120), deployment.pod.log()
    job_id = deployment.pod.submit("slow 4")
    deployment.pod.wait_step(job_id)
    slot = deployment.pod.entry(job_id).attempts[0].worker
    (generating,) = (worker for worker in both if any(slot in child.cmdline() for child in below(worker.pid)))
    kill(generating)
    entry = deployment.wait_generated(job_id, FAILED, SUCCEEDED)
    assert entry.attempts[0].worker.rpartition(".")[0] != entry.attempts[1].worker.rpartition(".")[0]


def test_a_lost_job_is_canceled_or_given_up_when_it_must_be(deployment: Deployment) -> None:
    worker = deployment.pod.start(slots=2)
    canceled, exhausted = deployment.pod.submit("slow 30"), deployment.pod.submit("slow 30", attempts=1)
    deployment.pod.wait_step(canceled)
    assert eventually(lambda: len(deployment.pod.held()) == 2)
    kill(worker)
    deployment.pod.cancel(canceled)
    deployment.pod.wait_over(canceled, JobStatus.CANCELED)
    entry = deployment.pod.wait_over(exhausted, JobStatus.FAILED)
    assert entry.error is not None and entry.error.code == "worker_lost"
    assert deployment.pod.held() == deployment.pod.board.waiting() == []


def test_controller_may_die_too(deployment: Deployment) -> None:
    """The replica at work is killed, and its successor when it has just begun to watch."""
    worker = deployment.pod.start()
    job_id = deployment.pod.submit("slow 2")
    deployment.pod.wait_step(job_id)
    successor = deployment.start_controller()
    kill(worker)
    kill(deployment.controllers[0])
    time.sleep(1)
    kill(successor)
    deployment.start_controller()
    deployment.wait_waiting(job_id)
    deployment.pod.start()
    deployment.wait_generated(job_id, FAILED, SUCCEEDED)


def test_controller_leaves_at_once_when_asked(deployment: Deployment) -> None:
    assert eventually(lambda: "started" in deployment.log())
    (controller,) = deployment.controllers
    controller.terminate()
    assert controller.wait(timeout=10) == 0
    assert deployment.log().rstrip().endswith("stopped")
    assert deployment.pod.redis.get(deployment.pod.settings.keys.leader) is None


def test_a_directory_that_cannot_be_written_is_waited_for(deployment: Deployment, tmp_path: Path) -> None:
    deployment.pod.start()
    job_id = deployment.pod.submit("slow 2")
    deployment.pod.wait_step(job_id)
    broken = tmp_path / "store" / "songs"
    broken.write_text("where a directory was: unwritable even to root")
    assert eventually(lambda: "waits for the store on disk" in deployment.pod.log())
    broken.unlink()
    deployment.wait_generated(job_id, SUCCEEDED)


def test_an_object_store_that_hangs_is_waited_for(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weed").mkdir()
    with servers.seaweedfs(tmp_path / "weed") as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{servers.BUCKET}/faults"
        with deploy(tmp_path, redis_url, store_url=url, store_endpoint=s3.endpoint) as deployment:
            deployment.start_controller()
            deployment.pod.start()
            job_id = deployment.pod.submit("slow 2")
            deployment.pod.wait_step(job_id)
            s3.process.send_signal(signal.SIGSTOP)
            try:
                assert eventually(lambda: "waits for the store on disk" in deployment.pod.log(), 40)
            finally:
                s3.process.send_signal(signal.SIGCONT)
            deployment.wait_generated(job_id, SUCCEEDED)


def test_a_redis_that_is_killed_and_comes_back_costs_nothing(tmp_path: Path) -> None:
    """Away for twice a heartbeat's life: no job is given up, none is generated twice."""
    with (
        servers.valkey(tmp_path / "valkey", append_only=True) as server,
        deploy(tmp_path, server.connection_url) as deployment,
    ):
        controller = deployment.start_controller()
        worker = deployment.pod.start()
        running = deployment.pod.submit("slow 2")
        deployment.pod.wait_step(running)
        waiting = [deployment.pod.submit() for _ in range(3)]
        server.terminate()
        time.sleep(2 * QUICK["heartbeat_ttl_s"])
        server.start()
        for job_id in (running, *waiting):
            deployment.wait_generated(job_id, SUCCEEDED)
        assert controller.poll() is None and worker.poll() is None
        assert eventually(lambda: "sweeper goes on" in deployment.log())
        assert deployment.log().count("sweeper fails") == deployment.log().count("sweeper goes on") == 1


def test_a_song_is_generated_although_every_worker_died(tmp_path: Path) -> None:
    """As a client sees it, over HTTP."""
    engine = {"SERINETTE_ENGINE_MODULE": "tests.engines", "SERINETTE_SLOTS": "1"}
    shared = {f"SERINETTE_{name.upper()}": str(value) for name, value in QUICK.items()}
    with (
        stack.running(tmp_path, shared=shared, worker=engine) as running,
        httpx.Client(base_url=running.url) as client,
    ):
        posted = client.post("/v1/jobs", json={"prompt": "slow 2", "duration_s": 1, "format": "wav"})
        path = posted.headers["location"]

        def seen() -> dict[str, Any]:
            reported: dict[str, Any] = client.get(path).json()
            return reported

        assert eventually(lambda: seen()["status"] == "running")
        kill(running.processes.pop("worker"))
        assert eventually(lambda: seen()["status"] == "queued")
        assert [attempt["outcome"] for attempt in seen()["attempts"]] == ["failed"]
        running.start("worker", engine)
        assert eventually(lambda: seen()["status"] == "succeeded", 60), seen()
        assert [attempt["outcome"] for attempt in seen()["attempts"]] == ["failed", "succeeded"]
        assert client.get(f"{path}/audio").content[:4] == b"RIFF"


def test_a_frozen_worker_that_wakes_up_changes_nothing(deployment: Deployment) -> None:
    """Stopped for longer than its heartbeats hold, its job taken over, it wakes in the middle of the song."""
    frozen = deployment.pod.start(work_dir=deployment.pod.directory / "frozen")
    job_id = deployment.pod.submit("slow 2")
    deployment.pod.wait_step(job_id)
    slot = deployment.pod.child(frozen, "gpu_worker.slot")
    slot.suspend()
    deployment.wait_waiting(job_id)
    deployment.pod.start()
    deployment.pod.wait_step(job_id)
    slot.resume()
    deployment.wait_generated(job_id, FAILED, SUCCEEDED)
    assert eventually(lambda: "superseded" in deployment.pod.log())
    assert deployment.pod.rq_job(job_id).get_status() is RqStatus.FINISHED
