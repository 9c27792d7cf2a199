"""Submits that are repeated, and jobs that Redis knows in brief."""

from __future__ import annotations

import pytest

from api.queue.lookup import JobFilter
from serinette import names
from serinette.errors import (
    Conflict,
    IdempotencyConflict,
    InvalidSpec,
    NotFound,
    StoreUnavailable,
)
from serinette.job import JobError, JobStatus
from serinette.spec import GenerationSpec, Task
from serinette.store import Store
from tests.unit.queue_harness import ME, OPTIONS, SPEC, QueueHarness

pytestmark = pytest.mark.shared_valkey


@pytest.mark.parametrize(
    "written", [{"variations": 1}, {"seed": None}, {"duration_s": 60.0, "format": "mp3"}], ids=["one", "null", "two"]
)
async def test_a_default_that_is_written_out_is_no_other_song(
    harness: QueueHarness, written: dict[str, object]
) -> None:
    first = await harness.submit(key="k")
    spec = GenerationSpec.model_validate({"prompt": "jazz", **written})
    assert spec.digest() == SPEC.digest()
    assert (await harness.submit(spec, key="k")).id == first.id


async def test_a_replay_has_its_place(harness: QueueHarness) -> None:
    await harness.submit()
    job = await harness.submit(key="k")
    again = await harness.submit(key="k")
    assert (job.position, again.position, again.spec.seed) == (2, 2, job.spec.seed)
    assert again.model_copy(update={"eta_s": job.eta_s}) == job


async def test_a_replay_needs_nothing_that_the_first_submit_needed(harness: QueueHarness) -> None:
    harness.slot.keep_upload("upload-1", duration_s=10)
    spec = GenerationSpec(task=Task.COVER, source_audio="upload-1")
    job = await harness.submit(spec, key="k")
    harness.store.delete_prefix(names.upload_prefix(ME, "upload-1"))
    assert (await harness.submit(spec, key="k")).id == job.id
    with pytest.raises(InvalidSpec):
        await harness.submit(spec, key="another")
    with pytest.raises(IdempotencyConflict):
        await harness.submit(spec.model_copy(update={"prompt": "other"}), key="k")


def away(*_: object) -> bytes:
    raise StoreUnavailable("the store does not answer")


async def test_a_job_that_redis_knows_in_brief(harness: QueueHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, filters and replays need no store; the job itself is read there."""
    job = await harness.submit(key="k", labels={"album": "blue"})
    harness.slot.claim(job.id)
    result = harness.slot.succeed(job.id, [b"song"])
    failed = await harness.submit()
    harness.slot.claim(failed.id, "attempt2")
    harness.slot.fail(failed.id, JobError(code="out_of_memory", message="too long"), "attempt2")
    for each in (job, failed):
        harness.slot.shrink(each.id)
    assert (await harness.queue.get(ME, job.id)).result == result
    assert [found and found.result for found in await harness.queue.find(ME, [job.id])] == [result]
    assert (await harness.submit(key="k")).result == result
    with pytest.raises(Conflict):
        await harness.queue.cancel(ME, job.id)
    with pytest.raises(NotFound):
        await harness.queue.get("other", job.id)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "get", away)
        listed = (await harness.queue.list(ME)).jobs
        assert [(found.id, found.status) for found in listed] == [(failed.id, "failed"), (job.id, "succeeded")]
        assert listed[0].error and listed[0].error.code == "out_of_memory"
        assert (listed[1].spec.prompt, listed[1].labels, listed[1].ended_at is None) == ("jazz", job.labels, False)
        for wanted in (JobFilter(label=("album", "blue")), JobFilter(JobStatus.SUCCEEDED)):
            assert [found.id for found in (await harness.queue.list(ME, wanted)).jobs] == [job.id]
        assert (await harness.queue.list("other")).jobs == ()
        again, created = await harness.queue.submit(ME, SPEC, OPTIONS, idempotency_key="k")
        assert (again.id, again.status, created) == (job.id, JobStatus.SUCCEEDED, False)
        with pytest.raises(IdempotencyConflict):
            await harness.submit(GenerationSpec(prompt="rock"), key="k")
        with pytest.raises(Conflict):
            await harness.queue.cancel(ME, job.id)
        with pytest.raises(StoreUnavailable):
            await harness.queue.get(ME, job.id)
    await harness.queue.erase(ME, job.id)
    left = [key for key in harness.redis.scan_iter() if job.id.encode() in key]
    assert left == [harness.keys.erased_job(job.id).encode()], "but that it was erased"
    assert harness.redis.ttl(left[0]) > 0
    with pytest.raises(NotFound):
        await harness.queue.get(ME, job.id)
