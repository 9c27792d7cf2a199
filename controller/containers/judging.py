"""What became of a container, by its pod: one sentence, and whether another attempt may pass. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from controller.containers.manifest import CARRY, FETCH, MAIN
from serinette.carry import GONE
from serinette.errors import (
    ContainerFailed,
    EngineOutOfMemory,
    ImageUnavailable,
    JobTimeout,
    SerinetteError,
    Unschedulable,
    WorkerLost,
)
from serinette.job import JobError, Stage

Object = Mapping[str, Any]

_NEVER = {"InvalidImageName", "ErrImageNeverPull"}
_PULLING = {"ImagePullBackOff", "ErrImagePull"}
_UNSTARTABLE = {"CreateContainerConfigError", "CreateContainerError"}
_TELLING = _NEVER | _PULLING | _UNSTARTABLE
# A registry may be slow to answer; a name that does not exist stays so.
_PULL_PATIENCE_S = 120.0
# Beyond its deadline and its grace a pod's node is silent.
_SILENT_S = 300.0


class How(StrEnum):
    """Ways for an attempt to end."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # its own doing; tried again if the error may pass and retries are left
    LOST = "lost"  # the cluster's doing


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended. `run_s` is how long its command ran."""

    how: How
    error: JobError | None = None
    exit_code: int | None = None
    run_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds."""

    timeout_s: float
    start_s: float
    grace_s: float


def judge(pod: Object, patience: Patience, at: datetime) -> Ending | None:
    """How the attempt ended, or None while it goes on."""
    phase = pod.get("status", {}).get("phase")
    if phase in {"Succeeded", "Failed"}:
        return _over(pod, at)
    return _held_up(pod, patience, at) or _silent(pod, patience, at)


def stage_of(pod: Object | None) -> Stage:
    """Where an attempt is."""
    if pod is None:
        return Stage.STARTING
    if _state(pod, MAIN).get("terminated"):
        return Stage.UPLOADING
    if _state(pod, MAIN).get("running"):
        return Stage.COMPUTING
    return Stage.FETCHING if _state(pod, FETCH).get("running") else Stage.STARTING


def has_log(pod: Object) -> bool:
    """Whether the command has begun."""
    state = _state(pod, MAIN)
    return bool(state.get("running") or state.get("terminated"))


def run_s_of(pod: Object, at: datetime) -> float:
    """How long the command has run, in seconds."""
    state = _state(pod, MAIN)
    told = state.get("terminated") or state.get("running") or {}
    return _seconds(told.get("startedAt"), told.get("finishedAt"), at)


def lost(why: str) -> Ending:
    """The cluster ended it."""
    return Ending(How.LOST, _error(WorkerLost, f"the cluster ended the container: {why}"))


def _over(pod: Object, at: datetime) -> Ending:
    done, fetched = _state(pod, MAIN).get("terminated") or {}, _state(pod, FETCH).get("terminated") or {}
    code, run_s = done.get("exitCode"), _seconds(done.get("startedAt"), done.get("finishedAt"), at)
    if error := _own_doing(pod, done):
        return Ending(How.FAILED, error, code, run_s)
    if why := _taken(pod, code):
        return Ending(How.LOST, lost(why).error, code, run_s)
    if fetched.get("exitCode"):
        return _unfetched(fetched)
    if code is None:
        return lost("its pod ended before the command began")
    if code:
        text = f"the command ended with exit code {code}{_signal(code)}; its log says more"
        return Ending(How.FAILED, _error(ContainerFailed, text), code, run_s)
    return Ending(How.SUCCEEDED, None, 0, run_s)


def _own_doing(pod: Object, done: Object) -> JobError | None:
    """More than it asked for, or nothing that can be started: another attempt would end alike."""
    reason, message = pod.get("status", {}).get("reason", ""), pod.get("status", {}).get("message", "")
    if done.get("reason") == "OOMKilled":
        return _error(EngineOutOfMemory, "the container needed more memory than it had asked for: ask for more")
    if reason == "DeadlineExceeded":
        return _error(JobTimeout, "the container ran longer than its timeout_s: ask for more, or do less")
    if reason == "Evicted" and "exceeds" in message:
        text = "the container wrote more than its disk_mib: ask for more"
        return _error(ContainerFailed, text, retryable=False)
    if done.get("reason") in {"StartError", "ContainerCannotRun"}:
        return _error(ContainerFailed, f"the command could not be started: {_short(done)}", retryable=False)
    return None


