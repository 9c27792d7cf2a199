"""One replica of the controller leads at a time, and each duty is done over and over, whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Event, Thread

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from controller.leader_election import LeaderElection, loop
from controller.settings import ControllerSettings
from controller.sweeper import Sweeper
from serinette import brake
from serinette.housekeeping import HousekeepingRedis
from serinette.job import now
from serinette.names import Keys
from serinette.presence import Presence, WorkerStage, announce, pace, present, record_pace
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.processes import eventually
from tests.unit.controller_bench import RETENTION_S, Bench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def election(redis: Redis, keys: Keys) -> LeaderElection:
    return LeaderElection(redis, keys, 2)


def test_one_replica_holds_the_lease_until_it_falls_silent(redis: Redis, keys: Keys) -> None:
    one, other = election(redis, keys), election(redis, keys)
    assert one() and one() and one.leading
    assert not other() and not other.leading
    redis.pexpire(keys.leader, 1)  # a silent leader, in a hurry
    assert eventually(lambda: not redis.exists(keys.leader))
    assert other()
    assert not one() and not one.leading
    one.resign()  # it is not its own to give
    assert other()
    other.resign()
    assert not other.leading and one()


def test_a_leader_that_does_not_reach_redis_stops_leading(redis: Redis, keys: Keys) -> None:
    leader = LeaderElection(redis, keys, 0.2)
    assert leader()
    assert eventually(lambda: not leader.leading)


def looped(duties: list[Callable[[], object]], leaders: list[LeaderElection], until: Event) -> None:
    stop = Event()
    loops = [("rounds", duty, 0.01, stop, leader) for duty, leader in zip(duties, leaders, strict=True)]
    threads = [Thread(target=loop, args=each) for each in loops]
    threads += [Thread(target=loop, args=("election", each, 0.01, stop)) for each in leaders]
    for thread in threads:
        thread.start()
    try:
        assert until.wait(10)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_only_the_leader_makes_rounds(redis: Redis, keys: Keys) -> None:
    rounds: list[str] = []
    enough = Event()

    def duty(name: str) -> None:
        rounds.append(name)
        if len(rounds) == 20:
            enough.set()

    looped([partial(duty, "one"), partial(duty, "other")], [election(redis, keys) for _ in range(2)], enough)
    assert len(set(rounds)) == 1


def test_the_sweeper_needs_no_lease(bench: Bench) -> None:
    """Should every other replica die together with a worker, no job waits for the leader's lease to run out."""
    assert LeaderElection(bench.redis, bench.keys, 30)(), "another replica's"
    job_id = bench.lost()
    settings, stop = ControllerSettings(retention_s=RETENTION_S), Event()
    sweeping = Thread(target=loop, args=("sweeper", Sweeper(bench.redis, bench.store, settings), 0.05, stop))
    sweeping.start()
    try:
        assert eventually(lambda: bench.board.waiting() == [job_id])
    finally:
        stop.set()
        sweeping.join()


def test_a_duty_that_fails_is_done_again_and_reported_once(
    redis: Redis, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0
    enough = Event()

    def duty() -> None:
        nonlocal calls
        calls += 1
        if calls in {2, 3, 4}:
            raise RedisConnectionError("gone")
        if calls == 6:
            enough.set()

    with caplog.at_level("INFO"):
        looped([duty], [election(redis, keys)], enough)
    logged = [record.getMessage() for record in caplog.records]
    assert logged == ["rounds fails: gone", "rounds goes on"]


def test_a_leader_whose_duty_stalls_makes_way_once(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("controller.leader_election._PATIENCE_S", 0.0)
    one, other = LeaderElection(redis, keys, 0.3), LeaderElection(redis, keys, 30)
    assert one()
    with one.round_of("batches", 0.0):
        assert eventually(lambda: [name for name, _ in one.stalled] == ["batches"])
        assert not one() and not one.leading
        assert other() and other.leading, "at once"
        other.resign()
        assert not one(), "not for two leases"
        assert eventually(one), "no other replica leads: better so than none"
        assert one() and one(), "it has stepped aside for this round"
    assert one.stalled == set() and one()
    assert caplog.text.count("stalled here: batches") == 1


def test_a_duty_that_hangs_is_taken_over(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.leader_election._PATIENCE_S", 0.05)
    thawed, taken_over = Event(), Event()
    begun: list[str] = []

    def duty(name: str) -> None:
        begun.append(name)
        if name == begun[0]:
            thawed.wait(10)
        else:
            taken_over.set()
            thawed.set()

    monkeypatch.setattr("controller.leader_election._PATIENCE_PAUSES", 5)
    looped([partial(duty, "one"), partial(duty, "other")], [election(redis, keys) for _ in range(2)], taken_over)
    assert len({*begun}) == 2


def test_a_full_server_has_a_leader_and_knows_its_workers(redis: Redis, keys: Keys) -> None:
    client = HousekeepingRedis(connection_pool=redis.connection_pool)
    leader, other = election(client, keys), election(client, keys)
    worker = Presence(name="pod-1", pool="default", stage=WorkerStage.READY, slots=1, started_at=now())
    redis.config_set("maxmemory", 1)
    try:
        assert leader() and leader() and not other()
        announce(client, keys, worker)
        assert [each.name for each in present(client, keys)] == ["pod-1"]
        brake.set_reasons(client, keys, "default", ["load: it fails"])
        record_pace(client, keys, "default", 3.0)
        record_pace(client, keys, "default", 3.0)
        with pytest.raises(OutOfMemoryError):
            redis.set("of anybody else", "refused")
    finally:
        redis.config_set("maxmemory", 0)
    assert brake.in_force(redis.smembers(keys.brake("default"))) == ("load: it fails",)
    assert pace(redis, keys, "default") == 3.0
    leader.resign()
    assert other()
