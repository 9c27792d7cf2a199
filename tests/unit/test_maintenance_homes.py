"""Jobs of a pool that was removed go to another that holds their model, or fail in words; on a real Valkey."""

from __future__ import annotations

import pytest
from redis import Redis

from api.maintenance.homeless import Homeless
from api.maintenance.homes import Homes
from api.maintenance.mend import Mender, Patient
from api.maintenance.plan import Action
from api.maintenance.rounds import Rounds
from api.settings import MaintenanceSettings
from serinette.job import JobStatus, now
from serinette.ledger import Ledger
from serinette.names import Keys, Lane
from serinette.pools import PoolFacts
from serinette.presence import Presence, WorkerStage, announce
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.unit.maintenance_bench import RETENTION_S, Bench, assert_over
from tests.unit.slot_bench import SlotBench

TURBO, BASE = PoolFacts(name="turbo", model="s3://models/turbo"), PoolFacts(name="base", model="s3://models/base")


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def mend(bench: Bench, job_id: str, *pools: PoolFacts, default: str = "turbo") -> Action:
    ledger = Ledger(bench.redis, bench.keys, RETENTION_S)
    return Mender(bench.redis, ledger, bench.store, Homes(pools, default)).mend(Patient(job_id, homeless=True))


@pytest.mark.parametrize(("model", "pool"), [("base", "base"), ("turbo", "turbo"), (None, "turbo")])
def test_a_job_moves_to_the_pool_of_its_model_in_its_lane(bench: SlotBench, model: str | None, pool: str) -> None:
    job_id = bench.order(GenerationSpec(prompt="jazz", model=model))
    assert mend(bench, job_id, TURBO, BASE) is Action.MOVE
    assert bench.waiting() == []
    assert bench.queue(pool=pool).get_job_ids() == [job_id]
    job = bench.rq_job(job_id)
    assert (job.origin, job.meta["pool"], job.kwargs["job_id"]) == (f"{pool}.normal", pool, job_id)
    assert bench.redis.hget(bench.keys.ledger(job_id), "pool") == pool.encode()
    assert job_id in bench.live()


def test_a_job_that_no_pool_takes_fails_with_what_there_is(bench: SlotBench) -> None:
    job_id = bench.order(GenerationSpec(prompt="jazz", model="old"))
    assert mend(bench, job_id, TURBO, BASE) is Action.STRAND
    assert_over(bench, job_id, JobStatus.FAILED)
    error = bench.entry(job_id).error
    assert error is not None
    assert error.code == "pool_removed"
    assert error.message == (
        "pool default was removed, and none that is left holds model old; published here are base, turbo: submit it "
        "again with one"
    )


def test_an_attempt_that_was_given_up_cannot_sing_a_stranded_job_any_more(bench: SlotBench) -> None:
    job_id = bench.submit(spec=GenerationSpec(prompt="jazz", model="old"))
    assert bench.mend(job_id, bench.begin(job_id)) is Action.RETRY
    assert mend(bench, job_id, BASE) is Action.STRAND
    assert not bench.store.put_if_absent(f"songs/default/{job_id}/job.json", b"late")


def test_a_job_that_is_held_is_left_alone(bench: SlotBench) -> None:
    job_id = bench.submit()
    bench.begin(job_id)
    assert mend(bench, job_id, TURBO) is Action.LEAVE


def test_only_a_pool_that_stays_unknown_and_empty_of_workers_is_removed(bench: SlotBench) -> None:
    job_id = bench.order()
    homeless = Homeless(bench.redis, bench.keys, Homes((TURBO,), "turbo"), patience_s=60)
    assert homeless.find(0) == []
    assert homeless.find(15) == []
    presence = Presence(name="w", pool="default", stage=WorkerStage.DRAINING, slots=1, started_at=now())
    announce(bench.redis, bench.keys, presence)
    assert homeless.find(30) == []
    bench.redis.delete(bench.keys.workers)
    assert [homeless.find(at_s) for at_s in (45, 60, 75, 90)] == [[]] * 4
    assert [patient.job_id for patient in homeless.find(105)] == [job_id]


def test_without_a_chart_no_pool_is_removed(bench: SlotBench) -> None:
    bench.order()
    homeless = Homeless(bench.redis, bench.keys, Homes(), patience_s=1)
    assert [homeless.find(at_s) for at_s in (0, 5, 10)] == [[]] * 3


def test_rounds_do_it(bench: SlotBench, redis_url: str) -> None:
    job_id = bench.order()
    settings = MaintenanceSettings.model_validate(
        {"redis_url": redis_url, "pools": (TURBO,), "pool": "turbo", "rehome_after_s": 0.001}
    )
    rounds = Rounds(bench.redis, bench.store, settings)
    rounds()
    rounds()
    assert bench.queue(Lane.NORMAL, "turbo").get_job_ids() == [job_id]
