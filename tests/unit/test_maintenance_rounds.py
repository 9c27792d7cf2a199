"""What maintenance finds by itself and tidies up; and that two replicas mend each job once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from redis import Redis
from rq import Queue
from rq.group import Group
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus

from api.maintenance import leftovers
from api.maintenance.orphans import Orphans
from api.maintenance.strays import Strays
from serinette.job import JobStatus, now
from serinette.ledger import Outcome
from serinette.names import Keys, Lane
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.pod import charged_attempts
from tests.unit.maintenance_bench import RETENTION_S, TENANT, Bench, assert_over


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def suspects(orphans: Orphans, at_s: float) -> set[str]:
    """What one whole sweep, and perhaps a resting one, tells."""
    found: set[str] = set()
    while batch := orphans.find(at_s):
        found.update(patient.job_id for patient in batch)
    return found


# -- the sweep


def test_only_jobs_in_trouble_are_suspected_and_only_when_nothing_changes(bench: Bench) -> None:
    running = bench.submit()
    bench.begin(running)
    popped = bench.submit()
    bench.pop()
    claimed = bench.submit()
    bench.pop()
    bench.claim(claimed)
    bench.submit()
    bench.submit(lane=Lane.HIGH)
    flagged = bench.submit()
    bench.ledger.request_cancel(flagged)
    decided = bench.submit()
    bench.redis.hset(bench.keys.ledger(decided), "outcome", "succeeded")
    bench.ledger.open("cut-short", TENANT, now())
    ghost = bench.submit()
    bench.redis.delete(RqJob.key_for(ghost))

    orphans = Orphans(bench.redis, bench.keys, grace_s=10, slice_s=60)
    troubled = {popped, claimed, flagged, decided, "cut-short", ghost}
    assert suspects(orphans, 0) == suspects(orphans, 9) == set()
    assert suspects(orphans, 18) == troubled
    bench.claim(popped, "a slot that was slow")
    assert suspects(orphans, 28) == troubled - {popped}


def test_a_sweep_reads_lanes_longer_than_its_chunks(bench: Bench) -> None:
    orphan = bench.submit()
    bench.pop()
    others = [f"other-{number}" for number in range(2_345)]
    bench.redis.zadd(bench.keys.live, {job_id: now().timestamp() for job_id in others})
    with bench.redis.pipeline() as pipe:
        for job_id in others:
            pipe.hset(RqJob.key_for(job_id), "origin", "default.normal")
        pipe.rpush(bench.queue().key, *others)
        pipe.execute()
    orphans = Orphans(bench.redis, bench.keys, grace_s=10, slice_s=60)
    suspects(orphans, 0)
    assert suspects(orphans, 1_000) == {orphan}
    bench.redis.lpop(bench.queue().key, 500)
    suspects(orphans, 2_000)
    found = suspects(orphans, 3_000)
    assert found == {orphan, *others[:500]}


def test_a_sweep_in_slices_finds_the_same(bench: Bench) -> None:
    orphan = bench.submit()
    bench.pop()
    others = [bench.submit() for _ in range(5)]
    orphans = Orphans(bench.redis, bench.keys, grace_s=0, slice_s=0)
    rounds = 1
    while not (found := orphans.find(1e6 * rounds)):
        rounds += 1
        assert rounds < 50
    assert rounds > 1
    assert [patient.job_id for patient in found] == [orphan]
    assert bench.waiting() == others


def test_two_replicas_mend_each_job_once(bench: Bench, redis_url: str) -> None:
    lost = [bench.submit() for _ in range(12)]
    for job_id in lost:
        bench.begin(job_id, f"attempt-of-{job_id}")
    popped = [bench.submit() for _ in range(12)]
    for _ in popped:
        bench.pop()
    with Redis.from_url(redis_url) as one, Redis.from_url(redis_url) as other, ThreadPoolExecutor() as pool:
        for done in [pool.submit(bench.rounds(client)) for client in (one, other)]:
            done.result()
    assert sorted(bench.waiting()) == sorted([*lost, *popped])
    assert bench.held() == []
    for job_id in lost:
        assert (charged_attempts(bench.entry(job_id)), bench.rq_job(job_id).retries_left) == (1, 1)
        assert bench.events(job_id) == ["started", "attempt"]
    for job_id in popped:
        assert (bench.entry(job_id).attempts, bench.rq_job(job_id).retries_left) == ((), 2)


def test_other_peoples_queues_are_left_alone(bench: Bench) -> None:
    theirs = bench.queue(pool="their").name.replace(".normal", "")
    bench.redis.sadd("rq:queues", f"rq:queue:{theirs}")
    bench.redis.zadd(f"rq:wip:{theirs}", {"job:execution": 0})
    bench.redis.hset(RqJob.key_for("job"), mapping={"origin": theirs, "status": "started", "data": b""})
    for _ in range(3):
        bench.rounds()()
    assert bench.redis.zcard(f"rq:wip:{theirs}") == 1
    assert bench.live() == []


# -- what RQ leaves


def test_every_canceled_job_gets_an_end_and_no_longer_one(bench: Bench) -> None:
    forever, ending = bench.submit(), bench.submit()
    for job_id in (forever, ending):
        bench.rq_job(job_id).cancel()
    bench.redis.expire(RqJob.key_for(ending), 60)
    leftovers.clear(bench.redis, bench.keys, RETENTION_S)
    assert 60 < bench.redis.ttl(RqJob.key_for(forever)) <= RETENTION_S
    assert bench.redis.ttl(RqJob.key_for(ending)) <= 60
    assert bench.queue().canceled_job_registry.get_job_ids() == []


def test_expired_ids_dead_workers_and_intermediate_lists_go(bench: Bench) -> None:
    job_id = bench.submit()
    past, future = now().timestamp() - 1, now().timestamp() + 60
    bench.redis.zadd("rq:finished:default.normal", {"old": past, "new": future})
    bench.redis.zadd("rq:failed:default.normal", {"old": past, "new": future})
    bench.redis.sadd("rq:workers:default.normal", "rq:worker:dead")
    bench.redis.zadd(bench.keys.workers, {"dead": past, "alive": future})
    bench.redis.lmove("rq:queue:default.normal", "rq:queue:default.normal:intermediate")
    leftovers.clear(bench.redis, bench.keys, RETENTION_S)
    assert bench.redis.zrange("rq:finished:default.normal", 0, -1) == [b"new"]
    assert bench.redis.zrange("rq:failed:default.normal", 0, -1) == [b"new"]
    assert bench.redis.scard("rq:workers:default.normal") == 0
    assert bench.redis.zrange(bench.keys.workers, 0, -1) == [b"alive"]
    for _ in range(2):
        bench.rounds()()
    assert bench.waiting() == [job_id]


def test_groups_go_with_the_last_of_their_jobs(bench: Bench) -> None:
    """RQ gives a group no end."""
    group = Group.create(bench.redis, "album")
    data = [Queue.prepare_data("tests.nothing", job_id=f"member-{number}") for number in range(2)]
    first, second = group.enqueue_many(bench.queue(), data)
    tidy = partial(leftovers.clear, bench.redis, bench.keys, RETENTION_S)
    tidy()
    assert bench.redis.scard(group.key) == 2
    first.delete()
    tidy()
    assert bench.redis.smembers(group.key) == {second.id.encode()}
    second.delete()
    tidy()
    tidy()
    assert not bench.redis.exists(group.key)
    assert not bench.redis.exists(Group.REDIS_GROUP_KEY)


def test_tidying_does_not_reap(bench: Bench) -> None:
    job_id = bench.submit()
    execution = bench.begin(job_id)
    bench.redis.zadd(bench.queue().started_job_registry.key, {execution.composite_key: 1})
    leftovers.clear(bench.redis, bench.keys, RETENTION_S)
    assert bench.held() == [job_id]
    assert bench.rq_job(job_id).get_status() is RqStatus.STARTED


# -- the last net


def walk(bench: Bench) -> None:
    strays = Strays(bench.redis, bench.keys, RETENTION_S)
    while not strays.step():
        pass


def test_whatever_rq_would_keep_for_ever_is_live_again(bench: Bench) -> None:
    dropped = bench.submit()
    bench.pop()
    bench.ledger.settle(dropped, Outcome(JobStatus.CANCELED))
    assert bench.redis.ttl(RqJob.key_for(dropped)) == -1 and bench.live() == []
    ended = bench.submit()
    bench.succeed(ended, bench.begin(ended))
    walk(bench)
    assert bench.live() == [dropped]
    for _ in range(2):
        bench.rounds()()
    assert_over(bench, dropped, JobStatus.CANCELED)


def test_what_belongs_to_no_job_expires_and_what_does_stays(bench: Bench) -> None:
    job_id = bench.submit()
    bench.begin(job_id)
    bench.ledger.request_cancel("never-was")
    walk(bench)
    assert 0 < bench.redis.ttl(bench.keys.ledger("never-was")) <= RETENTION_S
    assert 0 < bench.redis.ttl(bench.keys.events("never-was")) <= RETENTION_S
    assert bench.redis.ttl(bench.keys.ledger(job_id)) == bench.redis.ttl(bench.keys.events(job_id)) == -1


def test_a_tenants_list_drops_what_is_old_and_gone(bench: Bench) -> None:
    here, young = bench.submit(), bench.submit()
    index = bench.keys.jobs(TENANT)
    old = now().timestamp() - RETENTION_S - 1
    bench.redis.zadd(index, {"gone": old, here: old, "just gone": now().timestamp()})
    walk(bench)
    assert bench.redis.zrange(index, 0, -1) == [here.encode(), young.encode(), b"just gone"]
