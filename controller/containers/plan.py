"""The plan of a round: which Jobs go, what each attempt needs, which jobs begin, which lines of a log are new.

Pure, over what records and cluster say. Nothing is remembered between rounds, so one may be cut short anywhere: what is
half done is seen in the next, and gone on with. runner.py acts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from controller.containers.manifest import ATTEMPT_LABEL, FETCH, JOB_LABEL, MAIN, UPLOAD
from controller.containers.steps import GONE
from controller.pod_explanations import condition, wanting_nodes
from serinette.container import ContainerSpec
from serinette.errors import (
    ContainerFailed,
    EngineOutOfMemory,
    ImageUnavailable,
    JobTimeout,
    SerinetteError,
    Unschedulable,
    WorkerLost,
)
from serinette.job import Attempt, JobError, JobStatus, Stage
from serinette.jobs import Entry
from serinette.settings import ContainerSettings

Object = Mapping[str, Any]

# Attempts that the cluster ended are not charged, up to so many.
FREE_ATTEMPTS = 3
# How much longer than its grace a Job may take to go.
_GOING_S = 120.0
# Beyond its deadline and its grace a pod's node is silent.
_SILENT_S = 300.0
# A registry may be slow to answer; a name that does not exist stays so.
_PULL_PATIENCE_S = 120.0

_ENDED = "the cluster ended the container"
_NEVER = {"InvalidImageName", "ErrImageNeverPull"}
_PULLING = {"ImagePullBackOff", "ErrImagePull"}
_UNSTARTABLE = {"CreateContainerConfigError", "CreateContainerError"}
_BLOCKED = _NEVER | _PULLING | _UNSTARTABLE


class Action(StrEnum):
    """What one attempt needs."""

    WAIT = "wait"
    CREATE = "create"  # its Kubernetes Job
    ADOPT = "adopt"  # a Job that bears its name and attempt, and of which the record does not say so yet
    DELETE = "delete"  # the Job of an earlier attempt, or of a canceled one
    RETRY = "retry"  # end the attempt, charged; the job goes to the front of its lane
    RETURN = "return"  # the same, and not charged
    FINISH = "finish"  # end the job


@dataclass(frozen=True, slots=True)
class Held:
    """A job that an attempt of ours holds, by its record."""

    entry: Entry
    attempt: Attempt
    spec: ContainerSpec

    @property
    def placed(self) -> bool:
        """Whether a Kubernetes Job was made for this attempt."""
        return self.entry.placed == self.attempt.id


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended. Without an error it succeeded; `run_s` is how long its command ran."""

    error: JobError | None = None
    exit_code: int | None = None
    run_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The one thing to do for an attempt; `status` is what a job finishes as."""

    action: Action
    ending: Ending = Ending()
    status: JobStatus | None = None


# -- jobs and attempts


def orphans(jobs: Iterable[Object], held: Collection[str]) -> list[str]:
    """Names of Kubernetes Jobs whose job is not among those held (ids), and that are not being deleted yet."""
    gone = (job["metadata"] for job in jobs if label(job, JOB_LABEL) not in held)
    return [metadata["name"] for metadata in gone if not metadata.get("deletionTimestamp")]


def startable(
    waiting: Iterable[tuple[str, ContainerSpec]], held: Iterable[Held], max_gpus: int, max_jobs: int
) -> list[str]:
    """Ids of the jobs that may begin, in their order. A job that does not fit holds up those behind it: else a crowd of
    small ones would keep a large one waiting for ever.
    """
    running = list(held)
    free_gpus, free_jobs = max_gpus - sum(each.spec.gpus for each in running), max_jobs - len(running)
    found: list[str] = []
    for job_id, spec in waiting:
        if spec.gpus > free_gpus or free_jobs < 1:
            break
        free_gpus, free_jobs = free_gpus - spec.gpus, free_jobs - 1
        found.append(job_id)
    return found


def plan_attempt(held: Held, job: Object | None, pod: Object | None, settings: ContainerSettings, at: datetime) -> Plan:
    """What one attempt needs. `job` bears its name, `pod` is the newest of its own."""
    canceled = held.entry.cancel_requested
    if job is not None and (canceled or label(job, ATTEMPT_LABEL) != held.attempt.id):
        gone = job["metadata"].get("deletionTimestamp")
        if gone is None:
            return Plan(Action.DELETE)
        # A canceled one's outputs are put while it goes; one whose node is silent is not waited for.
        if not canceled or _seconds(gone, None, at) <= settings.containers_grace_s + _GOING_S:
            return Plan(Action.WAIT)
    if canceled:
        run_s = held.entry.ran_s if pod is None else run_s_of(pod, at)
        return Plan(Action.FINISH, Ending(run_s=run_s), JobStatus.CANCELED)
    if job is None:
        return _ended(held, _lost("its Kubernetes Job was deleted")) if held.placed else Plan(Action.CREATE)
    if not held.placed:
        return Plan(Action.ADOPT)
    ending = _podless(job, settings, at) if pod is None else ending_of(pod, held.entry.timeout_s, settings, at)
    return _ended(held, ending) if ending else Plan(Action.WAIT)


def refused(why: str) -> Plan:
    """The store or the cluster will never take it."""
    return Plan(Action.FINISH, Ending(_error(ContainerFailed, why, retryable=False)), JobStatus.FAILED)


def _ended(held: Held, ending: Ending) -> Plan:
    if ending.error is None:
        return Plan(Action.FINISH, ending, JobStatus.SUCCEEDED)
    if ending.error.code == WorkerLost.code and held.attempt.number < held.entry.retries_left + FREE_ATTEMPTS:
        return Plan(Action.RETURN, ending)
    if ending.error.retryable and held.entry.retries_left > 0:
        return Plan(Action.RETRY, ending)
    return Plan(Action.FINISH, ending, JobStatus.FAILED)


def _podless(job: Object, settings: ContainerSettings, at: datetime) -> Ending | None:
    if each := condition(job, "Failed") or condition(job, "Complete"):
        return _lost(str(each.get("message") or "its pod was deleted")[:300])
    if job.get("spec", {}).get("suspend"):  # Kueue decides when it may begin
        return None
    age_s = _seconds(job["metadata"]["creationTimestamp"], None, at)
    return _lost("no pod was made for it; a quota may forbid it") if age_s > settings.containers_start_s else None


# -- pods


def stage_of(pod: Object | None) -> Stage:
    """Where an attempt is."""
    if pod is None:
        return Stage.STARTING
    if _state(pod, MAIN).get("terminated"):
        return Stage.UPLOADING
    if _state(pod, MAIN).get("running"):
        return Stage.COMPUTING
    return Stage.FETCHING if _state(pod, FETCH).get("running") else Stage.STARTING


def run_s_of(pod: Object, at: datetime) -> float:
    """How long the command has run, in seconds."""
    state = _state(pod, MAIN)
    times = state.get("terminated") or state.get("running") or {}
    return _seconds(times.get("startedAt"), times.get("finishedAt"), at)


def ending_of(pod: Object, timeout_s: float, settings: ContainerSettings, at: datetime) -> Ending | None:
    """How the attempt ended, or None while it goes on."""
    if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
        return _over(pod, at)
    return _never_begins(pod, settings, at) or _silent(pod, timeout_s, settings, at)


def _over(pod: Object, at: datetime) -> Ending:
    """The first row that holds says why; a pod of which none does has succeeded."""
    done, fetched = _state(pod, MAIN).get("terminated") or {}, _state(pod, FETCH).get("terminated") or {}
    code, how, status = done.get("exitCode"), done.get("reason"), pod.get("status", {})
    reason = str(status.get("reason") or "")
    no_memory, no_time = how == "OOMKilled", reason == "DeadlineExceeded"
    disrupted = condition(pod, "DisruptionTarget").get("status") == "True"
    too_much = reason == "Evicted" and "exceeds" in status.get("message", "")
    # Not by us: we delete Jobs, not pods.
    deleted = bool(code and pod["metadata"].get("deletionTimestamp"))
    unbegun, fetch_code = code is None, fetched.get("exitCode")
    signal = f" (signal {code - 128})" if code and 128 < code < 160 else ""
    unstarted = f"the command could not be started: {_reason(done)}"
    # What the container did comes before what the cluster did: another attempt would end alike.
    rows: tuple[tuple[bool, type[SerinetteError], str, bool | None], ...] = (
        (no_memory, EngineOutOfMemory, "the container needed more memory than it had asked for: ask for more", None),
        (no_time, JobTimeout, "the container ran longer than its timeout_s: ask for more, or do less", None),
        (too_much, ContainerFailed, "the container wrote more than its disk_mib: ask for more", False),
        (how in {"StartError", "ContainerCannotRun"}, ContainerFailed, unstarted, False),
        (bool(reason), WorkerLost, f"{_ENDED}: {reason}", None),
        (disrupted, WorkerLost, f"{_ENDED}: its node was taken away", None),
        (deleted, WorkerLost, f"{_ENDED}: its pod was deleted", None),
        (unbegun and fetch_code == GONE, ContainerFailed, "an input is not in the store any more", False),
        (unbegun and bool(fetch_code), WorkerLost, "the inputs could not be fetched from the store", None),
        (unbegun, WorkerLost, f"{_ENDED}: its pod ended before the command began", None),
        (bool(code), ContainerFailed, f"the command ended with exit code {code}{signal}; its log says more", None),
    )
    error = next((_error(kind, text, retryable=retryable) for holds, kind, text, retryable in rows if holds), None)
    return Ending(error, code, run_s_of(pod, at))


def _never_begins(pod: Object, settings: ContainerSettings, at: datetime) -> Ending | None:
    """Why, once that is sure."""
    created, status = pod["metadata"].get("creationTimestamp"), pod.get("status", {})
    waiting = (_state(pod, name).get("waiting") or {} for name in (FETCH, UPLOAD, MAIN))
    blocked = next((each for each in waiting if each.get("reason") in _BLOCKED), {})
    # It may have waited long for its node, and for its inputs: since then a node has tried.
    fetched = (_state(pod, FETCH).get("terminated") or {}).get("finishedAt")
    tried_long = _seconds(fetched or status.get("startTime") or created, None, at) > _PULL_PATIENCE_S
    reason, start_s = blocked.get("reason"), settings.containers_start_s
    if reason in _NEVER or (reason in _PULLING and tried_long):
        return Ending(_error(ImageUnavailable, f"the image cannot be pulled: {_reason(blocked)}"))
    if reason in _UNSTARTABLE and tried_long:
        text = f"the container cannot be started: {_reason(blocked)}"
        return Ending(_error(ContainerFailed, text, retryable=False))
    placed = condition(pod, "PodScheduled")
    if placed.get("status") == "False" and _seconds(created, None, at) > start_s:
        why = wanting_nodes(str(placed.get("message", ""))) or "the operator can see why"
        return Ending(_error(Unschedulable, f"no node took the container within {start_s:g} s: {why}"))
    return None


def _silent(pod: Object, timeout_s: float, settings: ContainerSettings, at: datetime) -> Ending | None:
    """A pod whose node does not report it any more."""
    grace_s, began = settings.containers_grace_s, pod.get("status", {}).get("startTime")
    if _seconds(began, None, at) > timeout_s + grace_s + _SILENT_S:
        return _lost("its node did not end it in time")
    if _seconds(pod["metadata"].get("deletionTimestamp"), None, at) > grace_s + _SILENT_S:
        return _lost("its pod was deleted, and its node is silent")
    return None


# -- logs

# In place of the time of the last line: later than all times, so that nothing more is read.
CUT = "~"
# As the kubelet writes it; what a node says in place of a log ("unable to retrieve ...") begins otherwise.
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}")


def cut(most_bytes: int) -> str:
    """The last line of a log that is longer than what is kept."""
    return f"[serinette: the log is longer than the {most_bytes} bytes that are kept; the rest is cut]\n"


def new_lines(read: str, after: str, size_bytes: int, most_bytes: int, *, ended: bool = True) -> tuple[str, str] | None:
    """The lines behind those of time `after`, each line of `read` behind its time, and the time of the last of them;
    None without any. Until it has `ended`, the last is taken only if it is whole: the rest of it would come under the
    same time.

    `size_bytes` of the log are kept already, and `most_bytes` may be, not counting the words that it is cut.
    """
    if size_bytes >= most_bytes:
        return None
    lines: list[str] = []
    last, room = after, most_bytes - size_bytes
    # Not splitlines(): what follows a progress bar's carriage return is no line of the log, and begins with no time.
    *whole, rest = read.split("\n")
    for line in (*whole, rest) if ended and rest else whole:
        time, behind, text = line.partition(" ")
        if time <= after or not behind or not _TIME.match(time):
            continue
        room -= len(text.encode()) + 1
        if room < 0:
            return "".join([*lines, cut(most_bytes)]), CUT
        lines.append(text + "\n")
        last = time
    return ("".join(lines), last) if lines else None


# -- fields of Kubernetes' objects


def label(found: Object, name: str) -> str:
    """A label of an object; '' without it."""
    labels: Mapping[str, str] = found["metadata"].get("labels") or {}
    return labels.get(name, "")


def _state(pod: Object, container: str) -> Object:
    status = pod.get("status", {})
    for each in (*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())):
        if each.get("name") == container:
            state: Object = each.get("state") or {}
            return state
    return {}


def _seconds(begin: str | None, end: str | None, at: datetime) -> float:
    """From one time to another, or to `at`; 0 before it has begun."""
    if not begin:
        return 0.0
    until = datetime.fromisoformat(end) if end else at
    return max(0.0, (until - datetime.fromisoformat(begin)).total_seconds())


def _reason(state: Object) -> str:
    return " ".join(str(state.get("message") or state.get("reason") or "no reason was given").split())[:300]


def _lost(why: str) -> Ending:
    return Ending(_error(WorkerLost, f"{_ENDED}: {why}"))


def _error(kind: type[SerinetteError], message: str, *, retryable: bool | None = None) -> JobError:
    return JobError(code=kind.code, message=message, retryable=kind.retryable if retryable is None else retryable)
