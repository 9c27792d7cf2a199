"""A batch from its first release to its files and its webhook: pace, counts, steering, retries, quotas, losses."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from standardwebhooks import Webhook

from api.app import create_app
from controller.restore import Restore
from controller.settings import ControllerSettings
from controller.webhooks import Webhooks
from serinette.batch import BatchStatus, LineStatus, line_job_id
from serinette.batches.repository import BatchRecord, BatchRepository
from serinette.credentials import Limits
from serinette.errors import NotFinished, NotFound, QueueUnavailable
from serinette.jobs import calls
from serinette.names import batch_prefix, batch_results_key, song_prefix
from serinette.store import Store, StoredObject
from tests import servers
from tests.receivers import SECRET, receiver
from tests.unit.batch_bench import TENANT, BatchBench


@pytest.fixture
def bench(redis_url: str, file_store_url: str) -> BatchBench:
    return BatchBench(redis_url, file_store_url)


def test_lines_are_released_as_songs_begin(bench: BatchBench) -> None:
    batch = bench.create(30, labels={"album": "blue"})
    bench.duty()
    assert bench.counts(batch) == {"total": 30, "released": 10, "queued": 10}
    bench.duty()
    assert len(bench.waiting()) == 10
    first, *_ = held = bench.begin(3)
    job = bench.board.entry(first)
    assert (job.lane, job.labels) == ("low", {"album": "blue", "batch": batch.id, "line": "1"})
    bench.duty()
    assert bench.counts(batch) == {"total": 30, "released": 13, "queued": 10, "running": 3}
    bench.end(held)
    bench.duty()
    assert bench.counts(batch) == {"total": 30, "released": 13, "queued": 10, "completed": 3}
    assert bench.look(batch).fraction == 0.1


def test_two_batches_share_the_lane(bench: BatchBench) -> None:
    bench.backlog = 100
    bench.duty = bench.new_duty()
    first, second = bench.create(120), bench.create(120)
    bench.duty()
    assert [bench.counts(batch)["released"] for batch in (first, second)] == [52, 48]


def test_what_comes_out(bench: BatchBench) -> None:
    batch = bench.create(11)
    ended = bench.run(batch, failing=["song 3", "song 8"])
    assert (ended.status, ended.fraction) == ("completed", 1.0)
    assert bench.counts(batch) == {"total": 11, "released": 11, "completed": 9, "failed": 2}
    output, errors = bench.output(batch), bench.errors(batch)
    assert [line.line for line in output] == [1, 2, 4, 5, 6, 7, 9, 10, 11]
    assert [(line.line, line.custom_id, line.error and line.error.code) for line in errors] == [
        (3, "id 3", "invalid_output"),
        (8, "id 8", "invalid_output"),
    ]
    for line in output:
        assert line.custom_id == f"id {line.line}"
        assert bench.store.get(line.artifacts[0].key) == f"song {line.line}".encode()
    assert bench.lines(batch) == sorted([*output, *errors], key=lambda line: line.line)
    assert set(bench.begun.values()) == {1}
    assert bench.redis.ttl(bench.keys.batch(batch.id)) > 0
    found: list[bytes] = list(bench.redis.scan_iter("*batch*"))
    assert {key.decode() for key in found} == {bench.keys.batch(batch.id), bench.keys.tenant_batches(TENANT)}


def test_lines_are_reported_on_the_way(bench: BatchBench) -> None:
    batch = bench.create(14)
    bench.duty()
    bench.end(bench.begin(5))
    bench.begin(1)
    bench.duty()
    found = [line.status for line in bench.lines(batch)]
    assert Counter(found[:6]) == {"succeeded": 5, "running": 1}
    assert found[6:] == 8 * ["queued"]


def test_a_retry_generates_what_has_no_song(bench: BatchBench) -> None:
    batch = bench.create(9)
    bench.run(batch, failing=["song 2", "song 9"])
    first = {line.line: line for line in bench.output(batch)}
    bench.batches.retry(TENANT, batch.id)
    assert bench.counts(batch) == {"total": 9, "released": 7, "completed": 7}
    bench.duty()
    assert len(bench.waiting()) == 2
    assert [line.status for line in bench.lines(batch)].count(LineStatus.SUCCEEDED) == 7
    ended = bench.run(batch)
    assert (ended.status, ended.round) == ("completed", 1)
    assert bench.counts(batch) == {"total": 9, "released": 9, "completed": 9}
    second = {line.line: line for line in bench.output(batch, 1)}
    assert sorted(second) == list(range(1, 10))
    assert {number: second[number] for number in first} == first
    assert second[2].job_id == line_job_id(batch.id, 1, 1)
    assert (second[2].seed, second[9].seed) == tuple(line.seed for line in bench.errors(batch))
    assert bench.errors(batch, 1) == []


def test_a_cancel_ends_everything(bench: BatchBench) -> None:
    batch = bench.create(30)
    bench.duty()
    bench.generate(2)
    running = bench.begin(1)[0]
    bench.batches.cancel(TENANT, batch.id)
    bench.duty()
    bench.duty()
    assert bench.waiting() == []
    assert bench.look(batch).status is BatchStatus.CANCELING
    assert bench.counts(batch) == {"total": 30, "released": 30, "running": 1, "completed": 2, "canceled": 27}
    bench.end([running])  # it was through before it saw the flag
    ended = bench.run(batch)
    assert ended.status is BatchStatus.CANCELED
    assert bench.counts(batch) == {"total": 30, "released": 30, "completed": 3, "canceled": 27}
    assert [line.line for line in bench.errors(batch)] == list(range(4, 31))
    assert bench.batches.cancel(TENANT, batch.id) == ended
    bench.batches.retry(TENANT, batch.id)
    assert bench.run(batch).status is BatchStatus.COMPLETED
    assert bench.counts(batch) == {"total": 30, "released": 30, "completed": 30}


def test_a_pause_lets_what_was_released_go_on(bench: BatchBench) -> None:
    batch = bench.create(30)
    bench.duty()
    bench.batches.pause(TENANT, batch.id)
    bench.generate()
    bench.duty()
    assert bench.waiting() == []
    assert bench.counts(batch) == {"total": 30, "released": 10, "completed": 10}
    bench.batches.resume(TENANT, batch.id)
    assert bench.run(batch).request_counts.completed == 30


LIMITS = [
    (Limits(jobs_in_flight=7), 3, "half of its unfinished jobs"),
    (Limits(queued_jobs=4), 2, "half of its waiting jobs"),
    (Limits(gpu_seconds_per_day=0), 0, "GPU-seconds"),
]


@pytest.mark.parametrize(("limits", "released", "why"), LIMITS, ids=[case[2] for case in LIMITS])
def test_quotas_hold_a_batch_up_and_do_not_refuse_it(
    bench: BatchBench, limits: Limits, released: int, why: str
) -> None:
    batch = bench.create(30)
    bench.redis.hset(bench.keys.tenants, TENANT, limits.model_dump_json())
    bench.duty()
    seen = bench.look(batch)
    assert seen.request_counts.released == released
    assert why in (seen.waiting_for or "")
    bench.redis.hdel(bench.keys.tenants, TENANT)
    bench.duty()
    assert (bench.look(batch).request_counts.released, bench.look(batch).waiting_for) == (10, None)


def test_a_job_that_redis_lost_is_released_again_but_none_that_has_its_songs(bench: BatchBench) -> None:
    batch = bench.create(6)
    bench.duty()
    ended, lost, *_ = bench.begin(2)
    bench.end([ended])
    for job_id in (ended, lost):
        bench.redis.delete(f"rq:job:{job_id}", bench.keys.job(job_id))
        bench.redis.zrem(bench.keys.in_flight(TENANT), job_id)
    bench.duty()
    assert lost in bench.waiting()
    assert ended not in bench.waiting()
    assert bench.run(batch).request_counts.completed == 6
    assert bench.begun[ended] == 1
    assert len({line.artifacts[0].key for line in bench.output(batch)}) == 6


def test_a_batch_that_lost_sight_of_its_live_jobs_waits_for_them(bench: BatchBench) -> None:
    batch = bench.create(4)
    bench.duty()
    bench.end(bench.begin(1))
    running = bench.begin(1)
    bench.redis.delete(bench.keys.batch_live(batch.id))
    bench.duty()
    assert bench.counts(batch) == {"total": 4, "released": 4, "queued": 2, "running": 1, "completed": 1}
    bench.end(running)
    assert bench.run(batch).request_counts.completed == 4
    assert set(bench.begun.values()) == {1}


def test_jobs_that_were_deleted_before_their_part_was_through_are_not_generated_again(bench: BatchBench) -> None:
    """The batch was paused for longer than anything is kept."""
    batch = bench.create(4)
    bench.duty()
    deleted = bench.begin(2)
    bench.end(deleted)
    for job_id in deleted:
        bench.redis.delete(bench.keys.job(job_id), f"rq:job:{job_id}")
        bench.store.delete_prefix(song_prefix(TENANT, job_id))
    raw: Any = bench.redis.hget(bench.keys.batch(batch.id), "header")
    old = {**json.loads(raw), "created_at": "2020-01-01T00:00:00Z"}
    bench.redis.hset(bench.keys.batch(batch.id), "header", json.dumps(old))
    bench.run(batch)
    assert set(bench.begun.values()) == {1}
    assert bench.counts(batch) == {"total": 4, "released": 4, "completed": 2, "failed": 2}
    assert [(line.custom_id, line.error and line.error.code) for line in bench.errors(batch)] == [
        ("id 1", "gone"),
        ("id 2", "gone"),
    ]
    bench.batches.retry(TENANT, batch.id)
    assert bench.run(batch).request_counts.completed == 4


def test_jobs_that_have_shrunk_are_read_from_the_store(bench: BatchBench) -> None:
    batch = bench.create(4)
    bench.duty()
    straggler, *others = bench.begin(4)
    bench.end(others)
    assert all(bench.jobs(calls.shrink(bench.board.entry(job_id))) for job_id in others)
    assert [line.status for line in bench.lines(batch)] == ["running", *3 * ["succeeded"]]
    bench.end([straggler])
    bench.run(batch)
    assert [bench.store.get(line.artifacts[0].key) for line in bench.output(batch)] == [
        f"song {number}".encode() for number in range(1, 5)
    ]


def test_erasing(bench: BatchBench, redis: Redis) -> None:
    batch = bench.create(3)
    bench.duty()
    first = bench.begin(1)
    bench.end(first)
    with pytest.raises(NotFinished, match=batch.id):
        bench.batches.erase(TENANT, batch.id)
    bench.run(batch)
    assert bench.output(batch)[0].job_id == first[0]
    redis.delete(bench.keys.batch(batch.id))  # forgotten: the store remembers
    assert bench.look(batch).status is BatchStatus.COMPLETED
    assert len(list(bench.store.list(batch_prefix(TENANT, batch.id)))) > 3
    bench.batches.erase(TENANT, batch.id)
    assert list(bench.store.list(batch_prefix(TENANT, batch.id))) == []
    with pytest.raises(NotFound):
        bench.look(batch)


def test_lines_that_were_erased_by_hand_hold_up_no_other_batch(bench: BatchBench) -> None:
    bench.backlog = 100
    bench.duty = bench.new_duty()
    broken, batch = bench.create(6), bench.create(6)
    for found in list(bench.store.list(f"{batch_prefix(TENANT, broken.id)}input")):
        bench.store.delete(found.key)
    bench.run(batch)
    assert "cancel it" in (bench.look(broken).waiting_for or "")
    bench.batches.cancel(TENANT, broken.id)
    assert bench.run(broken).request_counts.canceled == 6


def test_all_of_redis_is_lost(bench: BatchBench) -> None:
    """In the midst of a retry: what has songs gets no others, and the counts are right."""
    ended = bench.run(bench.create(3))
    batch = bench.create(14)
    bench.run(batch, failing=["song 3", "song 13"])
    bench.batches.retry(TENANT, batch.id)
    bench.duty()
    bench.end(bench.begin(1))
    bench.duty()
    assert bench.store.get(batch_results_key(TENANT, batch.id, 1, 0))
    bench.redis.flushdb()
    assert Restore(bench.redis, bench.store, bench.keys, 3600)() == 3 + 14 + 1
    assert bench.redis.zcard(bench.keys.batches) == 1
    assert bench.look(ended).status is BatchStatus.COMPLETED
    seen = bench.run(batch)
    assert (seen.status, seen.round) == (BatchStatus.COMPLETED, 1)
    assert bench.counts(batch) == {"total": 14, "released": 14, "completed": 14}
    assert [line.line for line in bench.output(batch, 1)] == list(range(1, 15))
    assert len(bench.begun) == 3 + 14 + 2


def test_a_batch_goes_on_where_only_its_jobs_were_restored(bench: BatchBench) -> None:
    """Its part was not written: what its restored jobs ended as counts, and no line is generated twice."""
    batch = bench.create(8)
    bench.duty()
    bench.generate(3, failing=["song 2"])
    bench.redis.flushdb()
    Restore(bench.redis, bench.store, bench.keys, 3600)()
    bench.duty()
    assert bench.counts(batch) == {"total": 8, "released": 8, "queued": 5, "completed": 2, "failed": 1}
    bench.run(batch)
    assert set(bench.begun.values()) == {1}


def test_what_ends_after_redis_lost_its_batch_keeps_no_batch_from_coming_back(bench: BatchBench) -> None:
    """A server comes up empty while the controller has lines to release: they end before their batch is known again."""
    batch = bench.create(3, key="mine")
    bench.duty()
    orders = bench.begin(2)
    bench.redis.delete(bench.keys.batch(batch.id))
    bench.redis.zrem(bench.keys.batches, batch.id)
    bench.end(orders)
    assert not bench.redis.exists(bench.keys.batch(batch.id))
    bench.redis.hset(bench.keys.batch(batch.id), "failed", 2)  # as an older version left it
    assert bench.create(3, key="mine").id == batch.id
    assert bench.run(batch).status is BatchStatus.COMPLETED


def test_a_retry_whose_answer_was_lost_is_answered_when_sent_again(
    bench: BatchBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = bench.create(2)
    bench.run(batch, failing=["song 2"])
    change = type(bench.batches.repository).retry

    def sent_twice(repository: BatchRepository, record: BatchRecord) -> bool:
        change(repository, record)
        return change(repository, record)

    monkeypatch.setattr(BatchRepository, "retry", sent_twice)
    assert bench.batches.retry(TENANT, batch.id).round == 1


def test_a_part_is_written_as_soon_as_it_is_through(bench: BatchBench) -> None:
    batch = bench.create(30)
    bench.duty()
    bench.generate(4)
    bench.duty()
    lines = bench.store.get(batch_results_key(TENANT, batch.id, 0, 0)).splitlines()
    assert [json.loads(line)["line"] for line in lines] == [1, 2, 3, 4]
    assert bench.redis.smembers(bench.keys.batch_open(batch.id)) == {b"1", b"2", b"3"}


def test_a_key_is_a_batch_id_that_only_the_deployments_secret_makes(redis_url: str, file_store_url: str) -> None:
    def made(tenant: str = TENANT, key: str | None = "mine", **settings: object) -> str:
        return BatchBench(redis_url, file_store_url, settings=settings).create(1, tenant, key).id

    secret = {"idempotency_secret": "s" * 32}
    assert made() == made()
    assert made(**secret) == made(**secret)
    ids = {made(), made(**secret), made(key="other", **secret), made("other", **secret), made(key=None, **secret)}
    assert len(ids) == 5


def test_fsync_answers_once_the_batch_is_on_the_disk(tmp_path: Path, redis_url: str, file_store_url: str) -> None:
    settings = {"durability": "fsync"}
    with servers.valkey(tmp_path / "on-disk", append_only=True) as server:
        bench = BatchBench(server.connection_url, file_store_url, settings=settings)
        batch = bench.create(3, key="mine")
        assert bench.create(3, key="mine") == batch, "a replay waits as the first did"
        assert bench.redis.get(bench.keys.synced) == batch.id.encode()
    bench = BatchBench(redis_url, file_store_url, settings=settings)
    with pytest.raises(QueueUnavailable, match="nothing was accepted"):  # this server keeps no append-only file
        bench.create(3)
    assert bench.batches.newest(TENANT, 10) == []


def test_the_end_is_reported_once_for_each_round(redis_url: str, file_store_url: str) -> None:
    settings = {"webhook_secret": SECRET, "webhook_networks": ("127.0.0.0/8",)}
    bench = BatchBench(redis_url, file_store_url, settings=settings)
    deliver = Webhooks(
        bench.redis,
        ControllerSettings.model_validate({**settings, "redis_url": redis_url, "store_url": file_store_url}),
    )
    with receiver() as target:
        batch = bench.create(2, webhook=f"http://127.0.0.1:{target.port}/ended")
        assert deliver() == 0
        bench.run(batch, failing=["song 2"])
        assert (deliver(), deliver()) == (1, 0)
        bench.batches.retry(TENANT, batch.id)
        bench.run(batch)
        assert (deliver(), deliver()) == (1, 0)
    assert target.ids == [f"msg_{batch.id}_completed_{round}" for round in (0, 1)]
    for came, completed in zip(target.came, (1, 2), strict=True):
        event = Webhook(SECRET).verify(came.body, came.headers)
        assert event["type"] == "batch.completed"
        assert (event["data"]["id"], event["data"]["request_counts"]["completed"]) == (batch.id, completed)
    assert [delivery.delivered for delivery in bench.look(batch).deliveries] == [True]


async def test_files(redis_url: str, file_store_url: str) -> None:
    bench = BatchBench(redis_url, file_store_url)
    batch = bench.create(6)
    bench.run(batch, failing=["song 2"])
    erased = bench.output(batch)[3]
    transport = httpx.ASGITransport(create_app(bench.gateway), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://localhost/v1/batches/{batch.id}") as client:
        assert (await client.delete(f"http://localhost/v1/jobs/{erased.job_id}")).status_code == 204
        output, errors = (await client.get("/output.jsonl")).text, (await client.get("/errors.jsonl")).text
        zipped = await client.get("/songs.zip")
    assert [json.loads(line)["line"] for line in output.splitlines()] == [1, 3, 4, 5, 6]
    assert [json.loads(line)["custom_id"] for line in errors.splitlines()] == ["id 2"]
    assert zipped.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert archive.testzip() is None
        songs = {name: archive.read(name) for name in archive.namelist()}
    assert songs == {
        **{f"00000{n}-id_{n}.mp3": f"song {n}".encode() for n in (1, 3, 4, 6)},
        "missing.txt": b"000005-id_5.mp3\n",
    }


@pytest.mark.parametrize("erase", [False, True])
async def test_files_have_a_length_ranges_and_an_etag(redis_url: str, file_store_url: str, erase: bool) -> None:
    bench = BatchBench(redis_url, file_store_url)
    batch = bench.create(4)
    bench.run(batch, failing=["song 2"])
    if erase:
        bench.store.delete(bench.output(batch)[1].artifacts[0].key)
    transport = httpx.ASGITransport(create_app(bench.gateway), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://localhost/v1/batches/{batch.id}") as client:
        for name in ("/output.jsonl", "/errors.jsonl", "/songs.zip"):
            whole, head = await client.get(name), await client.head(name)
            assert (head.status_code, head.content) == (200, b"")
            for header in ("content-length", "etag", "accept-ranges", "content-type", "content-disposition"):
                assert head.headers[header] == whole.headers[header], (name, header)
            assert int(whole.headers["content-length"]) == len(whole.content)
            etag = whole.headers["etag"]
            for first in (0, 1, 31, len(whole.content) - 1):
                part = await client.get(name, headers={"Range": f"bytes={first}-{first + 40}", "If-Range": etag})
                assert part.status_code == 206
                assert part.content == whole.content[first : first + 41]
            assert (await client.get(name, headers={"If-None-Match": etag})).status_code == 304
            assert (await client.get(name, headers={"Range": "bytes=99999-"})).status_code == 416
        etag = (await client.head("/songs.zip")).headers["etag"]
        bench.store.delete(bench.output(batch)[0].artifacts[0].key)
        changed = await client.get("/songs.zip", headers={"Range": "bytes=5-", "If-Range": etag})
        assert changed.status_code == 200, "the rest of another file"
        assert zipfile.ZipFile(io.BytesIO(changed.content)).testzip() is None


async def test_a_zip_that_the_client_has_is_known_without_looking_its_songs_up(
    redis_url: str, file_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = BatchBench(redis_url, file_store_url)
    batch = bench.create(4)
    bench.run(batch)
    looked_up: list[str] = []
    head = Store.head

    def counted(store: Store, key: str) -> StoredObject:
        looked_up.append(key)
        return head(store, key)

    transport = httpx.ASGITransport(create_app(bench.gateway), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://localhost/v1/batches/{batch.id}") as client:
        etag = (await client.get("/songs.zip")).headers["etag"]
        monkeypatch.setattr(Store, "head", counted)
        known = await client.get("/songs.zip", headers={"If-None-Match": f'"other", W/{etag}'})
        assert (known.status_code, known.headers["etag"]) == (304, etag)
        assert len(looked_up) == 1, "its output file alone"
        assert (await client.get("/songs.zip", headers={"If-None-Match": '"other"'})).status_code == 200


async def test_a_zip_of_very_many_songs_is_sent_without_looking_them_up(
    redis_url: str, file_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.v1.batches.MOST_MEASURED", 2)
    bench = BatchBench(redis_url, file_store_url)
    batch = bench.create(3)
    bench.run(batch)
    transport = httpx.ASGITransport(create_app(bench.gateway), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://localhost/v1/batches/{batch.id}") as client:
        found, head = await client.get("/songs.zip"), await client.head("/songs.zip")
    assert len(zipfile.ZipFile(io.BytesIO(found.content)).namelist()) == 3
    assert (head.status_code, head.content, "content-length" in found.headers) == (200, b"", False)
