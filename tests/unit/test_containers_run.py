"""Containers through the controller's rounds: a real Valkey, a real S3, the real Kubernetes client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from controller.containers.manifest import JOB_LABEL
from controller.settings import ControllerSettings
from serinette.job import AttemptOutcome, JobStatus
from serinette.jobs import calls
from serinette.names import Keys, Lane, manifest_key, output_key
from tests import servers
from tests.kube import kubernetes_api
from tests.unit.container_bench import ACCOUNT, NAMESPACE, ON, TENANT, ContainerBench, ago, terminated
from tests.unit.test_store import s3_settings


@pytest.fixture
def bench(
    redis: Redis, redis_url: str, s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ContainerBench]:
    shared = s3_settings(s3, monkeypatch, tmp_path.name)
    where = {"store_url": shared.store_url, "store_endpoint": s3.endpoint, "store_public_endpoint": s3.endpoint}
    settings = ControllerSettings.model_validate({"redis_url": redis_url, **where, **ON})
    with kubernetes_api() as kube:
        yield ContainerBench(redis, kube, settings, kube.kubeconfig(tmp_path))


def start(bench: ContainerBench, **spec: Any) -> str:
    """A container whose Kubernetes Job is there."""
    job_id = bench.submit(**spec)
    bench.round(2)
    assert bench.job(job_id)
    return job_id


def test_from_its_lane_to_its_record(bench: ContainerBench) -> None:
    job_id = start(bench, gpus=1, command=["separate"])
    bench.pod(job_id)
    one = f"{ago(9)[:-1]}.000000001Z one\n"
    bench.log(job_id, one)
    bench.round(2)
    assert bench.entry(job_id).progress.stage == "computing"  # type: ignore[union-attr]
    assert bench.board.events(job_id)[-2:] == ["log", "progress"]
    bench.log(job_id, one + f"{ago(1)[:-1]}.000000002Z two\n")
    bench.pod(job_id, "Succeeded", terminated(0))
    bench.put_output(job_id, "adapter/weights.bin", b"weights")
    bench.round(2)
    record = bench.assert_over(job_id, JobStatus.SUCCEEDED)
    assert record.run
    assert [(output.name, output.size_bytes) for output in record.run.outputs] == [("adapter/weights.bin", 7)]
    assert bench.store.get(str(record.run.log_key)) == b"one\ntwo\n"
    usage = bench.entry(job_id).usage
    assert usage and usage.size_bytes == 7 + 8
    assert usage.gpu_s == pytest.approx(10, abs=1.1)
    assert bench.created(job_id) == 1


def test_what_a_failed_one_wrote_is_kept(bench: ContainerBench) -> None:
    job_id = start(bench)
    bench.put_output(job_id, "part.bin", b"part", left_out=["'a b' may not be called so"])
    bench.pod(job_id, "Failed", terminated(2))
    bench.round(2)
    record = bench.assert_over(job_id, JobStatus.FAILED)
    assert record.error and record.run
    assert record.error.message == "the command ended with exit code 2; its log says more"
    assert (record.run.exit_code, len(record.run.outputs)) == (2, 1)
    assert record.run.warnings == ("'a b' may not be called so",)


def test_failures_that_may_pass_are_tried_again(bench: ContainerBench) -> None:
    job_id = start(bench, retries=1)
    first = bench.attempt_id(job_id)
    bench.pod(job_id, "Failed", terminated(1))
    bench.round(5)  # the old Job goes before the new one comes
    assert bench.attempt_id(job_id) != first
    bench.pod(job_id, "Failed", terminated(1))
    bench.round(2)
    bench.assert_over(job_id, JobStatus.FAILED)
    outcomes = [attempt.outcome for attempt in bench.entry(job_id).attempts]
    assert outcomes == [AttemptOutcome.FAILED, AttemptOutcome.FAILED]
    assert bench.created(job_id) == 2


def test_what_the_cluster_ends_is_not_charged(bench: ContainerBench) -> None:
    job_id = start(bench)
    for attempt in (1, 2, 3):
        bench.pod(job_id, "Failed", reason="Evicted", message="The node was low on resource: memory.")
        bench.round(5 if attempt < 3 else 2)
    assert [each.outcome for each in bench.entry(job_id).attempts] == ["returned", "returned", "failed"]
    bench.assert_over(job_id, JobStatus.FAILED)


def test_canceled_while_it_runs(bench: ContainerBench) -> None:
    job_id = start(bench, gpus=2)
    bench.pod(job_id, main={"running": {"startedAt": ago(1000)}})
    bench.board.cancel(job_id)
    bench.put_output(job_id, "so-far.bin", b"so far")
    bench.round(2)
    assert bench.assert_over(job_id, JobStatus.CANCELED).run.outputs[0].name == "so-far.bin"  # type: ignore[union-attr]
    usage = bench.entry(job_id).usage
    assert usage and 2000 <= usage.gpu_s < 2600, "its GPUs were its tenant's until then, outputs and all"


def test_a_kubernetes_job_that_was_deleted_is_begun_again(bench: ContainerBench) -> None:
    job_id = start(bench)
    bench.kube.remove("batch/v1", "Job", f"container-{job_id}", "jobs")
    bench.round(3)
    assert [each.outcome for each in bench.entry(job_id).attempts] == ["returned", "running"]


def test_another_deployments_containers_in_the_namespace_are_left_alone(bench: ContainerBench) -> None:
    ours = start(bench)
    theirs = bench.job(ours)
    assert theirs
    theirs["metadata"] |= {"name": "container-theirs", "labels": {**theirs["metadata"]["labels"], JOB_LABEL: "theirs"}}
    for instance, left in (("other", True), ("studio", False)):
        theirs["metadata"]["labels"]["app.kubernetes.io/instance"] = instance
        bench.kube.add(theirs)
        bench.round()
        assert (bench.kube.get("batch/v1", "Job", "container-theirs", NAMESPACE) is not None) is left


def test_a_job_goes_with_its_service_account(bench: ContainerBench) -> None:
    """By Kubernetes' own garbage collector. An account that was made anew is another: its uid is asked each time."""
    for uid in ("first", "second"):
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "uid": uid}}
        bench.kube.add(account, namespace=NAMESPACE)
        job = bench.job(start(bench))
        assert job
        (owner,) = job["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "v1", "kind": "ServiceAccount", "name": ACCOUNT, "uid": uid}
        assert job["spec"]["template"]["spec"]["serviceAccountName"] == ACCOUNT
    bench.kube.remove("v1", "ServiceAccount", ACCOUNT, NAMESPACE)
    waiting = bench.submit()
    bench.round(2)
    assert bench.job(waiting) is None and not bench.entry(waiting).status.ended


def test_gpus_are_shared_by_a_stated_number_and_in_order(bench: ContainerBench) -> None:
    two, one, none = bench.submit(gpus=2), bench.submit(gpus=1), bench.submit()
    high = bench.submit(gpus=1, lane=Lane.HIGH)
    bench.round(3)
    assert bench.job(high), "the highest lane begins first"
    assert [bench.job(each) for each in (two, one, none)] == [None] * 3, "what does not fit holds up those behind it"
    bench.pod(high, "Succeeded", terminated(0))
    bench.round(3)
    assert bench.job(two) and not bench.job(one)


def test_so_many_run_at_once_and_the_next_when_one_has_ended(bench: ContainerBench) -> None:
    bench.settings = bench.settings.model_copy(update={"containers_max_jobs": 5})
    jobs = [bench.submit() for _ in range(6)]
    bench.round(2)
    assert sum(bench.job(each) is not None for each in jobs) == 5
    for each in jobs[:5]:
        bench.pod(each, "Succeeded", terminated(0))
    bench.round(3)
    assert bench.job(jobs[5])
    for each in jobs[:5]:
        assert bench.entry(each).status is JobStatus.SUCCEEDED
        assert bench.created(each) == 1


def test_a_log_of_ten_gigabytes_is_cut_with_a_note(bench: ContainerBench) -> None:
    job_id = start(bench)
    bench.pod(job_id)
    bench.log(job_id, "".join(f"{ago(9)[:-1]}.{n:09}Z {'x' * 99}\n" for n in range(1, 200)))
    bench.round(2)
    asked = next(each for each in bench.kube.requests if each.path.endswith("/log"))
    assert int(asked.query["limitBytes"]) < 2_000_000, "no more is read at once than is kept"
    before = len(bench.kube.requests)
    bench.round()
    assert not [each for each in bench.kube.requests[before:] if each.path.endswith("/log")], "nor ever again"
    bench.pod(job_id, "Succeeded", terminated(0))
    bench.round(2)
    log = bench.store.get(str(bench.assert_over(job_id, JobStatus.SUCCEEDED).run.log_key))  # type: ignore[union-attr]
    assert len(log) < 1024 + 200
    assert log.endswith(b"[serinette: the log is longer than the 1024 bytes that are kept; the rest is cut]\n")


def test_an_event_says_where_its_part_of_a_log_begins(bench: ContainerBench) -> None:
    """Of a long piece it holds the end alone: a client then reads the whole log."""
    bench.settings = bench.settings.model_copy(update={"containers_log_bytes": 1_000_000})
    job_id = start(bench)
    bench.pod(job_id)
    first = f"{ago(9)[:-1]}.000000001Z ä\n"
    for log in (first, f"{first}{ago(1)[:-1]}.000000002Z {'ä' * 70_000}\n"):
        bench.log(job_id, log)
        bench.round(2)
    events: Any = bench.redis.xrange(Keys().events(job_id))
    parts = [json.loads(fields[b"data"]) for _, fields in events if fields[b"type"] == b"log"]
    whole: Any = bench.redis.get(Keys().log(job_id))
    for part in parts:
        text = part["text"].encode()
        assert whole[part["start_bytes"] :][: len(text)] == text
    assert [(part["attempt"], part["start_bytes"] > 3) for part in parts] == [(1, False), (1, True)]


def test_names_that_lead_elsewhere_are_left_out(bench: ContainerBench) -> None:
    job_id = start(bench)
    bench.put_output(job_id, "../../others/job/job.json", b"evil")
    bench.pod(job_id, "Succeeded", terminated(0))
    bench.round(2)
    run = bench.assert_over(job_id, JobStatus.SUCCEEDED).run
    assert run and run.outputs == ()
    assert run.warnings == ("'../../others/job/job.json' may not be the name of an output",)


def test_an_input_that_is_gone_and_a_cluster_that_refuses(bench: ContainerBench) -> None:
    gone = bench.submit(inputs=[{"path": "a", "artifact": "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10/0"}])
    bench.round(3)
    error = bench.assert_over(gone, JobStatus.FAILED).error
    assert error and error.message == "inputs: a is not in the store any more"
    bench.kube.fail("/jobs", 422, "spec.template: Invalid value", method="POST", times=1)
    refused = bench.submit()
    bench.round(3)
    error = bench.assert_over(refused, JobStatus.FAILED).error
    assert error and "the cluster refuses the container: 422 spec.template" in error.message


def test_an_api_server_that_is_away_is_waited_for(bench: ContainerBench) -> None:
    job_id = bench.submit()
    bench.round()
    bench.kube.fail("/", 0)
    bench.round(2)
    assert not bench.entry(job_id).status.ended
    bench.kube.recover()
    bench.round()
    assert bench.job(job_id)


@pytest.mark.parametrize("status", [403, 409, 410, 500])
def test_one_that_the_api_server_does_not_take_holds_up_no_other(bench: ContainerBench, status: int) -> None:
    """As where a quota, or a webhook of the cluster, refuses it."""
    runs = start(bench)
    bench.kube.fail("/jobs", status, method="POST")
    waits = bench.submit(lane=Lane.HIGH)
    bench.round(2)
    bench.pod(runs, "Succeeded", terminated(0))
    bench.round(2)
    assert (bench.entry(runs).status, bench.job(runs)) == (JobStatus.SUCCEEDED, None)
    assert not bench.entry(waits).status.ended
    bench.kube.recover()
    bench.round()
    assert bench.job(waits)


@pytest.mark.parametrize("manifest", [[], {"outputs": [{"name": "a", "index": "one"}]}, {"outputs": 1}])
def test_a_manifest_that_cannot_be_read_holds_up_no_other(bench: ContainerBench, manifest: Any) -> None:
    evil, runs = start(bench, gpus=0), start(bench)
    key = manifest_key(TENANT, evil, bench.attempt_id(evil))
    bench.store.put(key, json.dumps(manifest).encode())
    for each in (evil, runs):
        bench.pod(each, "Succeeded", terminated(0))
    bench.round(2)
    bench.assert_over(runs, JobStatus.SUCCEEDED)
    run = bench.assert_over(evil, JobStatus.SUCCEEDED).run
    assert run and run.warnings == ("the manifest of its outputs cannot be read",)


def test_containers_that_cannot_be_read_hold_up_no_other(bench: ContainerBench) -> None:
    running, waiting = start(bench), bench.submit(lane=Lane.HIGH)
    for job_id in (running, waiting):
        bench.redis.hset(Keys().job(job_id), "container", '{"image": "of another version"}')
    assert bench.job(start(bench))
    assert bench.job(running), "another version reads it, and goes on with it"


def test_no_sweep_takes_a_container_away_however_long_the_controller_was_gone(bench: ContainerBench) -> None:
    job_id = start(bench)
    attempt_id = bench.attempt_id(job_id)
    watched_s = int(bench.redis.time()[0]) - 40 * 86_400
    bench.redis.set(f"{Keys().prefix}:serinette:watched", watched_s)
    jobs = bench.board.jobs
    assert (jobs(calls.overdue(20)), jobs(calls.overdue(20))) == ([], [])
    assert bench.redis.delete("rq:worker:controller-containers:executions") == 1  # it expires
    bench.round(2)
    assert bench.attempt_id(job_id) == attempt_id
    bench.pod(job_id, "Succeeded", terminated(0))
    bench.round(2)
    bench.assert_over(job_id, JobStatus.SUCCEEDED)


def test_marks_of_an_attempt_that_ended_elsewhere_go(bench: ContainerBench) -> None:
    job_id = start(bench)
    member = f"{job_id}:{bench.attempt_id(job_id)}"
    bench.board.jobs(calls.erase(job_id, TENANT))
    bench.redis.delete(Keys().job(job_id))  # erased by hand
    bench.round(2)
    assert bench.redis.zscore(Keys().leases, member) is None
    assert bench.job(job_id) is None


def test_the_pod_may_put_what_it_was_given_and_nothing_else(bench: ContainerBench) -> None:
    job_id = start(bench)
    assert bench.redis.zcard(Keys().live) == 1
    text = str(bench.job(job_id))
    assert output_key(TENANT, job_id, bench.attempt_id(job_id), 1) in text
    assert "AWS_SECRET" not in text and "job.json" not in text
