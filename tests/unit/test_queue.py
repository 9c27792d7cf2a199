"""JobQueue on a real Valkey and both stores."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import pytest

from api.queue import keyed_job_id
from api.queue.lookup import JobFilter
from serinette import names
from serinette.errors import (
    IdempotencyConflict,
    InvalidSpec,
    NotFinished,
    NotFound,
    QueueUnavailable,
)
from serinette.job import JobStatus
from serinette.jobs import AttemptState
from serinette.names import Lane
from serinette.presence import record_pace
from serinette.spec import GenerationSpec, Task
from tests import servers
from tests.unit.queue_harness import ME, OPTIONS, SPEC, QueueHarness, open_queue, report_worker

pytestmark = pytest.mark.shared_valkey


async def test_many_jobs_are_found_at_once_in_the_order_asked_for(harness: QueueHarness) -> None:
    first, theirs, last = await harness.submit(), await harness.submit(tenant="other"), await harness.submit()
    harness.slot.claim(first.id)
    harness.slot.succeed(first.id, [b"x"])
    found = await harness.queue.find(ME, [last.id, str(uuid.uuid4()), theirs.id, first.id, last.id])
    assert [job and job.id for job in found] == [last.id, None, None, first.id, last.id]
    assert [job and job.position for job in found] == [2, None, None, None, 2]
    assert await harness.queue.find(ME, []) == []


async def test_a_job_from_submit_to_song(harness: QueueHarness) -> None:
    job = await harness.submit(SPEC, labels={"album": "blue"}, lane="high", timeout_s=60)
    assert (job.status, job.position, job.lane, job.timeout_s) == (JobStatus.QUEUED, 1, Lane.HIGH, 60)
    assert job.spec.seed is not None
    assert job.waiting_for == "a worker: none is up in pool default"
    report_worker(harness)
    record_pace(harness.redis, harness.keys, "default", 12.0)
    assert (await harness.queue.get(ME, job.id)).eta_s == 12.0

    assert harness.slot.claim(job.id) == 1
    harness.slot.step(job.id, 4)
    running = await harness.queue.get(ME, job.id)
    assert running.status is JobStatus.RUNNING
    assert running.progress and (running.progress.step, running.progress.steps, running.position) == (4, 8, None)
    assert running.started_at
    assert (running.eta_s or 0.0) < 12.0, "by its own steps, or not known"

    result = harness.slot.succeed(job.id, [b"song"])
    ended = await harness.queue.get(ME, job.id)
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.result == result
    assert ended.spec == job.spec
    assert ended.labels == {"album": "blue"}
    assert ended.ended_at
    assert (ended.eta_s, ended.waiting_for, ended.progress) == (None, None, None)


async def test_rq_gets_every_limit(harness: QueueHarness) -> None:
    job = await harness.submit(SPEC)
    fields = harness.redis.hgetall(f"rq:job:{job.id}")
    assert fields[b"timeout"] == b"1800"
    assert fields[b"result_ttl"] == fields[b"failure_ttl"] == b"604800"
    assert fields[b"retries_left"] == b"2"
    assert b"ttl" not in fields
    assert harness.redis.ttl(f"rq:job:{job.id}") == -1
    assert harness.redis.zscore(harness.keys.live, job.id) is not None


async def test_a_key_means_one_job_however_many_race(harness: QueueHarness) -> None:
    answers = await asyncio.gather(
        *(harness.queue.submit(ME, SPEC, OPTIONS, idempotency_key="once") for _ in range(16))
    )
    assert len({job.id for job, _ in answers}) == 1
    assert len({job.spec.seed for job, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    assert harness.redis.llen("rq:queue:default.normal") == 1


async def test_a_key_is_for_one_spec_of_one_tenant(harness: QueueHarness) -> None:
    first = await harness.submit(SPEC, key="k")
    assert (await harness.submit(GenerationSpec(prompt="jazz"), key="k", lane="low")).id == first.id
    for other in (GenerationSpec(prompt="rock"), GenerationSpec(prompt="jazz", duration_s=61)):
        with pytest.raises(IdempotencyConflict):
            await harness.submit(other, key="k")
    assert (await harness.submit(SPEC, tenant="other", key="k")).id != first.id
    assert (await harness.submit(SPEC)).id != (await harness.submit(SPEC)).id


async def test_a_replay_of_an_ended_job_wakes_nothing(harness: QueueHarness) -> None:
    job = await harness.submit(key="k")
    harness.slot.claim(job.id)
    harness.slot.succeed(job.id, [b"song"])
    again, created = await harness.queue.submit(ME, SPEC, OPTIONS, idempotency_key="k")
    assert (again.status, created) == (JobStatus.SUCCEEDED, False)
    assert harness.redis.zscore(harness.keys.live, job.id) is None
    assert harness.redis.llen("rq:queue:default.normal") == 0


def test_keys_make_ids_that_are_uuids() -> None:
    job_id = keyed_job_id("tenant", "key")
    assert str(uuid.UUID(job_id)) == job_id == keyed_job_id("tenant", "key")
    assert len({job_id, keyed_job_id("tenant", "other"), keyed_job_id("other", "key")}) == 3


async def test_the_store_remembers_what_redis_forgot(harness: QueueHarness) -> None:
    job = await harness.submit(labels={"a": "b"})
    harness.slot.claim(job.id)
    result = harness.slot.succeed(job.id, [b"song"])
    harness.slot.record(job.id)
    harness.redis.flushdb()
    remembered = await harness.queue.get(ME, job.id)
    assert (remembered.status, remembered.result, remembered.spec) == (JobStatus.SUCCEEDED, result, job.spec)
    assert remembered.attempts[0].outcome == "succeeded"
    with pytest.raises(NotFound):
        await harness.queue.get("other", job.id)
    await harness.queue.erase(ME, job.id)
    with pytest.raises(NotFound):
        await harness.queue.get(ME, job.id)


async def test_list_pages_newest_first_while_jobs_come_and_go(harness: QueueHarness) -> None:
    ids = [(await harness.submit()).id for _ in range(7)]
    first = await harness.queue.list(ME, limit=3)
    assert [job.id for job in first.jobs] == ids[:3:-1]
    await harness.submit()  # a newer one shifts nothing
    await harness.queue.cancel(ME, ids[4])
    await harness.queue.erase(ME, ids[4])  # the cursor's own job goes
    second = await harness.queue.list(ME, limit=3, cursor=first.next_cursor)
    assert [job.id for job in second.jobs] == [ids[3], ids[2], ids[1]]
    third = await harness.queue.list(ME, limit=3, cursor=second.next_cursor)
    assert [job.id for job in third.jobs] == [ids[0]]
    assert third.next_cursor is None
    assert [job.position for job in second.jobs] == [4, 3, 2]


async def test_list_by_status_and_label(harness: QueueHarness) -> None:
    blue = [(await harness.submit(labels={"album": "blue"})).id for _ in range(2)]
    red = (await harness.submit(labels={"album": "red"})).id
    await harness.queue.cancel(ME, blue[0])
    assert [job.id for job in (await harness.queue.list(ME, JobFilter(label=("album", "blue")))).jobs] == blue[::-1]
    assert [job.id for job in (await harness.queue.list(ME, JobFilter(JobStatus.QUEUED))).jobs] == [red, blue[1]]
    both = await harness.queue.list(ME, JobFilter(JobStatus.CANCELED, ("album", "blue")))
    assert [job.id for job in both.jobs] == [blue[0]]


async def test_list_by_time_of_submit(harness: QueueHarness) -> None:
    jobs = [await harness.submit() for _ in range(5)]
    at = [job.created_at for job in jobs]
    middle = JobFilter(created_after=at[1], created_before=at[4])
    assert [job.id for job in (await harness.queue.list(ME, middle)).jobs] == [jobs[3].id, jobs[2].id, jobs[1].id]
    first = await harness.queue.list(ME, middle, limit=2)
    assert [job.id for job in first.jobs] == [jobs[3].id, jobs[2].id]
    second = await harness.queue.list(ME, middle, limit=2, cursor=first.next_cursor)
    assert ([job.id for job in second.jobs], second.next_cursor) == ([jobs[1].id], None)
    assert (await harness.queue.list(ME, JobFilter(created_after=at[4] + timedelta(seconds=1)))).jobs == ()
    assert (await harness.queue.list(ME, JobFilter(created_before=at[0]))).jobs == ()


async def test_list_with_a_filter_looks_at_a_bounded_number(
    harness: QueueHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (await harness.submit(labels={"rare": "yes"})).id
    for _ in range(9):
        await harness.submit()
    monkeypatch.setattr("api.queue.lookup.SCAN_LIMIT", 4)
    monkeypatch.setattr("api.queue.lookup.SCAN_CHUNK", 2)
    cursor, pages = None, []
    while True:
        page = await harness.queue.list(ME, JobFilter(label=("rare", "yes")), cursor=cursor)
        pages.append([job.id for job in page.jobs])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert pages == [[], [], [wanted]]


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "_",
        "1.0_",
        "_a",
        "1_a",
        "nan_a",
        "-1.0_a",
        "1e9.0_a",
        "1.0_a/b",
        "1.0_é",
        "é",
        "A" * 300,
        "9" * 300 + ".0_a",
    ],
)
async def test_foreign_cursors_are_refused(harness: QueueHarness, cursor: str) -> None:
    if cursor:
        with pytest.raises(InvalidSpec) as refused:
            await harness.queue.list(ME, cursor=cursor)
        assert refused.value.field == "cursor"
    else:
        assert (await harness.queue.list(ME, cursor=cursor)).jobs == ()


async def test_cancel_of_a_running_job_sets_the_flag(harness: QueueHarness) -> None:
    job = await harness.submit()
    harness.slot.claim(job.id)
    canceled = await harness.queue.cancel(ME, job.id)
    assert (canceled.status, canceled.cancel_requested) == (JobStatus.RUNNING, True)
    assert harness.slot.step(job.id, 1) is AttemptState.CANCEL


async def test_cancel_between_pop_and_claim_ends_it(harness: QueueHarness) -> None:
    job = await harness.submit()
    harness.redis.lpop("rq:queue:default.normal")
    assert (await harness.queue.cancel(ME, job.id)).status is JobStatus.CANCELED
    assert harness.slot.claim(job.id) == 0


async def test_erase_leaves_nothing(harness: QueueHarness) -> None:
    job = await harness.submit()
    with pytest.raises(NotFinished):
        await harness.queue.erase(ME, job.id)
    harness.slot.claim(job.id)
    harness.slot.succeed(job.id, [b"one", b"two"])
    assert len(list(harness.store.list(names.song_prefix(ME, job.id)))) == 2
    await harness.queue.erase(ME, job.id)
    assert list(harness.store.list(names.song_prefix(ME, job.id))) == []
    left = [key for key in harness.redis.scan_iter() if job.id.encode() in key]
    assert left == [harness.keys.erased_job(job.id).encode()], "but that it was erased"
    assert harness.redis.ttl(left[0]) > 0
    assert (await harness.queue.list(ME)).jobs == ()
    with pytest.raises(NotFound):
        await harness.queue.erase(ME, job.id)


async def test_erase_on_s3(redis_url: str, s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    prefix = uuid.uuid4().hex
    harness = open_queue(redis_url, f"s3://{servers.BUCKET}/{prefix}", store_endpoint=s3.endpoint)
    job = await harness.submit()
    harness.slot.claim(job.id)
    harness.slot.succeed(job.id, [b"song"])
    assert len(list(harness.store.list(names.song_prefix(ME, job.id)))) == 1
    await harness.queue.erase(ME, job.id)
    assert list(harness.store.list(names.song_prefix(ME, job.id))) == []


async def test_counts_are_of_what_waits_and_runs(harness: QueueHarness) -> None:
    job = await harness.submit()
    await harness.submit(lane="low")
    canceled = await harness.submit()
    harness.slot.claim(job.id)
    await harness.queue.cancel(ME, canceled.id)
    (pool,) = await harness.queue.pools()
    assert (pool.running, pool.waiting[Lane.LOW], pool.waiting[Lane.NORMAL]) == (1, 1, 0)
    assert (pool.succeeded, pool.unsuccessful) == (0, 1)
    harness.slot.succeed(job.id, [b"song"])
    (pool,) = await harness.queue.pools()
    assert (pool.running, pool.succeeded, pool.unsuccessful) == (0, 1, 1)


async def test_places_are_exact_at_any_depth(harness: QueueHarness) -> None:
    before = 1_200
    with harness.redis.pipeline(transaction=False) as pipe:
        for number in range(before):
            pipe.zadd(harness.keys.waiting("default", Lane.NORMAL), {f"filler-{number}": number})
        pipe.execute()
    job = await harness.submit()
    report_worker(harness, busy=1)
    found = await harness.queue.get(ME, job.id)
    assert (job.position, found.position) == (before + 1, before + 1)
    assert found.waiting_for == f"{before} jobs ahead of it in lane normal"


async def test_a_model_names_its_pool(harness: QueueHarness) -> None:
    with pytest.raises(InvalidSpec, match="no worker is up") as refused:
        await harness.submit(GenerationSpec(model="big"))
    assert refused.value.field == "model"
    report_worker(harness, "a", "default", "tiny")
    report_worker(harness, "b", "large", "big")
    assert (await harness.submit(GenerationSpec(model="big"))).pool == "large"
    assert (await harness.submit(GenerationSpec(model="tiny"))).pool == "default"
    assert {pool.name for pool in await harness.queue.pools()} == {"default", "large"}
    with pytest.raises(InvalidSpec, match="big, tiny"):
        await harness.submit(GenerationSpec(model="huge"))


async def test_audio_must_exist(harness: QueueHarness) -> None:
    song = await harness.submit()

    def cover(source: str) -> GenerationSpec:
        return GenerationSpec(task=Task.COVER, source_audio=source)

    for missing in ("upload-1", f"{uuid.uuid4()}/0", f"{song.id}/0"):
        with pytest.raises(InvalidSpec) as refused:
            await harness.submit(cover(missing))
        assert refused.value.field == "source_audio"
    with pytest.raises(InvalidSpec) as refused:
        await harness.submit(GenerationSpec(reference_audio="upload-1"))
    assert refused.value.field == "reference_audio"
    harness.slot.keep_upload("upload-1", duration_s=10)
    harness.slot.claim(song.id)
    harness.slot.succeed(song.id, [b"song"])
    assert (await harness.submit(cover("upload-1"))).status is JobStatus.QUEUED
    assert (await harness.submit(cover(f"{song.id}/0"))).status is JobStatus.QUEUED
    with pytest.raises(InvalidSpec):
        await harness.submit(cover(f"{song.id}/1"))
    with pytest.raises(InvalidSpec):
        await harness.submit(cover("upload-1"), tenant="other")
    for source in ("upload-1", f"{song.id}/0"):  # of ten seconds and of one
        with pytest.raises(InvalidSpec, match="source's length") as refused:
            await harness.submit(GenerationSpec(task=Task.REPAINT, source_audio=source, repaint_start_s=10))
        assert refused.value.field == "repaint_start_s"
    assert harness.redis.zcard(harness.keys.live) == 2  # what was refused left nothing
    for start_s, end_s in ((9, None), (10, 12), (-2, 0)):
        windowed = {"task": Task.REPAINT, "repaint_start_s": start_s, "repaint_end_s": end_s}
        assert await harness.submit(GenerationSpec(source_audio="upload-1", **windowed))


async def test_no_redis_is_reported_as_such(file_store_url: str) -> None:
    harness = open_queue(f"redis://127.0.0.1:{servers.free_ports(1)[0]}", file_store_url, redis_timeout_s=1)
    for act in (
        harness.submit(),
        harness.queue.get(ME, "x"),
        harness.queue.find(ME, ["x"]),
        harness.queue.list(ME),
        harness.queue.cancel(ME, "x"),
        harness.queue.erase(ME, "x"),
        harness.queue.pools(),
        harness.queue.require_room(),
    ):
        with pytest.raises(QueueUnavailable) as refused:
            await act
        assert refused.value.retryable


async def test_another_prefix_is_another_queue(redis_url: str, file_store_url: str) -> None:
    here = open_queue(redis_url, file_store_url)
    there = open_queue(redis_url, file_store_url, redis_prefix="other")
    job = await there.submit()
    assert (await there.queue.get(ME, job.id)).position == 1
    assert there.slot.claim(job.id) == 1
    with pytest.raises(NotFound):
        await here.queue.get(ME, job.id)
    assert not here.redis.keys("rq:*")
    for harness in (here, there):
        await harness.jobs.redis.aclose()
