"""Any container as a job, on a node: one release for all, and each test leaves the cluster as it found it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import a_namespace, a_release
from tests.cluster.containers import Containers
from tests.cluster.needs import PID_LIMIT, needs
from tests.cluster.release import Release, until
from tests.cluster.target import Target

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def release(target: Target) -> Iterator[Release]:
    """Installed once: a container needs no more than a gateway and controller."""
    with a_namespace(target) as namespace, a_release(target, namespace) as made:
        made.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        made.install("containers")
        yield made


@pytest.fixture
def containers(release: Release) -> Iterator[Containers]:
    """All that a test started is gone from the cluster when it ends, by itself."""
    made = Containers(release)
    yield made
    made.all_gone()


# Rights and identity of a pod, printed by itself.
CONFINED = """
set -e
id -u
touch /wrong 2>/dev/null && echo "root is writable"
touch /inputs/wrong 2>/dev/null && echo "inputs are writable"
ls /var/run/secrets 2>/dev/null && echo "a token"
env | grep -E "CARRY|SERVICE_HOST.*ONE_|_KEY" && echo "what is not its own"
grep NoNewPrivs:.1 /proc/self/status
grep CapEff:.0000000000000000 /proc/self/status
true
"""


def test_inputs_go_in_and_outputs_and_log_come_back(containers: Containers) -> None:
    first = containers.run("mkdir -p /outputs/a; printf one > /outputs/a/b.txt; echo done; ln -s /etc /outputs/link")
    assert (first["status"], first["run"]["exit_code"], len(first["attempts"])) == ("succeeded", 0, 1), first
    assert [(each["name"], each["size_bytes"]) for each in first["run"]["outputs"]] == [("a/b.txt", 3)]
    assert any("link" in words for words in first["run"]["warnings"]), "it is named, not followed"
    assert containers.output(first, "a/b.txt") == "one"
    assert containers.log(first) == "done\n"
    inputs = [
        {"path": "earlier", "prefix": f"songs/{first['id']}/"},
        {"path": "deep/sound.wav", "upload": containers.upload()},
    ]
    script = "cat /inputs/earlier/a/b.txt; head -c 4 /inputs/deep/sound.wav > /outputs/magic; echo $WORD '$(WORD)'"
    second = containers.run(script, inputs=inputs, env={"WORD": "$(PATH)"})
    assert second["status"] == "succeeded", second
    assert containers.output(second, "magic") == "RIFF"
    assert containers.log(second) == "one$(PATH) $(WORD)\n"


def test_it_is_confined(containers: Containers) -> None:
    job = containers.run(CONFINED)
    assert job["status"] == "succeeded", containers.log(job)
    answer = containers.log(job).split()
    assert answer == ["65532", "NoNewPrivs:", "1", "CapEff:", "0" * 16], answer


def test_its_log_is_live_and_complete(containers: Containers) -> None:
    (job_id,) = containers.post("for n in $(seq 90); do echo line $n; sleep 1; done")
    containers.computing(job_id)
    answer = json.loads(containers.release.inside("python", "-c", A_LINE, job_id, timeout_s=300))
    assert answer["data"]["text"].startswith("line "), answer
    assert containers.jobs([job_id])[0]["status"] == "running"
    (job,) = containers.ended([job_id])
    assert containers.log(job) == "".join(f"line {n}\n" for n in range(1, 91))


# The next event of its log.
A_LINE = """
import sys, httpx
with httpx.stream("GET", f"http://127.0.0.1:8019/v1/jobs/{sys.argv[1]}/events", timeout=300) as answer:
    print(next(line for line in answer.iter_lines() if '"type":"log"' in line).removeprefix("data: "))
