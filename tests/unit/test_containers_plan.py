"""What a round does about containers, and what became of them: tables of every case."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from controller.containers.manifest import ATTEMPT_LABEL, JOB_LABEL
from controller.containers.plan import (
    CUT,
    Action,
    Held,
    cut,
    ending_of,
    new_lines,
    orphans,
    plan_attempt,
    stage_of,
    startable,
)
from serinette.container import CONTAINERS_POOL, ContainerSpec
from serinette.errors import WorkerLost
from serinette.job import Attempt, JobError, JobStatus, Stage
from serinette.jobs import Entry
from serinette.settings import ContainerSettings
from tests.jobs import submission
from tests.unit.container_bench import IMAGE, ago, pod_of, terminated

# The pods of the tables are made as this module is read.
AT = datetime.now(UTC)
SETTINGS = ContainerSettings(containers_start_s=900, containers_grace_s=60)
TIMEOUT_S = 600
NO_NODE = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient gpu."}
TAKEN = {"type": "DisruptionTarget", "status": "True"}


def waits(reason: str, message: str = "why") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def fetching(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "fetch", "state": state}]


def deleted(pod: dict[str, Any]) -> dict[str, Any]:
    return {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": ago(5)}}


def ended(pod: dict[str, Any]) -> tuple[str, str, bool, str] | None:
    ending = ending_of(pod, TIMEOUT_S, SETTINGS, AT)
    if ending is None:
        return None
    error = ending.error or JobError(code="", message="")
    lost = ending.error is not None and ending.error.code == WorkerLost.code
    how = "lost" if lost else "failed" if ending.error else "succeeded"
    return how, error.code, error.retryable, error.message


@pytest.mark.parametrize(
    "pod",
    [
        pod_of("Pending", waits("ContainerCreating")),
        pod_of("Pending", conditions=[NO_NODE], age_s=899),
        pod_of("Pending", waits("ImagePullBackOff"), age_s=100),
        pod_of("Pending", waits("CreateContainerConfigError"), age_s=100),
        pod_of("Pending", waits("ErrImagePull"), age_s=800, startTime=ago(60)),  # its node came late
        pod_of("Pending", waits("ErrImagePull"), age_s=800, startTime=ago(700),
               initContainerStatuses=fetching(terminated(0))),  # its inputs came late
        pod_of("Running", {"running": {"startedAt": ago(10)}}, startTime=ago(650)),
        pod_of("Running", terminated(0)),  # its outputs are being put
    ],
)  # fmt: skip
def test_what_goes_on(pod: dict[str, Any]) -> None:
    assert ended(pod) is None


@pytest.mark.parametrize(
    ("pod", "how", "code", "retryable", "words"),
    [
        (pod_of("Succeeded", terminated(0)), "succeeded", "", False, ""),
        (pod_of("Failed", terminated(1)), "failed", "container_failed", True, "exit code 1;"),
        (pod_of("Failed", terminated(137)), "failed", "container_failed", True, "exit code 137 (signal 9)"),
        (pod_of("Failed", terminated(137, "OOMKilled")), "failed", "out_of_memory", False, "more memory"),
        (pod_of("Failed", terminated(128, "StartError", message="no such file")), "failed", "container_failed", False,
         "could not be started: no such file"),
        (pod_of("Failed", terminated(143), reason="DeadlineExceeded"), "failed", "timeout", False, "timeout_s"),
        (pod_of("Failed", reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit"),
         "failed", "container_failed", False, "disk_mib"),
        (pod_of("Failed", reason="Evicted", message="The node was low on resource: memory."), "lost", "worker_lost",
         True, "Evicted"),
        (pod_of("Failed", terminated(143), conditions=[TAKEN]), "lost", "worker_lost", True, "taken away"),
        (pod_of("Failed", terminated(137), reason="NodeShutdown"), "lost", "worker_lost", True, "NodeShutdown"),
        (deleted(pod_of("Failed", terminated(143))), "lost", "worker_lost", True, "pod was deleted"),
        (deleted(pod_of("Failed", terminated(137, "OOMKilled"))), "failed", "out_of_memory", False, "more memory"),
        (deleted(pod_of("Succeeded", terminated(0))), "succeeded", "", False, ""),
        (pod_of("Failed"), "lost", "worker_lost", True, "before the command began"),
        (pod_of("Failed", initContainerStatuses=fetching(terminated(3))), "failed", "container_failed", False, "input"),
        (pod_of("Failed", initContainerStatuses=fetching(terminated(1))), "lost", "worker_lost", True, "fetched"),
        (pod_of("Pending", waits("InvalidImageName")), "failed", "image_unavailable", False, "pulled: why"),
        (pod_of("Pending", waits("ImagePullBackOff"), age_s=130), "failed", "image_unavailable", False, "pulled"),
        (pod_of("Pending", initContainerStatuses=fetching(waits("ErrImagePull")), age_s=130), "failed",
         "image_unavailable", False, "pulled"),
        (pod_of("Pending", waits("CreateContainerConfigError", 'secret "hub" not found'), age_s=130), "failed",
         "container_failed", False, 'secret "hub" not found'),
        (pod_of("Pending", conditions=[NO_NODE], age_s=901), "failed", "unschedulable", False, "too little free gpu"),
        (pod_of("Running", {"running": {}}, startTime=ago(961)), "lost", "worker_lost", True, "in time"),
    ],
)  # fmt: skip
def test_each_end_is_one_sentence(pod: dict[str, Any], how: str, code: str, retryable: bool, words: str) -> None:
    ending = ended(pod)
    assert ending and ending[:3] == (how, code, retryable)
    assert words in ending[3] and "\n" not in ending[3]


def test_how_long_it_ran_is_the_commands_own_time() -> None:
    ending = ending_of(pod_of("Succeeded", terminated(0)), TIMEOUT_S, SETTINGS, AT)
    assert ending and ending.run_s == pytest.approx(10, abs=1.1)


@pytest.mark.parametrize(
    ("pod", "stage"),
    [
        (None, Stage.STARTING),
        (pod_of("Pending", waits("ContainerCreating")), Stage.STARTING),
        (pod_of("Pending", initContainerStatuses=fetching({"running": {"startedAt": ago(1)}})), Stage.FETCHING),
        (pod_of("Running", {"running": {"startedAt": ago(1)}}), Stage.COMPUTING),
        (pod_of("Running", terminated(0)), Stage.UPLOADING),
    ],
)
def test_where_it_is(pod: dict[str, Any] | None, stage: Stage) -> None:
    assert stage_of(pod) is stage


def held(
    *, gpus: int = 0, attempt: int = 1, retries_left: int = 0, placed: bool = True, canceled: bool = False
) -> Held:
    """Of job `j`, by its record; its attempt is `a`."""
    spec = ContainerSpec(image=IMAGE, gpus=gpus)
    made = submission("j", spec, pool=CONTAINERS_POOL, timeout_s=TIMEOUT_S, max_attempts=1 + retries_left)
    state: dict[str, Any] = {"placed": "a"} if placed else {}
    state |= {"cancel": "1"} if canceled else {}
    entry = Entry("j", {name: str(value) for name, value in {**made.fields, **state}.items()})
    return Held(entry, Attempt(number=attempt, id="a", worker="w", started_at=AT), spec)


def job_of(attempt: str = "a", age_s: float = 5, deleting_s: float | None = None, **more: Any) -> dict[str, Any]:
    labels = {ATTEMPT_LABEL: attempt, JOB_LABEL: "j"}
    metadata: dict[str, Any] = {"name": "container-j", "labels": labels, "creationTimestamp": ago(age_s)}
    if deleting_s is not None:
        metadata["deletionTimestamp"] = ago(deleting_s)
    return {"metadata": metadata, **more}


RUNNING = pod_of("Running", {"running": {"startedAt": ago(10)}})
DONE = pod_of("Succeeded", terminated(0))
FAILED = {"conditions": [{"type": "Failed", "status": "True", "message": "Job has reached its limit"}]}


@pytest.mark.parametrize(
    ("given", "job", "pod", "action"),
    [
        # nothing is there yet; or it was, and the books know that; or it is, and they do not
        ({"placed": False}, None, None, Action.CREATE),
        ({}, None, None, Action.RETURN),
        ({"placed": False}, job_of(), None, Action.ADOPT),
        ({"placed": False}, job_of(), DONE, Action.ADOPT),
        # it is there
        ({}, job_of(), None, Action.WAIT),
        ({}, job_of(age_s=901), None, Action.RETURN),
        ({}, job_of(age_s=901, spec={"suspend": True}), None, Action.WAIT),
        ({}, job_of(status=FAILED), None, Action.RETURN),
        ({}, job_of(), RUNNING, Action.WAIT),
        ({}, job_of(), DONE, Action.FINISH),
        # the name is still an earlier attempt's, or a stranger's
        ({"placed": False}, job_of("before"), RUNNING, Action.DELETE),
        ({"placed": False}, job_of("before", deleting_s=9000), RUNNING, Action.WAIT),
        ({"placed": False}, {"metadata": {"name": "container-j"}}, None, Action.DELETE),
        # canceled
        ({"canceled": True, "placed": False}, None, None, Action.FINISH),
        ({"canceled": True}, None, None, Action.FINISH),
        ({"canceled": True}, job_of(), RUNNING, Action.DELETE),
        ({"canceled": True}, job_of(deleting_s=100), RUNNING, Action.WAIT),
        ({"canceled": True}, job_of(deleting_s=200), RUNNING, Action.FINISH),
    ],
)
def test_what_is_planned_for_an_attempt(given: dict[str, Any], job: Any, pod: Any, action: Action) -> None:
    plan = plan_attempt(held(**given), job, pod, SETTINGS, AT)
    assert plan.action is action
    if action is Action.FINISH:
        assert plan.status is (JobStatus.CANCELED if given.get("canceled") else JobStatus.SUCCEEDED)


PASSING = pod_of("Failed", terminated(1))
LASTING = pod_of("Failed", terminated(137, "OOMKilled"))
LOST = pod_of("Failed", terminated(143), conditions=[TAKEN])


@pytest.mark.parametrize(
    ("given", "pod", "action", "status"),
    [
        ({}, DONE, Action.FINISH, JobStatus.SUCCEEDED),
        ({"retries_left": 1}, PASSING, Action.RETRY, None),
        ({"retries_left": 0}, PASSING, Action.FINISH, JobStatus.FAILED),
        ({"retries_left": 9}, LASTING, Action.FINISH, JobStatus.FAILED),
        ({"attempt": 2}, LOST, Action.RETURN, None),
        ({"attempt": 3}, LOST, Action.FINISH, JobStatus.FAILED),
        ({"attempt": 9, "retries_left": 1}, LOST, Action.RETRY, None),
    ],
)
def test_which_ends_are_tried_again(
    given: dict[str, Any], pod: dict[str, Any], action: Action, status: JobStatus | None
) -> None:
    plan = plan_attempt(held(**given), job_of(), pod, SETTINGS, AT)
    assert (plan.action, plan.status) == (action, status)


@pytest.mark.parametrize(
    ("waiting", "running", "found"),
    [
        ([1, 1, 1], [], ["0", "1"]),
        ([2, 0], [1], []),
        ([0, 0, 0, 0], [0], ["0", "1"]),
        ([1], [2], []),
    ],
)
def test_which_jobs_may_begin(waiting: list[int], running: list[int], found: list[str]) -> None:
    queue = [(str(place), ContainerSpec(image=IMAGE, gpus=gpus)) for place, gpus in enumerate(waiting)]
    assert startable(queue, [held(gpus=gpus) for gpus in running], max_gpus=2, max_jobs=3) == found


def test_kubernetes_jobs_that_no_attempt_holds_go() -> None:
    assert orphans([job_of()], set()) == ["container-j"]
    assert orphans([job_of(deleting_s=1)], set()) == []
    assert orphans([job_of()], {"j"}) == []


T = [f"2026-01-01T00:00:00.00000000{n}Z" for n in range(4)]


@pytest.mark.parametrize(
    ("read", "after", "size", "lines"),
    [
        ("", "", 0, None),
        (f"{T[1]} a\n{T[2]} b\n", "", 0, ("a\nb\n", T[2])),
        (f"{T[1]} a\n{T[2]} b\n", T[1], 2, ("b\n", T[2])),
        (f"{T[1]} a\n{T[2]} b\n", T[2], 4, None),
        (f"{T[1]} a", "", 0, ("a\n", T[1])),
        (f"{T[1]} a\n{T[2]} too long\n", "", 0, ("a\n" + cut(8), CUT)),
        (f"{T[3]} x\n", CUT, 2, None),
        (f"{T[1]} \n{T[2]} b\n", "", 0, ("\nb\n", T[2])),
        (f"{T[1]} 1\rz 2\n{T[2]} b\n", "", 0, ("1\rz 2\nb\n", T[2])),  # a progress bar
        (f"{T[1]} 1\u2028z\x0c2\n", "", 0, ("1\u2028z\x0c2\n", T[1])),
        ("unable to retrieve container logs for containerd://1", "", 0, None),  # a node, in place of a log
        (f"{T[1]} a\n{T[2][:15]}", "", 0, ("a\n", T[1])),  # cut off where no more was asked for
    ],
)
def test_which_lines_of_a_log_are_new(read: str, after: str, size: int, lines: tuple[str, str] | None) -> None:
    assert new_lines(read, after, size, most_bytes=8) == lines


def test_a_line_that_still_grows_is_taken_when_it_is_whole() -> None:
    read = f"{T[1]} a\n{T[2]} 10%\r"
    assert new_lines(read, "", 0, 99, ended=False) == ("a\n", T[1])
    assert new_lines(f"{T[2]} 10%\r", T[1], 2, 99, ended=False) is None
    assert new_lines(read + "20%\n", T[1], 2, 99, ended=False) == ("10%\r20%\n", T[2])
