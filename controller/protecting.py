"""Which pods are marked, so that whoever takes pods or nodes away takes those that hold no work. A pure plan.

Marks are hints: a ReplicaSet prefers to end pods of a lower deletion cost, cluster-autoscaler and Karpenter leave
nodes of marked pods alone. What they do not keep away, the drain and the records bear.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Pods without the first cost 0. The API forbids frequent changes of it, so it tells busy from idle and no more.
MARKS: Mapping[str, str] = {
    "controller.kubernetes.io/pod-deletion-cost": "100",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}


@dataclass(frozen=True, slots=True)
class Patch:
    """Annotations to set on a pod; None removes one."""

    pod: str
    annotations: Mapping[str, str | None]


def plan(pods: Sequence[Mapping[str, Any]], busy: Collection[str], idle: Collection[str], most: int) -> list[Patch]:
    """The next patches, no more than `most`: marks for busy pods first, then none for those long idle.

    `busy` and `idle` are names of pods. One that is in neither was busy a moment ago and may be again in the next: it
    keeps what it has. Marks of another value are somebody else's and stay.
    """
    mark, clear = [], []
    for pod in pods:
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata:
            continue
        has = metadata.get("annotations") or {}
        if metadata["name"] in busy:
            missing = {name: value for name, value in MARKS.items() if has.get(name) != value}
            mark += [Patch(metadata["name"], missing)] if missing else []
        elif metadata["name"] in idle:
            ours = [name for name, value in MARKS.items() if has.get(name) == value]
            clear += [Patch(metadata["name"], dict.fromkeys(ours))] if ours else []
    return [*mark, *clear][:most]
