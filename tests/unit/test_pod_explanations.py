"""Why pods are not ready, in tables of pods, nodes and events as clusters report them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controller.pod_explanations import Explanation, holdup, lacks_workers, pod_start, refused, unscaled
from serinette.pools import PoolFacts

AT = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
GPU = "nvidia.com/gpu"

NO_GPU = (
    "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {dedicated: db}. "
    "preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod."
)
NO_MEMORY = "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available: 2 No victims."
DRA = "0/1 nodes are available: 1 cannot allocate all claims. no new claims to deallocate, preemption: 0/1 nodes."
NO_TOLERATION = "0/1 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}. preemption: none."


def ago(seconds: float) -> str:
    return (AT - timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def pod(name: str = "w-1", phase: str = "Pending", ready: str = "False", **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready}, *status.pop("conditions", [])]
    return {"metadata": {"name": name}, "status": {"phase": phase, "conditions": conditions, **status}}


def unscheduled(message: str, name: str = "w-1", reason: str = "Unschedulable") -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return pod(name, conditions=[condition])


def placed(name: str = "w-1", phase: str = "Pending", **container: Any) -> dict[str, Any]:
    status = {"name": "worker", "image": "r/worker:1", "ready": False, "restartCount": 0, **container}
    return pod(name, phase, conditions=[{"type": "PodScheduled", "status": "True"}], containerStatuses=[status])


def waiting(reason: str, message: str = "", name: str = "w-1", **container: Any) -> dict[str, Any]:
    return placed(name, state={"waiting": {"reason": reason, "message": message}}, **container)


def event(reason: str, message: str = "", seconds_ago: float = 5, name: str = "w-1") -> dict[str, Any]:
    return {
        "metadata": {"name": f"{name}.{reason}", "creationTimestamp": ago(3000)},
        "involvedObject": {"kind": "Pod", "name": name},
        "reason": reason,
        "message": message,
        "lastTimestamp": ago(seconds_ago),
    }


def node(name: str, gpus: int = 0, *, ready: bool = True, cordoned: bool = False) -> dict[str, Any]:
    allocatable = {"cpu": "8", **({GPU: str(gpus)} if gpus else {})}
    conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
    spec = {"unschedulable": True} if cordoned else {}
    return {"metadata": {"name": name}, "spec": spec, "status": {"allocatable": allocatable, "conditions": conditions}}


NODES = [node("a"), node("b", 4), node("c", 2)]
READY = pod("w-9", "Running", "True")
LEAVING = {**unscheduled(NO_GPU, "w-0"), "metadata": {"name": "w-0", "deletionTimestamp": ago(1)}}
CRASHED = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": ago(60)}}
OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": ago(60)}}
LONG_AGO = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": ago(86_400)}}


@pytest.mark.parametrize(
    ("pods", "events", "nodes", "words"),
    [
        ([], [], NODES, ""),
        ([READY], [], NODES, ""),
        ([LEAVING], [], NODES, ""),
        ([unscheduled(NO_GPU)], [], NODES, "no node has a free nvidia.com/gpu: 6 are on 2 nodes, none free for it"),
        ([unscheduled("")], [], [node("b", 1)], "no node has a free nvidia.com/gpu: 1 is on 1 node, none free for it"),
        ([unscheduled(NO_GPU)], [], [node("a")], "no node has a free nvidia.com/gpu: none of the 1 nodes has any"),
        ([unscheduled(NO_GPU)], [], None, "no node has a free nvidia.com/gpu"),
        (
            [unscheduled(NO_GPU)],
            [],
            [node("b", 4, cordoned=True), node("c", 2, ready=False), node("d", 1)],
            "no node has a free nvidia.com/gpu: 7 are on 3 nodes, 2 of them cordoned or not ready",
        ),
        (
            [unscheduled(NO_GPU)],
            [event("FailedScheduling", NO_GPU), event("TriggeredScaleUp", "pod triggered scale-up: [{gpu 0->1}]")],
            NODES,
            "no node has a free nvidia.com/gpu: 6 are on 2 nodes, none free for it, "
            "and the autoscaler is adding a node",
        ),
        (
            [unscheduled(NO_GPU)],
            [event("Nominated", "Pod should schedule on: nodeclaim/gpu-x7")],
            None,
            "no node has a free nvidia.com/gpu, and the autoscaler is adding a node",
        ),
        (
            [unscheduled(NO_GPU)],
            [
                event("TriggeredScaleUp", "pod triggered scale-up: [{gpu 0->1}]", 900),
                event("NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max node group size reached", 30),
            ],
            None,
            "no node has a free nvidia.com/gpu, and the autoscaler adds none",
        ),
        (
            [unscheduled(NO_GPU)],
            [event("FailedScaleUp", "Node scale up failed: GCE out of resources", name="another")],
            None,
            "no node has a free nvidia.com/gpu",
        ),
        ([unscheduled(NO_MEMORY)], [], NODES, "no node takes its pod: too little free memory"),
        ([unscheduled("0/1 nodes are available: 1 of a new kind.")], [], NODES, "no node takes its pod"),
        (
            [unscheduled(DRA)],
            [],
            NODES,
            "no node takes its pod: no free device",
        ),
        (
            [unscheduled(NO_TOLERATION)],
            [],
            NODES,
            "no node takes its pod: taints that it does not tolerate",
        ),
        (
            [unscheduled("Scheduling is blocked due to non-empty scheduling gates", reason="SchedulingGated")],
            [],
            NODES,
            "its pod is gated: the cluster's queue (Kueue, say) has not admitted it",
        ),
        ([waiting("ContainerCreating")], [], NODES, "its container is being created"),
        (
            [waiting("ContainerCreating")],
            [event("Scheduled", "", 9), event("Pulling", 'Pulling image "r/worker:1"', 8)],
            NODES,
            "its node pulls the image",
        ),
        (
            [waiting("ContainerCreating")],
            [event("Pulling", "", 80), event("Pulled", "Successfully pulled image in 70s", 8)],
            NODES,
            "its container is being created",
        ),
        (
            [waiting("ContainerCreating")],
            [event("FailedMount", 'MountVolume.SetUp failed for volume "redis-ca": secret "redis-ca" not found')],
            NODES,
            "a volume cannot be mounted",
        ),
        (
            [waiting("ImagePullBackOff", 'Back-off pulling image "r/worker:1": 401 Unauthorized')],
            [],
            NODES,
            "its image cannot be pulled",
        ),
        (
            [waiting("CreateContainerConfigError", 'secret "s3" not found')],
            [],
            NODES,
            "its container cannot be started",
        ),
        (
            [waiting("CrashLoopBackOff", "back-off 5m0s", restartCount=7, lastState=CRASHED)],
            [],
            NODES,
            "its container ends soon after each start",
        ),
        (
            [placed(phase="Running", state={"running": {}}, restartCount=4, lastState=OOM)],
            [],
            NODES,
            "its container ends soon after each start",
        ),
        (
            [placed(phase="Running", state={"running": {}}, restartCount=4, lastState=LONG_AGO)],
            [],
            NODES,
            "its container is up and has not loaded its model yet",
        ),
        ([pod(phase="Failed", reason="Evicted")], [], NODES, "a pod failed: Evicted"),
        ([pod(phase="Running")], [], NODES, "its pod runs and is not ready"),
        # The one that is furthest along is what a job waits for.
        (
            [unscheduled(NO_GPU), waiting("ContainerCreating", name="w-2"), waiting("ErrImagePull", name="w-3")],
            [],
            NODES,
            "its container is being created",
        ),
    ],
)
def test_what_holds_a_pool(pods: list[Any], events: list[Any], nodes: list[Any] | None, words: str) -> None:
    assert holdup(pods, events, nodes, GPU, AT).words == words


@pytest.mark.parametrize(
    ("pods", "counts"),
    [
        ([], (0, 0)),
        ([READY, LEAVING, unscheduled(NO_GPU)], (2, 0)),  # want of a node is no waste
        ([waiting("ImagePullBackOff"), waiting("ErrImagePull", name="w-2")], (2, 2)),
        ([waiting("CrashLoopBackOff", lastState=CRASHED), READY], (2, 1)),
        ([placed(phase="Running", state={"running": {}}, restartCount=2, lastState=CRASHED)], (1, 0)),
        ([placed(phase="Running", state={"running": {}}, restartCount=3, lastState=CRASHED)], (1, 1)),
        ([placed(phase="Running", state={"running": {}}, restartCount=9, lastState=LONG_AGO)], (1, 0)),
    ],
)
def test_pods_that_will_not_come_by_waiting_are_counted(pods: list[Any], counts: tuple[int, int]) -> None:
    found = holdup(pods, [], None, GPU, AT)
    assert (found.pods, found.stuck) == counts
    assert bool(found.stuck_words) == bool(found.stuck)


RAW = 'Back-off pulling image "r/worker:1": 401 Unauthorized'


@pytest.mark.parametrize(
    ("pods", "detail"),
    [
        ([READY], ""),
        ([unscheduled(NO_MEMORY)], NO_MEMORY),
        ([waiting("ImagePullBackOff", RAW)], f"r/worker:1: {RAW}"),
        ([waiting("CreateContainerConfigError", 'secret "s3" not found')], 'secret "s3" not found'),
        (
            [placed(phase="Running", state={"running": {}}, restartCount=4, lastState=OOM)],
            "its container has ended 4 times, at last with out of memory: raise the limit of its pool; see its log",
        ),
        (
            [waiting("ErrImagePull", "no host", name="w-2"), unscheduled(NO_MEMORY)],
            f"r/worker:1: no host; {NO_MEMORY}",
        ),
    ],
)
def test_operators_read_the_clusters_own_sentences(pods: list[Any], detail: str) -> None:
    found = holdup(pods, [], NODES, "", AT)
    assert found.detail == detail
    assert not detail or detail not in found.words + found.stuck_words


def test_the_words_do_not_change_with_the_clusters() -> None:
    """Kubernetes says one cause in turn with two reasons, and tenants read the brake's."""
    two = [waiting("ErrImagePull", "401"), waiting("ImagePullBackOff", "Back-off pulling image")]
    first, second = (holdup([each], [], None, GPU, AT).stuck_words for each in two)
    assert first == second != ""


