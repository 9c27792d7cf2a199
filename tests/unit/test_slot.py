"""Who may take a job and who may end it, on a real Valkey: a late or doubled attempt changes nothing."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

from gpu_worker.slot import encoding
from gpu_worker.slot.drain import RetryingStore
from gpu_worker.slot.held_job import HeldJob
from gpu_worker.wire import Generated
from serinette.errors import EngineCrashed, InvalidOutput
from serinette.job import AttemptOutcome, JobStatus, Result
from serinette.names import Keys, record_key, upload_audio_key
from serinette.presence import pace
from serinette.settings import SharedSettings
from serinette.spec import SCHEMA, AudioFormat, GenerationSpec, Task
from serinette.store import Store
from tests.jobs import TENANT, charged_attempts
from tests.pod import put_upload
from tests.unit.slot_bench import SlotBench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def result_of(bench: SlotBench, job_id: str) -> Result:
    result = bench.entry(job_id).result
    assert result
    return result


def test_a_song_is_written_in_the_record_and_in_the_store(bench: SlotBench) -> None:
    job_id = bench.order(GenerationSpec(prompt="jazz", seed=7, variations=2, format=AudioFormat.FLAC))
    bench.slot().run_one()
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)
    result = result_of(bench, job_id)
    assert [artifact.index for artifact in result.artifacts] == [0, 1]
    assert all(bench.store.head(artifact.key).size_bytes == artifact.size_bytes for artifact in result.artifacts)
    attempt = bench.entry(job_id).attempts[0]
    assert attempt.outcome is AttemptOutcome.SUCCEEDED
    assert all(attempt.id in artifact.key for artifact in result.artifacts)
    assert pace(bench.redis, bench.keys, "default") == pytest.approx(result.timings.run_s)


def test_a_song_is_encoded_while_the_next_one_is_generated(bench: SlotBench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.order(GenerationSpec(prompt="jazz", seed=7, variations=2))
    slot, both_generated, while_encoding = bench.slot(), threading.Event(), []
    generate = bench.engine.generate

    def generate_both(*arguments: Any) -> Generated:
        generated = generate(*arguments)  # hands both over
        both_generated.set()
        return generated

    def encode(*_: object, **__: object) -> bytes:
        while_encoding.append(both_generated.wait(5))
        return b"a file"

    monkeypatch.setattr(bench.engine, "generate", generate_both)
    monkeypatch.setattr(encoding, "encode", encode)
    slot.run_one()
    assert while_encoding == [True, True]
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)


def test_the_attempt_is_rqs_execution_and_has_a_lease(bench: SlotBench) -> None:
    job_id = bench.order()
    slot = bench.slot()
    seen: list[object] = []
    bench.engine.meanwhile = lambda held: seen.extend(
        [
            bench.redis.zscore("rq:wip:default.normal", f"{job_id}:{held.attempt.id}"),
            bench.entry(job_id).owner == held.attempt.id and f"{job_id}:{held.attempt.id}" in bench.board.leases(),
        ]
    )
    slot.run_one()
    assert seen[0] is not None
    assert seen[1] is True
    assert bench.held() == []


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_leaves_the_times_in_their_order(
    bench: SlotBench, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr("serinette.jobs.finishing.now", lambda: datetime.now(UTC) + timedelta(hours=hours))
    job_id = bench.order()
    bench.slot().run_one()
    record = bench.record(job_id)
    assert record
    assert record.started_at
    assert record.result
    assert record.created_at <= record.started_at <= record.ended_at
    assert record.ended_at - record.started_at < timedelta(minutes=1)
    assert 0 <= record.result.timings.run_s < 60


def test_a_job_that_is_over_or_canceled_is_not_taken(bench: SlotBench) -> None:
    slot = bench.slot()
    over = bench.order()
    slot.run_one()
    bench.redis.rpush("rq:queue:default.normal", over)
    assert not slot.run_one()
    canceled = bench.order()
    bench.board.cancel(canceled)
    assert not slot.run_one()
    assert len(bench.engine.requests) == 1
    bench.assert_ended(over, JobStatus.SUCCEEDED)
    bench.assert_ended(canceled, JobStatus.CANCELED)
    assert bench.entry(canceled).attempts == ()


def test_a_second_copy_of_a_job_that_is_held_is_dropped(bench: SlotBench) -> None:
    job_id = bench.order()
    first = bench.slot()
    engine = bench.engine

    def second_copy_comes(_: HeldJob) -> None:
        bench.redis.rpush("rq:queue:default.normal", job_id)
        assert not bench.slot().run_one()

    engine.meanwhile = second_copy_comes
    first.run_one()
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)
    assert len(bench.entry(job_id).attempts) == 1


def test_an_unknown_id_is_set_aside(bench: SlotBench) -> None:
    bench.redis.rpush("rq:queue:default.normal", "a stranger's")
    assert not bench.slot().run_one()
    assert bench.redis.lrange("rq:serinette:unknown:default.normal", 0, -1) == [b"a stranger's"]


@pytest.mark.parametrize("after", ["requeued", "taken by another", "settled"])
def test_a_late_attempt_changes_nothing(bench: SlotBench, after: str) -> None:
    job_id = bench.order()
    late = bench.slot()
    engine = bench.engine

    def the_lease_runs_out(_: HeldJob) -> None:
        bench.lose(job_id)
        if after == "requeued":
            return
        other = bench.slot()
        if after == "settled":
            bench.engine.meanwhile = lambda _: (_ for _ in ()).throw(InvalidOutput("nan"))
            other.run_one()
        else:
            other.run_one()

    engine.meanwhile = the_lease_runs_out
    late.run_one()
    entry = bench.entry(job_id)
    assert entry.attempts[0].outcome is AttemptOutcome.FAILED
    assert entry.attempts[0].error
    assert entry.attempts[0].error.code == "worker_lost"
    if after == "requeued":
        # Its song is recorded in the store, which decides: no one generates it again.
        bench.assert_ended(job_id, JobStatus.SUCCEEDED)
        assert not bench.slot().run_one()
    elif after == "taken by another":
        bench.assert_ended(job_id, JobStatus.SUCCEEDED)
        winner = result_of(bench, job_id).artifacts[0].key
        assert entry.attempts[1].id in winner
        assert [found.key for found in bench.store.list(f"songs/{TENANT}/{job_id}") if found.key.endswith(".mp3")] == [
            winner
        ]
    else:
        bench.assert_ended(job_id, JobStatus.FAILED)


def test_a_record_that_exists_ends_the_job_and_nothing_is_generated(bench: SlotBench) -> None:
    job_id = bench.order()
    bench.put_song(job_id)
    bench.slot().run_one()
    assert bench.engine.requests == []
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)
    assert pace(bench.redis, bench.keys, "default") is None


def test_failures_are_kept_and_the_job_goes_to_the_front(bench: SlotBench) -> None:
    slot = bench.slot()

    def crash(_: HeldJob) -> None:
        raise EngineCrashed("gone")

    bench.engine.meanwhile = crash
    job_id, other = bench.order(attempts=2), bench.order()
    slot.run_one()
    assert bench.waiting() == [job_id, other]
    slot.run_one()
    entry = bench.entry(job_id)
    assert [attempt.error.code for attempt in entry.attempts if attempt.error] == ["engine_crashed"] * 2
    assert entry.error
    assert entry.error.code == "engine_crashed"
    bench.assert_ended(job_id, JobStatus.FAILED)


def test_a_job_handed_back_is_charged_nothing(bench: SlotBench) -> None:
    job_id = bench.order(attempts=1)
    slot = bench.slot(drain_timeout_s=0)
    bench.engine.meanwhile = lambda _: bench.drain.on_signal(15, None)
    slot.run_one()
    assert bench.waiting() == [job_id]
    assert charged_attempts(bench.entry(job_id)) == 0
    assert bench.entry(job_id).attempts[0].outcome is AttemptOutcome.RETURNED
    bench.slot().run_one()
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)


def test_a_canceled_attempt_leaves_no_artifact(bench: SlotBench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.order(GenerationSpec(prompt="jazz", seed=7, variations=2))
    slot = bench.slot()
    puts: list[str] = []
    put = RetryingStore.put

    def cancel_after_the_first(store: RetryingStore, key: str, data: bytes, content_type: str) -> None:
        put(store, key, data, content_type)
        puts.append(key)
        bench.board.cancel(job_id)
        slot.held.canceled = True  # type: ignore[union-attr]  # as the heartbeat does

    monkeypatch.setattr(RetryingStore, "put", cancel_after_the_first)
    slot.run_one()
    assert len(puts) == 1
    bench.assert_ended(job_id, JobStatus.CANCELED)
    assert list(bench.store.list(f"songs/{TENANT}/{job_id}")) == []
    assert bench.engine.closed == 1, "what was not taken must not be taken for the next job's"


def test_a_cancel_that_was_not_published_still_comes_before_the_record(
    bench: SlotBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.order()
    put = RetryingStore.put

    def put_and_cancel(store: RetryingStore, key: str, data: bytes, content_type: str) -> None:
        put(store, key, data, content_type)
        bench.board.cancel(job_id)  # nothing but the record is left to be done

    monkeypatch.setattr(RetryingStore, "put", put_and_cancel)
    monkeypatch.setattr(Redis, "publish", lambda *_: 0)
    bench.slot().run_one()
    bench.assert_ended(job_id, JobStatus.CANCELED)
    assert list(bench.store.list(f"songs/{TENANT}/{job_id}")) == []


def test_a_newer_spec_is_passed_over_uncharged(bench: SlotBench) -> None:
    newer, older = bench.order(), bench.order()
    bench.redis.hset(bench.keys.job(newer), "schema", SCHEMA + 1)
    assert bench.slot().run_one()
    bench.assert_ended(older, JobStatus.SUCCEEDED)
    assert bench.waiting() == [newer]
    assert bench.entry(newer).attempts == ()
    assert not bench.slot().run_one()


@pytest.mark.parametrize("spec", ['{"schema": 1, "steps": "none"}', "{", "[]"])
def test_a_corrupt_record_fails_with_a_reason(bench: SlotBench, spec: str) -> None:
    job_id = bench.order()
    bench.redis.hset(bench.keys.job(job_id), "spec", spec)
    bench.slot().run_one()
    entry = bench.entry(job_id)
    assert entry.status is JobStatus.FAILED
    assert entry.error
    assert entry.error.code == "invalid_spec"


def test_sources_are_found_by_id_and_never_by_path(bench: SlotBench) -> None:
    first = bench.order(GenerationSpec(prompt="jazz", seed=7, format=AudioFormat.WAV))
    slot = bench.slot()
    slot.run_one()
    song = bench.store.get(result_of(bench, first).artifacts[0].key)
    bench.store.put(upload_audio_key(TENANT, "up-1"), song)
    unfinished = cover("up-1")
    assert failure(bench, unfinished) == "not_found", "an upload without its record is not usable"
    put_upload(bench.store, "up-1", song)
    slot = bench.slot()
    for audio_id in ("up-1", f"{first}/0"):
        job_id = bench.order(cover(audio_id))
        slot.run_one()
        assert bench.entry(job_id).status is JobStatus.SUCCEEDED
        assert [sound.shape for sound in bench.engine.audio] == [(2, 480)]
        assert bench.engine.requests[-1].audio[0].role == "source"
    assert failure(bench, cover(f"{first}/1")) == "not_found"
    assert failure(bench, cover("nowhere/0")) == "not_found"
    put_upload(bench.store, "up-1", b"no audio at all")
    assert failure(bench, cover("up-1")) == "invalid_audio"


@pytest.mark.parametrize("longer", [True, False])
def test_an_upload_that_was_replaced_after_its_proof_is_refused(bench: SlotBench, longer: bool) -> None:
    first = bench.order(GenerationSpec(prompt="jazz", seed=7, format=AudioFormat.WAV))
    bench.slot().run_one()
    song = bench.store.get(result_of(bench, first).artifacts[0].key)
    put_upload(bench.store, "up-1", song)
    # What a presigned URL still allows: other audio, as valid as the first.
    bench.store.put(upload_audio_key(TENANT, "up-1"), song + bytes(4) if longer else song[:-4] + b"\1\2\3\4")
    job_id = bench.order(cover("up-1"))
    bench.slot().run_one()
    error = bench.entry(job_id).error
    assert error
    assert error.code == "invalid_audio"
    assert "changed since it was proved" in error.message


def cover(audio_id: str) -> GenerationSpec:
    return GenerationSpec(task=Task.COVER, source_audio=audio_id, seed=1)


def failure(bench: SlotBench, spec: GenerationSpec) -> str:
    job_id = bench.order(spec)
    bench.slot().run_one()
    entry = bench.entry(job_id)
    assert entry.error
    assert len(entry.attempts) == 1
    assert bench.engine.requests == []
    return entry.error.code


def test_the_song_is_erased_when_nothing_refers_to_it(bench: SlotBench) -> None:
    job_id = bench.order()
    slot = bench.slot()

    def lose(held: HeldJob) -> None:
        held.superseded = True

    bench.engine.meanwhile = lose
    slot.run_one()
    assert list(bench.store.list(f"songs/{TENANT}/{job_id}")) == []
    assert not any(found.key == record_key(TENANT, job_id) for found in bench.store.list("songs"))
