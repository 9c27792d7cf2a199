"""What dies comes back: real processes killed, stores and Redis taken away, each song sung to its end exactly once."""

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
class House:
    """A worker pod and controllers, killed and started as a test likes."""

    pod: Pod
    keepers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def keep(self) -> subprocess.Popen[bytes]:
        """Start a controller."""
        with (self.pod.directory / "controller.log").open("ab") as log:
            keeper = subprocess.Popen(
                leashed([sys.executable, "-m", "controller"]),
                env=self.pod.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.keepers.append(keeper)
        return keeper

    def log(self) -> str:
        return (self.pod.directory / "controller.log").read_text(errors="replace")

    def wait_waiting(self, job_id: str, timeout_s: float = 30) -> None:
        """Wait until a job is back in its lane."""

        def back() -> bool:
            return job_id in self.pod.board.waiting()

        assert eventually(back, timeout_s), (
            f"never back: {self.pod.entry(job_id).fields}\n{self.log()}\n{self.pod.log()}"
        )

    def sung(self, job_id: str, *attempts: AttemptOutcome, timeout_s: float = 60) -> Entry:
        """Wait for a job's success; it has these attempts, one record, one song, and was told of once."""
        entry = self.pod.wait_over(job_id, JobStatus.SUCCEEDED, timeout_s)
        assert [attempt.outcome for attempt in entry.attempts] == list(attempts), self.pod.log()
        record = self.pod.record(job_id)
        (artifact,) = record.artifacts
        left = {found.key for found in self.pod.store.list(song_prefix(TENANT, job_id))}
        assert left == {artifact.key, record_key(TENANT, job_id)}
        told: Any = self.pod.redis.xrange(self.pod.settings.keys.events(job_id))
        assert [fields[b"type"] for _, fields in told].count(b"succeeded") == 1
        assert job_id not in [*self.pod.board.waiting(), *self.pod.held()]
        assert self.pod.redis.zscore(self.pod.settings.keys.live, job_id) is None
        return entry


@contextmanager
def house(directory: Path, redis_url: str, **settings: object) -> Iterator[House]:
    with pod(directory, redis_url, {**QUICK, **settings}) as made:
        inhabited = House(made)
        try:
            yield inhabited
        finally:
            for keeper in inhabited.keepers:
                keeper.kill()
                keeper.wait()


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)


def ready(home: House) -> int:
    workers = present(home.pod.redis, home.pod.settings.keys)
    return sum(worker.stage is WorkerStage.READY for worker in workers)


@pytest.fixture
def home(tmp_path: Path, redis_url: str) -> Iterator[House]:
    """A house with one controller and no worker yet."""
    with house(tmp_path, redis_url) as made:
        made.keep()
        yield made


def test_a_popped_job_is_sung_although_its_popper_died_and_so_is_a_killed_slots(home: House) -> None:
    lost = home.pod.submit()
    popped: Any = home.pod.redis.blpop(home.pod.lane().key, 1)
    assert popped[1].decode() == lost
    worker = home.pod.start()
    home.sung(lost, SUCCEEDED)

    first = home.pod.submit("slow 2")
    home.pod.wait_step(first)
    # Put to the front when its slot was seen to die: before the one that was submitted later.
    _, behind = home.pod.submit("slow 5"), home.pod.submit()
    kill(home.pod.child(worker, "gpu_worker.slot"))
    entry = home.sung(first, FAILED, SUCCEEDED)
    assert entry.attempts[0].error is not None and entry.attempts[0].error.code == "worker_lost"
    last = home.sung(behind, SUCCEEDED)
    assert entry.ended_at is not None and last.ended_at is not None
    assert entry.ended_at < last.ended_at, "a retry goes to the front of its lane"


def test_a_killed_slots_job_waits_for_no_heartbeat(tmp_path: Path, redis_url: str) -> None:
    """Its supervisor saw it die and says so: heartbeats that hold for minutes are not waited for."""
    with house(tmp_path, redis_url, heartbeat_s=30, heartbeat_ttl_s=300) as home:
        home.keep()
        worker = home.pod.start(slots=2)
        job_id, neighbour = home.pod.submit("slow 3"), home.pod.submit("slow 3")
        home.pod.wait_step(job_id)
        assert eventually(lambda: home.pod.entry(neighbour).owner)
        kill(home.pod.child(worker, home.pod.entry(job_id).attempts[0].worker))
        entry = home.sung(job_id, FAILED, SUCCEEDED)
        assert entry.attempts[0].error is not None and entry.attempts[0].error.code == "worker_lost"
        home.sung(neighbour, SUCCEEDED)


def test_a_lost_job_is_taken_up_by_an_idle_worker(home: House) -> None:
    """Who has been idle all along neither delays the reaper nor needs a nudge."""
    both = [home.pod.start(work_dir=home.pod.directory / name) for name in ("one", "other")]
    assert eventually(lambda: ready(home) == 2, 120), home.pod.log()
    job_id = home.pod.submit("slow 4")
    home.pod.wait_step(job_id)
    slot = home.pod.entry(job_id).attempts[0].worker
    (singing,) = (worker for worker in both if any(slot in child.cmdline() for child in below(worker.pid)))
    kill(singing)
    entry = home.sung(job_id, FAILED, SUCCEEDED)
    assert entry.attempts[0].worker.rpartition(".")[0] != entry.attempts[1].worker.rpartition(".")[0]