"""


def test_it_fails_and_is_retried(containers: Containers) -> None:
    job = containers.run("echo x > /outputs/kept; echo no; exit 3", retries=1)
    assert (job["status"], job["error"]["code"], job["run"]["exit_code"]) == ("failed", "container_failed", 3), job
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["failed", "failed"]
    assert containers.output(job, "kept") == "x\n", "outputs are kept, whether it succeeded or not"
    assert containers.log(job) == "no\n"


# Image, command, bounds; code of the error, words of it.
ENDS = {
    "timeout": ("echo x > /outputs/kept; sleep 600", {"timeout_s": 20}, "timeout", "longer than its timeout_s"),
    "memory": (
        "echo x > /outputs/kept; python -c 'print(len(bytearray(1 << 30)))'",
        {"retries": 2},
        "out_of_memory",
        "ask for more",
    ),
    "no such command": ("", {"command": ["/not/there"], "retries": 2}, "container_failed", "could not be started"),
    "bad image": ("", {"image": "IMAGE/not/there:1"}, "image_unavailable", "cannot be pulled"),
}


@pytest.mark.parametrize("name", ENDS)
def test_its_end_is_reported_in_one_sentence(containers: Containers, name: str) -> None:
    script, spec, code, words = ENDS[name]
    named = json.loads(json.dumps(spec).replace("IMAGE", containers.release.target.registry))
    job = containers.run(script, **named)
    assert (job["status"], job["error"]["code"]) == ("failed", code), job
    assert words in job["error"]["message"]
    assert len(job["attempts"]) == 1, "another attempt would end alike"
    if "kept" in script:
        assert containers.output(job, "kept") == "x\n"


def test_cancel_while_it_runs(containers: Containers) -> None:
    (job_id,) = containers.post("trap 'exit 1' TERM; echo x > /outputs/kept; echo began; sleep 600 & wait")
    containers.computing(job_id)
    containers.cancel(job_id)
    (job,) = containers.ended([job_id], 200)
    assert job["status"] == "canceled", job
    assert containers.output(job, "kept") == "x\n"


def test_cancel_while_no_node_has_it(containers: Containers) -> None:
    (job_id,) = containers.post("true", cpu=8)
    until("its pod waits", lambda: [pod["status"]["phase"] for pod in containers.pods(job_id)] == ["Pending"], 120)
    containers.cancel(job_id)
    (job,) = containers.ended([job_id], 120)
    assert (job["status"], job["run"]["exit_code"]) == ("canceled", None), job


def test_a_deleted_pod_is_not_charged(containers: Containers) -> None:
    (job_id,) = containers.post("sleep 15")
    containers.computing(job_id)
    (pod,) = containers.pods(job_id)
    containers.release.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=1")
    (job,) = containers.ended([job_id])
    assert (job["status"], [attempt["outcome"] for attempt in job["attempts"]]) == (
        "succeeded",
        ["returned", "succeeded"],
    ), job


def test_controller_killed_meanwhile_creates_nothing_twice(containers: Containers) -> None:
    before = containers.made()
    ids = containers.post("sleep 12; echo x > /outputs/kept", 6)
    for _ in range(3):
        containers.kill_controller()
        until("some move", lambda: containers.there() or not containers.jobs(ids[:1])[0]["position"], 120)
    jobs = containers.ended(ids)
    assert {(job["status"], len(job["attempts"])) for job in jobs} == {("succeeded", 1)}, jobs
    assert {output["name"] for job in jobs for output in job["run"]["outputs"]} == {"kept"}
    containers.all_gone()
    assert len(containers.made() - before) == len(ids), "one pod each"


def test_what_the_cluster_cleaned_up_by_its_time_is_run_again(containers: Containers) -> None:
    """Its Job ends while the controller is away for longer than `ttlSecondsAfterFinished` says."""
    (job_id,) = containers.post("sleep 5; echo x > /outputs/kept")
    until("it is there", lambda: containers.pods(job_id), 120)
    deployment = f"deploy/{containers.release.prefix}-controller"
    containers.release.kubectl("scale", deployment, "--replicas=0")
    try:
        patch = ["patch", "job", f"container-{job_id}", "--type=merge", "--patch"]
        containers.release.kubectl(*patch, '{"spec":{"ttlSecondsAfterFinished":1}}')
        containers.all_gone()
    finally:
        containers.release.kubectl("scale", deployment, "--replicas=1")
    (job,) = containers.ended([job_id])
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["returned", "succeeded"], job


def test_fifty_at_once(containers: Containers) -> None:
    """They wait for each other, not only for the node: no more than `containers.maxJobs` are there at once."""
    ids = containers.post("echo $((6 * 7)) > /outputs/kept", 50, memory_mib=64)
    jobs = containers.ended(ids, 1500)
    assert {(job["status"], len(job["attempts"])) for job in jobs} == {("succeeded", 1)}, [
        job["error"] for job in jobs if job["status"] != "succeeded"
    ]
    assert {output["size_bytes"] for job in jobs for output in job["run"]["outputs"]} == {3}


# Ten gigabytes, as fast as it can.
FLOOD = "yes $(printf %01000d 7) | head -c 10000000000"


def test_a_log_of_ten_gigabytes_is_cut(containers: Containers) -> None:
    job = containers.run(FLOOD, timeout_s=60, disk_mib=512)
    log = containers.log(job)
    assert job["status"] == "failed"
    assert len(log) < 5 * 1024 * 1024
    assert log.endswith("bytes that are kept; the rest is cut]\n")


BOMB = """python -c '
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
'"""


@needs(PID_LIMIT)
def test_a_fork_bomb_is_contained(containers: Containers) -> None:
    """By the kubelet's podPidsLimit, or by the container's memory without one."""
    (bomb,) = containers.post(BOMB, timeout_s=40, memory_mib=256)
    containers.computing(bomb)
    assert containers.run("echo well")["status"] == "succeeded", "others run beside it"
    (job,) = containers.ended([bomb])
    assert (job["status"], job["error"]["code"] in {"timeout", "out_of_memory", "container_failed"}) == ("failed", True)


def test_no_node_takes_it(containers: Containers) -> None:
    containers.release.install("impatient")
    job = containers.run("true", cpu=8, retries=2)
    assert (job["status"], job["error"]["code"], len(job["attempts"])) == ("failed", "unschedulable", 1), job
    assert "Insufficient cpu" in job["error"]["message"]


def test_uninstall_leaves_nothing(release: Release) -> None:
    containers = Containers(release)
    running, pending = containers.post("sleep 600")[0], containers.post("true", cpu=8)[0]
    containers.computing(running)
    until("both are there", lambda: containers.pods(pending), 60)
    release.uninstall()
    containers.all_gone()
    until("nothing is left", lambda: not release.left_over(), 900)
