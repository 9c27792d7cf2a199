"""A slot killed before every round trip: its worker counts as busy just while its attempt is in RQ's books."""

from __future__ import annotations

from redis import Redis

from api.maintenance.busy import prune
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.kills.deaths import Deaths
from tests.kills.test_slot_killed import sing
from tests.unit.slot_bench import SlotBench
from tests.unit.test_busy import POOL, counted


def test_every_death_is_survived(redis: Redis, redis_url: str, keys: Keys, file_store_url: str) -> None:
    settings = SharedSettings(store_url=file_store_url)
    bench = SlotBench(redis, keys, Store.open(settings))
    deaths = Deaths(fewest=10)
    for round_trips in deaths:
        job_id = bench.order()
        deaths.lives(round_trips, sing, redis_url, settings, "well", job_id)
        assert bool(counted(redis, keys)) == bool(bench.held()), f"killed before round trip {round_trips}"
        prune(redis, keys, POOL, ())
        assert bool(counted(redis, keys)) == bool(bench.held()), "what beats is not taken out"
        maintenance = bench.rounds()
        maintenance()
        maintenance()
        prune(redis, keys, POOL, ())
        assert counted(redis, keys) == set()
        for waiting in bench.waiting():
            redis.lrem(bench.queue().key, 0, waiting)
