"""A slot killed before every round trip: its worker counts as busy just while RQ takes its attempt for running."""

from __future__ import annotations

import pytest
from redis import Redis

from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.kills.deaths import Deaths
from tests.kills.ends import sweep
from tests.kills.test_slot_killed import run_slot
from tests.unit.slot_bench import SlotBench
from tests.unit.test_busy import counted

pytestmark = pytest.mark.timeout(600)  # minutes, on a busy machine


def test_every_death_is_survived(redis: Redis, redis_url: str, keys: Keys, file_store_url: str) -> None:
    settings = SharedSettings(store_url=file_store_url)
    bench = SlotBench(redis, keys, Store.open(settings))
    deaths, was_busy = Deaths(fewest=5), False
    for round_trips in deaths:
        job_id = bench.order()
        deaths.lives(round_trips, run_slot, redis_url, settings, "well", job_id)
        busy = bool(counted(redis, keys))
        assert busy == bool(bench.held()), f"killed before round trip {round_trips}"
        was_busy = was_busy or busy
        sweep(redis, keys, bench.store)
        assert counted(redis, keys) == set()
        for waiting in bench.waiting():
            bench.board.cancel(waiting)
    assert was_busy, "no death left an attempt behind"
