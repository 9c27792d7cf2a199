"""What an older version, with a ledger per job, leaves in Redis and in the store: it is drained before an upgrade."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis

from controller.restore import Restore
from controller.upgrade_check import old_work
from serinette.batch import BatchHeader, BatchStatus
from serinette.batches.repository import BatchRepository
from serinette.job import JobStatus, now
from serinette.jobs import job_of_record
from serinette.jobs.finishing import find_record
from serinette.names import Keys, record_key
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.controller_bench import RETENTION_S, TENANT, Bench

WEBHOOK = "https://example.com/hook"


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


@dataclass
class OldVersion:
    """Writes the keys and fields that the last version with a ledger wrote."""

    redis: Redis

    def submit(self, job_id: str, **fields: str) -> None:
        for index in ("live", f"jobs:{TENANT}", f"in-flight:{TENANT}"):
            self.redis.zadd(f"rq:serinette:{index}", {job_id: 1_700_000_000.5})
        ledger: dict[Any, Any] = {"tenant": TENANT, "pool": "default", **fields}
        self.redis.hset(f"rq:serinette:ledger:{job_id}", mapping=ledger)
        self.redis.hset(f"rq:job:{job_id}", mapping={"status": "queued", "origin": "default.normal"})
        self.redis.rpush("rq:queue:default.normal", job_id)

    def end(self, job_id: str) -> None:
        ledger = f"rq:serinette:ledger:{job_id}"
        for index in ("live", f"in-flight:{TENANT}"):
            self.redis.zrem(f"rq:serinette:{index}", job_id)
        self.redis.lrem("rq:queue:default.normal", 0, job_id)
        self.redis.hset(ledger, mapping={"outcome": "failed", "ended_at": now().isoformat()})
        self.redis.expire(ledger, RETENTION_S)
        if self.redis.hexists(ledger, "webhook"):
            self.redis.zadd("rq:serinette:webhooks", {job_id: 1_700_000_003})

    def enter(self, header: BatchHeader) -> None:
        counts = dict.fromkeys(("round", "released", "completed", "failed", "canceled", "running"), 0)
        fields: dict[Any, Any] = {"tenant": TENANT, "header": header.model_dump_json(exclude={"sources"}), **counts}
        fields |= {"status": "in_progress", "total": header.total, "created": 1_700_000_000.5}
        self.redis.hset(f"rq:serinette:batch:{header.id}", mapping=fields)
        self.redis.zadd("rq:serinette:batches", {header.id: 1_700_000_000.5})
        self.redis.zadd(f"rq:serinette:tenant-batches:{TENANT}", {header.id: 1_700_000_000.5})

    def end_batch(self, batch_id: str) -> None:
        fields: dict[Any, Any] = {"status": "completed", "released": 2, "completed": 1, "failed": 1}
        fields |= {"ended_at": now().isoformat()}
        self.redis.hset(f"rq:serinette:batch:{batch_id}", mapping=fields)
        self.redis.expire(f"rq:serinette:batch:{batch_id}", RETENTION_S)
        self.redis.zrem("rq:serinette:batches", batch_id)
        self.redis.zadd("rq:serinette:webhooks", {batch_id: 1_700_000_003})


@pytest.fixture
def old(redis: Redis) -> OldVersion:
    return OldVersion(redis)


def header(batch_id: str) -> BatchHeader:
    return BatchHeader(id=batch_id, tenant=TENANT, attempts=3, total=2, digest="d", created_at=now(), webhook=WEBHOOK)


def left(bench: Bench) -> str:
    return old_work(bench.redis, bench.keys)


def test_jobs_of_an_older_layout_are_counted_while_they_remain(bench: Bench, old: OldVersion) -> None:
    assert not left(bench)
    new = bench.submit()
    bench.redis.hset(f"rq:serinette:ledger:{new}", "tenant", TENANT)  # drained, and then put into the new layout
    for number in range(2_345):
        bench.redis.zadd(bench.keys.live, {f"old-{number}": 1})
        bench.redis.hset(f"rq:serinette:ledger:old-{number}", "tenant", TENANT)
    bench.redis.hset("rq:serinette:ledger:ended", "outcome", "succeeded")  # ended jobs may stay
    bench.redis.zadd(bench.keys.live, {"no ledger": 1})
    assert "remain: 2345 unfinished jobs." in left(bench)
    assert "check-drained" in left(bench)


def test_a_batch_of_an_older_layout_is_counted_though_none_of_its_lines_has_a_job(
    bench: Bench, old: OldVersion
) -> None:
    old.enter(header("batch-one"))
    old.enter(header("batch-two"))
    bench.redis.hset("rq:serinette:batch:batch-two", "status", "paused")
    line = json.dumps({"line": 1, "status": "succeeded"})
    bench.redis.hset("rq:serinette:batch-part:batch-one:0:0", "0", line)
    assert "remain: 2 unfinished batches." in left(bench)
    old.end_batch("batch-one")
    assert "remain: 1 unfinished batches." in left(bench)
    old.end_batch("batch-two")
    assert not left(bench), "their webhooks are delivered as ever"


def test_a_webhook_of_an_older_layout_is_counted_until_it_is_delivered(bench: Bench, old: OldVersion) -> None:
    old.submit("old", webhook=WEBHOOK)
    assert "remain: 1 unfinished jobs." in left(bench)
    old.end("old")
    assert "remain: 1 pending webhooks." in left(bench)
    bench.redis.zrem("rq:serinette:webhooks", "old")
    assert not left(bench)


def test_this_versions_own_batches_and_webhooks_do_not_keep_its_controller_from_starting(
    bench: Bench, old: OldVersion
) -> None:
    batches = BatchRepository(bench.board.jobs, bench.keys, RETENTION_S)
    assert batches.enter(header("batch-new"), 10)
    old.enter(header("batch-old"))
    old.end_batch("batch-old")
    ended_batch = batches.read("batch-old")
    assert ended_batch is not None
    assert batches.retry(ended_batch), "after the upgrade, another round of a batch of before"
    retried = batches.read("batch-old")
    assert retried is not None
    assert retried.status is BatchStatus.IN_PROGRESS
    ended = bench.submit(webhook=WEBHOOK)
    bench.board.cancel(ended)
    assert bench.redis.zcard(bench.keys.webhooks)
    assert not left(bench)


def controller(redis_url: str, store_url: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SERINETTE_REDIS_URL": redis_url, "SERINETTE_STORE_URL": store_url}
    line = [sys.executable, "-m", "controller", *command]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_an_operator_drains_and_then_upgrades(
    bench: Bench, old: OldVersion, redis_url: str, file_store_url: str
) -> None:
    old.submit("old", webhook=WEBHOOK)
    old.enter(header("batch-old"))
    before = bench.board.state()
    check = controller(redis_url, file_store_url, "check-drained")
    assert check.returncode == 1
    assert "remain: 1 unfinished jobs, 1 unfinished batches." in check.stdout
    refused = controller(redis_url, file_store_url)
    assert refused.returncode == 2
    assert "check-drained" in refused.stderr
    assert bench.board.state() == before, "neither changes anything"
    old.end("old")
    old.end_batch("batch-old")
    check = controller(redis_url, file_store_url, "check-drained")
    assert "remain: 1 pending webhooks." in check.stdout
    bench.redis.zrem("rq:serinette:webhooks", "old")  # delivered
    check = controller(redis_url, file_store_url, "check-drained")
    assert (check.returncode, check.stdout) == (0, "nothing remains in an older version's layout\n")


def test_songs_of_an_older_version_are_known_by_key_after_restore(bench: Bench) -> None:
    """Its job.json named the seconds in the engine otherwise."""
    job_id = bench.submit()
    bench.begin(job_id)
    written = json.loads(bench.song(job_id).model_dump_json())
    bench.redis.flushdb()  # of the test's own server: what an older version kept there is nothing to this one
    written["result"]["timings"]["sing_s"] = written["result"]["timings"].pop("generate_s")
    bench.store.put(record_key(TENANT, job_id), json.dumps(written).encode())
    record = find_record(bench.store, TENANT, job_id)
    assert record is not None
    usage = job_of_record(record).usage
    assert usage is not None
    assert usage.gpu_s == written["result"]["timings"]["sing_s"]
    assert Restore(bench.redis, bench.store, bench.keys, RETENTION_S)() == 1
    assert bench.entry(job_id).status is JobStatus.SUCCEEDED
