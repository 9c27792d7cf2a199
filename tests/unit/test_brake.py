"""When a pool is braked, in tables; and that it is, in Redis, for as long as it is renewed."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from controller.autoscaling import Brakes, PoolSeen, StoreWatch, plan_brake
from controller.metrics import QueueCollector
from controller.settings import ControllerSettings
from serinette import brake
from serinette.brake import PROBE, Failure, failures, load_failed, load_passed
from serinette.job import now
from serinette.names import Keys, Lane
from serinette.pools import PoolFacts
from serinette.presence import Holdup, Presence, WorkerStage, announce, report_holdups
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.queue_harness import model


def failed(times: int, *, at_s: float = 1000, pods: int = 1) -> tuple[Failure, ...]:
    """Newest first, a second apart."""
    found = [
        Failure(worker=f"pod-{number % pods}-{number:06x}", message=f"no checkpoint {number}", at_s=at_s + number)
        for number in range(times)
    ]
    return tuple(reversed(found))


SUSPENDED = "suspended: an operator ran `rq suspend`, and no job begins until `rq resume`"
LOAD3 = "load: the last 3 loads of the model failed: no checkpoint 2"
AWAY = "store: the store has not answered for over 60 s"


@pytest.mark.parametrize(
    ("seen", "reasons", "probe"),
    [
        (PoolSeen(1000), (), False),
        (PoolSeen(1000, waiting=9), (), False),
        (PoolSeen(1010, failed(2), waiting=9), (), False),
        (PoolSeen(1010, failed(3), waiting=9), (LOAD3,), True),
        (PoolSeen(1010, failed(3)), (LOAD3,), False),  # no job waits: nothing to try for
        (PoolSeen(2802, failed(3), waiting=9), (LOAD3,), True),
        (PoolSeen(2803, failed(3), waiting=9), (), False),  # no report for too long: they may try
        (PoolSeen(1010, failed(3), ready=1, waiting=9), (LOAD3,), True),
        (PoolSeen(1010, failed(3), ready=2, waiting=9), (), False),  # one pod among many that are well
        (PoolSeen(1010, failed(3, pods=3), ready=2, waiting=9), (LOAD3,), True),
        (PoolSeen(1010, waiting=9, store_away_s=59), (), False),
        (PoolSeen(1010, waiting=9, store_away_s=60), (AWAY,), False),  # a worker that comes up would show nothing
        (PoolSeen(1010, failed(3), waiting=9, store_away_s=60), (AWAY, LOAD3), False),
        (PoolSeen(1010, waiting=9, stuck=2, stuck_words="no image"), ("pod: no image",), True),
        (PoolSeen(1010, waiting=9, stuck=2, stuck_words="no image", ready=3), (), False),
        (PoolSeen(1010, waiting=9, suspended=True), (SUSPENDED,), False),
        (PoolSeen(1010, failed(3), waiting=9, suspended=True), (LOAD3, SUSPENDED), False),
    ],
)
def test_the_brake_is_on_for_what_would_be_waste(seen: PoolSeen, reasons: tuple[str, ...], probe: bool) -> None:
    assert plan_brake(seen, ControllerSettings()) == (reasons, probe)


def test_failures_are_counted_until_a_load_passes(redis: Redis, keys: Keys) -> None:
    for number in range(3):
        load_failed(redis, keys, "turbo", f"pod-a-{number}", f"why {number}")
    found = failures(redis, keys, "turbo")
    assert [failure.message for failure in found] == ["why 2", "why 1", "why 0"]
    assert {failure.pod for failure in found} == {"pod-a"}
    assert abs(found[0].at_s - now().timestamp()) < 60
    load_passed(redis, keys, "turbo")
    assert failures(redis, keys, "turbo") == []


def test_a_brake_that_is_not_renewed_lets_go(redis: Redis, keys: Keys) -> None:
    brake.set_reasons(redis, keys, "turbo", ("load: a", "pod: b"))
    assert 0 < int(redis.ttl(keys.brake("turbo"))) <= brake.BRAKE_TTL_S
    assert brake.in_force(redis.smembers(keys.brake("turbo"))) == ("load: a", "pod: b")
    assert brake.describe(("load: a", "pod: b")) == "a; b"
    brake.set_reasons(redis, keys, "turbo", ())
    assert not redis.exists(keys.brake("turbo"))


def in_force(redis: Redis, keys: Keys, pool: str) -> tuple[int, int]:
    """What KEDA reads: brake and busy."""
    return int(redis.scard(keys.brake(pool))), int(redis.scard(keys.busy(pool)))


def test_a_pool_whose_loads_fail_keeps_one_worker_trying(
    redis: Redis, keys: Keys, redis_url: str, tmp_path: Path
) -> None:
    settings = ControllerSettings.model_validate(
        {"redis_url": redis_url, "store_url": f"file://{tmp_path}", "pools": (PoolFacts(name="turbo"),)}
    )
    watch = Brakes(redis, Store.open(settings), settings)
    redis.zadd(keys.waiting("turbo", Lane.LOW), {"j": 1})
    watch()
    assert in_force(redis, keys, "turbo") == (0, 0)
    for number in range(3):
        load_failed(redis, keys, "turbo", f"pod-a-{number}", "no checkpoint")
    watch()
    assert in_force(redis, keys, "turbo") == (1, 1)
    assert redis.sismember(keys.busy("turbo"), PROBE)
    assert in_force(redis, keys, "default") == (0, 0)
    assert exposed(redis, keys)["turbo", "load"] == 1
    # The one that tries becomes ready.
    load_passed(redis, keys, "turbo")
    watch()
    assert in_force(redis, keys, "turbo") == (0, 0)
    assert set(exposed(redis, keys).values()) == {0}


def exposed(redis: Redis, keys: Keys) -> dict[tuple[str, str], float]:
    """The metric, by pool and cause. Only pools that have lanes or workers are exposed."""
    redis.sadd("rq:queues", "rq:queue:turbo.low")
    for family in QueueCollector(redis, keys, lambda: True).collect():
        if family.name == "serinette_brake":
            return {(each.labels["pool"], each.labels["cause"]): each.value for each in family.samples}
    raise AssertionError("the brake is not exposed")


def test_what_the_cluster_cannot_start_brakes_a_pool_without_workers(
    redis: Redis, keys: Keys, redis_url: str, tmp_path: Path
) -> None:
    settings = ControllerSettings.model_validate({"redis_url": redis_url, "store_url": f"file://{tmp_path}"})
    watch = Brakes(redis, Store.open(settings), settings)
    presence = Presence(
        name="pod-b-1", pool="turbo", stage=WorkerStage.READY, slots=1, model=model("t"), started_at=now()
    )
    announce(redis, keys, presence)
    report_holdups(redis, keys, {"turbo": Holdup(pods=3, stuck=2, stuck_words="the image cannot be pulled")})
    watch()
    assert brake.in_force(redis.smembers(keys.brake("turbo"))) == ("pod: the image cannot be pulled",)
    report_holdups(redis, keys, {})
    watch()
    assert in_force(redis, keys, "turbo") == (0, 0)


def test_a_stores_silence_is_counted_from_its_first_failure(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    watch = StoreWatch(Store.open(SharedSettings(store_url=f"file://{directory}")))
    assert watch.away_s(0) == 0
    directory.rename(tmp_path / "elsewhere")
    directory.write_text("no directory")
    assert watch.away_s(5) == 0  # not asked again yet
    assert watch.away_s(20) == 0
    assert watch.away_s(30) == 10
    assert watch.away_s(80) == 60
    directory.unlink()
    (tmp_path / "elsewhere").rename(directory)
    assert watch.away_s(96) == 0


def test_a_silence_that_no_controller_watched_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    watch = StoreWatch(Store.open(SharedSettings(store_url=f"file://{tmp_path / 'store'}")))
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("no directory")
    assert [watch.away_s(at_s) for at_s in (0, 20, 3600, 3620)] == [0, 20, 0, 20]
