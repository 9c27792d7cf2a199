"""A slot whose songs wait on disk for the store, killed before every round trip: its pod's next slot sends them."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from serinette.job import JobStatus
from tests.kills.deaths import Deaths, Fate
from tests.kills.ends import assert_counted_once, assert_ended_once, rescue
from tests.unit.slot_bench import SpoolBench

pytestmark = pytest.mark.timeout(600)  # minutes, on a busy machine


def run_without_a_store(fate: Fate, redis_url: str, directory: Path, back: bool) -> None:
    """A song waits; then the store is back, or the slot leaves while it is still away."""
    bench = SpoolBench.at(fate.redis(redis_url), directory)
    slot = bench.spooling()
    with bench.away():
        slot.run_one()
        if not back:
            slot.spooled.give_back()
    slot.send_spooled()


@pytest.mark.parametrize("back", [True, False], ids=["the store comes back", "the slot leaves before"])
def test_every_death_is_survived(redis: Redis, redis_url: str, tmp_path: Path, back: bool) -> None:
    bench = SpoolBench.at(redis, tmp_path)
    deaths, jobs = Deaths(fewest=8), []
    for round_trips in deaths:
        job_id = bench.order()
        deaths.lives(round_trips, run_without_a_store, redis_url, tmp_path, back)
        if (aside := tmp_path / "store-aside").exists():
            (tmp_path / "store").unlink(missing_ok=True)
            aside.rename(tmp_path / "store")
        bench.spooling().send_spooled()
        rescue(bench, job_id)
        assert assert_ended_once(bench, job_id) is JobStatus.SUCCEEDED
        assert bench.parcels == []
        jobs.append(job_id)
    assert_counted_once(bench, jobs)
