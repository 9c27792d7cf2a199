"""A failover decided by a sentinel while a song is generated: gateway, controller and worker use the new primary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis, RedisError

from tests import servers
from tests.processes import eventually
from tests.stack import Stack, running

WORD = "of-the-sentinel"


@pytest.fixture
def watched(redis: Redis, tmp_path: Path) -> Iterator[tuple[Stack, Redis]]:
    """A whole Serinette that knows one sentinel, and a client of that."""
    port = redis.get_connection_kwargs()["port"]
    with servers.valkey(tmp_path / "replica") as replica, Redis.from_url(replica.connection_url) as second:
        second.replicaof("127.0.0.1", port)
        with servers.sentinel(tmp_path / "sentinel", port, WORD) as sentinel_port:
            shared = {
                "SERINETTE_REDIS_URL": "redis://primary/0",
                "SERINETTE_REDIS_SENTINELS": f"127.0.0.1:{sentinel_port}",
                "SERINETTE_REDIS_SENTINEL_PASSWORD": WORD,
            }
            worker = {"SERINETTE_ENGINE_MODULE": "tests.engines"}
            with (
                Redis(port=sentinel_port, password=WORD) as guard,
                running(tmp_path / "stack", shared=shared, worker=worker) as stack,
            ):
                yield stack, guard


def job(stack: Stack, job_id: str) -> dict[str, Any]:
    with suppress(httpx.HTTPError):
        answer = httpx.get(f"{stack.url}/v1/jobs/{job_id}", timeout=10)
        if answer.is_success:
            return dict(answer.json())
        return {"status": answer.text}
    return {"status": "unknown"}


def submit(stack: Stack, prompt: str) -> str:
    answer = httpx.post(f"{stack.url}/v1/jobs", json={"prompt": prompt, "duration_s": 5}, timeout=30)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.mark.timeout(300)
def test_a_song_outlives_a_failover(watched: tuple[Stack, Redis], redis: Redis) -> None:
    stack, guard = watched
    assert eventually(lambda: promotable(guard), 60)
    song = submit(stack, "until failover")
    assert eventually(lambda: job(stack, song)["status"] == "running", 60), stack.log("worker")
    guard.sentinel_failover("mymaster")
    assert eventually(lambda: servers.demoted(redis), 60)
    # What was written to the old primary meanwhile is lost, a heartbeat or two; the end of the song comes after.
    (stack.directory / "work" / "tokens").mkdir(parents=True, exist_ok=True)
    (stack.directory / "work" / "tokens" / "failover").touch()
    assert eventually(lambda: job(stack, song)["status"] == "succeeded", 120), f"{job(stack, song)}\n" + "\n".join(
        f"--- {name}\n{stack.log(name)}" for name in stack.processes
    )
    assert job(stack, song)["attempts"][-1]["outcome"] == "succeeded"
    after = submit(stack, "jazz piano")
    assert eventually(lambda: job(stack, after)["status"] == "succeeded", 60), stack.log("worker")


def promotable(sentinel: Redis) -> bool:
    """Whether it knows a replica that has what the primary has."""
    with suppress(RedisError):
        found = sentinel.sentinel_slaves("mymaster")
        return any(each["flags"] == "slave" and each["master-link-status"] == "ok" for each in found)
    return False
