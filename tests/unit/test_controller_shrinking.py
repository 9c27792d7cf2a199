"""Jobs that have ended: they shrink once the store knows them, and nothing that is kept of them stays for ever."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from controller.sweep_plan import Action
from serinette.job import JobError, JobStatus
from serinette.jobs import Outcome, calls, job_of_record
from serinette.jobs.finishing import finish_as
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.jobs import submission
from tests.unit.controller_bench import RETENTION_S, TENANT, Bench, Counted


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def text(found: Any) -> set[str]:
    """Names, as the server answers them."""
    return {each.decode() for each in found}


def rq_list(bench: Bench, key: str) -> list[str]:
    found: Any = bench.redis.lrange(key, 0, -1)
    return [job_id.decode() for job_id in found]


def ended(bench: Bench, **given: Any) -> str:
    job_id = bench.submit(**given)
    bench.board.cancel(job_id)
    return job_id


def test_a_job_that_ended_a_while_ago_shrinks_once_the_store_knows_it(bench: Bench) -> None:
    old, young = ended(bench, labels={"album": "blue"}), ended(bench)
    assert bench.sweep() == [Action.RECORD] * 2
    bench.redis.zincrby(bench.keys.ended, -600, old)
    whole = bench.entry(old)
    assert bench.sweep() == [Action.SHRINK]
    seen = bench.board.jobs(calls.look([old, young]))
    assert seen[0].shrunk and seen[0].entry is None and seen[1].entry
    assert seen[0].shrunk == calls.Shrunk.of(whole)
    assert dict(seen[0].shrunk.labels) == {"album": "blue"}
    assert text(bench.redis.keys(f"*{old}*")) == {bench.keys.ended_job(old)}
    assert 0 < bench.redis.ttl(bench.keys.ended_job(old)) <= RETENTION_S
    assert bench.redis.zscore(bench.keys.jobs(TENANT), old) is not None, "lists still know it"


def test_a_shrunk_job_is_answered_as_it_was(bench: Bench) -> None:
    job_id = bench.submit(webhook="https://example.com/ended", timeout_s=77)
    error = JobError(code="out_of_memory", message="too long", retryable=True)
    first = bench.begin(job_id)
    bench.board.jobs(calls.release(job_id, first.entry.owner or "", error, charged=True, gpu_s=100))
    second = bench.begin(job_id)
    assert finish_as(bench.board.jobs, bench.song(job_id), by=second.entry.owner or "").decided
    bench.redis.zrem(bench.keys.webhooks, job_id)  # delivered
    whole = bench.entry(job_id).job()
    bench.sweep(whole_s=0)
    bench.sweep(whole_s=0)
    (seen,) = bench.board.jobs(calls.look([job_id]))
    assert seen.shrunk
    record = bench.record(job_id)
    assert record
    recalled = job_of_record(record)
    for name in ("spec", "result", "webhook", "timeout_s", "labels", "status"):
        assert getattr(recalled, name) == getattr(whole, name), name
    assert [(each.number, each.id, each.outcome, each.error) for each in recalled.attempts] == [
        (each.number, each.id, each.outcome, each.error) for each in whole.attempts
    ]
    assert recalled.usage and whole.usage
    assert recalled.usage.gpu_s == whole.usage.gpu_s == 101
    assert recalled.usage.queue_s == pytest.approx(whole.usage.queue_s, abs=0.01)


@pytest.mark.parametrize("holds", ["the store does not know it", "its webhook is not settled"])
def test_a_job_that_is_still_needed_stays_whole_and_holds_up_no_other(
    bench: Bench, tmp_path: Path, holds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.sweeper._SHRUNK", 2)
    given: dict[str, Any] = {}
    if holds == "its webhook is not settled":
        given["webhook"] = "https://example.com/ended"
    kept = [ended(bench, **given) for _ in range(4)]
    if holds != "the store does not know it":
        bench.sweep()
    other = ended(bench)
    broken = tmp_path / "store" / "songs" if holds == "the store does not know it" else None
    if broken is None:
        bench.sweep()
    else:
        broken.write_text("where a directory was: the store does not answer")
        bench.board.jobs(calls.finish(other, "", Outcome(JobStatus.CANCELED), recorded=True))
        bench.redis.zrem(bench.keys.unrecorded, other)
    for job_id in (*kept, other):
        bench.redis.zincrby(bench.keys.ended, -600, job_id)
    counted = Counted()
    sweeper = bench.sweeper(counted=counted)
    for _ in range(4):
        sweeper()
    assert counted.actions == [Action.SHRINK]
    assert [one.entry is None for one in bench.board.jobs(calls.look([*kept, other]))] == [False] * 4 + [True]


def test_ended_jobs_whose_time_is_over_leave_the_index(bench: Bench) -> None:
    bench.redis.zadd(bench.keys.ended, {"gone": 1})
    assert bench.sweep() == []
    assert bench.redis.zcard(bench.keys.ended) == 0


def test_expired_ids_dead_workers_and_intermediate_lists_go(bench: Bench) -> None:
    job_id = bench.submit()
    past, future = time.time() - 10, time.time() + 60
    for registry in ("finished", "failed", "canceled"):
        bench.redis.zadd(f"rq:{registry}:default.normal", {"old": past, "new": future})
    bench.redis.sadd("rq:workers", "rq:worker:dead", "rq:worker:alive")
    bench.redis.sadd("rq:workers:default.normal", "rq:worker:dead", "rq:worker:alive")
    bench.redis.hset("rq:worker:alive", "birth", "now")
    bench.redis.lmove("rq:queue:default.normal", "rq:queue:default.normal:intermediate")
    bench.redis.zadd(bench.keys.workers, {"dead": past, "alive": future})
    bench.redis.rpush(bench.keys.unknown_jobs("default.normal"), "of another program")
    bench.sweep()
    for registry in ("finished", "failed", "canceled"):
        assert bench.redis.zrange(f"rq:{registry}:default.normal", 0, -1) == [b"new"]
    for workers in ("rq:workers", "rq:workers:default.normal"):
        assert bench.redis.smembers(workers) == {b"rq:worker:alive"}
    assert bench.redis.zrange(bench.keys.workers, 0, -1) == [b"alive"]
    assert not bench.redis.exists("rq:queue:default.normal:intermediate")
    assert 0 < bench.redis.ttl(bench.keys.unknown_jobs("default.normal")) <= RETENTION_S
    assert bench.redis.lrange("rq:queue:default.normal", 0, -1) == [job_id.encode()]


def test_what_rq_counts_in_a_lane_is_what_waits_however_many_were_canceled(bench: Bench) -> None:
    """A canceled id that lies deep in RQ's list stays there until a claim passes it, which may be never."""
    board, listed = bench.board, "rq:queue:default.normal"
    base = [bench.submit() for _ in range(101)]
    for _ in range(10):
        made = [submission() for _ in range(201)]
        board.jobs.many([calls.submit(each) for each in made])
        inward = [*made[:101], *reversed(made[101:])]
        board.jobs.many([calls.cancel(each.id, TENANT) for each in inward])
    again = made[100].id
    board.submit(again + "-other", pool="other")
    assert board.jobs(calls.erase(again, TENANT))
    board.submit(again)  # canceled, erased and submitted again under its key: it waits
    assert bench.redis.llen(listed) > 1_000
    sweeper = bench.sweeper()
    for _ in range(4):
        sweeper()
    waiting = board.waiting()
    assert (len(waiting), waiting[:101]) == (102, base)
    assert [job_id for job_id in rq_list(bench, listed) if job_id != again] == base, "in their order"
    assert rq_list(bench, listed).count(again) == 2, "where it was, and where it is: a claim drops the other"
    assert bench.redis.llen("rq:queue:other.normal") == 1
    for expected in base:
        claimed = board.claim()
        assert claimed and claimed.entry.id in {expected, again}