def test_words_are_short_whatever_the_cluster_says() -> None:
    found = holdup([waiting("ErrImagePull", "x " * 5_000)], [], None, GPU, AT)
    assert len(found.words) < 200 and len(found.detail) < 1_100


def scaled_object(*conditions: tuple[str, str, str], **annotations: str) -> dict[str, Any]:
    """In the form of KEDA 2.20, whose conditions stay as they are when it dies."""
    named = {f"autoscaling.keda.sh/{name.replace('_', '-')}": value for name, value in annotations.items()}
    seen = [{"type": kind, "status": status, "message": message} for kind, status, message in conditions]
    spec = {"pollingInterval": 10, "minReplicaCount": 0, "maxReplicaCount": 4}
    return {"metadata": {"name": "w", "annotations": named}, "spec": spec, "status": {"conditions": seen}}


WELL = ("Ready", "True", "ScaledObject is defined correctly and is ready for scaling")
IDLE = ("Active", "False", "Scaling is not performed because triggers are not active")
BROKEN = ("Ready", "False", "error creating redis scaler: WRONGPASS at valkey.music.svc")
NOTHING = "nothing has scaled this pool for over"
PAUSED = "an operator has paused its scaling"


@pytest.mark.parametrize(
    ("seen", "for_s", "words"),
    [
        (scaled_object(WELL, IDLE), 59, None),  # its next poll is to come
        (scaled_object(WELL, IDLE), 60, f"{NOTHING} 60 s"),
        (scaled_object(), 60, f"{NOTHING} 60 s"),
        (None, 29, None),
        (None, 30, f"{NOTHING} 30 s"),
        (scaled_object(WELL, paused="true"), 0, PAUSED),
        (scaled_object(WELL, paused_replicas="0"), 0, PAUSED),
        (scaled_object(WELL, paused_scale_out="true"), 0, PAUSED),
        (scaled_object(WELL, paused_scale_in="true"), 0, None),
        (scaled_object(WELL, paused="false"), 0, None),
        (scaled_object(WELL, paused="False"), 0, None),
        (scaled_object(WELL, paused="yes"), 0, PAUSED),  # no word of Go's for true or false: KEDA pauses
        (scaled_object(WELL, paused_scale_out="f"), 0, None),
        (scaled_object(BROKEN, IDLE), 0, "its scaling fails, and the operator's log says why"),
    ],
)
def test_a_pool_that_nothing_scales(seen: dict[str, Any] | None, for_s: float, words: str | None) -> None:
    found = unscaled(seen, for_s)
    assert (found.text if found else None) == words
    assert not found or "valkey.music" not in found.text
    if found and "fails" in found.text:
        assert "WRONGPASS" in found.detail


