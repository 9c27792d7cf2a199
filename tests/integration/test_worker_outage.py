"""Redis goes away in the midst of a song: the model stays warm, the song is recorded, once, when Redis is back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serinette.job import JobStatus
from serinette.presence import WorkerStage
from tests.pod import Pod, pod
from tests.processes import eventually
from tests.servers import RestartedValkey

AWAY_S = 2.5  # longer than a heartbeat holds for, and than a slot waits for one answer


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[RestartedValkey]:
    outage = RestartedValkey(tmp_path / "valkey", append_only=True)
    yield outage
    outage.stop()


@pytest.fixture
def worker_pod(tmp_path: Path, valkey: RestartedValkey) -> Iterator[Pod]:
    settings = {"slots": 2, "redis_timeout_s": 1}
    with pod(tmp_path, valkey.url, settings) as made:
        yield made


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_a_song_outlives_redis(worker_pod: Pod, valkey: RestartedValkey, how: str) -> None:
    process = worker_pod.start()
    job_id = worker_pod.submit("slow 2")
    worker_pod.wait_step(job_id)
    pids = [worker_pod.child(process, word).pid for word in ("tests.engines", ".0", ".1")]
    valkey.stop() if how == "stopped" else valkey.freeze()
    # The song ends, and its record is written, in the midst of the outage.
    assert eventually(lambda: list(worker_pod.store.list("songs")) != [])
    time.sleep(AWAY_S)
    valkey.start() if how == "stopped" else valkey.thaw()
    entry = worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)
    assert len(entry.attempts) == 1
    attempt = worker_pod.record(job_id).attempt
    assert attempt and attempt.id == entry.attempts[0].id
    assert len(list(worker_pod.store.list("songs"))) == 2, "one song and its record"
    worker_pod.wait_over(worker_pod.submit(), JobStatus.SUCCEEDED)
    assert [worker_pod.child(process, word).pid for word in ("tests.engines", ".0", ".1")] == pids


def test_a_worker_leaves_while_redis_is_away(worker_pod: Pod, valkey: RestartedValkey) -> None:
    process = worker_pod.start()
    worker_pod.wait_stage()
    valkey.stop()
    time.sleep(0.3)  # its slots notice
    process.terminate()
    assert process.wait(30) == 0, worker_pod.log()


def test_a_redis_whose_disk_is_full_is_waited_for(worker_pod: Pod, valkey: RestartedValkey) -> None:
    redis = worker_pod.redis
    place = Path(str(redis.config_get("dir")["dir"])) / str(redis.config_get("dbfilename")["dbfilename"])
    worker_pod.start()
    worker_pod.wait_stage(WorkerStage.READY)
    place.unlink(missing_ok=True)
    (place / "in the way").mkdir(parents=True)  # of the snapshot: its rename fails
    redis.config_set("save", "3600 1")
    worker_pod.submit()  # something to save
    redis.bgsave()
    assert eventually(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
    assert eventually(lambda: "Redis takes nothing at the moment" in worker_pod.log(), 30), worker_pod.log()
    shutil.rmtree(place)
    redis.config_set("save", "")
    worker_pod.wait_over(worker_pod.submit(), JobStatus.SUCCEEDED)
    assert "Traceback" not in worker_pod.log(), worker_pod.log()


def test_a_full_redis_is_emptied_by_a_worker_that_starts_then(worker_pod: Pod, valkey: RestartedValkey) -> None:
    job_id = worker_pod.submit()
    worker_pod.redis.config_set("maxmemory", 1)
    worker_pod.start()
    worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)
    seen = worker_pod.presence()
    assert seen and seen.stage is WorkerStage.READY
    assert "Traceback" not in worker_pod.log()
    worker_pod.redis.config_set("maxmemory", 0)
