"""What is done about containers, and what became of them: tables of every transition."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from controller.containers.judging import Ending, How, Patience, judge, lost, stage_of
from controller.containers.logs import CUT, Chunk, cut_words, fresh
from controller.containers.manifest import ATTEMPT_LABEL, JOB_LABEL
from controller.containers.plan import (
    Action,
    Held,
    Verdict,
    Waiting,
    decide,
    startable,
    strays,
    verdict_of,
)
from serinette.job import JobError, Stage
from tests.unit.container_bench import ago, pod_of, terminated

# The pods of the tables are made as this module is read.
AT = datetime.now(UTC)
PATIENCE = Patience(timeout_s=600, start_s=900, grace_s=60)
NO_NODE = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient gpu."}
TAKEN = {"type": "DisruptionTarget", "status": "True"}


def waits(reason: str, message: str = "why") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def fetching(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "fetch", "state": state}]


def deleted(pod: dict[str, Any]) -> dict[str, Any]:
    return {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": ago(5)}}


def told(pod: dict[str, Any]) -> tuple[str, str, bool, str] | None:
    ending = judge(pod, PATIENCE, AT)
    if ending is None:
        return None
    error = ending.error or JobError(code="", message="")
    return ending.how.value, error.code, error.retryable, error.message


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
    assert told(pod) is None


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
        (pod_of("Pending", conditions=[NO_NODE], age_s=901), "failed", "unschedulable", False, "Insufficient gpu"),
        (pod_of("Running", {"running": {}}, startTime=ago(961)), "lost", "worker_lost", True, "in time"),
    ],
)  # fmt: skip
def test_each_end_is_one_sentence(pod: dict[str, Any], how: str, code: str, retryable: bool, words: str) -> None:
    ending = told(pod)
    assert ending and ending[:3] == (how, code, retryable)
    assert words in ending[3] and "\n" not in ending[3]


def test_how_long_it_ran_is_the_commands_own_time() -> None:
    ending = judge(pod_of("Succeeded", terminated(0)), PATIENCE, AT)
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


def held(**more: Any) -> Held:
    given: dict[str, Any] = {"job_id": "j", "attempt_id": "a", "attempt": 1, "gpus": 0, "retries_left": 0}
    return Held(**{**given, "placed": True, "canceled": False, "patience": PATIENCE, **more})


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
        ({}, None, None, Action.END),
        ({"placed": False}, job_of(), None, Action.ADOPT),
        ({"placed": False}, job_of(), DONE, Action.ADOPT),
        # it is there
        ({}, job_of(), None, Action.WAIT),
        ({}, job_of(age_s=901), None, Action.END),
        ({}, job_of(age_s=901, spec={"suspend": True}), None, Action.WAIT),
        ({}, job_of(status=FAILED), None, Action.END),
        ({}, job_of(), RUNNING, Action.WAIT),
        ({}, job_of(), DONE, Action.END),
        # the name is still an earlier attempt's, or a stranger's
        ({"placed": False}, job_of("before"), RUNNING, Action.DELETE),
        ({"placed": False}, job_of("before", deleting_s=9000), RUNNING, Action.WAIT),
        ({"placed": False}, {"metadata": {"name": "container-j"}}, None, Action.DELETE),
        # canceled
        ({"canceled": True, "placed": False}, None, None, Action.CANCEL),
        ({"canceled": True}, None, None, Action.CANCEL),
        ({"canceled": True}, job_of(), RUNNING, Action.DELETE),
        ({"canceled": True}, job_of(deleting_s=100), RUNNING, Action.WAIT),
        ({"canceled": True}, job_of(deleting_s=200), RUNNING, Action.CANCEL),
    ],
)
def test_the_next_step(given: dict[str, Any], job: Any, pod: Any, action: Action) -> None:
    assert decide(held(**given), job, pod, AT).action is action


PASSING = Ending(How.FAILED, JobError(code="container_failed", message="", retryable=True))
LASTING = Ending(How.FAILED, JobError(code="out_of_memory", message=""))


@pytest.mark.parametrize(
    ("given", "ending", "verdict"),
    [
        ({}, Ending(How.SUCCEEDED), Verdict.SUCCEED),
        ({"retries_left": 1}, PASSING, Verdict.RETRY),
        ({"retries_left": 0}, PASSING, Verdict.FAIL),
        ({"retries_left": 9}, LASTING, Verdict.FAIL),
        ({"attempt": 2}, lost("x"), Verdict.RETURN),
        ({"attempt": 3}, lost("x"), Verdict.FAIL),
        ({"attempt": 9, "retries_left": 1}, lost("x"), Verdict.RETRY),
    ],
)
def test_who_is_tried_again(given: dict[str, Any], ending: Ending, verdict: Verdict) -> None:
    assert verdict_of(held(**given), ending) is verdict


@pytest.mark.parametrize(
    ("waiting", "running", "found"),
    [
        ([1, 1, 1], [], ["0", "1"]),
        ([2, 0], [1], []),
        ([0, 0, 0, 0], [0], ["0", "1"]),
        ([1], [2], []),
    ],
)
def test_who_may_begin(waiting: list[int], running: list[int], found: list[str]) -> None:
    queue = [Waiting(str(place), gpus) for place, gpus in enumerate(waiting)]
    assert startable(queue, [held(gpus=gpus) for gpus in running], max_gpus=2, max_jobs=3) == found


def test_jobs_of_nobody_go() -> None:
    assert strays([job_of()], []) == ["container-j"]
    assert strays([job_of(deleting_s=1)], []) == []
    assert strays([job_of()], [held()]) == []


T = [f"2026-01-01T00:00:00.00000000{n}Z" for n in range(4)]


@pytest.mark.parametrize(
    ("told", "after", "size", "chunk"),
    [
        ("", "", 0, None),
        (f"{T[1]} a\n{T[2]} b\n", "", 0, Chunk("a\nb\n", T[2])),
        (f"{T[1]} a\n{T[2]} b\n", T[1], 2, Chunk("b\n", T[2])),
        (f"{T[1]} a\n{T[2]} b\n", T[2], 4, None),
        (f"{T[1]} a", "", 0, Chunk("a\n", T[1])),
        (f"{T[1]} a\n{T[2]} too long\n", "", 0, Chunk("a\n" + cut_words(8), CUT)),
        (f"{T[3]} x\n", CUT, 2, None),
        (f"{T[1]} \n{T[2]} b\n", "", 0, Chunk("\nb\n", T[2])),
        (f"{T[1]} 1\rz 2\n{T[2]} b\n", "", 0, Chunk("1\rz 2\nb\n", T[2])),  # a progress bar
        (f"{T[1]} 1\u2028z\x0c2\n", "", 0, Chunk("1\u2028z\x0c2\n", T[1])),
        ("unable to retrieve container logs for containerd://1", "", 0, None),  # a node, in place of a log
        (f"{T[1]} a\n{T[2][:15]}", "", 0, Chunk("a\n", T[1])),  # cut off where no more was asked for
    ],
)
def test_which_lines_of_a_log_are_new(told: str, after: str, size: int, chunk: Chunk | None) -> None:
    assert fresh(told, after, size, most_bytes=8) == chunk


def test_a_line_that_still_grows_is_taken_when_it_is_whole() -> None:
    told = f"{T[1]} a\n{T[2]} 10%\r"
    assert fresh(told, "", 0, 99, ended=False) == Chunk("a\n", T[1])
    assert fresh(f"{T[2]} 10%\r", T[1], 2, 99, ended=False) is None
    assert fresh(told + "20%\n", T[1], 2, 99, ended=False) == Chunk("10%\r20%\n", T[2])
