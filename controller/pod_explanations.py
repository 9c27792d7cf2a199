"""Why a pool's pods are not ready, in words: a pure reading of what Kubernetes and KEDA report of them.

Words are for tenants: they name no Secret, image, node or address of the cluster, and stay the same while the cause
does. The cluster's own sentences are the `detail`, for the operator's log.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from serinette.pools import PoolFacts, pauses
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

# What the scheduler says of nodes that do not take a pod (k8s.io/kubernetes pkg/scheduler/framework/plugins), and ours.
_NO_NODE = (
    (r"Insufficient ([\w./-]+)", r"too little free \1"),
    (r"untolerated taint", "taints that it does not tolerate"),
    (r"node affinity/selector|pod affinity|anti-affinity", "none where it may be placed"),
    (r"topology spread", "none that its spread allows"),
    (r"volume|persistentvolumeclaim", "a volume that is not there"),
    (r"cannot allocate all claims|resourceclaim", "no free device"),
    (r"unschedulable", "cordoned nodes"),
    (r"Too many pods", "full nodes"),
)
# Why the API server makes no pod (k8s.io/kubernetes, plugin/pkg/admission; staging/src/k8s.io/pod-security-admission).
_REFUSED = (
    (r"exceeded quota|failed quota", "a quota is used up"),
    (r"violates PodSecurity", "the namespace's Pod Security forbids them"),
    (r"RuntimeClass", "their RuntimeClass is not there"),
    (r"PriorityClass", "their PriorityClass is not there"),
    (r"LimitRange|maximum .* usage per|minimum .* usage per", "they ask for more or less than its limits allow"),
    (r"admission webhook|ValidatingAdmissionPolicy", "an admission policy forbids them"),
)
# A ReplicaSet tries again after 16 minutes at most.
_REFUSED_LATELY_S = 1_200.0
# KEDA asks for the first worker at its next poll. So many without one, or so long, and it is not at work.
_POLLS = 6
_LEAST_UNSCALED_S = 30.0

_LONGEST = 1_000


@dataclass(frozen=True, slots=True)
class Explanation:
    """What holds up one pod. Higher `stage`s are nearer to ready; a `stuck` pod will not come by waiting."""

    stage: int
    text: str
    stuck: bool = False
    detail: str = ""


def holdup(
    pods: Sequence[Object], events: Sequence[Object], nodes: Sequence[Object] | None, gpu: str, at: datetime
) -> Holdup:
    """Of one pool's pods. `nodes` is None when they may not be read; `gpu` is the resource that each pod takes."""
    of_pod: defaultdict[str, list[Object]] = defaultdict(list)
    for event in sorted(events, key=_seen_at):
        of_pod[event["involvedObject"].get("name", "")].append(event)
    there = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    gpus = f"{gpu}{_existing(nodes, gpu)}" if gpu else ""
    why = [explain(pod, of_pod[pod["metadata"]["name"]], gpus, at) for pod in there if not _ready(pod)]
    stuck = [each for each in why if each.stuck]
    best = max(why, key=lambda each: each.stage, default=Explanation(0, ""))
    details = dict.fromkeys(each.detail for each in (*stuck[:1], best) if each.detail)
    stuck_words = stuck[0].text if stuck else ""
    return Holdup(
        pods=len(there), words=best.text, stuck=len(stuck), stuck_words=stuck_words, detail="; ".join(details)
    )


def pod_start(pod: Object) -> dict[str, float] | None:
    """Seconds from a pod's creation to its node, and from there to its container's start; None before that."""
    first = [each for each in pod.get("status", {}).get("containerStatuses", []) if not each.get("restartCount")]
    states = [each.get("state", {}).get("running") for each in first]
    created = _time(pod["metadata"].get("creationTimestamp"))
    scheduled = _time(condition(pod, "PodScheduled").get("lastTransitionTime"))
    started = _time(states[0].get("startedAt")) if states and states[0] else None
    if created is None or scheduled is None or started is None:
        return None
    return {"node_s": (scheduled - created).total_seconds(), "image_s": (started - scheduled).total_seconds()}


def refused(events: Sequence[Object], deployment: str, at: datetime) -> Explanation | None:
    """Why the API server makes no pods of a Deployment, by the events of its ReplicaSets; None when it made them."""
    ours = [event for event in events if event["involvedObject"].get("name", "").rpartition("-")[0] == deployment]
    latest = max(ours, key=_seen_at, default=None)
    seen = _time(_seen_at(latest)) if latest else None
    if latest is None or seen is None or (at - seen).total_seconds() > _REFUSED_LATELY_S:
        return None
    message = str(latest.get("message", ""))
    why = next((f": {words}" for pattern, words in _REFUSED if re.search(pattern, message)), "")
    return Explanation(0, f"the cluster refuses its pods{why}", detail=_short(message))


def lacks_workers(waiting: int, busy: int, pods: int, facts: PoolFacts | None) -> bool:
    """Whether the HPA should have made another pod; it tolerates a tenth. As KEDA's formula asks of a pool without a
    brake (the chart's scaledobjects.yaml).
    """
    wanted = min(busy + math.ceil(waiting / facts.jobs_per_worker), facts.max_workers) if facts else min(waiting, 1)
    return max(busy, wanted) > 1.1 * pods


