"""Redis is lost: what job.json or a generating worker knows is not. And what `durability: fsync` asks of Redis."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from serinette.job import JobStatus
from tests import servers
from tests.chaos.append_only import surely_on_disk
from tests.gateways import RunningGateway, gateway, problem
from tests.pod import Pod, pod
from tests.processes import eventually

SPEC = {"prompt": "jazz", "seed": 7, "duration_s": 2, "labels": {"album": "blue"}}


def restore(redis_url: str, store_url: str) -> str:
    """As docs/disaster.md says."""
    environment = {**os.environ, "SERINETTE_REDIS_URL": redis_url, "SERINETTE_STORE_URL": store_url}
    command = [sys.executable, "-m", "controller", "restore"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def generate(running: RunningGateway, key: str) -> str:
    headers = {"Idempotency-Key": key, "Prefer": "wait=50"}
    answer = httpx.post(f"{running.url}/v1/jobs", json=SPEC, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "succeeded", answer.text
    return str(answer.json()["id"])


def test_all_jobs_are_restored_from_the_store_alone(tmp_path: Path) -> None:
    store_url = f"file://{tmp_path / 'store'}"
    with servers.valkey(tmp_path / "valkey") as first, pod(tmp_path, first.connection_url) as worker:
        worker.start()
        with gateway(tmp_path, first.connection_url, store_url) as running:
            ids = [generate(running, key) for key in ("one", "two", "three")]
            before = {job_id: httpx.get(f"{running.url}/v1/jobs/{job_id}").json() for job_id in ids}
    with servers.valkey(tmp_path / "empty") as second, gateway(tmp_path, second.connection_url, store_url) as running:
        for job_id in ids:  # even before it is restored
            assert httpx.get(f"{running.url}/v1/jobs/{job_id}").json()["result"] == before[job_id]["result"]
        assert httpx.get(f"{running.url}/v1/jobs").json()["jobs"] == []

        assert restore(second.connection_url, store_url) == "3 jobs restored\n"
        assert restore(second.connection_url, store_url) == "0 jobs restored\n"
        listed = httpx.get(f"{running.url}/v1/jobs", params={"label": "album=blue"}).json()["jobs"]
        assert [job["id"] for job in listed] == ids[::-1]
        for job in listed:
            old = before[job["id"]]
            by_another_clock = {"ended_at", "usage", "attempts"}  # the slot's, not the server's
            assert {**job, **dict.fromkeys(by_another_clock)} == {**old, **dict.fromkeys(by_another_clock)}
            assert job["usage"]["size_bytes"] == old["usage"]["size_bytes"]
            assert [attempt["id"] for attempt in job["attempts"]] == [attempt["id"] for attempt in old["attempts"]]
            audio = httpx.get(f"{running.url}/v1/jobs/{job['id']}/audio", follow_redirects=True)
            assert hashlib.sha256(audio.content).hexdigest() == old["result"]["artifacts"][0]["sha256"]

        again = httpx.post(f"{running.url}/v1/jobs", json=SPEC, headers={"Idempotency-Key": "one"})
        assert (again.status_code, again.json()["id"]) == (200, ids[0])
        other = httpx.post(f"{running.url}/v1/jobs", json={"prompt": "polka"}, headers={"Idempotency-Key": "one"})
        assert problem(other)["code"] == "idempotency_conflict"
        assert httpx.delete(f"{running.url}/v1/jobs/{ids[0]}").status_code == 204
        assert httpx.get(f"{running.url}/v1/jobs/{ids[0]}").status_code == 404
        with Redis.from_url(second.connection_url) as redis:
            forever = [key for key in redis.keys("*") if redis.ttl(key) == -1]
            names = {key.decode().split(":")[1] for key in forever}
        assert "job" not in names, forever
        assert not any(b":serinette:job:" in key or b":events:" in key for key in forever)


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[servers.RestartedValkey]:
    made = servers.RestartedValkey(tmp_path / "forgetful", append_only=False)
    yield made
    made.stop()


@pytest.fixture
def worker_pod(tmp_path: Path, forgetful: servers.RestartedValkey) -> Iterator[Pod]:
    with pod(tmp_path, forgetful.url) as made:
        yield made


def test_a_generating_worker_brings_its_job_through_an_empty_redis(
    tmp_path: Path, worker_pod: Pod, forgetful: servers.RestartedValkey
) -> None:
    worker_pod.start()
    store_url = worker_pod.settings.store_url
    with gateway(tmp_path, forgetful.url, store_url) as running:
        submitted = httpx.post(f"{running.url}/v1/jobs", json={**SPEC, "prompt": "slow 4"})
        job_id = submitted.json()["id"]
        worker_pod.wait_step(job_id)
        forgetful.stop()
        forgetful.start()
        assert not worker_pod.redis.keys("*:serinette:job:*")

        def knows_it_running() -> bool:
            answer = httpx.get(f"{running.url}/v1/jobs/{job_id}")
            return answer.status_code == 200 and answer.json()["status"] in {"running", "succeeded"}

        assert eventually(knows_it_running), worker_pod.log()
        worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)
        job = httpx.get(f"{running.url}/v1/jobs/{job_id}").json()
        assert job["status"] == "succeeded"
        assert job["labels"] == {"album": "blue"}
        assert [listed["id"] for listed in httpx.get(f"{running.url}/v1/jobs").json()["jobs"]] == [job_id]
        assert worker_pod.record(job_id).artifacts
        assert len(list(worker_pod.store.list("songs"))) == 2, "generated once"


def test_fsync_waits_for_the_disk_and_refuses_without_one(tmp_path: Path) -> None:
    store_url = f"file://{tmp_path / 'store'}"
    with (
        servers.valkey(tmp_path / "durable", append_only=True) as durable,
        gateway(tmp_path, durable.connection_url, store_url, durability="fsync") as running,
        Redis.from_url(durable.connection_url) as redis,
    ):

        def waits() -> int:
            reported = redis.info("commandstats")["cmdstat_waitaof"]
            assert reported["failed_calls"] == 0
            return int(reported["calls"])

        # The first submit also brings the functions to the server, and sends itself again.
        assert httpx.post(f"{running.url}/v1/jobs", json=SPEC).status_code == 202
        counts = [waits()]
        for _ in range(2):
            answer = httpx.post(f"{running.url}/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"})
            assert answer.status_code == 202, answer.text
            counts.append(waits())
        # One call asks, inside the transition, whether there is a file at all; the other one waits.
        assert counts[1] - counts[0] == 2
        assert counts[2] - counts[1] == 2, "a repeated promise is one too"
        for _ in range(2):
            batch = httpx.post(
                f"{running.url}/v1/batches", json={"specs": [{"prompt": "x"}]}, headers={"Idempotency-Key": "k"}
            )
            assert batch.status_code == 202, batch.text
            counts.append(waits())
        assert counts[3] > counts[2], "so is that of a batch"
        assert counts[4] > counts[3]

        redis.config_set("appendonly", "no")
        refused = problem(httpx.post(f"{running.url}/v1/jobs", json={"prompt": "polka"}))
        assert (refused["status"], refused["code"]) == (503, "queue_unavailable")
        assert "appendonly" in refused["detail"]
        assert len(httpx.get(f"{running.url}/v1/jobs").json()["jobs"]) == 2, "nothing was accepted"


def test_what_fsync_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    """Its process killed outright, all gone that it had not said to be on disk, and started again from its file."""
    port = servers.free_ports(1)[0]
    store_url = f"file://{tmp_path / 'store'}"
    with servers.valkey(tmp_path / "durable", port=port, append_only=True) as durable:
        with gateway(tmp_path, durable.connection_url, store_url, durability="fsync") as running:
            ids = {httpx.post(f"{running.url}/v1/jobs", json=SPEC).json()["id"] for _ in range(5)}
        with Redis.from_url(durable.connection_url) as redis:
            redis.set("not on disk", "for all that is known")
            os.kill(int(redis.info("server")["process_id"]), 9)
    (file,) = tmp_path.glob("durable/**/*.incr.aof")
    written = file.read_bytes()
    kept = surely_on_disk(written, ids)
    assert 0 < kept < len(written)
    os.truncate(file, kept)
    with (
        servers.valkey(tmp_path / "durable", port=port, append_only=True) as durable,
        gateway(tmp_path, durable.connection_url, store_url) as running,
        Redis.from_url(durable.connection_url) as redis,
    ):
        assert {job["id"] for job in httpx.get(f"{running.url}/v1/jobs").json()["jobs"]} == ids
        assert redis.llen("rq:queue:default.normal") == 5
        assert not redis.exists("not on disk")
