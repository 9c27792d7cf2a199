"""JobQueue on a real Valkey and both stores."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from api.queue import keyed_job_id
from serinette import names
from serinette.errors import (
    Conflict,
    IdempotencyConflict,
    InvalidSpec,
    NotFinished,
    NotFound,
    QueueUnavailable,
)
from serinette.job import JobError, JobStatus
from serinette.jobs import Standing
from serinette.names import Lane
from serinette.presence import record_pace
from serinette.spec import GenerationSpec, Task
from tests import servers
from tests.unit.queue_desk import ME, OPTIONS, SPEC, Desk, come_up, open_desk

pytestmark = pytest.mark.shared_valkey


async def test_many_jobs_are_found_at_once_in_the_order_asked_for(desk: Desk) -> None:
    first, theirs, last = await desk.submit(), await desk.submit(tenant="other"), await desk.submit()
    desk.slot.claim(first.id)
    desk.slot.succeed(first.id, [b"x"])
    found = await desk.queue.find(ME, [last.id, str(uuid.uuid4()), theirs.id, first.id, last.id])
    assert [job and job.id for job in found] == [last.id, None, None, first.id, last.id]
    assert [job and job.position for job in found] == [2, None, None, None, 2]
    assert await desk.queue.find(ME, []) == []


async def test_a_job_from_submit_to_song(desk: Desk) -> None:
    job = await desk.submit(SPEC, labels={"album": "blue"}, lane="high", timeout_s=60)
    assert (job.status, job.position, job.lane, job.timeout_s) == (JobStatus.QUEUED, 1, Lane.HIGH, 60)
    assert job.spec.seed is not None
    assert job.waiting_for == "a worker: none is up in pool default"
    come_up(desk)
    record_pace(desk.redis, desk.keys, "default", 12.0)
    assert (await desk.queue.get(ME, job.id)).eta_s == 12.0

    assert desk.slot.claim(job.id) == 1
    desk.slot.step(job.id, 4)
    running = await desk.queue.get(ME, job.id)
    assert running.status is JobStatus.RUNNING
    assert running.progress
    assert (running.progress.step, running.progress.steps, running.position) == (4, 8, None)
    assert running.started_at
    assert running.eta_s is not None

    result = desk.slot.succeed(job.id, [b"song"])
    ended = await desk.queue.get(ME, job.id)
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.result == result
    assert ended.spec == job.spec
    assert ended.labels == {"album": "blue"}
    assert ended.ended_at
    assert (ended.eta_s, ended.waiting_for, ended.progress) == (None, None, None)


async def test_rq_gets_every_limit(desk: Desk) -> None:
    job = await desk.submit(SPEC)
    fields = desk.redis.hgetall(f"rq:job:{job.id}")
    assert fields[b"timeout"] == b"1800"
    assert fields[b"result_ttl"] == fields[b"failure_ttl"] == b"604800"
    assert fields[b"retries_left"] == b"2"
    assert b"ttl" not in fields
    assert desk.redis.ttl(f"rq:job:{job.id}") == -1
    assert desk.redis.zscore(desk.keys.live, job.id) is not None


async def test_a_failed_job_tells_why(desk: Desk) -> None:
    job = await desk.submit()
    desk.slot.claim(job.id)
    desk.slot.fail(job.id, JobError(code="out_of_memory", message="too long"))
    failed = await desk.queue.get(ME, job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error == JobError(code="out_of_memory", message="too long")
    assert len(failed.attempts) == 1


async def test_a_key_means_one_job_however_many_race(desk: Desk) -> None:
    answers = await asyncio.gather(*(desk.queue.submit(ME, SPEC, OPTIONS, idempotency_key="once") for _ in range(16)))
    assert len({job.id for job, _ in answers}) == 1
    assert len({job.spec.seed for job, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    assert desk.redis.llen("rq:queue:default.normal") == 1


async def test_a_key_is_for_one_spec_of_one_tenant(desk: Desk) -> None:
    first = await desk.submit(SPEC, key="k")
    assert (await desk.submit(GenerationSpec(prompt="jazz"), key="k", lane="low")).id == first.id
    for other in (GenerationSpec(prompt="rock"), GenerationSpec(prompt="jazz", duration_s=61)):
        with pytest.raises(IdempotencyConflict):
            await desk.submit(other, key="k")
    assert (await desk.submit(SPEC, tenant="other", key="k")).id != first.id
    assert (await desk.submit(SPEC)).id != (await desk.submit(SPEC)).id


async def test_a_replay_of_an_ended_job_wakes_nothing(desk: Desk) -> None:
    job = await desk.submit(key="k")
    desk.slot.claim(job.id)
    desk.slot.succeed(job.id, [b"song"])
    again, created = await desk.queue.submit(ME, SPEC, OPTIONS, idempotency_key="k")
    assert (again.status, created) == (JobStatus.SUCCEEDED, False)
    assert desk.redis.zscore(desk.keys.live, job.id) is None
    assert desk.redis.llen("rq:queue:default.normal") == 0


def test_keys_make_ids_that_are_uuids() -> None:
    job_id = keyed_job_id("tenant", "key")
    assert str(uuid.UUID(job_id)) == job_id == keyed_job_id("tenant", "key")
    assert len({job_id, keyed_job_id("tenant", "other"), keyed_job_id("other", "key")}) == 3


async def test_another_tenants_job_does_not_exist(desk: Desk) -> None:
    job = await desk.submit(tenant="owner")
    for act in (desk.queue.get, desk.queue.cancel, desk.queue.erase):
        with pytest.raises(NotFound):
            await act("thief", job.id)
    assert (await desk.queue.list("thief")).jobs == ()
    assert (await desk.queue.get("owner", job.id)).status is JobStatus.QUEUED


async def test_the_store_remembers_what_redis_forgot(desk: Desk) -> None:
    job = await desk.submit(labels={"a": "b"})
    desk.slot.claim(job.id)
    result = desk.slot.succeed(job.id, [b"song"])
    desk.slot.record(job.id)
    desk.redis.flushdb()
    remembered = await desk.queue.get(ME, job.id)
    assert (remembered.status, remembered.result, remembered.spec) == (JobStatus.SUCCEEDED, result, job.spec)
    assert remembered.attempts[0].outcome == "succeeded"
    with pytest.raises(NotFound):
        await desk.queue.get("other", job.id)
    await desk.queue.erase(ME, job.id)
    with pytest.raises(NotFound):
        await desk.queue.get(ME, job.id)


async def test_list_pages_newest_first_while_jobs_come_and_go(desk: Desk) -> None:
    ids = [(await desk.submit()).id for _ in range(7)]
    first = await desk.queue.list(ME, limit=3)
    assert [job.id for job in first.jobs] == ids[:3:-1]
    await desk.submit()  # a newer one shifts nothing
    await desk.queue.cancel(ME, ids[4])
    await desk.queue.erase(ME, ids[4])  # the cursor's own job goes
    second = await desk.queue.list(ME, limit=3, cursor=first.next_cursor)
    assert [job.id for job in second.jobs] == [ids[3], ids[2], ids[1]]
    third = await desk.queue.list(ME, limit=3, cursor=second.next_cursor)
    assert [job.id for job in third.jobs] == [ids[0]]
    assert third.next_cursor is None
    assert [job.position for job in second.jobs] == [4, 3, 2]


async def test_list_by_status_and_label(desk: Desk) -> None:
    blue = [(await desk.submit(labels={"album": "blue"})).id for _ in range(2)]
    red = (await desk.submit(labels={"album": "red"})).id
    await desk.queue.cancel(ME, blue[0])
    assert [job.id for job in (await desk.queue.list(ME, label=("album", "blue"))).jobs] == blue[::-1]
    assert [job.id for job in (await desk.queue.list(ME, status=JobStatus.QUEUED)).jobs] == [red, blue[1]]
    both = await desk.queue.list(ME, status=JobStatus.CANCELED, label=("album", "blue"))
    assert [job.id for job in both.jobs] == [blue[0]]


async def test_list_with_a_filter_looks_at_a_bounded_number(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = (await desk.submit(labels={"rare": "yes"})).id
    for _ in range(9):
        await desk.submit()
    monkeypatch.setattr("api.queue.lookup.SCAN_LIMIT", 4)
    monkeypatch.setattr("api.queue.lookup.SCAN_CHUNK", 2)
    cursor, pages = None, []
    while True:
        page = await desk.queue.list(ME, label=("rare", "yes"), cursor=cursor)
        pages.append([job.id for job in page.jobs])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert pages == [[], [], [wanted]]


@pytest.mark.parametrize("cursor", ["", "x", "bnVsbA", "W10", "WzEsMl0", "Wy0xLCJhIl0", "W1tdLDFd", "é", "A" * 300])
async def test_foreign_cursors_are_refused(desk: Desk, cursor: str) -> None:
    if cursor:
        with pytest.raises(InvalidSpec) as refused:
            await desk.queue.list(ME, cursor=cursor)
        assert refused.value.field == "cursor"
    else:
        assert (await desk.queue.list(ME, cursor=cursor)).jobs == ()


async def test_cancel_of_a_queued_job_ends_it(desk: Desk) -> None:
    job = await desk.submit()
    assert (await desk.queue.cancel(ME, job.id)).status is JobStatus.CANCELED
    assert desk.redis.llen("rq:queue:default.normal") == 0
    assert desk.redis.ttl(f"rq:job:{job.id}") > 0
    assert desk.slot.claim(job.id) == 0
    assert (await desk.queue.cancel(ME, job.id)).status is JobStatus.CANCELED  # again: the same answer
    assert [pool.unsuccessful for pool in await desk.queue.pools()] == [1]


async def test_cancel_of_a_running_job_sets_the_flag(desk: Desk) -> None:
    job = await desk.submit()
    desk.slot.claim(job.id)
    canceled = await desk.queue.cancel(ME, job.id)
    assert (canceled.status, canceled.cancel_requested) == (JobStatus.RUNNING, True)
    assert desk.slot.step(job.id, 1) is Standing.CANCEL


async def test_cancel_between_pop_and_claim_ends_it(desk: Desk) -> None:
    job = await desk.submit()
    desk.redis.lpop("rq:queue:default.normal")
    assert (await desk.queue.cancel(ME, job.id)).status is JobStatus.CANCELED
    assert desk.slot.claim(job.id) == 0


async def test_cancel_of_an_ended_job_is_refused(desk: Desk) -> None:
    job = await desk.submit()
    desk.slot.claim(job.id)
    desk.slot.succeed(job.id, [b"song"])
    with pytest.raises(Conflict):
        await desk.queue.cancel(ME, job.id)


async def test_erase_leaves_nothing(desk: Desk) -> None:
    job = await desk.submit()
    with pytest.raises(NotFinished):
        await desk.queue.erase(ME, job.id)
    desk.slot.claim(job.id)
    desk.slot.succeed(job.id, [b"one", b"two"])
    assert len(list(desk.store.list(names.song_prefix(ME, job.id)))) == 2
    await desk.queue.erase(ME, job.id)
    assert list(desk.store.list(names.song_prefix(ME, job.id))) == []
    left = [key for key in desk.redis.scan_iter() if job.id.encode() in key]
    assert left == [desk.keys.erased_job(job.id).encode()], "but that it was erased"
    assert desk.redis.ttl(left[0]) > 0
    assert (await desk.queue.list(ME)).jobs == ()
    with pytest.raises(NotFound):
        await desk.queue.erase(ME, job.id)


async def test_erase_on_s3(redis_url: str, s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    prefix = uuid.uuid4().hex
    desk = open_desk(redis_url, f"s3://{servers.BUCKET}/{prefix}", store_endpoint=s3.endpoint)
    job = await desk.submit()
    desk.slot.claim(job.id)
    desk.slot.succeed(job.id, [b"song"])
    assert len(list(desk.store.list(names.song_prefix(ME, job.id)))) == 1
    await desk.queue.erase(ME, job.id)
    assert list(desk.store.list(names.song_prefix(ME, job.id))) == []


async def test_counts_are_of_what_waits_and_runs(desk: Desk) -> None:
    job = await desk.submit()
    await desk.submit(lane="low")
    canceled = await desk.submit()
    desk.slot.claim(job.id)
    await desk.queue.cancel(ME, canceled.id)
    (pool,) = await desk.queue.pools()
    assert (pool.running, pool.waiting[Lane.LOW], pool.waiting[Lane.NORMAL]) == (1, 1, 0)
    assert (pool.succeeded, pool.unsuccessful) == (0, 1)
    desk.slot.succeed(job.id, [b"song"])
    (pool,) = await desk.queue.pools()
    assert (pool.running, pool.succeeded, pool.unsuccessful) == (0, 1, 1)


async def test_places_are_exact_at_any_depth(desk: Desk) -> None:
    before = 1_200
    with desk.redis.pipeline(transaction=False) as pipe:
        for number in range(before):
            pipe.zadd(desk.keys.waiting("default", Lane.NORMAL), {f"filler-{number}": number})
        pipe.execute()
    job = await desk.submit()
    come_up(desk, busy=1)
    found = await desk.queue.get(ME, job.id)
    assert (job.position, found.position) == (before + 1, before + 1)
    assert found.waiting_for == f"{before} jobs ahead of it in lane normal"


async def test_a_model_names_its_pool(desk: Desk) -> None:
    with pytest.raises(InvalidSpec, match="no worker is up") as refused:
        await desk.submit(GenerationSpec(model="big"))
    assert refused.value.field == "model"
    come_up(desk, "a", "default", "tiny")
    come_up(desk, "b", "large", "big")
    assert (await desk.submit(GenerationSpec(model="big"))).pool == "large"
    assert (await desk.submit(GenerationSpec(model="tiny"))).pool == "default"
    assert {pool.name for pool in await desk.queue.pools()} == {"default", "large"}
    with pytest.raises(InvalidSpec, match="big, tiny"):
        await desk.submit(GenerationSpec(model="huge"))


async def test_audio_must_exist(desk: Desk) -> None:
    song = await desk.submit()

    def cover(source: str) -> GenerationSpec:
        return GenerationSpec(task=Task.COVER, source_audio=source)

    for missing in ("upload-1", f"{uuid.uuid4()}/0", f"{song.id}/0"):
        with pytest.raises(InvalidSpec) as refused:
            await desk.submit(cover(missing))
        assert refused.value.field == "source_audio"
    with pytest.raises(InvalidSpec) as refused:
        await desk.submit(GenerationSpec(reference_audio="upload-1"))
    assert refused.value.field == "reference_audio"
    desk.slot.keep_upload("upload-1", duration_s=10)
    desk.slot.claim(song.id)
    desk.slot.succeed(song.id, [b"song"])
    assert (await desk.submit(cover("upload-1"))).status is JobStatus.QUEUED
    assert (await desk.submit(cover(f"{song.id}/0"))).status is JobStatus.QUEUED
    with pytest.raises(InvalidSpec):
        await desk.submit(cover(f"{song.id}/1"))
    with pytest.raises(InvalidSpec):
        await desk.submit(cover("upload-1"), tenant="other")
    for source in ("upload-1", f"{song.id}/0"):  # of ten seconds and of one
        with pytest.raises(InvalidSpec, match="source's length") as refused:
            await desk.submit(GenerationSpec(task=Task.REPAINT, source_audio=source, repaint_start_s=10))
        assert refused.value.field == "repaint_start_s"
    assert desk.redis.zcard(desk.keys.live) == 2  # what was refused left nothing
    assert await desk.submit(GenerationSpec(task=Task.REPAINT, source_audio="upload-1", repaint_start_s=9))


@pytest.mark.parametrize("values", [{"lora": "choir"}, {"audio_codes": "none at all"}])
async def test_words_that_stand_for_nothing_are_refused(desk: Desk, values: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec) as refused:
        await desk.submit(GenerationSpec.model_validate(values))
    assert refused.value.field == next(iter(values))
    assert desk.redis.dbsize() == 0


async def test_no_redis_is_reported_as_such(file_store_url: str) -> None:
    desk = open_desk(f"redis://127.0.0.1:{servers.free_ports(1)[0]}", file_store_url, redis_timeout_s=1)
    for act in (
        desk.submit(),
        desk.queue.get(ME, "x"),
        desk.queue.find(ME, ["x"]),
        desk.queue.list(ME),
        desk.queue.cancel(ME, "x"),
        desk.queue.erase(ME, "x"),
        desk.queue.pools(),
        desk.queue.ping(),
    ):
        with pytest.raises(QueueUnavailable) as refused:
            await act
        assert refused.value.retryable


async def test_another_prefix_is_another_queue(redis_url: str, file_store_url: str) -> None:
    here = open_desk(redis_url, file_store_url)
    there = open_desk(redis_url, file_store_url, redis_prefix="other")
    job = await there.submit()
    assert (await there.queue.get(ME, job.id)).position == 1
    assert there.slot.claim(job.id) == 1
    with pytest.raises(NotFound):
        await here.queue.get(ME, job.id)
    assert not here.redis.keys("rq:*")
    for desk in (here, there):
        await desk.jobs.redis.aclose()
