"""Usage by a real slot: what is counted. That it is counted once whatever dies: tests/kills/."""

from __future__ import annotations

import time

import pytest
from redis import Redis

from gpu_worker.slot.held_job import HeldJob
from serinette.errors import EngineCrashed, HandBack, InvalidOutput
from serinette.job import JobStatus, Stage, Usage, now
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from serinette.usage import Day, day_number, day_of
from tests.jobs import TENANT
from tests.unit.slot_bench import SlotBench

# The imagined engine says so of every song.
GENERATE_S = 0.1


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def today(bench: SlotBench) -> Day:
    date = now().date()
    return day_of(date, bench.redis.hgetall(bench.keys.usage(TENANT, day_number(date))))


def usage(bench: SlotBench, job_id: str) -> Usage:
    found = bench.entry(job_id).usage
    assert found
    return found


@pytest.mark.parametrize(
    ("error", "outcome", "charged"),
    [
        (EngineCrashed("gone"), JobStatus.QUEUED, True),
        (InvalidOutput("nan"), JobStatus.FAILED, True),
        (HandBack("leaving"), JobStatus.QUEUED, False),
    ],
)
def test_who_is_charged_for_an_attempt_that_made_no_song(
    bench: SlotBench, error: Exception, outcome: JobStatus, charged: bool
) -> None:
    def generate_a_while(held: HeldJob) -> None:
        held.times.reached(Stage.WAITING_FOR_ENGINE, at_s=time.time() - 10)
        held.times.reached(Stage.DENOISING, 1, at_s=time.time() - 5)
        raise error

    job_id = bench.order()
    slot = bench.slot()
    bench.engine.meanwhile = generate_a_while
    slot.run_one()
    assert bench.entry(job_id).status is outcome
    if outcome is JobStatus.QUEUED:
        slot = bench.slot()
        slot.run_one()
        assert bench.entry(job_id).status is JobStatus.SUCCEEDED
    generated_s = GENERATE_S if outcome is JobStatus.QUEUED else 0
    assert usage(bench, job_id).gpu_s == pytest.approx(generated_s + (5 if charged else 0), abs=1)
    assert today(bench).gpu_s == usage(bench, job_id).gpu_s