QUOTA = 'pods "s-worker-turbo-5f9-" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 8'
SECURITY = 'pods "s-worker-turbo-5f9-x" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes'
CLASS = 'pods "s-worker-turbo-5f9-x" is forbidden: pod rejected: RuntimeClass "nvidia" not found'
REFUSES = "the cluster refuses its pods"


def refusal(message: str, seconds_ago: float = 5, name: str = "s-worker-turbo-5f9") -> dict[str, Any]:
    made = event("FailedCreate", message, seconds_ago, name)
    return {**made, "involvedObject": {"kind": "ReplicaSet", "name": name}}


@pytest.mark.parametrize(
    ("events", "words", "detail"),
    [
        ([], None, ""),
        ([refusal(QUOTA)], f"{REFUSES}: a quota is used up", QUOTA),
        ([refusal(SECURITY)], f"{REFUSES}: the namespace's Pod Security forbids them", SECURITY),
        ([refusal(CLASS)], f"{REFUSES}: their RuntimeClass is not there", CLASS),
        ([refusal("Internal error at 10.0.0.7")], REFUSES, "Internal error at 10.0.0.7"),
        ([refusal(QUOTA, 60), refusal(CLASS, 5)], f"{REFUSES}: their RuntimeClass is not there", CLASS),
        ([refusal(QUOTA, 3000)], None, ""),  # it was retried since, and was not refused
        ([refusal(QUOTA, name="s-worker-turbo-xl-5f9")], None, ""),
        ([refusal(QUOTA, name="other-s-worker-turbo-5f9")], None, ""),
    ],
)
def test_pods_that_the_api_server_refuses(events: list[Any], words: str | None, detail: str) -> None:
    found = refused(events, "s-worker-turbo", AT)
    assert (found.text if found else None, found.detail if found else "") == (words, detail)