def _unfetched(fetched: Object) -> Ending:
    if fetched.get("exitCode") == GONE:
        return Ending(How.FAILED, _error(ContainerFailed, "an input is not in the store any more", retryable=False))
    return Ending(How.LOST, _error(WorkerLost, "the inputs could not be fetched from the store"))


def _held_up(pod: Object, patience: Patience, at: datetime) -> Ending | None:
    """Why it will never begin, once that is sure."""
    age_s = _seconds(pod["metadata"].get("creationTimestamp"), None, at)
    told = [_state(pod, name).get("waiting") or {} for name in (FETCH, CARRY, MAIN)]
    waiting = next((each for each in told if each.get("reason") in _TELLING), {})
    reason = waiting.get("reason", "")
    tried_s = _seconds(_reached(pod) or pod["metadata"].get("creationTimestamp"), None, at)
    if reason in _NEVER or (reason in _PULLING and tried_s > _PULL_PATIENCE_S):
        return Ending(How.FAILED, _error(ImageUnavailable, f"the image cannot be pulled: {_short(waiting)}"))
    if reason in _UNSTARTABLE and tried_s > _PULL_PATIENCE_S:
        error = _error(ContainerFailed, f"the container cannot be started: {_short(waiting)}", retryable=False)
        return Ending(How.FAILED, error)
    if age_s > patience.start_s and (unplaced := _condition(pod, "PodScheduled", "False")) is not None:
        why = str(unplaced.get("message", ""))[:300] or "the scheduler gave no reason"
        text = f"no node took the container within {patience.start_s:g} s: {why}"
        return Ending(How.FAILED, _error(Unschedulable, text))
    return None


def _reached(pod: Object) -> str | None:
    """Since when a node has tried what holds it up: it may have waited long for that node, and for its inputs."""
    fetched: str | None = (_state(pod, FETCH).get("terminated") or {}).get("finishedAt")
    began: str | None = pod.get("status", {}).get("startTime")
    return fetched or began


def _silent(pod: Object, patience: Patience, at: datetime) -> Ending | None:
    """A pod whose node does not tell of it any more."""
    longest_s = patience.timeout_s + patience.grace_s + _SILENT_S
    if (began := pod.get("status", {}).get("startTime")) and _seconds(began, None, at) > longest_s:
        return lost("its node did not end it in time")
    gone = pod["metadata"].get("deletionTimestamp")
    if gone and _seconds(gone, None, at) > patience.grace_s + _SILENT_S:
        return lost("its pod was deleted, and its node is silent")
    return None


def _state(pod: Object, container: str) -> Object:
    status = pod.get("status", {})
    for each in (*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())):
        if each.get("name") == container:
            state: Object = each.get("state") or {}
            return state
    return {}


def _condition(pod: Object, kind: str, value: str) -> Object | None:
    conditions = pod.get("status", {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == kind and each.get("status") == value), None)


def _taken(pod: Object, code: int | None) -> str:
    """Why the cluster ended it, if it did."""
    if reason := str(pod.get("status", {}).get("reason") or ""):
        return reason
    if _condition(pod, "DisruptionTarget", "True"):
        return "its node was taken away"
    # By somebody: of one that we delete, it is the Job that goes.
    return "its pod was deleted" if code and pod["metadata"].get("deletionTimestamp") else ""


def _seconds(begin: str | None, end: str | None, at: datetime) -> float:
    if not begin:
        return 0.0
    until = datetime.fromisoformat(end) if end else at
    return max(0.0, (until - datetime.fromisoformat(begin)).total_seconds())


def _short(told: Object) -> str:
    return " ".join(str(told.get("message") or told.get("reason") or "no reason was given").split())[:300]


def _signal(code: int) -> str:
    return f" (signal {code - 128})" if 128 < code < 160 else ""


def _error(kind: type[SerinetteError], message: str, *, retryable: bool | None = None) -> JobError:
    return JobError(code=kind.code, message=message, retryable=kind.retryable if retryable is None else retryable)
