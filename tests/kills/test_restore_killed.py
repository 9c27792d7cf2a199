"""A restore from the store alone killed before every round trip, and begun again: each job is entered once."""

from __future__ import annotations

import pytest
from redis import Redis

from api.maintenance.restore import Restore
from serinette.errors import EngineCrashed, InvalidOutput
from serinette.job import JobStatus
from serinette.ledger import Ledger
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.kills.deaths import Deaths, Fate
from tests.kills.ends import assert_ended_once, today
from tests.kills.test_slot_killed import attempt
from tests.unit.maintenance_bench import RETENTION_S, TENANT
from tests.unit.slot_bench import SlotBench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def restore(fate: Fate, redis_url: str, store_url: str) -> None:
    redis, store = fate.redis(redis_url), Store.open(SharedSettings(store_url=store_url))
    Restore(redis, store, Ledger(redis, Keys(), RETENTION_S))()


def test_every_death_is_survived(bench: SlotBench, redis_url: str, file_store_url: str) -> None:
    sung, failed = bench.order(), bench.order()
    bench.slot().sing_one()
    attempt(bench, EngineCrashed("gone"))
    attempt(bench, InvalidOutput("nan"))
    outcomes = {sung: JobStatus.SUCCEEDED, failed: JobStatus.FAILED}
    deaths = Deaths(fewest=8)
    for round_trips in deaths:
        bench.redis.delete(*bench.redis.keys())
        deaths.lives(round_trips, restore, redis_url, file_store_url)
        again = Restore(bench.redis, bench.store, bench.ledger)
        known = sum(bench.entry(job_id).outcome is not None for job_id in outcomes)
        assert again() == len(outcomes) - known
        bench.rounds()()
        for job_id, outcome in outcomes.items():
            assert assert_ended_once(bench, job_id) is outcome
        assert today(bench).jobs == 0, "their day counted them when they ended"
        assert bench.redis.zcard(bench.keys.jobs(TENANT)) == len(outcomes)
        assert bench.redis.exists(bench.keys.webhooks) == 0
