"""Who is busy, on a real Valkey: the set that KEDA counts, beside the books that the same transactions write."""

from __future__ import annotations

import pytest
from redis import Redis

from api.maintenance.busy import prune, stale
from gpu_worker.slot.hold import Hold
from serinette import busy
from serinette.brake import PROBE
from serinette.errors import HandBack
from serinette.job import now
from serinette.names import Keys
from serinette.presence import Presence, WorkerStage, announce
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.slot_bench import SlotBench

POOL = "default"


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def members(redis: Redis, key: str) -> set[str]:
    return {member.decode() for member in redis.smembers(key)}  # type: ignore[union-attr]  # not the asyncio client


def counted(redis: Redis, keys: Keys) -> set[str]:
    return members(redis, keys.busy(POOL))


@pytest.mark.parametrize(
    ("slot", "worker"),
    [("pod-7f-abc123.0.fe12ab", "pod-7f-abc123"), ("host.domain-abc123.11.fe12ab", "host.domain-abc123"), ("w", "w")],
)
def test_a_slot_belongs_to_the_worker_that_named_it(slot: str, worker: str) -> None:
    assert busy.worker_of(slot) == worker


def test_a_worker_is_busy_from_its_first_claim_to_its_last_end(bench: SlotBench) -> None:
    outer, inner = bench.order(), bench.order()
    seen: list[set[str]] = []
    first = bench.slot(name="pod-a1.0")
    engine = bench.engine

    def meanwhile(hold: Hold) -> None:
        seen.append(counted(bench.redis, bench.keys))
        if hold.job.id == outer:  # its pod's other slot begins and ends a song
            second = bench.slot(name="pod-a1.1")
            second._books._pod = first._books._pod
            bench.engine.meanwhile = meanwhile
            second.sing_one()
            seen.append(counted(bench.redis, bench.keys))

    first._books._pod = "pod-a1"
    engine.meanwhile = meanwhile
    first.sing_one()
    assert seen == [{"pod-a1"}] * 3
    assert bench.entry(inner).outcome
    assert counted(bench.redis, bench.keys) == set()
    assert not bench.redis.exists(bench.keys.held("pod-a1"))


def test_a_job_given_back_leaves_no_one_busy(bench: SlotBench) -> None:
    job_id = bench.order()
    slot = bench.slot()

    def meanwhile(_: Hold) -> None:
        raise HandBack("leaving")

    bench.engine.meanwhile = meanwhile
    slot.sing_one()
    assert bench.waiting() == [job_id]
    assert counted(bench.redis, bench.keys) == set()


def test_a_job_that_redis_lost_makes_its_worker_busy_again(bench: SlotBench) -> None:
    bench.order()
    slot = bench.slot()
    seen: list[set[str]] = []

    def meanwhile(hold: Hold) -> None:
        bench.redis.flushdb()
        assert slot._books.reenter(hold)
        seen.append(counted(bench.redis, bench.keys))

    bench.engine.meanwhile = meanwhile
    slot.sing_one()
    assert seen == [{slot.name}]
    assert counted(bench.redis, bench.keys) == set()


@pytest.mark.parametrize(
    ("held", "beating", "gone"),
    [
        ({}, set(), {}),
        ({"a": {"j:1"}}, {"j:1"}, {}),
        ({"a": {"j:1"}}, set(), {"a": ["j:1"]}),
        ({"a": {"j:1", "k:2"}, "b": {"l:3"}}, {"k:2", "l:3"}, {"a": ["j:1"]}),
        ({"a": set()}, set(), {"a": []}),  # its attempts were forgotten
    ],
)
def test_what_nobody_holds_is_stale(held: dict[str, set[str]], beating: set[str], gone: dict[str, list[str]]) -> None:
    assert stale(held, beating) == gone


def test_pruning_keeps_the_probe_and_parts_with_those_that_drain(redis: Redis, keys: Keys) -> None:
    redis.sadd(keys.busy(POOL), PROBE, "forgotten", "leaves", "sings")
    for worker in ("leaves", "sings"):
        redis.sadd(keys.held(worker), f"{worker}:1")
        redis.zadd("rq:wip:default.low", {f"{worker}:1": 1})
    prune(redis, keys, POOL, ["leaves"])
    assert counted(redis, keys) == {PROBE, "sings"}
    assert members(redis, keys.held("leaves")) == {"leaves:1"}


def test_a_worker_that_drains_keeps_no_place_while_it_sings(redis: Redis, keys: Keys) -> None:
    redis.sadd(keys.busy(POOL), "w")
    presence = Presence(name="w", pool=POOL, stage=WorkerStage.READY, slots=1, busy_slots=1, started_at=now())
    announce(redis, keys, presence)
    assert counted(redis, keys) == {"w"}
    announce(redis, keys, presence.model_copy(update={"stage": WorkerStage.DRAINING}))
    assert counted(redis, keys) == set()