def test_a_lost_job_is_canceled_or_given_up_when_it_must_be(home: House) -> None:
    worker = home.pod.start(slots=2)
    canceled, exhausted = home.pod.submit("slow 30"), home.pod.submit("slow 30", attempts=1)
    home.pod.wait_step(canceled)
    assert eventually(lambda: len(home.pod.held()) == 2)
    kill(worker)
    home.pod.cancel(canceled)
    home.pod.wait_over(canceled, JobStatus.CANCELED)
    entry = home.pod.wait_over(exhausted, JobStatus.FAILED)
    assert entry.error is not None and entry.error.code == "worker_lost"
    assert home.pod.held() == home.pod.board.waiting() == []


def test_controller_may_die_too(home: House) -> None:
    """The replica at work is killed, and its successor when it has just begun to watch."""
    worker = home.pod.start()
    job_id = home.pod.submit("slow 2")
    home.pod.wait_step(job_id)
    successor = home.keep()
    kill(worker)
    kill(home.keepers[0])
    time.sleep(1)
    kill(successor)
    home.keep()
    home.wait_waiting(job_id)
    home.pod.start()
    home.sung(job_id, FAILED, SUCCEEDED)


def test_controller_leaves_at_once_when_asked(home: House) -> None:
    assert eventually(lambda: "started" in home.log())
    (keeper,) = home.keepers
    keeper.terminate()
    assert keeper.wait(timeout=10) == 0
    assert home.log().rstrip().endswith("stopped")
    assert home.pod.redis.get(home.pod.settings.keys.leader) is None


def test_a_directory_that_cannot_be_written_is_waited_for(home: House, tmp_path: Path) -> None:
    home.pod.start()
    job_id = home.pod.submit("slow 2")
    home.pod.wait_step(job_id)
    broken = tmp_path / "store" / "songs"
    broken.write_text("where a directory was: unwritable even to root")
    assert eventually(lambda: "waits for the store on disk" in home.pod.log())
    broken.unlink()
    home.sung(job_id, SUCCEEDED)


def test_an_object_store_that_hangs_is_waited_for(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weed").mkdir()
    with servers.seaweedfs(tmp_path / "weed") as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{servers.BUCKET}/faults"
        with house(tmp_path, redis_url, store_url=url, store_endpoint=s3.endpoint) as home:
            home.keep()
            home.pod.start()
            job_id = home.pod.submit("slow 2")
            home.pod.wait_step(job_id)
            s3.process.send_signal(signal.SIGSTOP)
            try:
                assert eventually(lambda: "waits for the store on disk" in home.pod.log(), 40)
            finally:
                s3.process.send_signal(signal.SIGCONT)
            home.sung(job_id, SUCCEEDED)


def test_a_redis_that_is_killed_and_comes_back_costs_nothing(tmp_path: Path) -> None:
    """Away for twice a heartbeat's life: nobody is given up, nothing is sung twice."""
    with (
        servers.valkey(tmp_path / "valkey", append_only=True) as server,
        house(tmp_path, server.connection_url) as home,
    ):
        keeper = home.keep()
        worker = home.pod.start()
        running = home.pod.submit("slow 2")
        home.pod.wait_step(running)
        waiting = [home.pod.submit() for _ in range(3)]
        server.terminate()
        time.sleep(2 * QUICK["heartbeat_ttl_s"])
        server.start()
        for job_id in (running, *waiting):
            home.sung(job_id, SUCCEEDED)
        assert keeper.poll() is None and worker.poll() is None
        assert eventually(lambda: "sweeper goes on" in home.log())
        assert home.log().count("sweeper fails") == home.log().count("sweeper goes on") == 1


def test_a_song_is_sung_although_every_worker_died(tmp_path: Path) -> None:
    """As a client sees it, over HTTP."""
    engine = {"SERINETTE_ENGINE_MODULE": "tests.engines", "SERINETTE_SLOTS": "1"}
    shared = {f"SERINETTE_{name.upper()}": str(value) for name, value in QUICK.items()}
    with stack.running(tmp_path, shared=shared, worker=engine) as house, httpx.Client(base_url=house.url) as client:
        posted = client.post("/v1/jobs", json={"prompt": "slow 2", "duration_s": 1, "format": "wav"})
        path = posted.headers["location"]

        def seen() -> dict[str, Any]:
            told: dict[str, Any] = client.get(path).json()
            return told

        assert eventually(lambda: seen()["status"] == "running")
        kill(house.processes.pop("worker"))
        assert eventually(lambda: seen()["status"] == "queued")
        assert [attempt["outcome"] for attempt in seen()["attempts"]] == ["failed"]
        house.start("worker", engine)
        assert eventually(lambda: seen()["status"] == "succeeded", 60), seen()
        assert [attempt["outcome"] for attempt in seen()["attempts"]] == ["failed", "succeeded"]
        assert client.get(f"{path}/audio").content[:4] == b"RIFF"


def test_a_frozen_worker_that_wakes_up_changes_nothing(home: House) -> None:
    """Stopped for longer than its heartbeats hold, its job taken over, it wakes in the middle of the song."""
    frozen = home.pod.start(work_dir=home.pod.directory / "frozen")
    job_id = home.pod.submit("slow 2")
    home.pod.wait_step(job_id)
    slot = home.pod.child(frozen, "gpu_worker.slot")
    slot.suspend()
    home.wait_waiting(job_id)
    home.pod.start()
    home.pod.wait_step(job_id)
    slot.resume()
    home.sung(job_id, FAILED, SUCCEEDED)
    assert eventually(lambda: "superseded" in home.pod.log())
    assert home.pod.rq_job(job_id).get_status() is RqStatus.FINISHED
