"""A slot killed before every round trip of a job's life: the controller and the next slot end the job exactly once."""

from __future__ import annotations

import pytest
from redis import Redis

from gpu_worker.slot.held_job import HeldJob
from serinette.errors import Canceled, EngineCrashed, HandBack, InvalidOutput
from serinette.job import JobStatus
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.kills.deaths import Deaths, Fate
from tests.kills.ends import assert_counted_once, assert_ended_once, rescue
from tests.servers import BUCKET, S3
from tests.unit.slot_bench import SlotBench

SUCCEEDED, FAILED, CANCELED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED

ENDS = {
    "well": None,
    "crash": EngineCrashed("gone"),
    "break down": InvalidOutput("nan"),
    "hand back": HandBack("leaving"),
    "cancel": Canceled("asked"),
}

pytestmark = pytest.mark.timeout(600)  # minutes, on a busy machine


def run_slot(fate: Fate, redis_url: str, settings: SharedSettings, end: str, job_id: str) -> None:
    """A slot takes the job; in the middle of the song comes its end."""
    bench = SlotBench(Redis.from_url(redis_url), Keys(), Store.open(settings))
    slot = bench.slot(fate.redis(redis_url))

    def meanwhile(_: HeldJob) -> None:
        if end == "cancel":
            bench.board.cancel(job_id)  # by a client, which lives
        if error := ENDS[end]:
            raise error

    bench.engine.meanwhile = meanwhile
    slot.run_one()


def attempt(bench: SlotBench, end: Exception) -> None:
    """One attempt by a slot that lives."""
    slot = bench.slot()

    def meanwhile(_: HeldJob) -> None:
        raise end

    bench.engine.meanwhile = meanwhile
    slot.run_one()


def kill_at_every_step(
    redis: Redis, redis_url: str, settings: SharedSettings, end: str, earlier: int = 0
) -> set[JobStatus]:
    """All outcomes that were seen; of each job after `earlier` failed attempts."""
    bench = SlotBench(redis, Keys(), Store.open(settings))
    jobs: list[str] = []
    outcomes: set[JobStatus] = set()
    deaths = Deaths(fewest=6)
    for round_trips in deaths:
        job_id = bench.order(attempts=max(2, earlier + 1))
        jobs.append(job_id)
        for _ in range(earlier):
            attempt(bench, EngineCrashed("gone"))
        deaths.lives(round_trips, run_slot, redis_url, settings, end, job_id)
        rescue(bench, job_id)
        outcomes.add(assert_ended_once(bench, job_id))
        canceled = bench.entry(job_id).cancel_requested
        assert canceled == (CANCELED in outcomes and bench.entry(job_id).status is CANCELED)
    assert_counted_once(bench, jobs)
    return outcomes


@pytest.mark.parametrize(
    ("end", "earlier", "outcomes"),
    [
        ("well", 0, {SUCCEEDED}),
        ("crash", 0, {SUCCEEDED}),
        ("break down", 0, {SUCCEEDED, FAILED}),
        ("break down", 1, {SUCCEEDED, FAILED}),
        ("hand back", 0, {SUCCEEDED}),
        ("cancel", 0, {SUCCEEDED, CANCELED}),
    ],
)
def test_every_death_is_survived(
    redis: Redis, redis_url: str, file_store_url: str, end: str, earlier: int, outcomes: set[JobStatus]
) -> None:
    seen = kill_at_every_step(redis, redis_url, SharedSettings(store_url=file_store_url), end, earlier)
    assert seen == outcomes


def test_every_death_is_survived_with_an_object_store(
    redis: Redis, redis_url: str, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    settings = SharedSettings(store_url=f"s3://{BUCKET}/kills", store_endpoint=s3.endpoint)
    assert kill_at_every_step(redis, redis_url, settings, "well") == {SUCCEEDED}
