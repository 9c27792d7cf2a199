"""Submits that are repeated, and jobs that Redis knows in brief."""

from __future__ import annotations

import pytest

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
from tests.unit.queue_desk import ME, OPTIONS, SPEC, Desk

pytestmark = pytest.mark.shared_valkey


@pytest.mark.parametrize(
    "written", [{"variations": 1}, {"seed": None}, {"duration_s": 60.0, "format": "mp3"}], ids=["one", "null", "two"]
)
async def test_a_default_that_is_written_out_is_no_other_song(desk: Desk, written: dict[str, object]) -> None:
    first = await desk.submit(key="k")
    spec = GenerationSpec.model_validate({"prompt": "jazz", **written})
    assert spec.digest() == SPEC.digest()
    assert (await desk.submit(spec, key="k")).id == first.id


async def test_a_replay_has_its_place(desk: Desk) -> None:
    await desk.submit()
    job = await desk.submit(key="k")
    again = await desk.submit(key="k")
    assert (job.position, again.position, again.spec.seed) == (2, 2, job.spec.seed)
    assert again.model_copy(update={"eta_s": job.eta_s}) == job


async def test_a_replay_needs_nothing_that_the_first_submit_needed(desk: Desk) -> None:
    desk.slot.keep_upload("upload-1", duration_s=10)
    spec = GenerationSpec(task=Task.COVER, source_audio="upload-1")
    job = await desk.submit(spec, key="k")
    desk.store.delete_prefix(names.upload_prefix(ME, "upload-1"))
    assert (await desk.submit(spec, key="k")).id == job.id
    with pytest.raises(InvalidSpec):
        await desk.submit(spec, key="another")
    with pytest.raises(IdempotencyConflict):
        await desk.submit(spec.model_copy(update={"prompt": "other"}), key="k")


def away(*_: object) -> bytes:
    raise StoreUnavailable("the store does not answer")


async def test_a_job_that_redis_knows_in_brief(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, filters and replays need no store; the job itself is read there."""
    job = await desk.submit(key="k", labels={"album": "blue"})
    desk.slot.claim(job.id)
    result = desk.slot.succeed(job.id, [b"song"])
    failed = await desk.submit()
    desk.slot.claim(failed.id, "attempt2")
    desk.slot.fail(failed.id, JobError(code="out_of_memory", message="too long"), "attempt2")
    for each in (job, failed):
        desk.slot.shrink(each.id)
    assert (await desk.queue.get(ME, job.id)).result == result
    assert [found and found.result for found in await desk.queue.find(ME, [job.id])] == [result]
    assert (await desk.submit(key="k")).result == result
    with pytest.raises(Conflict):
        await desk.queue.cancel(ME, job.id)
    with pytest.raises(NotFound):
        await desk.queue.get("other", job.id)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "get", away)
        listed = (await desk.queue.list(ME)).jobs
        assert [(found.id, found.status) for found in listed] == [(failed.id, "failed"), (job.id, "succeeded")]
        assert listed[0].error
        assert listed[0].error.code == "out_of_memory"
        assert (listed[1].spec.prompt, listed[1].labels, listed[1].ended_at is None) == ("jazz", job.labels, False)
        for filters in ({"label": ("album", "blue")}, {"status": JobStatus.SUCCEEDED}):
            assert [found.id for found in (await desk.queue.list(ME, **filters)).jobs] == [job.id]
        assert (await desk.queue.list("other")).jobs == ()
        again, created = await desk.queue.submit(ME, SPEC, OPTIONS, idempotency_key="k")
        assert (again.id, again.status, created) == (job.id, JobStatus.SUCCEEDED, False)
        with pytest.raises(IdempotencyConflict):
            await desk.submit(GenerationSpec(prompt="rock"), key="k")
        with pytest.raises(Conflict):
            await desk.queue.cancel(ME, job.id)
        with pytest.raises(StoreUnavailable):
            await desk.queue.get(ME, job.id)
    await desk.queue.erase(ME, job.id)
    left = [key for key in desk.redis.scan_iter() if job.id.encode() in key]
    assert left == [desk.keys.erased_job(job.id).encode()], "but that it was erased"
    assert desk.redis.ttl(left[0]) > 0
    with pytest.raises(NotFound):
        await desk.queue.get(ME, job.id)