def unscaled(scaled_object: Object | None, for_s: float, refusal: Explanation | None = None) -> Explanation | None:
    """Why a pool has fewer pods than its waiting jobs ask for, for `for_s` seconds with as many as now; None while that
    is no sign of anything. `scaled_object` is None where it cannot be read, or nothing scales the pool.
    """
    least_s = _LEAST_UNSCALED_S
    if scaled_object:
        least_s = max(least_s, float(_POLLS * scaled_object["spec"].get("pollingInterval", 30)))
        paused = pauses(scaled_object["metadata"].get("annotations"))
        if any(not name.endswith("-scale-in") for name in paused):
            return Explanation(0, "an operator has paused its scaling", detail=", ".join(paused))
        ready = condition(scaled_object, "Ready")
        if ready.get("status") == "False":
            message = _short(str(ready.get("message", "")))
            return Explanation(0, "its scaling fails, and the operator's log says why", detail=message)
    if refusal:
        return refusal
    if for_s < least_s:
        return None
    detail = "is KEDA's operator running? `serinette doctor` looks" if scaled_object else ""
    return Explanation(0, f"nothing has scaled this pool for over {least_s:.0f} s", detail=detail)


def explain(pod: Object, events: Sequence[Object], gpus: str, at: datetime) -> Explanation:
    """What holds up one pod that is not ready. Events: oldest first; `gpus`: its resource, and how many exist."""
    status = pod.get("status", {})
    if status.get("phase") == "Failed":
        detail = _short(str(status.get("message") or ""))
        return Explanation(0, f"a pod failed: {status.get('reason') or 'no reason given'}", detail=detail)
    scheduled = condition(pod, "PodScheduled")
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
    message = str(scheduled.get("message", ""))
    why, detail = _why_no_node(message, gpus), _short(message)
    scaling = next((event for event in reversed(events) if event.get("reason") in _ADDS | _ADDS_NONE), None)
    if scaling is None:
        return Explanation(1, why, detail=detail)
    if scaling["reason"] in _ADDS:
        return Explanation(2, f"{why}, and the autoscaler is adding a node", detail=detail)
    because = _short(str(scaling.get("message", "")))
    return Explanation(1, f"{why}, and the autoscaler adds none", detail=f"{detail}; {because}")


def _why_no_node(message: str, gpus: str) -> str:
    gpu = gpus.partition(":")[0]
    if gpu and (f"Insufficient {gpu}" in message or not message):
        return f"no node has a free {gpus}"
    why = wanting_nodes(message)
    return f"no node takes its pod: {why}" if why else "no node takes its pod"


def wanting_nodes(message: str) -> str:
    """What the nodes lack for a pod, from the scheduler's message, in words for tenants; empty for a cause unknown."""
    detail = message.partition(". preemption:")[0]
    found = (match.expand(words) for pattern, words in _NO_NODE if (match := re.search(pattern, detail)))
    return ", ".join(found)


def _existing(nodes: Sequence[Object] | None, gpu: str) -> str:
    """How many exist, where nodes may be read."""
    if nodes is None:
        return ""
    having = {node["metadata"]["name"]: _count(node, gpu) for node in nodes if _count(node, gpu)}
    if not having:
        return f": none of the {len(nodes)} nodes has any"
    usable = (node for node in nodes if _ready(node) and not node.get("spec", {}).get("unschedulable"))
    out = having.keys() - {node["metadata"]["name"] for node in usable}
    total, count = sum(having.values()), len(having)
    existing = f": {total} {'is' if total == 1 else 'are'} on {count} {'node' if count == 1 else 'nodes'}"
    return f"{existing}, {len(out)} of them cordoned or not ready" if out else f"{existing}, none free for it"


def _count(node: Object, gpu: str) -> int:
    count = str(node.get("status", {}).get("allocatable", {}).get(gpu, "0"))
    return int(count) if count.isdigit() else 0


def _container(container: Object, at: datetime) -> Explanation | None:
    """What holds up a pod by one of its containers; None when that one is done, or has yet to begin."""
    state = container.get("state", {})
    waiting = state.get("waiting", {})
    reason, message = waiting.get("reason"), _short(str(waiting.get("message", "")))
    if reason in _NO_IMAGE:
        detail = f"{container.get('image', '')}: {message or reason}"
        return Explanation(0, "its image cannot be pulled", stuck=True, detail=detail)
    if reason in _NO_START:
        return Explanation(0, "its container cannot be started", stuck=True, detail=message or str(reason))
    if reason == _CRASH or _loops(container, at):
        return Explanation(0, "its container ends soon after each start", stuck=True, detail=_crashes(container))
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
            return Explanation(2, what, detail=_short(str(last[failed].get("message", ""))))
    pulls = [event.get("reason") for event in events if event.get("reason") in {"Pulling", "Pulled"}]
    if pulls and pulls[-1] == "Pulling":
        return Explanation(3, "its node pulls the image")
    return Explanation(3, "its container is being created")


def _seen_at(event: Object) -> str:
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    return next((str(time) for time in times if time), str(event["metadata"].get("creationTimestamp", "")))


def _ready(thing: Object) -> bool:
    return condition(thing, "Ready").get("status") == "True"


def condition(thing: Object, kind: str) -> Object:
    """One condition of an object's status; empty without it."""
    found = thing.get("status", {}).get("conditions") or []
    return next((condition for condition in found if condition.get("type") == kind), {})


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rstrip()}..."
