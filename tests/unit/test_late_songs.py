"""A frozen attempt that wakes up after its job ended without a song records nothing: `job.json` is there already."""

from __future__ import annotations

import pytest
from redis import Redis

from controller.sweep_plan import Action
from serinette.job import JobStatus, Record
from serinette.jobs import Outcome
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.controller_bench import Bench
from tests.unit.slot_bench import SlotBench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def job_json(bench: SlotBench, job_id: str) -> Record:
    record = bench.record(job_id)
    assert record
    return record


def sweep(bench: SlotBench, job_id: str) -> list[Action]:
    """The job's lease has run out, and the sweeper looks."""
    controller = Bench(bench.redis, bench.keys, bench.store)
    controller.pass_leases()
    return controller.sweep()


def songs(bench: SlotBench) -> list[str]:
    return [found.key for found in bench.store.list("songs") if not found.key.endswith("job.json")]


@pytest.mark.parametrize("how", [JobStatus.FAILED, JobStatus.CANCELED])
def test_a_frozen_attempt_comes_too_late_for_a_job_that_the_sweeper_ended(bench: SlotBench, how: JobStatus) -> None:
    job_id = bench.order(attempts=1)
    slot = bench.slot()

    def given_up(hold: object) -> None:
        if how is JobStatus.CANCELED:
            bench.board.cancel(job_id)
        sweep(bench, job_id)
        assert bench.entry(job_id).status is how

    bench.engine.meanwhile = given_up
    slot.run_one()  # it was frozen, and knows nothing of it
    record = job_json(bench, job_id)
    assert (record.status, record.result) == (how, None)
    assert songs(bench) == []
    bench.assert_ended(job_id, how)


def test_a_song_that_was_recorded_first_is_what_the_sweeper_finds(bench: SlotBench) -> None:
    job_id = bench.order(attempts=1)
    slot = bench.slot()

    def recorded(_: object) -> None:
        bench.put_song(job_id)
        assert sweep(bench, job_id)

    bench.engine.meanwhile = recorded
    slot.run_one()
    assert bench.entry(job_id).status is JobStatus.SUCCEEDED
    assert job_json(bench, job_id).result


def test_a_job_that_redis_remembers_as_waiting_ends_as_its_record_says(bench: SlotBench) -> None:
    """Valkey lost its last second after the sweeper ended the job: it is in its lane again."""
    job_id = bench.order(attempts=1)
    before = {key: bench.redis.dump(key) for key in bench.redis.scan_iter()}
    assert bench.board.claim()
    sweep(bench, job_id)
    assert bench.entry(job_id).status is JobStatus.FAILED
    bench.redis.flushdb()  # this test's own server
    for key, value in before.items():
        assert value
        bench.redis.restore(key, 0, value)
    assert bench.slot().run_one()
    assert bench.engine.requests == []
    entry = bench.entry(job_id)
    assert entry.status is JobStatus.FAILED
    assert entry.error and entry.error.code == "worker_lost"


def test_the_last_attempt_of_several_bars_the_earlier_ones(bench: SlotBench) -> None:
    job_id = bench.order(attempts=2)
    slot = bench.slot()

    def fails(_: object) -> None:
        raise OSError("a disk is full")

    bench.engine.meanwhile = fails
    slot.run_one()
    assert bench.record(job_id) is None
    slot.run_one()
    record = job_json(bench, job_id)
    assert record.status is JobStatus.FAILED
    assert record.error == bench.entry(job_id).error
    assert record.attempt and record.attempt.number == 2


def test_an_earlier_attempt_that_finished_after_all_is_what_the_last_one_finds(bench: SlotBench) -> None:
    job_id = bench.order(attempts=2)
    slot = bench.slot()

    def fails(_: object) -> None:
        if bench.entry(job_id).attempts[-1].number == 2:
            bench.put_song(job_id)  # by the first one, that was thought dead
        raise OSError("a disk is full")

    bench.engine.meanwhile = fails
    slot.run_one()
    slot.run_one()
    assert bench.entry(job_id).status is JobStatus.SUCCEEDED


def test_what_a_record_says_is_an_outcome(bench: SlotBench) -> None:
    record = bench.put_song(bench.order())
    assert Outcome.of(record) == Outcome(JobStatus.SUCCEEDED, result=record.result)
