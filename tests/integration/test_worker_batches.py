"""A worker pod that generates several jobs at once: what one of them does to the others."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from uuid import uuid4

import pytest

from serinette.job import JobStatus, Stage
from serinette.media import decode
from serinette.spec import AudioFormat
from tests import servers
from tests.jobs import charged_attempts
from tests.pod import Pod, pod
from tests.processes import eventually

# Longer than a busy machine keeps a working engine from reporting.
STALL_TIMEOUT_S = 8


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    directory = tmp_path_factory.mktemp("pod")
    settings = {"slots": 4, "max_batch": 8, "stall_timeout_s": STALL_TIMEOUT_S}
    with servers.valkey(directory / "valkey") as server, pod(directory, server.connection_url, settings) as made:
        made.start()
        made.wait_stage()
        yield made


def together(pod: Pod, *songs: dict[str, object]) -> list[str]:
    """Submit songs that are generated as one batch: they come while another kind of song is generated."""
    token = f"token{uuid4().hex}"
    first = pod.submit(f"until {token}", duration_s=2)
    assert eventually(lambda: stage_of(pod, first) is Stage.CONDITIONING)
    jobs = [pod.submit(**song) for song in songs]  # type: ignore[arg-type]  # as the caller spells them
    assert eventually(lambda: all(stage_of(pod, job_id) is Stage.WAITING_FOR_ENGINE for job_id in jobs), 60)
    tokens = pod.settings.work_dir / "tokens"
    tokens.mkdir(parents=True, exist_ok=True)
    (tokens / token).touch()
    return jobs


def stage_of(pod: Pod, job_id: str) -> Stage | None:
    progress = pod.entry(job_id).progress
    return progress.stage if progress else None


@pytest.mark.parametrize(("prompt", "code"), [("crash", "engine_crashed"), ("hang", "engine_stalled")])
def test_the_song_that_crashes_the_engine_is_found_and_its_neighbours_are_not_charged(
    worker: Pod, prompt: str, code: str
) -> None:
    poison, *neighbours = together(worker, {"prompt": prompt, "attempts": 1}, {"prompt": "a"}, {"prompt": "b"})
    entry = worker.wait_over(poison, JobStatus.FAILED)
    assert entry.error and entry.error.code == code
    for neighbour in neighbours:
        assert len(worker.wait_over(neighbour, JobStatus.SUCCEEDED).attempts) == 1


def test_a_poison_job_is_alone_from_its_second_attempt_on(worker: Pod) -> None:
    (poison,) = together(worker, {"prompt": "crash", "attempts": 2})
    assert charged_attempts(worker.wait_over(poison, JobStatus.FAILED)) == 2
    assert "suspected" in worker.log()


def test_a_batch_that_does_not_fit_is_generated_by_halves_and_no_job_is_charged(worker: Pod) -> None:
    jobs = together(worker, {"prompt": "room for 2", "variations": 3}, {"prompt": "room for 2", "variations": 2})
    for job_id in jobs:
        assert len(worker.wait_over(job_id, JobStatus.SUCCEEDED).attempts) == 1
        assert len(worker.record(job_id).result.artifacts) in {2, 3}  # type: ignore[union-attr]  # it succeeded
    assert "did not fit" in worker.log()


def test_songs_encoded_while_others_are_generated_are_those_of_a_pod_that_does_one_thing_at_a_time(
    worker: Pod,
) -> None:
    songs = [{"seed": seed, "duration_s": seed, "format": AudioFormat.MP3} for seed in range(1, 6)]
    one_by_one = [song_digest(worker, worker.submit(**song)) for song in songs]  # type: ignore[arg-type]  # as above
    jobs = [worker.submit(**song) for song in songs]  # type: ignore[arg-type]  # as above
    assert [song_digest(worker, job_id) for job_id in jobs] == one_by_one
    assert len(set(one_by_one)) == len(songs)


def song_digest(pod: Pod, job_id: str) -> str:
    """What a song sounds like, to the bit; its file's tags name its job too."""
    pod.wait_over(job_id, JobStatus.SUCCEEDED)
    (artifact,) = pod.record(job_id).result.artifacts  # type: ignore[union-attr]  # it succeeded
    samples = decode(io.BytesIO(pod.store.get(artifact.key)), 48_000, 2, 60)
    return hashlib.sha256(samples.tobytes()).hexdigest()
