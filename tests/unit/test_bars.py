"""A frozen attempt that wakes up after its job ended without a song records nothing: `job.json` is there already."""

from __future__ import annotations

import pytest
from redis import Redis

from api.maintenance.plan import Action
from serinette.errors import NotFound
from serinette.job import JobStatus, Record
from serinette.ledger import Outcome
from serinette.names import Keys, record_key
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.maintenance_bench import TENANT, assert_over
from tests.unit.slot_bench import SlotBench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def job_json(bench: SlotBench, job_id: str) -> Record:
    return Record.model_validate_json(bench.store.get(record_key(TENANT, job_id)))


def songs(bench: SlotBench) -> list[str]:
    return [found.key for found in bench.store.list("songs") if not found.key.endswith("job.json")]


@pytest.mark.parametrize("how", [JobStatus.FAILED, JobStatus.CANCELED])
def test_a_zombie_comes_too_late_for_a_job_that_the_reaper_ended(bench: SlotBench, how: JobStatus) -> None:
    job_id = bench.order(attempts=1)
    slot = bench.slot()

    def given_up(hold: object) -> None:
        if how is JobStatus.CANCELED:
            bench.ledger.request_cancel(job_id)
        [silent] = slot.executions.values()
        bench.mend(job_id, silent)
        assert bench.entry(job_id).outcome is how

    bench.engine.meanwhile = given_up
    slot.sing_one()  # it was frozen, and knows nothing of it
    record = job_json(bench, job_id)
    assert (record.status, record.result) == (how, None)
    assert songs(bench) == []
    assert_over(bench, job_id, how)


def test_a_song_that_was_recorded_first_is_what_the_reaper_finds(bench: SlotBench) -> None:
    job_id = bench.order(attempts=1)
    slot = bench.slot()

    def recorded(_: object) -> None:
        bench.record(job_id)
        [silent] = slot.executions.values()
        assert bench.mend(job_id, silent) is Action.SUCCEED

    bench.engine.meanwhile = recorded
    slot.sing_one()
    assert bench.entry(job_id).outcome is JobStatus.SUCCEEDED
    assert job_json(bench, job_id).result


def test_a_job_that_redis_remembers_as_waiting_ends_as_its_record_says(bench: SlotBench) -> None:
    """Valkey lost its last second after the reaper ended the job: it is in its lane again."""
    job_id = bench.order(attempts=1)
    silent = bench.begin(job_id)
    before = bench.redis.dump(bench.keys.ledger(job_id)), bench.redis.dump(bench.rq_job(job_id).key)
    bench.mend(job_id, silent)
    assert all(before)
    bench.redis.restore(bench.keys.ledger(job_id), 0, before[0] or b"", replace=True)
    bench.redis.restore(bench.rq_job(job_id).key, 0, before[1] or b"", replace=True)
    bench.queue().push_job_id(job_id)
    slot = bench.slot()
    slot.sing_one()
    assert bench.engine.heard == []
    entry = bench.entry(job_id)
    assert entry.outcome is JobStatus.FAILED
    assert entry.error
    assert entry.error.code == "worker_lost"


def test_the_last_attempt_of_several_bars_the_earlier_ones(bench: SlotBench) -> None:
    job_id = bench.order(attempts=2)
    slot = bench.slot()

    def fails(_: object) -> None:
        raise OSError("a disk is full")

    bench.engine.meanwhile = fails
    slot.sing_one()
    with pytest.raises(NotFound):
        job_json(bench, job_id)
    slot.sing_one()
    record = job_json(bench, job_id)
    assert record.status is JobStatus.FAILED
    assert record.error == bench.entry(job_id).error
    assert record.attempt.number == 2


def test_an_earlier_attempt_that_sang_after_all_is_what_the_last_one_finds(bench: SlotBench) -> None:
    job_id = bench.order(attempts=2)
    slot = bench.slot()

    def fails(_: object) -> None:
        if bench.entry(job_id).attempts[-1].number == 2:
            bench.record(job_id)  # by the first one, that was thought dead
        raise OSError("a disk is full")

    bench.engine.meanwhile = fails
    slot.sing_one()
    slot.sing_one()
    assert bench.entry(job_id).outcome is JobStatus.SUCCEEDED


def test_what_a_record_says_is_an_outcome(bench: SlotBench) -> None:
    bench.record("job-x")
    record = job_json(bench, "job-x")
    assert Outcome.of(record) == Outcome(JobStatus.SUCCEEDED, result=record.result)
