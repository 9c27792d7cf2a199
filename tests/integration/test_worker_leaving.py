"""Workers that are asked to leave, that are killed, and that cannot start."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE, FULL_DISK_EXIT_CODE
from gpu_worker.service_watch import ServiceWatch
from serinette import brake
from serinette.job import AttemptOutcome, JobStatus, WaitingCode
from serinette.presence import TROUBLES, WorkerStage
from tests.gateways import gateway
from tests.jobs import charged_attempts
from tests.pod import Pod, pod
from tests.processes import below, eventually, eventually_gone
from tests.servers import small_tmpfs


@pytest.fixture
def worker_pod(tmp_path: Path, redis_url: str) -> Iterator[Pod]:
    with pod(tmp_path, redis_url) as made:
        yield made


def test_a_drain_lets_the_song_finish_and_leaves_nothing(worker_pod: Pod) -> None:
    process = worker_pod.start()
    job_id = worker_pod.submit("slow 3")
    worker_pod.wait_step(job_id)
    later = worker_pod.submit()
    processes = below(process.pid)
    busy = worker_pod.settings.keys.busy("default")
    presence = worker_pod.presence()
    assert presence and worker_pod.redis.smembers(busy) == {presence.name.encode()}
    process.terminate()
    worker_pod.wait_stage(WorkerStage.DRAINING)
    assert worker_pod.redis.scard(busy) == 0, "KEDA would start another in its place"
    assert process.wait(30) == 0, worker_pod.log()
    entry = worker_pod.entry(job_id)
    assert entry.status is JobStatus.SUCCEEDED
    assert len(entry.attempts) == 1
    assert worker_pod.board.waiting() == [later], "no new job is taken"
    assert worker_pod.presence() is None
    assert eventually_gone(processes)
    assert list((worker_pod.directory / "work").glob("run-*")) == []


@pytest.mark.parametrize("how", ["its time to drain is over", "it is asked twice"])
def test_a_song_that_cannot_finish_is_given_back(worker_pod: Pod, how: str) -> None:
    in_time = how == "its time to drain is over"
    process = worker_pod.start(drain_timeout_s=1 if in_time else 3600)
    job_id = worker_pod.submit("slow 4", attempts=1)
    worker_pod.wait_step(job_id)
    process.terminate()
    if not in_time:
        time.sleep(1.2)
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, worker_pod.log()
    entry = worker_pod.entry(job_id)
    assert [attempt.outcome for attempt in entry.attempts] == [AttemptOutcome.RETURNED]
    assert worker_pod.board.waiting() == [job_id]
    if in_time:
        worker_pod.start()
        entry = worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)
        assert (charged_attempts(entry), len(entry.attempts)) == (0, 2), "the next worker generates it, uncharged"


def test_nothing_outlives_a_killed_supervisor_and_two_share_a_work_dir(worker_pod: Pod) -> None:
    one, other = worker_pod.start(), worker_pod.start()
    for process in (one, other):
        worker_pod.child(process, "tests.engines")
        worker_pod.child(process, "gpu_worker.slot")
    ready = "engine ready"
    assert eventually(lambda: worker_pod.log().count(ready) == 2), worker_pod.log()
    processes = below(one.pid)
    one.kill()
    assert eventually_gone(processes)
    worker_pod.wait_over(worker_pod.submit(), JobStatus.SUCCEEDED)
    assert worker_pod.log().count(ready) == 2, "the other engine was not disturbed"
    other.send_signal(signal.SIGINT)
    assert other.wait(15) == 0, "an idle one leaves at once"


def test_a_song_outlives_the_pod_that_generated_it(worker_pod: Pod) -> None:
    """The store is away, and the pod dies with the song on its disk: the container that comes again brings it."""
    store, aside = (worker_pod.directory / name for name in ("store", "store-aside"))

    def parcels() -> list[Path]:
        return list((worker_pod.directory / "work" / "spool").glob("*/*/job.json"))

    process = worker_pod.start(spool_max_bytes=1)
    worker_pod.wait_over(worker_pod.submit(), JobStatus.SUCCEEDED)  # its slot has opened the store
    store.rename(aside)
    store.touch()  # a plain file where a directory was: it answers nothing but errors
    job_id = worker_pod.submit()
    assert eventually(lambda: len(parcels()) == 1), worker_pod.log()
    assert eventually(lambda: (seen := worker_pod.presence()) is not None and seen.trouble == "store")
    attempt_id = worker_pod.entry(job_id).attempts[0].id
    family = below(process.pid)
    for member in family:
        os.kill(member.pid, signal.SIGKILL)
    assert eventually_gone(family)
    store.unlink()
    aside.rename(store)
    worker_pod.start(spool_max_bytes=1)
    assert eventually(lambda: parcels() == []), worker_pod.log()
    attempt = worker_pod.record(job_id).attempt
    assert attempt and attempt.id == attempt_id
    worker_pod.wait_over(job_id, JobStatus.SUCCEEDED)
    assert len(list(worker_pod.store.list("songs"))) == 4, "generated once"


def test_a_model_that_cannot_be_configured_ends_the_worker(worker_pod: Pod) -> None:
    process = worker_pod.start(model="unloadable")
    assert process.wait(30) == CONFIGURATION_EXIT_CODE
    assert "cannot be loaded" in worker_pod.log()
    left = worker_pod.presence()
    assert left and (left.stage, left.trouble) == (WorkerStage.DRAINING, "configuration")
    (failure,) = brake.failures(worker_pod.redis, worker_pod.settings.keys, "default")
    assert failure.message == "the engine refuses its configuration; see its log"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes no file."""
    with small_tmpfs(tmp_path / "full", "nr_inodes=1") as place:
        yield place


