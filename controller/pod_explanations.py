"""Why a pool's pods are not ready, in words: a pure reading of pods, events and nodes as Kubernetes reports them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from serinette.presence import Holdup

Object = Mapping[str, Any]

POOL_LABEL = "serinette.dev/pool"

# The kubelet tries these again for ever, ever more slowly.
_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_NO_START = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"}
_CRASH = "CrashLoopBackOff"
# Events of cluster-autoscaler and of Karpenter.
_ADDS = {"TriggeredScaleUp", "Nominated"}
_ADDS_NONE = {"NotTriggerScaleUp", "FailedScaleUp"}
# So many restarts, the last of them so lately, are a loop also in the moments between its back-offs.
_RESTARTS = 3
_LATELY_S = 900.0

_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Explanation:
    """What holds up one pod. Higher `stage`s are nearer to ready; a `stuck` pod will not come by waiting."""

    stage: int
    text: str
    stuck: bool = False


def holdup(
    pods: Sequence[Object], events: Sequence[Object], nodes: Sequence[Object] | None, gpu: str, at: datetime
) -> Holdup:
    """Of one pool's pods. `nodes` is None when they may not be read; `gpu` is the resource that each pod takes."""
    of_pod = _by_pod(events)
    there = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    gpus = f"{gpu}{_existing(nodes, gpu)}" if gpu else ""
    why = [explain(pod, of_pod[pod["metadata"]["name"]], gpus, at) for pod in there if not _ready(pod)]
    stuck = [each for each in why if each.stuck]
    best = max(why, key=lambda each: each.stage, default=Explanation(0, ""))
    return Holdup(pods=len(there), words=best.text, stuck=len(stuck), stuck_words=stuck[0].text if stuck else "")


def explain(pod: Object, events: Sequence[Object], gpus: str, at: datetime) -> Explanation:
    """What holds up one pod that is not ready. Events: oldest first; `gpus`: its resource, and how many exist."""
    status = pod.get("status", {})
    if status.get("phase") == "Failed":
        return Explanation(
            0, f"a pod failed: {_short(status.get('message') or status.get('reason') or 'no reason given')}"
        )
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _unscheduled(scheduled, events, gpus)
    containers = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    for container in containers:
        if found := _container(container, at):
            return found
    return Explanation(4, "its pod runs and is not ready") if status.get("phase") == "Running" else _creating(events)


def _unscheduled(scheduled: Object, events: Sequence[Object], gpus: str) -> Explanation:
    if scheduled.get("reason") == "SchedulingGated":
        return Explanation(1, "its pod is gated: the cluster's queue (Kueue, say) has not admitted it")
    why = _why_no_node(str(scheduled.get("message", "")), gpus)
    scaling = next((event for event in reversed(events) if event.get("reason") in _ADDS | _ADDS_NONE), None)
    if scaling is None:
        return Explanation(1, why)
    if scaling["reason"] in _ADDS:
        return Explanation(2, f"{why}, and the autoscaler is adding a node")
    because = re.sub(r"^pod didn't trigger scale-up:?\s*", "", str(scaling.get("message", "")))
    return Explanation(1, f"{why}, and the autoscaler adds none: {_short(because)}")


def _why_no_node(message: str, gpus: str) -> str:
    gpu = gpus.partition(":")[0]
    if gpu and (f"Insufficient {gpu}" in message or not message):
        return f"no node has a free {gpus}"
    detail = re.sub(r"^\d+/\d+ nodes are available:\s*", "", message).partition(". preemption:")[0]
    return f"no node takes its pod: {_short(detail) or 'the scheduler has not said why'}"


def _existing(nodes: Sequence[Object] | None, gpu: str) -> str:
    """How many exist, where nodes may be read."""
    if nodes is None:
        return ""
    having = {node["metadata"]["name"]: _count(node, gpu) for node in nodes if _count(node, gpu)}
    if not having:
        return f": none of the {len(nodes)} nodes has any"
    out = [node for node in nodes if _count(node, gpu) and not _usable(node)]
    total, count = sum(having.values()), len(having)
    existing = f": {total} {'is' if total == 1 else 'are'} on {count} {'node' if count == 1 else 'nodes'}"
    return f"{existing}, {len(out)} of them cordoned or not ready" if out else f"{existing}, none free for it"


def _count(node: Object, gpu: str) -> int:
    count = str(node.get("status", {}).get("allocatable", {}).get(gpu, "0"))
    return int(count) if count.isdigit() else 0


def _usable(node: Object) -> bool:
    return _condition(node, "Ready").get("status") == "True" and not node.get("spec", {}).get("unschedulable")


def _container(container: Object, at: datetime) -> Explanation | None:
    """What holds up a pod by one of its containers; None when that one is done, or has yet to begin."""
    state = container.get("state", {})
    waiting = state.get("waiting", {})
    reason, message = waiting.get("reason"), _short(str(waiting.get("message", "")))
    if reason in _NO_IMAGE:
        return Explanation(
            0, f"the image {container.get('image', '')} cannot be pulled: {message or reason}", stuck=True
        )
    if reason in _NO_START:
        return Explanation(0, f"its container cannot be started: {message or reason}", stuck=True)
    if reason == _CRASH or _loops(container, at):
        return Explanation(0, _crashes(container), stuck=True)
    if "running" in state and not container.get("ready"):
        return Explanation(4, "its container is up and has not loaded its model yet")
    if "terminated" in state and state["terminated"].get("exitCode") != 0:
        return Explanation(3, "its container ended, and is started again")
    return None


def _loops(container: Object, at: datetime) -> bool:
    ended = container.get("lastState", {}).get("terminated", {})
    finished = _time(ended.get("finishedAt"))
    lately = finished is not None and (at - finished).total_seconds() < _LATELY_S
    return not container.get("ready") and int(container.get("restartCount", 0)) >= _RESTARTS and lately


def _crashes(container: Object) -> str:
    ended = container.get("lastState", {}).get("terminated", {})
    how = f"exit code {ended.get('exitCode', 'unknown')}"
    if ended.get("reason") == "OOMKilled":
        how = "out of memory: raise the limit of its pool"
    return f"its container has ended {container.get('restartCount', 0)} times, at last with {how}; see its log"


def _creating(events: Sequence[Object]) -> Explanation:
    last = {event.get("reason"): event for event in events}
    for failed, what in (
        ("FailedMount", "a volume cannot be mounted"),
        ("FailedAttachVolume", "a volume cannot be attached"),
        ("FailedCreatePodSandBox", "its sandbox cannot be made"),
    ):
        if failed in last:
            return Explanation(2, f"{what}: {_short(str(last[failed].get('message', '')))}")
    pulls = [event.get("reason") for event in events if event.get("reason") in {"Pulling", "Pulled"}]
    if pulls and pulls[-1] == "Pulling":
        return Explanation(3, "its node pulls the image")
    return Explanation(3, "its container is being created")


def _by_pod(events: Sequence[Object]) -> defaultdict[str, list[Object]]:
    """Events by their pod, oldest first."""
    found: defaultdict[str, list[Object]] = defaultdict(list)
    for event in sorted(events, key=_seen_at):
        found[event["involvedObject"].get("name", "")].append(event)
    return found


def _seen_at(event: Object) -> str:
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    return next((str(time) for time in times if time), str(event["metadata"].get("creationTimestamp", "")))


def _ready(pod: Object) -> bool:
    return _condition(pod, "Ready").get("status") == "True"


def _condition(thing: Object, kind: str) -> Object:
    found = thing.get("status", {}).get("conditions") or []
    return next((condition for condition in found if condition.get("type") == kind), {})


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rstrip()}..."
