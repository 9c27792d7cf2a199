"""What is to be done about the containers: a pure plan over what the books and the cluster say, made anew each round.

Nothing is remembered between rounds, so it may be cut short anywhere: what is half done is seen, and gone on with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from controller.containers.judging import Ending, How, Patience, judge, lost
from controller.containers.manifest import ATTEMPT_LABEL, JOB_LABEL

Object = Mapping[str, Any]

# Attempts that the cluster ended are charged to nobody, up to so many.
FREE_ATTEMPTS = 3
# How much longer than its grace a Job may take to go.
_GOING_S = 120.0


class Action(StrEnum):
    """What one held job needs."""

    WAIT = "wait"
    CREATE = "create"  # its Kubernetes Job
    ADOPT = "adopt"  # a Job that bears its name and attempt, and of which the books do not say so yet
    DELETE = "delete"  # the Job of an earlier attempt, or of a canceled one
    CANCEL = "cancel"  # end the job as canceled
    END = "end"  # end the attempt, as its ending says


class Verdict(StrEnum):
    """What becomes of a job whose attempt ended."""

    SUCCEED = "succeed"
    FAIL = "fail"
    RETRY = "retry"  # charged, and to the front of its lane
    RETURN = "return"  # charged to nobody, and to the front of its lane


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt in charge, as the books have it."""

    job_id: str
    attempt_id: str
    attempt: int
    gpus: int
    retries_left: int
    placed: bool  # a Kubernetes Job was made for it
    canceled: bool
    patience: Patience


@dataclass(frozen=True, slots=True)
class Step:
    """The one thing to do."""

    action: Action
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job in its lane."""

    job_id: str
    gpus: int


def decide(held: Held, job: Object | None, pod: Object | None, at: datetime) -> Step:
    """The next step for one attempt. `job` bears its name, `pod` is the newest of that Job."""
    ours = job is not None and (job["metadata"].get("labels") or {}).get(ATTEMPT_LABEL) == held.attempt_id
    if job is not None and (not ours or held.canceled):
        return _deleting(held, job, pod, at)
    if held.canceled:
        return Step(Action.CANCEL)
    if job is None:
        return Step(Action.END, lost("its Kubernetes Job was deleted")) if held.placed else Step(Action.CREATE)
    if not held.placed:
        return Step(Action.ADOPT)
    ending = judge(pod, held.patience, at) if pod is not None else _podless(held, job, at)
    return Step(Action.END, ending) if ending else Step(Action.WAIT)


def _deleting(held: Held, job: Object, pod: Object | None, at: datetime) -> Step:
    gone = job["metadata"].get("deletionTimestamp")
    if gone is None:
        return Step(Action.DELETE)
    # A canceled one's outputs are put while it goes; one whose node is silent is not waited for.
    late = (at - datetime.fromisoformat(gone)).total_seconds() > held.patience.grace_s + _GOING_S
    return Step(Action.CANCEL) if held.canceled and late else Step(Action.WAIT)


def _podless(held: Held, job: Object, at: datetime) -> Ending | None:
    conditions = {each.get("type"): each for each in job.get("status", {}).get("conditions") or ()}
    if each := conditions.get("Failed") or conditions.get("Complete"):
        return lost(str(each.get("message") or "its pod was deleted")[:300])
    if job.get("spec", {}).get("suspend"):  # Kueue decides when it may begin
        return None
    age_s = (at - datetime.fromisoformat(job["metadata"]["creationTimestamp"])).total_seconds()
    return lost("no pod was made for it; a quota may forbid it") if age_s > held.patience.start_s else None


def verdict_of(held: Held, ending: Ending) -> Verdict:
    """What becomes of the job."""
    if ending.how is How.SUCCEEDED:
        return Verdict.SUCCEED
    if ending.how is How.LOST and held.attempt < held.retries_left + FREE_ATTEMPTS:
        return Verdict.RETURN
    retryable = ending.error is not None and ending.error.retryable
    return Verdict.RETRY if retryable and held.retries_left > 0 else Verdict.FAIL


def startable(waiting: Iterable[Waiting], held: Iterable[Held], max_gpus: int, max_jobs: int) -> list[str]:
    """The jobs that may begin, in their order. One that does not fit holds up those behind it: else a crowd of small
    ones would keep a large one waiting for ever.
    """
    running = list(held)
    free_gpus, free_jobs = max_gpus - sum(each.gpus for each in running), max_jobs - len(running)
    found: list[str] = []
    for each in waiting:
        if each.gpus > free_gpus or free_jobs < 1:
            break
        free_gpus, free_jobs = free_gpus - each.gpus, free_jobs - 1
        found.append(each.job_id)
    return found


def strays(jobs: Iterable[Object], held: Iterable[Held]) -> list[str]:
    """Names of Kubernetes Jobs whose job nobody holds any more, and that are not being deleted yet."""
    known = {each.job_id for each in held}
    return [
        each["metadata"]["name"]
        for each in jobs
        if (each["metadata"].get("labels") or {}).get(JOB_LABEL) not in known
        and not each["metadata"].get("deletionTimestamp")
    ]
