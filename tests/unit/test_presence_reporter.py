"""What a worker's supervisor reports to Redis, also when that is away for a while: nothing is lost, nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from redis import Redis
from redis import asyncio as redis_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError

from api.queue.pool_status import PoolStatusReader
from gpu_worker.presence_reporter import PresenceReporter
from serinette import brake
from serinette.job import now
from serinette.jobs import Jobs, Lease, calls
from serinette.names import Keys, Lane
from serinette.presence import Pace, Presence, WorkerStage, announce, pace, present
from serinette.spec import GenerationSpec
from tests.jobs import Board
from tests.kills.deaths import interrupted
from tests.processes import eventually

SLOT = "pod-1.0.abc"


def presence(stage: WorkerStage) -> Presence:
    return Presence(name="pod-1", pool="default", stage=stage, slots=1, started_at=now())


class Line:
    """The way to a Redis, which may be cut."""

    def __init__(self, url: str) -> None:
        self.cut = True
        self.tried = 0
        self.redis = interrupted(url, self._pass)

    def _pass(self) -> None:
        self.tried += 1
        if self.cut:
            raise RedisConnectionError("cut, as asked")


@pytest.fixture
def line(redis_url: str) -> Line:
    return Line(redis_url)


@pytest.fixture
def reporter(line: Line, keys: Keys) -> Iterator[PresenceReporter]:
    made = PresenceReporter(line.redis, keys, presence(WorkerStage.STARTING))
    made.start()
    yield made
    made.stop()


def test_what_happened_during_an_outage_is_reported_in_order_after_it(
    line: Line, reporter: PresenceReporter, redis: Redis, keys: Keys
) -> None:
    job_id = Board(redis, keys).submit(None, GenerationSpec(prompt="jazz", seed=1))
    jobs = Jobs(redis, keys.prefix)
    assert jobs(calls.claim("attempt", Lease(SLOT, 60), "default", list(Lane)))
    reporter.load_failed("before")
    reporter.update(presence(WorkerStage.READY))
    reporter.load_failed("after")
    reporter.slot_died(SLOT)
    assert eventually(lambda: line.tried)
    assert present(redis, keys) == []
    line.cut = False
    reporter.update(presence(WorkerStage.DRAINING))
    assert eventually(lambda: [worker.stage for worker in present(redis, keys)] == [WorkerStage.DRAINING])
    assert [failure.message for failure in brake.failures(redis, keys, "default")] == ["after"], "a load passed between"
    assert pace(redis, keys, "default", Pace.COLD_START) == reporter.cold_start_s
    assert Board(redis, keys).leases() == {f"{job_id}:attempt": 0}, "a dead slot's lease has run out"


def test_a_worker_that_leaves_is_gone_at_once(line: Line, redis: Redis, keys: Keys) -> None:
    line.cut = False
    reporter = PresenceReporter(line.redis, keys, presence(WorkerStage.READY))
    reporter.start()
    assert eventually(lambda: present(redis, keys))
    reporter.stop()
    assert present(redis, keys) == []


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_worker_whose_clock_is_wrong_is_present_at_its_true_times(
    redis: Redis, redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    wrong = timedelta(hours=hours)
    monkeypatch.setattr("serinette.presence.now", lambda: now() + wrong)
    skewed = now() + wrong
    times = {"started_at": skewed, "loading_since": skewed, "at": skewed}
    told = presence(WorkerStage.LOADING).model_copy(update=times)
    announce(redis, keys, told)
    (seen,) = present(redis, keys)
    for at in (seen.started_at, seen.loading_since, seen.at):
        assert at
        assert abs(at - now()) < timedelta(seconds=30)
    asking = redis_asyncio.Redis.from_url(redis_url)
    pool = (await PoolStatusReader(asking, keys).read(["default"])).pools["default"]
    await asking.aclose()
    assert pool.workers == (seen,)
    assert pool.at
    assert abs(pool.at - now()) < timedelta(seconds=30)
