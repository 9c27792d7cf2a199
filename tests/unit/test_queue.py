"""JobQueue on a real Valkey and both stores."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from redis import Redis

from api.queue import JobQueue, keyed_job_id
from api.queue.reader import POSITION_DEPTH
from api.settings import GatewaySettings
from serinette import names
from serinette.errors import (
    ConfigurationError,
    Conflict,
    IdempotencyConflict,
    InvalidSpec,
    NotFinished,
    NotFound,
    QueueUnavailable,
)
from serinette.job import Attempt, Job, JobError, JobOptions, JobStatus, Record, now
from serinette.ledger import Ledger
from serinette.names import Keys, Lane
from serinette.presence import Model, Presence, WorkerStage, announce, record_pace
from serinette.settings import SharedSettings, connect_redis
from serinette.spec import GenerationSpec, Task
from serinette.store import Store
from tests import servers
from tests.gateways import HandSlot

ME = "default"
SPEC = GenerationSpec(prompt="jazz")
OPTIONS = JobOptions()


@pytest.fixture
def redis_url(valkey_url: str) -> str:
    """This module's own Valkey, emptied: starting one for each test would take most of the time."""
    with Redis.from_url(valkey_url) as client:
        client.flushdb()
    return valkey_url


@dataclass
class Desk:
    """A queue and what lies under it."""

    queue: JobQueue
    slot: HandSlot
    redis: Redis
    store: Store
    keys: Keys

    def submit(self, spec: GenerationSpec = SPEC, tenant: str = ME, key: str | None = None, **options: object) -> Job:
        return self.queue.submit(tenant, spec, JobOptions.model_validate(options), idempotency_key=key)[0]


def open_desk(redis_url: str, store_url: str, **settings: object) -> Desk:
    given = GatewaySettings.model_validate({"redis_url": redis_url, "store_url": store_url, **settings})
    redis, store = connect_redis(given), Store.open(given)
    queue = JobQueue(redis, store, Ledger(redis, given.keys, given.retention_s), given)
    return Desk(queue, HandSlot(redis, store, given.keys), redis, store, given.keys)


@pytest.fixture
def desk(redis_url: str, file_store_url: str) -> Iterator[Desk]:
    desk = open_desk(redis_url, file_store_url)
    yield desk
    desk.redis.close()


def model(name: str) -> Model:
    return Model(
        name=name,
        revision="r",
        turbo=True,
        sample_rate=48_000,
        channels=2,
        default_steps=8,
        default_guidance_scale=1,
        default_shift=3,
        max_duration_s=600,
        tasks=("text2music",),
    )


def come_up(desk: Desk, name: str = "w", pool: str = "default", model_name: str = "tiny", busy: int = 0) -> None:
    stage = WorkerStage.READY
    announce(
        desk.redis,
        desk.keys,
        Presence(
            name=name, pool=pool, stage=stage, slots=1, busy_slots=busy, model=model(model_name), started_at=now()
        ),
    )


def test_many_jobs_are_found_at_once_in_the_order_asked_for(desk: Desk) -> None:
    first, theirs, last = desk.submit(), desk.submit(tenant="other"), desk.submit()
    desk.slot.claim(first.id)
    desk.slot.succeed(first.id, [b"x"])
    found = desk.queue.find(ME, [last.id, str(uuid.uuid4()), theirs.id, first.id, last.id])
    assert [job and job.id for job in found] == [last.id, None, None, first.id, last.id]
    assert [job and job.position for job in found] == [2, None, None, None, 2]
    assert desk.queue.find(ME, []) == []


