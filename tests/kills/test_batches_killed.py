"""The controller killed, or overtaken, at every round trip of a batch's way: no line is lost, none generated twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count

import pytest

from controller.batches import Batches
from controller.settings import ControllerSettings
from serinette.batch import Batch, BatchStatus
from serinette.store import Store
from tests.kills.deaths import Deaths, Fate, Once, interrupted
from tests.unit.batch_bench import TENANT, BatchBench, take

LINES = 3
FAILING = ("song 2",)


@pytest.fixture
def bench(redis_url: str, file_store_url: str) -> BatchBench:
    return BatchBench(redis_url, file_store_url, backlog=5, part_lines=2)


def fresh(bench: BatchBench) -> Batch:
    return bench.create(LINES)


def through(bench: BatchBench) -> Batch:
    """All lines have ended, and nothing is gathered."""
    batch = fresh(bench)
    bench.duty()
    bench.generate(failing=FAILING)
    return batch


def canceled(bench: BatchBench) -> Batch:
    """A line has its song, one waits and one was never released."""
    batch = fresh(bench)
    bench.new_duty(backlog=2)()
    bench.generate(1)
    bench.batches.cancel(TENANT, batch.id)
    return batch


def retried(bench: BatchBench) -> Batch:
    batch = through(bench)
    bench.run(batch)
    return bench.batches.retry(TENANT, batch.id)


STATES: dict[Callable[[BatchBench], Batch], tuple[BatchStatus, int, int, int]] = {
    fresh: (BatchStatus.COMPLETED, 0, 2, 3),
    through: (BatchStatus.COMPLETED, 0, 2, 3),
    canceled: (BatchStatus.CANCELED, 0, 1, 1),
    retried: (BatchStatus.COMPLETED, 1, 3, 4),
}


def work(fate: Fate, redis_url: str, store_url: str) -> None:
    """One round of the controller over the batches."""
    given = {"redis_url": redis_url, "store_url": store_url, "batch_backlog": 5}
    settings = ControllerSettings.model_validate(given)
    Batches(fate.redis(redis_url), Store.open(settings), settings)()


def assert_whole(bench: BatchBench, batch: Batch, make: Callable[[BatchBench], Batch]) -> None:
    """Every line ended once, was generated as often as it should, and is reported once."""
    status, round, completed, songs = STATES[make]
    seen = bench.look(batch)
    counts = seen.request_counts
    output, errors = bench.output(batch, round), bench.errors(batch, round)
    assert (seen.status, seen.round, counts.completed) == (status, round, completed)
    assert [line.line for line in sorted([*output, *errors], key=lambda line: line.line)] == list(range(1, LINES + 1))
    assert (len(output), len(errors)) == (counts.completed, counts.failed + counts.canceled)
    assert (counts.released, counts.queued, counts.running) == (LINES, 0, 0)
    assert list(bench.begun.values()) == songs * [1]
    assert bench.redis.zcard(bench.keys.batches) == 0
    assert bench.waiting() == []


@pytest.mark.parametrize("make", STATES, ids=[make.__name__ for make in STATES])
def test_every_death_is_survived(bench: BatchBench, make: Callable[[BatchBench], Batch]) -> None:
    deaths = Deaths(fewest=15)
    for round_trips in deaths:
        batch = make(bench)
        deaths.lives(round_trips, work, bench.redis_url, bench.store_url)
        if make is fresh:
            bench.generate(failing=FAILING)  # also jobs that the cursor has not gone over
        bench.run(batch, failing=FAILING if make is fresh else ())
        assert_whole(bench, batch, make)
        bench.begun.clear()
        bench.redis.flushdb()


def test_a_replica_that_is_overtaken_does_nothing_twice(bench: BatchBench) -> None:
    """While one waits for an answer, another does a round, songs are generated, and it does another round."""
    for round_trips in count():
        batch = fresh(bench)

        def others() -> None:
            bench.duty()
            bench.generate(2, FAILING)
            bench.duty()

        other = Once(others, round_trips)
        bench.new_duty(interrupted(bench.redis_url, other))()
        bench.run(batch, failing=FAILING)
        assert_whole(bench, batch, fresh)
        bench.begun.clear()
        bench.redis.flushdb()
        if not other.called:
            break
    assert round_trips > 12, "no replica was ever overtaken"


class Death(BaseException):
    """No exception handler stops it."""


def die() -> None:
    raise Death


def assert_canceled(bench: BatchBench, batch: Batch) -> None:
    """It ends as canceled, nothing of it was generated and nothing will be."""
    for _ in range(3):
        bench.duty()
    assert bench.look(batch).status is BatchStatus.CANCELED
    assert bench.counts(batch) == {"total": LINES, "released": LINES, "canceled": LINES}
    assert [line.line for line in bench.errors(batch)] == list(range(1, LINES + 1))
    for job_id in bench.waiting():  # put there by a replica that did not know
        assert not take(bench.jobs, job_id), "a line that was counted as canceled was begun"
    bench.redis.flushdb()


def test_what_a_replica_releases_after_a_cancel_is_not_generated(bench: BatchBench) -> None:
    """It is frozen at any of its round trips, and meanwhile the batch is canceled and another replica ends it."""
    for round_trips in count():
        batch = fresh(bench)

        def others(batch: Batch = batch) -> None:
            bench.batches.cancel(TENANT, batch.id)
            bench.duty()
            bench.duty()

        other = Once(others, round_trips)
        bench.new_duty(interrupted(bench.redis_url, other))()
        if not other.called:
            break
        assert_canceled(bench, batch)
    assert round_trips > 12, "no replica was ever overtaken"


def test_what_a_replica_released_before_it_died_is_canceled_too(bench: BatchBench) -> None:
    """It dies with jobs in the queue that the cursor has not gone over, and the batch is canceled."""
    for round_trips in count():
        batch = fresh(bench)
        death = Once(die, round_trips)
        with suppress(Death):
            bench.new_duty(interrupted(bench.redis_url, death))()
        if not death.called:
            break
        bench.batches.cancel(TENANT, batch.id)
        assert_canceled(bench, batch)
    assert round_trips > 12, "no replica ever died"
