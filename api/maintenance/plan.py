"""What is to be done about one job that may be in trouble: a pure decision over what was seen of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from rq.job import JobStatus as RqStatus

from serinette.job import JobStatus

# A submit enters the job among the live ones, then in RQ, milliseconds apart. Waiting longer harms nobody; forgetting
# a job that is still being submitted would take the sweep's protection from it.
SUBMIT_GRACE_S = 120.0

ENDED = frozenset({RqStatus.FINISHED, RqStatus.FAILED, RqStatus.STOPPED, RqStatus.CANCELED})


class Action(StrEnum):
    """What a job needs, in the words of the log."""

    LEAVE = "leave"  # nothing: it is well, or somebody else's turn
    FINISH = "finish"  # make RQ agree with the ledger's outcome
    ADOPT = "adopt"  # take RQ's final status as the outcome
    CANCEL = "cancel"  # settle as canceled
    EXPIRE = "expire"  # settle as failed: nobody began it in time
    MOVE = "move"  # its pool was removed: to the lane of another that holds its model
    STRAND = "strand"  # its pool was removed and no other holds its model: settle as failed
    RELEASE = "release"  # it waits, but a vanished attempt is still in charge
    PUT_BACK = "put_back"  # to the front of its lane, charging nobody
    RETRY = "retry"  # end the lost attempt, to the front of its lane
    FAIL = "fail"  # end the lost attempt and the job
    FORGET = "forget"  # a submit cut short, or a job that Redis has lost
    SUCCEED = "succeed"  # its job.json lies in the store


# Before these, the store is asked: a job whose job.json exists is done, whatever became of the attempt that wrote it.
ASK_STORE_FIRST = frozenset({Action.CANCEL, Action.FAIL, Action.STRAND, Action.FORGET})


@dataclass(frozen=True, slots=True)
class Situation:
    """One job, as read in one go."""

    status: RqStatus | None = None  # None: RQ has no such job
    waiting: bool = False  # in its lane's list, or scheduled for a later time
    beating: bool = False  # some execution of it was not given up
    can_retry: bool = False
    outcome: JobStatus | None = None
    cancel_requested: bool = False
    owner: str | None = None
    expired: bool = False  # nobody ever began it, and its start deadline has passed
    homeless: bool = False  # its pool was removed
    has_home: bool = False  # another pool holds its model
    age_s: float = 0.0  # since its submit


# The first rule that holds decides. A job that beats is left alone: it will end, or fall silent, by itself.
_RULES: tuple[tuple[Callable[[Situation], bool], Action], ...] = (
    (lambda seen: seen.beating, Action.LEAVE),
    (lambda seen: seen.outcome is not None, Action.FINISH),
    (lambda seen: seen.status is None, Action.FORGET),
    (lambda seen: seen.status in ENDED, Action.ADOPT),
    (lambda seen: seen.cancel_requested, Action.CANCEL),
    (lambda seen: seen.expired, Action.EXPIRE),
    (lambda seen: seen.waiting and seen.owner is not None, Action.RELEASE),
    (lambda seen: seen.waiting and seen.homeless and seen.has_home, Action.MOVE),
    (lambda seen: seen.waiting and seen.homeless, Action.STRAND),
    (lambda seen: seen.waiting, Action.LEAVE),
    (lambda seen: seen.owner is None, Action.PUT_BACK),
    (lambda seen: seen.can_retry, Action.RETRY),
    (lambda _: True, Action.FAIL),
)


def decide(seen: Situation) -> Action:
    """The one thing to do."""
    action = next(action for holds, action in _RULES if holds(seen))
    return Action.LEAVE if action is Action.FORGET and seen.age_s < SUBMIT_GRACE_S else action
