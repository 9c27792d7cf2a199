"""How many lines may go, what a batch needs next, and what of a tenant's limits it may use: tables."""

from __future__ import annotations

import pytest

from controller.batches.plan import Action, LaneRoom, backlog, ended_parts, next_action, next_lines, share, why
from serinette.batch import BatchHeader, BatchStatus
from serinette.credentials import Limits
from serinette.job import now
from serinette.pools import PoolFacts

POOLS = (
    PoolFacts(name="default", max_workers=4, slots=2, max_batch=8),
    PoolFacts(name="tiny", max_workers=1, slots=2, max_batch=1),
    PoolFacts(name="none", max_workers=0),
)

BACKLOGS = [
    ("default", 32, 4 * 4 * 8),  # four times what its workers generate together at most
    ("default", 500, 500),
    ("tiny", 1, 4 * 1 * 2),  # they hold more than they generate together
    ("none", 32, 32),
    ("unheard of", 32, 32),
]


@pytest.mark.parametrize(("pool", "least", "expected"), BACKLOGS)
def test_backlog(pool: str, least: int, expected: int) -> None:
    assert backlog(POOLS, pool, least) == expected


def test_room_is_used_up() -> None:
    room = LaneRoom(POOLS, 1, {"tiny": 6, "default": 1_000})
    assert (room.free("tiny"), room.free("default")) == (2, 0)
    room.waiting["tiny"] += 2
    assert room.free("tiny") == 0


STEPS = [
    (BatchStatus.IN_PROGRESS, 10, 0, Action.RELEASE),
    (BatchStatus.IN_PROGRESS, 0, 3, Action.REST),
    (BatchStatus.IN_PROGRESS, 10, 64, Action.RELEASE),
    (BatchStatus.IN_PROGRESS, 10, 65, Action.REST),  # its slowest lines are too far behind
    (BatchStatus.PAUSED, 10, 0, Action.REST),
    (BatchStatus.CANCELING, 10, 65, Action.CANCEL),
    (BatchStatus.CANCELING, 0, 1, Action.REST),
    (BatchStatus.FINALIZING, 0, 0, Action.REST),
    (BatchStatus.COMPLETED, 0, 0, Action.REST),
    (BatchStatus.CANCELED, 0, 0, Action.REST),
]


@pytest.mark.parametrize(("status", "left", "open_parts", "expected"), STEPS)
def test_next_action(status: BatchStatus, left: int, open_parts: int, expected: Action) -> None:
    assert next_action(status, left, open_parts, 100) is expected


def test_a_large_cluster_may_have_more_parts_open() -> None:
    assert next_action(BatchStatus.IN_PROGRESS, 10, 70, 16_000) is Action.RELEASE


def test_parts_that_are_through() -> None:
    """Of parts of 4 lines each, 10 lines in all, of which the cursor is past 9."""
    header = BatchHeader(id="batch-1", tenant="t", attempts=1, total=10, part_lines=4, digest="", created_at=now())
    assert ended_parts(header, 9, [0, 1, 2], live=[5]) == [0]
    assert ended_parts(header, 9, [1, 2], live=[]) == [1]
    assert ended_parts(header, 10, [0, 1, 2], live=[]) == [0, 1, 2]


def test_live_lines_are_checked_in_turns() -> None:
    live = [9, 2, 4, 7]
    assert next_lines(live, -1, 3) == [2, 4, 7]
    assert next_lines(live, 7, 3) == [9]
    assert next_lines(live, 9, 3) == [2, 4, 7]
    assert next_lines([], 9, 3) == []


SHARES = [
    (Limits(), Limits()),
    (Limits(jobs_in_flight=10, queued_jobs=5), Limits(jobs_in_flight=5, queued_jobs=2)),
    (Limits(jobs_in_flight=1, queued_jobs=0), Limits(jobs_in_flight=1, queued_jobs=0)),
    (Limits(gpu_seconds_per_day=9.0), Limits(gpu_seconds_per_day=9.0)),
]


@pytest.mark.parametrize(("limits", "expected"), SHARES)
def test_share(limits: Limits, expected: Limits) -> None:
    assert share(limits) == expected


@pytest.mark.parametrize("refusal", ["lane", "gpu", "in_flight", "queued", "waiting"])
def test_every_refusal_has_a_message(refusal: str) -> None:
    assert len(why(refusal)) > 10
