"""What becomes of a job whose attempt ended: a pure decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from redis import RedisError

from serinette.errors import Canceled, EngineCrashed, EngineStalled, HandBack, SerinetteError, Superseded, WorkerLost
from serinette.job import Attempt, JobError, Record

# What a song can do to those it is generated with.
_FATAL = frozenset({EngineCrashed.code, EngineStalled.code, WorkerLost.code})


class Ending(StrEnum):
    """Ways for an attempt to end, in the words of the log."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    RETRIED = "retried"  # charged, and to the front of its lane
    RETURNED = "returned"  # not charged, and to the front of its lane


@dataclass(frozen=True, slots=True)
class Decision:
    """How an attempt ends."""

    ending: Ending
    error: JobError | None = None


def ending_of(record: Record) -> Decision:
    """How an attempt ends whose job's record is there."""
    return Decision(Ending(record.status), record.error)


def decide(error: BaseException, retries_left: int) -> Decision:
    """How an attempt ends that raised `error`, with so many retries left to its job.

    Redis that is away is not the job's fault. A Superseded attempt gives back what it does not have, which changes
    nothing: only the attempt in charge can.
    """
    if isinstance(error, Canceled):
        return Decision(Ending.CANCELED)
    if isinstance(error, HandBack | Superseded | RedisError):
        return Decision(Ending.RETURNED)
    reason = _reason(error)
    return Decision(Ending.RETRIED if reason.retryable and retries_left > 0 else Ending.FAILED, reason)


def is_suspect(attempts: Iterable[Attempt]) -> bool:
    """Whether one of a job's attempts ended with its engine or worker: the next one is generated alone."""
    return any(attempt.error is not None and attempt.error.code in _FATAL for attempt in attempts)


def _reason(error: BaseException) -> JobError:
    if isinstance(error, SerinetteError):
        return JobError(code=error.code, message=error.message, retryable=error.retryable)
    # A disk or a memory that is full is this machine's trouble; anything else would happen again. The text of a
    # foreign error may hold paths and is for the log.
    return JobError(
        code=SerinetteError.code,
        message=f"the worker met an unexpected {type(error).__name__}; its log says more",
        retryable=isinstance(error, OSError | MemoryError),
    )