def test_ids_of_which_nothing_is_known_go_aside_and_are_not_lost(bench: Bench) -> None:
    job_id = bench.submit()
    bench.redis.rpush("rq:queue:default.normal", "of another program")
    bench.sweep()
    assert rq_list(bench, "rq:queue:default.normal") == [job_id]
    assert rq_list(bench, bench.keys.unknown_jobs("default.normal")) == ["of another program"]


def test_sweeping_does_not_reap(bench: Bench) -> None:
    """RQ ends an attempt whose score in its started registry lies in the past; leases alone say that here."""
    job_id = bench.submit()
    claimed = bench.begin(job_id)
    bench.redis.zadd("rq:wip:default.normal", {f"{job_id}:{claimed.entry.owner}": 1})
    assert bench.sweep() == []
    assert RqJob.fetch(job_id, bench.redis, JSONSerializer).get_status() == "started"


def test_a_tenants_list_drops_what_is_old_and_gone(bench: Bench) -> None:
    whole, young, shrunk = bench.submit(), bench.submit(), ended(bench)
    bench.sweep(whole_s=0)
    bench.sweep(whole_s=0)
    assert bench.board.jobs(calls.look([shrunk]))[0].shrunk
    index, old = bench.keys.jobs(TENANT), time.time() - RETENTION_S - 10
    bench.redis.zadd(index, {"gone": old, whole: old, shrunk: old, "just gone": time.time()})
    sweeper = bench.sweeper()
    for _ in range(5):
        sweeper()
    assert text(bench.redis.zrange(index, 0, -1)) == {whole, young, shrunk, "just gone"}
