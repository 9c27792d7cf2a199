"""What a test of the cluster concludes from what it recorded: API objects of jobs and pods. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from serinette.names import host_of

Object = Mapping[str, Any]


def names(pods: Sequence[Object], *, leaving: bool) -> set[str]:
    """Pods that stay, or those that leave."""
    return {str(pod["metadata"]["name"]) for pod in pods if ("deletionTimestamp" in pod["metadata"]) == leaving}


def cut_short(jobs: Mapping[str, Object], asked: Collection[str]) -> list[str]:
    """Attempts without a song in pods that were not `asked` to leave: KEDA may remove idle pods, and no others."""
    return [
        f"{job_id}: attempt {attempt['number']} {attempt['outcome']} in {attempt['worker']}"
        for job_id, job in jobs.items()
        for attempt in job["attempts"]
        if attempt["outcome"] in {"returned", "failed"} and host_of(attempt["worker"]) not in asked
    ]


def charged(jobs: Mapping[str, Object]) -> dict[str, int]:
    """Failed attempts of each job that has any; an attempt that was given back is not charged."""
    counts = {name: sum(each["outcome"] == "failed" for each in job["attempts"]) for name, job in jobs.items()}
    return {name: count for name, count in counts.items() if count}


def most_staying(samples: Sequence[Sequence[Object]]) -> int:
    """The most pods that stayed at one moment, those that leave left out."""
    return max((len(names(pods, leaving=False)) for pods in samples), default=0)
