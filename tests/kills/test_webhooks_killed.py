"""The webhooks duty killed before every round trip: the end is delivered, and always by the same id."""

from __future__ import annotations

import pytest
from redis import Redis

from controller.settings import ControllerSettings
from controller.webhooks import Webhooks
from serinette.job import JobStatus
from serinette.jobs import Outcome, calls
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from serinette.webhook import event_id
from tests.kills.deaths import Deaths, Fate
from tests.receivers import SECRET, receiver
from tests.unit.slot_bench import SlotBench


def webhooks(redis: Redis, redis_url: str) -> Webhooks:
    settings = ControllerSettings.model_validate(
        {"redis_url": redis_url, "webhook_secret": SECRET, "webhook_networks": ("127.0.0.0/8",)}
    )
    return Webhooks(redis, settings)


def deliver(fate: Fate, redis_url: str) -> None:
    webhooks(fate.redis(redis_url), redis_url)()


@pytest.mark.parametrize("refuses_first", [False, True])
def test_every_death_is_survived(
    redis: Redis, redis_url: str, keys: Keys, file_store_url: str, refuses_first: bool
) -> None:
    bench = SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))
    deaths = Deaths(fewest=4)
    sent_twice = False
    with receiver() as target:
        for round_trips in deaths:
            job_id = bench.order(webhook=f"http://127.0.0.1:{target.port}/ended")
            bench.slot().run_one()
            bench.redis.zadd(keys.webhooks, {job_id: 1}, xx=True)  # due
            target.answers = [500] if refuses_first else []
            deaths.lives(round_trips, deliver, redis_url)
            for _ in range(2):  # its term is over, and then the pause behind the try that failed
                bench.redis.zadd(keys.webhooks, {job_id: 1}, xx=True)
                webhooks(redis, redis_url)()
            assert set(target.ids) == {event_id(job_id, JobStatus.SUCCEEDED)}
            sent_twice = sent_twice or len(target.ids) == 2
            assert bench.entry(job_id).deliveries[-1].delivered
            assert redis.zscore(keys.webhooks, job_id) is None
            bench.board.jobs(calls.finish(job_id, "", Outcome(JobStatus.FAILED), recorded=True))
            assert redis.zscore(keys.webhooks, job_id) is None, "an end is decided once, and reported once"
            target.came.clear()
    assert sent_twice, "no death came between the delivery and its log"