def test_a_job_from_submit_to_song(desk: Desk) -> None:
    job = desk.submit(SPEC, labels={"album": "blue"}, lane="high", timeout_s=60)
    assert (job.status, job.position, job.lane, job.timeout_s) == (JobStatus.QUEUED, 1, Lane.HIGH, 60)
    assert job.spec.seed is not None
    assert job.waiting_for == "a worker: none is up in pool default"
    come_up(desk)
    record_pace(desk.redis, desk.keys, "default", 12.0)
    assert desk.queue.get(ME, job.id).eta_s == 12.0

    assert desk.slot.claim(job.id, lane=Lane.HIGH) == 1
    desk.slot.step(job.id, 4)
    running = desk.queue.get(ME, job.id)
    assert running.status is JobStatus.RUNNING
    assert running.progress
    assert (running.progress.step, running.progress.steps, running.position) == (4, 8, None)
    assert running.started_at
    assert running.eta_s is not None

    result = desk.slot.succeed(job.id, [b"song"])
    ended = desk.queue.get(ME, job.id)
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.result == result
    assert ended.spec == job.spec
    assert ended.labels == {"album": "blue"}
    assert ended.ended_at
    assert (ended.eta_s, ended.waiting_for, ended.progress) == (None, None, None)


def test_rq_gets_every_limit(desk: Desk) -> None:
    job = desk.submit(SPEC)
    fields = desk.redis.hgetall(f"rq:job:{job.id}")
    assert fields[b"timeout"] == b"1800"
    assert fields[b"result_ttl"] == fields[b"failure_ttl"] == b"604800"
    assert fields[b"retries_left"] == b"2"
    assert fields[b"enqueue_at_front_on_retry"] == b"1"
    assert b"ttl" not in fields
    assert desk.redis.ttl(f"rq:job:{job.id}") == -1
    assert desk.redis.zscore(desk.keys.live, job.id) is not None


