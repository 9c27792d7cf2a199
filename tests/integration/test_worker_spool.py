"""The store goes away from a real worker pod: its songs wait on disk, also through the pod's own death."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serinette.job import JobStatus
from tests.jobs import charged_attempts
from tests.pod import Pod, pod
from tests.processes import below, eventually, eventually_gone


@pytest.fixture
def worker_pod(tmp_path: Path, redis_url: str) -> Iterator[Pod]:
    with pod(tmp_path, redis_url, {"slots": 1}) as made:
        yield made


def warm_up(pod: Pod) -> None:
    """Have its one slot open the store before that goes away."""
    pod.wait_over(pod.submit(), JobStatus.SUCCEEDED)


def leave(pod: Pod) -> None:
    """A plain file where the store's directory was: it answers nothing but errors."""
    (pod.directory / "store").rename(pod.directory / "store-aside")
    (pod.directory / "store").touch()


def come_back(pod: Pod) -> None:
    (pod.directory / "store").unlink()
    (pod.directory / "store-aside").rename(pod.directory / "store")


def parcels(pod: Pod) -> list[Path]:
    return list((pod.directory / "work" / "spool").glob("*/*/job.json"))


def test_songs_wait_for_the_store_while_more_are_generated(worker_pod: Pod) -> None:
    worker_pod.start()
    warm_up(worker_pod)
    leave(worker_pod)
    jobs = [worker_pod.submit() for _ in range(5)]
    assert eventually(lambda: len(parcels(worker_pod)) == 5), worker_pod.log()
    assert all(worker_pod.entry(job_id).status is JobStatus.RUNNING for job_id in jobs)
    assert sorted(worker_pod.held()) == sorted(jobs), "held, and beating"
    come_back(worker_pod)
    for job_id in jobs:
        entry = worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)
        assert len(entry.attempts) == 1
        assert worker_pod.store.head(worker_pod.record(job_id).artifacts[0].key)
    assert eventually(lambda: parcels(worker_pod) == [])


def test_a_full_spool_stops_claims(worker_pod: Pod) -> None:
    worker_pod.start(spool_max_bytes=1)
    warm_up(worker_pod)
    leave(worker_pod)
    first = worker_pod.submit()
    assert eventually(lambda: len(parcels(worker_pod)) == 1), worker_pod.log()
    second = worker_pod.submit()
    assert not eventually(lambda: worker_pod.entry(second).attempts, timeout_s=2.5)
    come_back(worker_pod)
    for job_id in (first, second):
        worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)


def test_a_song_outlives_the_pod_that_generated_it(worker_pod: Pod) -> None:
    process = worker_pod.start()
    warm_up(worker_pod)
    leave(worker_pod)
    job_id = worker_pod.submit()
    assert eventually(lambda: len(parcels(worker_pod)) == 1), worker_pod.log()
    attempt_id = worker_pod.entry(job_id).attempts[0].id
    family = below(process.pid)
    for member in family:
        os.kill(member.pid, signal.SIGKILL)
    assert eventually_gone(family)
    come_back(worker_pod)
    worker_pod.start()  # the container again, with the same disk
    assert eventually(lambda: parcels(worker_pod) == []), worker_pod.log()
    attempt = worker_pod.record(job_id).attempt
    assert attempt and attempt.id == attempt_id
    worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)
    assert len(list(worker_pod.store.list("songs"))) == 4, "generated once"


def test_a_worker_that_leaves_gives_back_what_waits(worker_pod: Pod) -> None:
    process = worker_pod.start(drain_timeout_s=1)
    warm_up(worker_pod)
    leave(worker_pod)
    job_id = worker_pod.submit()
    assert eventually(lambda: len(parcels(worker_pod)) == 1), worker_pod.log()
    process.terminate()
    assert process.wait(60) == 0, worker_pod.log()
    assert worker_pod.board.waiting() == [job_id]
    assert charged_attempts(worker_pod.entry(job_id)) == 0
    assert len(parcels(worker_pod)) == 1
    come_back(worker_pod)
    worker_pod.start()
    worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)
