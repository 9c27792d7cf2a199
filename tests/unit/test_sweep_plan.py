"""What the controller decides, as tables: of lost jobs, due ones, jobs of removed pools, and what shrinks."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from controller.sweep_plan import Action, RemovedPools, plan_due, plan_lost, shrinks
from serinette.job import Attempt, JobStatus
from serinette.jobs import Entry
from serinette.jobs.registries import parse_lane
from serinette.names import Lane
from serinette.pools import PoolFacts
from tests.jobs import submission

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AT_S = NOON.timestamp()
ATTEMPT = Attempt(number=1, id="a", worker="pod-1.0.abc", started_at=NOON)


def entry(**fields: Any) -> Entry:
    made = submission("job").fields | {"state": "queued", "created_at": AT_S, **fields}
    return Entry("job", {name: str(value) for name, value in made.items()})


def running(**fields: Any) -> Entry:
    held = {"state": "running", "owner": "a", "attempts": 1, "attempt:1": ATTEMPT.model_dump_json()}
    return entry(**{**held, **fields})


@pytest.mark.parametrize(
    ("seen", "action", "status"),
    [
        (None, None, None),
        (entry(), None, None),  # back in its lane
        (running(owner="b"), None, None),  # another attempt's
        (running(state="succeeded"), None, None),
        (running(), Action.RETRY, None),
        (running(charged=1), Action.RETRY, None),
        (running(charged=2), Action.FAIL, JobStatus.FAILED),
        (running(max_attempts=1), Action.FAIL, JobStatus.FAILED),
        (running(cancel=1), Action.CANCEL, JobStatus.CANCELED),
        (running(cancel=1, charged=2), Action.CANCEL, JobStatus.CANCELED),
    ],
)
def test_what_a_lost_job_needs(seen: Entry | None, action: Action | None, status: JobStatus | None) -> None:
    plan = plan_lost(seen, "a")
    assert (plan and plan.action) == action
    if plan and status:
        assert plan.outcome and plan.outcome.status is status
        assert plan.record and (plan.record.status, plan.record.attempt and plan.record.attempt.id) == (status, "a")
        assert plan.attempt is not None, "it may have left a song"


def test_a_lost_job_whose_spec_no_version_here_reads_ends_all_the_same() -> None:
    plan = plan_lost(running(charged=2, spec='{"steps": "of a newer kind"}'), "a")
    assert plan and plan.action is Action.FAIL and plan.record is None


@pytest.mark.parametrize(
    ("seen", "expires"),
    [
        (None, False),
        (entry(), False),  # without a deadline
        (entry(start_by=AT_S + 1), False),
        (entry(start_by=AT_S), True),
        (running(start_by=AT_S - 1), False),
        (running(start_by=AT_S - 1, state="queued"), False),  # begun, and given back
        (entry(start_by=AT_S - 1, state="canceled"), False),
    ],
)
def test_a_job_expires_that_no_worker_began_in_time(seen: Entry | None, expires: bool) -> None:
    plan = plan_due(seen, NOON)
    assert (plan is not None) is expires
    if plan:
        assert plan.outcome and plan.outcome.error and plan.outcome.error.code == "expired"
        assert "start_deadline_s" in plan.outcome.error.message and not plan.outcome.error.retryable
        assert plan.attempt is None, "no attempt can have left a song"


TURBO, BASE = PoolFacts(name="turbo", model="s3://models/turbo"), PoolFacts(name="base", model="s3://models/base")


def removed(*pools: PoolFacts, default: str = "turbo", patience_s: float = 60) -> RemovedPools:
    return RemovedPools(pools, default, patience_s)


def asking(model: str | None, **fields: Any) -> Entry:
    return entry(spec=json.dumps({"prompt": "jazz", "schema": 1, "model": model}), **fields)


@pytest.mark.parametrize(
    ("pools", "seen", "action", "pool"),
    [
        ((TURBO, BASE), asking("base"), Action.MOVE, "base"),
        ((TURBO, BASE), asking("turbo"), Action.MOVE, "turbo"),
        ((TURBO, BASE), asking(None), Action.MOVE, "turbo"),
        ((TURBO, BASE), asking("old"), Action.STRAND, None),
        ((BASE,), asking(None), Action.STRAND, None),  # the default pool itself is gone
        ((TURBO,), asking(None, pool="turbo"), None, None),  # it moved meanwhile
        ((TURBO,), asking(None, pool="containers"), None, None),
        ((TURBO,), running(), None, None),
        ((TURBO,), None, None, None),
        ((), asking(None), None, None),  # without a chart
    ],
)
def test_a_job_goes_to_the_pool_of_its_model(
    pools: tuple[PoolFacts, ...], seen: Entry | None, action: Action | None, pool: str | None
) -> None:
    plan = removed(*pools).plan(seen)
    assert (plan and plan.action, plan and plan.pool) == (action, pool)


def test_a_job_that_no_pool_takes_reports_which_models_there_are() -> None:
    plan = removed(TURBO, BASE).plan(asking("old"))
    assert plan and plan.outcome and plan.outcome.error
    assert plan.outcome.error.code == "pool_removed"
    assert plan.outcome.error.message == (
        "pool default was removed, and none that is left holds model old; published here are base, turbo: submit it "
        "again with one"
    )


LANES = [("default", Lane.NORMAL), ("turbo", Lane.LOW), ("containers", Lane.HIGH)]


def test_only_a_pool_that_stays_unknown_and_empty_of_workers_is_removed() -> None:
    watch = removed(TURBO)
    assert [watch.lanes(LANES, (), at_s) for at_s in (0, 30, 59)] == [[]] * 3
    assert watch.lanes(LANES, ["default"], 60) == []  # a worker is up
    assert [watch.lanes(LANES, (), at_s) for at_s in (70, 129)] == [[]] * 2
    assert watch.lanes(LANES, (), 130) == [("default", Lane.NORMAL)]


def test_without_a_chart_no_pool_is_removed() -> None:
    watch = removed(patience_s=1)
    assert [watch.lanes(LANES, (), at_s) for at_s in (0, 5, 10)] == [[]] * 3


@pytest.mark.parametrize(
    ("seen", "is_old"),
    [(entry(), False), (entry(state="failed"), False), (entry(state="failed", recorded=1), True)],
)
def test_only_what_the_store_knows_shrinks(seen: Entry, is_old: bool) -> None:
    assert shrinks(seen) is is_old


@pytest.mark.parametrize(
    ("name", "lane"),
    [
        ("default.normal", ("default", Lane.NORMAL)),
        ("my.pool.low", ("my.pool", Lane.LOW)),
        (".high", None),
        ("default", None),
        ("default.urgent", None),
    ],
)
def test_only_our_lanes_are_touched(name: str, lane: tuple[str, Lane] | None) -> None:
    assert parse_lane(name) == lane