def test_a_job_says_what_ended_the_worker_that_it_waits_for(worker_pod: Pod, full_disk: Path) -> None:
    """In words of ours: what the worker's log says of its places is its operator's."""
    own = worker_pod.settings
    with gateway(worker_pod.directory, worker_pod.redis_url, own.store_url) as up:
        job = httpx.post(f"{up.url}/v1/jobs", json={"prompt": "a waltz"}).json()

        def waits() -> tuple[str, str]:
            seen = httpx.get(f"{up.url}/v1/jobs/{job['id']}").json()
            return seen["waiting_code"], seen["waiting_for"]

        assert waits()[0] == "worker"
        for settings in ({"work_dir": full_disk}, {"model": "roomless"}):
            assert worker_pod.start(**settings).wait(30) == FULL_DISK_EXIT_CODE, worker_pod.log()
            assert eventually(lambda: waits() == ("disk", TROUBLES[WaitingCode.DISK])), (waits(), worker_pod.log())
            worker_pod.redis.zremrangebyrank(own.keys.workers, 0, -1)
        assert str(full_disk) in worker_pod.log()
        worker_pod.start()
        assert eventually(lambda: httpx.get(f"{up.url}/v1/jobs/{job['id']}").json()["status"] == "succeeded", 60)


def test_an_engine_that_never_gets_ready_is_reported_and_restarted(worker_pod: Pod) -> None:
    worker_pod.start(model="slow 60", engine_start_timeout_s=2)
    job_id = worker_pod.submit()
    assert eventually(lambda: "times in a row" in getattr(worker_pod.presence(), "message", "")), worker_pod.log()
    assert len(brake.failures(worker_pod.redis, worker_pod.settings.keys, "default")) >= 2
    assert worker_pod.entry(job_id).attempts == (), "a job waits for a worker that can generate it"
    assert worker_pod.board.waiting() == [job_id]


# What a cluster's DNS is to a pod behind an air gap: names in a file, and for others the error of the DNS beyond it.
DNS = """
import os, pathlib, socket
ask = socket.getaddrinfo
def getaddrinfo(host, *rest, **options):
    if str(host).endswith((".test", ".svc")):
        if host not in pathlib.Path(os.environ["NAMES"]).read_text().split():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return ask(host, *rest, **options)
socket.getaddrinfo = getaddrinfo
"""


def test_an_uninstalled_release_keeps_no_worker(worker_pod: Pod) -> None:
    """Without its Services nothing can be kept: its node goes back at once, and not after its time to drain."""
    (worker_pod.directory / "sitecustomize.py").write_text(DNS)
    names = worker_pod.directory / "names"
    names.write_text("kubernetes.default.svc valkey.test store.test")
    path = os.pathsep.join(filter(None, (str(worker_pod.directory), worker_pod.environment.get("PYTHONPATH"))))
    worker_pod.environment |= {"NAMES": str(names), "PYTHONPATH": path}
    port = worker_pod.redis_url.rpartition(":")[2]
    there = {"redis_url": f"redis://valkey.test:{port}", "own_services": "valkey.test,store.test"}
    process = worker_pod.start(services_gone_s=0.5, **there)
    job_id = worker_pod.submit("slow 60")
    worker_pod.wait_step(job_id)
    processes = below(process.pid)
    process.terminate()
    worker_pod.wait_stage(WorkerStage.DRAINING)
    names.write_text("kubernetes.default.svc valkey.test")
    time.sleep(2.2)  # a look, and far longer than services_gone_s
    assert process.poll() is None, "a store that is away alone, or for a while, loses no song"
    names.write_text("kubernetes.default.svc")
    assert process.wait(15) == 0, worker_pod.log()
    assert "nothing is left to finish for" in worker_pod.log()
    assert eventually_gone(processes)


def test_a_name_that_comes_back_begins_anew() -> None:
    there = {"kubernetes.default.svc"}
    watch = ServiceWatch({"a", "b"}, 0, there.__contains__)
    assert not watch.gone, "nothing was asked yet"
    watch.look()
    assert watch.gone
    there.add("b")
    watch.look()
    assert not watch.gone
    there.clear()
    watch.look()
    assert not watch.gone, "the cluster's DNS itself is away"
