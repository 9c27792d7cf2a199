"""Maintenance's pure parts as tables: what a job needs, who has been still for long enough, what is old enough."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from rq.job import JobStatus as RqStatus

from api.maintenance.lanes import is_lane
from api.maintenance.plan import SUBMIT_GRACE_S, Action, Situation, decide
from api.maintenance.retention import expired
from api.maintenance.vigil import Vigil
from serinette.job import JobStatus
from serinette.store import StoredObject

QUEUED, STARTED = RqStatus.QUEUED, RqStatus.STARTED
OLD = SUBMIT_GRACE_S + 1


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        # well
        (Situation(QUEUED, waiting=True), Action.LEAVE),
        (Situation(QUEUED, waiting=True, can_retry=True), Action.LEAVE),
        (Situation(STARTED, beating=True, owner="a"), Action.LEAVE),
        # somebody still works at it, whatever else is wrong
        (Situation(None, beating=True), Action.LEAVE),
        (Situation(STARTED, beating=True, outcome=JobStatus.FAILED), Action.LEAVE),
        (Situation(STARTED, beating=True, owner="a", cancel_requested=True), Action.LEAVE),
        # popped and lost; claimed and lost; held and lost
        (Situation(QUEUED), Action.PUT_BACK),
        (Situation(QUEUED, can_retry=True), Action.PUT_BACK),
        (Situation(RqStatus.SCHEDULED), Action.PUT_BACK),
        (Situation(RqStatus.CREATED), Action.PUT_BACK),
        (Situation(STARTED), Action.PUT_BACK),
        (Situation(QUEUED, owner="a", can_retry=True), Action.RETRY),
        (Situation(STARTED, owner="a", can_retry=True), Action.RETRY),
        (Situation(STARTED, owner="a"), Action.FAIL),
        # back in its lane, its last attempt left open
        (Situation(QUEUED, waiting=True, owner="a"), Action.RELEASE),
        # canceled, and nobody there to notice
        (Situation(QUEUED, cancel_requested=True), Action.CANCEL),
        (Situation(QUEUED, waiting=True, cancel_requested=True), Action.CANCEL),
        (Situation(STARTED, owner="a", cancel_requested=True, can_retry=True), Action.CANCEL),
        # the ledger says over, RQ does not, or has forgotten
        (Situation(STARTED, outcome=JobStatus.SUCCEEDED), Action.FINISH),
        (Situation(QUEUED, waiting=True, outcome=JobStatus.CANCELED), Action.FINISH),
        (Situation(RqStatus.FINISHED, outcome=JobStatus.SUCCEEDED), Action.FINISH),
        (Situation(None, outcome=JobStatus.FAILED), Action.FINISH),
        # RQ says over, the ledger does not
        (Situation(RqStatus.FINISHED), Action.ADOPT),
        (Situation(RqStatus.FAILED, owner="a"), Action.ADOPT),
        (Situation(RqStatus.CANCELED, cancel_requested=True), Action.ADOPT),
        (Situation(RqStatus.STOPPED, owner="a"), Action.ADOPT),
        # not in RQ: perhaps not yet
        (Situation(None, age_s=1), Action.LEAVE),
        (Situation(None, age_s=OLD), Action.FORGET),
        (Situation(None, age_s=OLD, cancel_requested=True), Action.FORGET),
    ],
)
def test_what_a_job_needs(seen: Situation, action: Action) -> None:
    assert decide(seen) is action


def looks(vigil: Vigil[str], *steps: tuple[float, dict[str, object]]) -> list[list[str]]:
    return [vigil.look(things, at_s) for at_s, things in steps]


def test_a_thing_ripens_while_it_stands_still() -> None:
    still: dict[str, object] = {"a": 1}
    told = looks(Vigil(20, 5), *[(float(at), still) for at in range(0, 26, 5)])
    assert told == [[], [], [], [], ["a"], ["a"]]


def test_a_change_or_an_absence_starts_the_wait_anew() -> None:
    vigil: Vigil[str] = Vigil(2, 1)
    told = looks(vigil, (0, {"a": 1, "b": 1}), (1, {"a": 2}), (2, {"a": 2, "b": 1}), (3, {"a": 2, "b": 1}))
    assert told == [[], [], [], ["a"]]


def test_time_that_nobody_watched_counts_for_little() -> None:
    still: dict[str, object] = {"a": 1}
    vigil: Vigil[str] = Vigil(20, 5)
    assert looks(vigil, (0, still), (1_000, still), (2_000, still), (3_000, still)) == [[], [], [], []]
    assert vigil.look(still, 4_000) == ["a"]


def test_a_fresh_vigil_knows_nothing() -> None:
    assert Vigil[str](20, 5).look({"a": 1}, 1e9) == []


def test_the_longest_still_comes_first() -> None:
    vigil: Vigil[str] = Vigil(1, 1)
    vigil.look({"late": 0, "early": 1}, 0)
    vigil.look({"late": 1, "early": 1}, 1)
    assert vigil.look({"late": 1, "early": 1}, 2) == ["early", "late"]


@pytest.mark.parametrize(
    ("name", "ours"),
    [("default.normal", True), ("my.pool.low", True), (".high", False), ("default", False), ("default.urgent", False)],
)
def test_only_our_lanes_are_touched(name: str, ours: bool) -> None:
    assert is_lane(name) is ours


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def stored(key: str, hours_old: float) -> StoredObject:
    return StoredObject(key, 1, None, NOON - timedelta(hours=hours_old))


def doomed(objects: list[StoredObject], in_use: set[str]) -> list[list[str]]:
    return [[found.key for found in group] for group in expired(objects, NOON, lambda: in_use)]


def test_a_song_goes_whole_and_its_record_last() -> None:
    old = [stored("songs/t/j1/job.json", 1), stored("songs/t/j1/a-0.mp3", 2), stored("songs/t/j1/b-0.mp3", 3)]
    young = [stored("songs/t/j2/a-0.mp3", 5), stored("songs/t/j2/job.json", -1)]
    assert doomed([*old, *young], set()) == [["songs/t/j1/a-0.mp3", "songs/t/j1/b-0.mp3", "songs/t/j1/job.json"]]


def test_what_an_unfinished_job_uses_is_kept() -> None:
    objects = [
        stored("songs/t/live/a-0.mp3", 9),
        stored("uploads/t/used/audio", 9),
        stored("uploads/t/unused/audio", 9),
    ]
    assert doomed(objects, {"live", "used"}) == [["uploads/t/unused/audio"]]


def test_nobody_is_asked_while_nothing_is_old() -> None:
    def unexpected() -> set[str]:
        raise AssertionError("asked for what is in use")

    assert list(expired([stored("songs/t/j/job.json", -1)], NOON, unexpected)) == []