def test_a_failed_job_tells_why(desk: Desk) -> None:
    job = desk.submit()
    desk.slot.claim(job.id)
    desk.slot.fail(job.id, JobError(code="out_of_memory", message="too long"))
    failed = desk.queue.get(ME, job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error == JobError(code="out_of_memory", message="too long")
    assert len(failed.attempts) == 1


def test_a_key_means_one_job_however_many_race(desk: Desk) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: desk.queue.submit(ME, SPEC, OPTIONS, idempotency_key="once"), range(16)))
    assert len({job.id for job, _ in answers}) == 1
    assert len({job.spec.seed for job, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    assert desk.redis.llen("rq:queue:default.normal") == 1


def test_a_key_is_for_one_spec_of_one_tenant(desk: Desk) -> None:
    first = desk.submit(SPEC, key="k")
    assert desk.submit(GenerationSpec(prompt="jazz"), key="k", lane="low").id == first.id
    for other in (GenerationSpec(prompt="rock"), GenerationSpec(prompt="jazz", duration_s=60)):
        with pytest.raises(IdempotencyConflict):
            desk.submit(other, key="k")
    assert desk.submit(SPEC, tenant="other", key="k").id != first.id
    assert desk.submit(SPEC).id != desk.submit(SPEC).id


def test_a_replay_of_an_ended_job_wakes_nothing(desk: Desk) -> None:
    job = desk.submit(key="k")
    desk.slot.claim(job.id)
    desk.slot.succeed(job.id, [b"song"])
    again, created = desk.queue.submit(ME, SPEC, OPTIONS, idempotency_key="k")
    assert (again.status, created) == (JobStatus.SUCCEEDED, False)
    assert desk.redis.zscore(desk.keys.live, job.id) is None
    assert desk.redis.llen("rq:queue:default.normal") == 0


def test_keys_make_ids_that_are_uuids() -> None:
    job_id = keyed_job_id("tenant", "key")
    assert str(uuid.UUID(job_id)) == job_id == keyed_job_id("tenant", "key")
    assert len({job_id, keyed_job_id("tenant", "other"), keyed_job_id("other", "key")}) == 3


def test_another_tenants_job_does_not_exist(desk: Desk) -> None:
    job = desk.submit(tenant="owner")
    for act in (desk.queue.get, desk.queue.cancel, desk.queue.erase):
        with pytest.raises(NotFound):
            act("thief", job.id)
    assert desk.queue.list("thief").jobs == ()
    assert desk.queue.get("owner", job.id).status is JobStatus.QUEUED


def test_the_store_remembers_what_redis_forgot(desk: Desk) -> None:
    job = desk.submit(labels={"a": "b"})
    desk.slot.claim(job.id)
    result = desk.slot.succeed(job.id, [b"song"])
    ended = desk.queue.get(ME, job.id)
    assert ended.started_at
    assert ended.ended_at
    attempt = Attempt(number=1, id="attempt1", worker="w", started_at=ended.started_at)
    record = Record(
        job_id=job.id,
        tenant=ME,
        labels={"a": "b"},
        spec=job.spec,
        attempt=attempt,
        created_at=job.created_at,
        started_at=ended.started_at,
        ended_at=ended.ended_at,
        result=result,
    )
    desk.store.put_if_absent(names.record_key(ME, job.id), record.model_dump_json().encode())
    desk.redis.flushdb()
    remembered = desk.queue.get(ME, job.id)
    assert (remembered.status, remembered.result, remembered.spec) == (JobStatus.SUCCEEDED, result, job.spec)
    assert remembered.attempts[0].outcome == "succeeded"
    with pytest.raises(NotFound):
        desk.queue.get("other", job.id)
    desk.queue.erase(ME, job.id)
    with pytest.raises(NotFound):
        desk.queue.get(ME, job.id)


def test_list_pages_newest_first_while_jobs_come_and_go(desk: Desk) -> None:
    ids = [desk.submit().id for _ in range(7)]
    first = desk.queue.list(ME, limit=3)
    assert [job.id for job in first.jobs] == ids[:3:-1]
    desk.submit()  # a newer one shifts nothing
    desk.queue.cancel(ME, ids[4])
    desk.queue.erase(ME, ids[4])  # the cursor's own job goes
    second = desk.queue.list(ME, limit=3, cursor=first.next_cursor)
    assert [job.id for job in second.jobs] == [ids[3], ids[2], ids[1]]
    third = desk.queue.list(ME, limit=3, cursor=second.next_cursor)
    assert [job.id for job in third.jobs] == [ids[0]]
    assert third.next_cursor is None
    assert [job.position for job in second.jobs] == [4, 3, 2]


def test_list_by_status_and_label(desk: Desk) -> None:
    blue = [desk.submit(labels={"album": "blue"}).id for _ in range(2)]
    red = desk.submit(labels={"album": "red"}).id
    desk.queue.cancel(ME, blue[0])
    assert [job.id for job in desk.queue.list(ME, label=("album", "blue")).jobs] == blue[::-1]
    assert [job.id for job in desk.queue.list(ME, status=JobStatus.QUEUED).jobs] == [red, blue[1]]
    both = desk.queue.list(ME, status=JobStatus.CANCELED, label=("album", "blue"))
    assert [job.id for job in both.jobs] == [blue[0]]


def test_list_with_a_filter_looks_at_a_bounded_number(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = desk.submit(labels={"rare": "yes"}).id
    for _ in range(9):
        desk.submit()
    monkeypatch.setattr("api.queue.reader.SCAN_LIMIT", 4)
    monkeypatch.setattr("api.queue.reader.SCAN_CHUNK", 2)
    cursor, pages = None, []
    while True:
        page = desk.queue.list(ME, label=("rare", "yes"), cursor=cursor)
        pages.append([job.id for job in page.jobs])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert pages == [[], [], [wanted]]


@pytest.mark.parametrize("cursor", ["", "x", "bnVsbA", "W10", "WzEsMl0", "Wy0xLCJhIl0", "W1tdLDFd", "é", "A" * 300])
def test_foreign_cursors_are_refused(desk: Desk, cursor: str) -> None:
    if cursor:
        with pytest.raises(InvalidSpec) as refused:
            desk.queue.list(ME, cursor=cursor)
        assert refused.value.field == "cursor"
    else:
        assert desk.queue.list(ME, cursor=cursor).jobs == ()


def test_cancel_of_a_queued_job_ends_it(desk: Desk) -> None:
    job = desk.submit()
    assert desk.queue.cancel(ME, job.id).status is JobStatus.CANCELED
    assert desk.redis.llen("rq:queue:default.normal") == 0
    assert desk.redis.ttl(f"rq:job:{job.id}") > 0
    assert desk.slot.claim(job.id) == 0
    assert desk.queue.cancel(ME, job.id).status is JobStatus.CANCELED  # again: the same answer
    assert [pool.unsuccessful for pool in desk.queue.pools()] == [1]


def test_cancel_of_a_running_job_sets_the_flag(desk: Desk) -> None:
    job = desk.submit()
    desk.slot.claim(job.id)
    canceled = desk.queue.cancel(ME, job.id)
    assert (canceled.status, canceled.cancel_requested) == (JobStatus.RUNNING, True)
    assert desk.slot.step(job.id, 1) == -1


def test_cancel_between_pop_and_claim_ends_it(desk: Desk) -> None:
    job = desk.submit()
    desk.redis.lpop("rq:queue:default.normal")
    assert desk.queue.cancel(ME, job.id).status is JobStatus.CANCELED
    assert desk.slot.ledger.begin_attempt(job.id, "late", "worker-1") == 0


def test_cancel_of_an_ended_job_is_refused(desk: Desk) -> None:
    job = desk.submit()
    desk.slot.claim(job.id)
    desk.slot.succeed(job.id, [b"song"])
    with pytest.raises(Conflict):
        desk.queue.cancel(ME, job.id)


def test_erase_leaves_nothing(desk: Desk) -> None:
    job = desk.submit()
    with pytest.raises(NotFinished):
        desk.queue.erase(ME, job.id)
    desk.slot.claim(job.id)
    desk.slot.succeed(job.id, [b"one", b"two"])
    assert len(list(desk.store.list(names.song_prefix(ME, job.id)))) == 2
    desk.queue.erase(ME, job.id)
    assert list(desk.store.list(names.song_prefix(ME, job.id))) == []
    assert [key for key in desk.redis.scan_iter() if job.id.encode() in key] == []
    assert desk.queue.list(ME).jobs == ()
    with pytest.raises(NotFound):
        desk.queue.erase(ME, job.id)


def test_erase_on_s3(redis_url: str, s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    prefix = uuid.uuid4().hex
    desk = open_desk(redis_url, f"s3://{servers.BUCKET}/{prefix}", store_endpoint=s3.endpoint)
    job = desk.submit()
    desk.slot.claim(job.id)
    desk.slot.succeed(job.id, [b"song"])
    assert len(list(desk.store.list(names.song_prefix(ME, job.id)))) == 1
    desk.queue.erase(ME, job.id)
    assert list(desk.store.list(names.song_prefix(ME, job.id))) == []


def test_counting_reaps_nothing(desk: Desk) -> None:
    job = desk.submit()
    desk.submit(lane="low")
    desk.slot.claim(job.id)
    desk.redis.zadd("rq:wip:default.normal", {f"{job.id}:execution": time.time() - 3600})
    pool = desk.queue.pools()[0]
    assert (pool.running, pool.waiting[Lane.LOW], pool.waiting[Lane.NORMAL]) == (1, 1, 0)
    assert desk.redis.zcard("rq:wip:default.normal") == 1
    assert desk.queue.get(ME, job.id).status is JobStatus.RUNNING


def test_places_are_exact_near_the_head_only(desk: Desk) -> None:
    ids = [desk.submit().id for _ in range(3)]
    desk.redis.lpush("rq:queue:default.normal", *[f"filler-{n}" for n in range(POSITION_DEPTH - 1)])
    come_up(desk, busy=1)
    near, far = desk.queue.get(ME, ids[0]), desk.queue.get(ME, ids[1])
    assert near.position == POSITION_DEPTH
    assert far.position is None
    assert far.waiting_for == "more than a thousand jobs ahead of it in lane normal"


def test_a_model_names_its_pool(desk: Desk) -> None:
    with pytest.raises(InvalidSpec, match="no worker is up") as refused:
        desk.submit(GenerationSpec(model="big"))
    assert refused.value.field == "model"
    come_up(desk, "a", "default", "tiny")
    come_up(desk, "b", "large", "big")
    assert desk.submit(GenerationSpec(model="big")).pool == "large"
    assert desk.submit(GenerationSpec(model="tiny")).pool == "default"
    assert {pool.name for pool in desk.queue.pools()} == {"default", "large"}
    with pytest.raises(InvalidSpec, match="big, tiny"):
        desk.submit(GenerationSpec(model="huge"))


def test_audio_must_exist(desk: Desk) -> None:
    song = desk.submit()

    def cover(source: str) -> GenerationSpec:
        return GenerationSpec(task=Task.COVER, source_audio=source)

    for missing in ("upload-1", f"{uuid.uuid4()}/0", f"{song.id}/0"):
        with pytest.raises(InvalidSpec) as refused:
            desk.submit(cover(missing))
        assert refused.value.field == "source_audio"
    with pytest.raises(InvalidSpec) as refused:
        desk.submit(GenerationSpec(reference_audio="upload-1"))
    assert refused.value.field == "reference_audio"
    desk.slot.keep_upload("upload-1", duration_s=10)
    desk.slot.claim(song.id)
    desk.slot.succeed(song.id, [b"song"])
    assert desk.submit(cover("upload-1")).status is JobStatus.QUEUED
    assert desk.submit(cover(f"{song.id}/0")).status is JobStatus.QUEUED
    with pytest.raises(InvalidSpec):
        desk.submit(cover(f"{song.id}/1"))
    with pytest.raises(InvalidSpec):
        desk.submit(cover("upload-1"), tenant="other")
    for source in ("upload-1", f"{song.id}/0"):  # of ten seconds and of one
        with pytest.raises(InvalidSpec, match="source's length") as refused:
            desk.submit(GenerationSpec(task=Task.REPAINT, source_audio=source, repaint_start_s=10))
        assert refused.value.field == "repaint_start_s"
    assert desk.redis.zcard(desk.keys.live) == 2  # what was refused left nothing
    assert desk.submit(GenerationSpec(task=Task.REPAINT, source_audio="upload-1", repaint_start_s=9))


@pytest.mark.parametrize("values", [{"lora": "choir"}, {"audio_codes": "none at all"}])
def test_words_that_stand_for_nothing_are_refused(desk: Desk, values: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec) as refused:
        desk.submit(GenerationSpec.model_validate(values))
    assert refused.value.field == next(iter(values))
    assert desk.redis.dbsize() == 0


def test_no_redis_is_told_as_such(tmp_path_factory: pytest.TempPathFactory, file_store_url: str) -> None:
    desk = open_desk(f"redis://127.0.0.1:{servers.free_ports(1)[0]}", file_store_url, redis_timeout_s=1)
    for act in (
        desk.submit,
        lambda: desk.queue.get(ME, "x"),
        lambda: desk.queue.list(ME),
        lambda: desk.queue.cancel(ME, "x"),
        lambda: desk.queue.erase(ME, "x"),
        desk.queue.pools,
        desk.queue.ping,
    ):
        with pytest.raises(QueueUnavailable) as refused:
            act()
        assert refused.value.retryable


def test_the_prefix_must_be_rqs(redis: Redis, file_store_url: str) -> None:
    settings = GatewaySettings.model_validate({"store_url": file_store_url, "redis_prefix": "other"})
    with pytest.raises(ConfigurationError, match="RQ_KEY_PREFIX"):
        JobQueue(redis, Store.open(settings), Ledger(redis, settings.keys), settings)
    assert SharedSettings().redis_prefix == "rq"