def test_a_refusal_is_named_before_keda_is_accused_and_after_what_keda_says() -> None:
    no = Explanation(0, REFUSES)
    assert unscaled(scaled_object(WELL), 0, no) == no == unscaled(None, 999, no)
    for said in (scaled_object(WELL, paused="true"), scaled_object(BROKEN)):
        assert unscaled(said, 999, no) != no


TEN = PoolFacts(name="turbo", max_workers=10, jobs_per_worker=4)


@pytest.mark.parametrize(
    ("waiting", "busy", "pods", "facts", "lacking"),
    [
        (1, 0, 0, TEN, True),
        (1, 0, 0, None, True),
        (1, 1, 1, None, False),
        (4, 1, 1, TEN, True),
        (4, 1, 2, TEN, False),  # another is on its way
        (4, 0, 1, TEN, False),  # the one that is up takes them
        (99, 9, 10, TEN, False),  # its max
        (1, 9, 9, TEN, True),
        (1, 20, 20, PoolFacts(name="turbo", max_workers=100), False),  # within the HPA's tolerance
        (12, 20, 20, PoolFacts(name="turbo", max_workers=100), True),
    ],
)
def test_when_a_pool_lacks_workers(waiting: int, busy: int, pods: int, facts: PoolFacts | None, lacking: bool) -> None:
    assert lacks_workers(waiting, busy, pods, facts) is lacking


def started(seconds_ago: float, **container: Any) -> dict[str, Any]:
    """A pod that was made 100 s ago and had a node 70 s ago."""
    made = placed(phase="Running", state={"running": {"startedAt": ago(seconds_ago)}}, **container)
    made["metadata"]["creationTimestamp"] = ago(100)
    made["status"]["conditions"].append({"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(70)})
    made["status"]["conditions"] = made["status"]["conditions"][::-1]
    return made


@pytest.mark.parametrize(
    ("seen", "start"),
    [
        (started(20), {"node_s": 30, "image_s": 50}),
        (started(20, restartCount=1), None),  # the second container's start is no cold one
        (unscheduled(NO_GPU), None),
        (waiting("ContainerCreating"), None),
    ],
)
def test_what_a_pods_start_took_before_its_first_process(seen: dict[str, Any], start: dict[str, float] | None) -> None:
    assert pod_start(seen) == start
