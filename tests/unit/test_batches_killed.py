"""Maintenance killed, or overtaken, at every round trip of a batch's way: no line is lost, none is sung twice."""

from __future__ import annotations

from contextlib import suppress
from itertools import count

import pytest

from serinette.batch import Batch, BatchStatus
from tests.unit.batch_bench import TENANT, BatchBench
from tests.unit.test_maintenance_killed import Killed, Once, interrupted, mortal

# The pipeline of a dead client wants to say goodbye.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LINES, FAILING = 7, ["song 2", "song 7"]


@pytest.fixture
def bench(redis_url: str, file_store_url: str) -> BatchBench:
    return BatchBench(redis_url, file_store_url, backlog=5, part_lines=3)


def assert_whole(bench: BatchBench, batch: Batch, round: int = 0) -> None:
    """Every line ended once, and is told once."""
    seen = bench.look(batch).request_counts
    output, errors = bench.output(batch, round), bench.errors(batch, round)
    assert sorted(line.line for line in [*output, *errors]) == list(range(1, LINES + 1))
    assert (seen.completed, seen.failed + seen.canceled) == (len(output), len(errors))
    assert (seen.total, seen.released, seen.queued, seen.running) == (LINES, LINES, 0, 0)
    assert set(bench.sung.values()) <= {1}
    assert bench.redis.zcard(bench.keys.batches) == 0
    assert bench.waiting() == []


def test_every_death_is_survived(bench: BatchBench) -> None:
    """Each life has so many round trips and no more; slots sing meanwhile."""
    for lives in (*range(1, 40), 1_000):
        batch = bench.create(LINES)
        bench.sung.clear()
        for _ in count():
            with suppress(Killed):
                # A life that is too short to get anywhere gets longer ones after it.
                bench.new_duty(mortal(bench.redis_url, lives))()
            bench.sing(2, FAILING)
            if lives < 25:
                bench.duty()
            if bench.look(batch).status.ended:
                break
        assert_whole(bench, batch)
        assert bench.look(batch).request_counts.failed == 2


def test_a_replica_that_is_overtaken_does_nothing_twice(bench: BatchBench) -> None:
    overtaken = 0
    for round_trips in count(0, 2):
        batch = bench.create(LINES)
        bench.sung.clear()
        slots = Once(lambda: (bench.new_duty()(), bench.sing(3, FAILING), bench.new_duty()()))
        bench.new_duty(interrupted(bench.redis_url, round_trips, slots))()
        overtaken += slots.called
        bench.run(batch, failing=FAILING)
        assert_whole(bench, batch)
        if not slots.called:
            break
    assert overtaken > 20, "nobody was ever overtaken"


def test_a_cancel_survives_every_death(bench: BatchBench) -> None:
    for round_trips in count(0, 2):
        batch = bench.create(LINES)
        bench.sung.clear()
        bench.duty()
        bench.sing(1)
        bench.desk.cancel(TENANT, batch.id)
        try:
            bench.new_duty(mortal(bench.redis_url, round_trips))()
            survived = True
        except Killed:
            survived = False
        assert bench.run(batch).status is BatchStatus.CANCELED
        assert_whole(bench, batch)
        assert len(bench.sung) == 1
        if survived:
            break
    assert round_trips > 20, "the death was never in the midst of it"


def test_a_retry_survives_every_death(bench: BatchBench) -> None:
    for round_trips in count(0, 3):
        batch = bench.create(LINES)
        bench.sung.clear()
        bench.run(batch, failing=FAILING)
        bench.desk.retry(TENANT, batch.id)
        try:
            bench.new_duty(mortal(bench.redis_url, round_trips))()
            survived = True
        except Killed:
            survived = False
        assert bench.run(batch).status is BatchStatus.COMPLETED
        assert_whole(bench, batch, 1)
        assert len(bench.sung) == LINES + 2
        if survived:
            break
    assert round_trips > 15, "the death was never in the midst of it"
