"""What a slot decides by itself: lanes, endings, when to leave, when to give up."""

from __future__ import annotations

import signal
import time
from itertools import count
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.exceptions import StopRequested

from gpu_worker.slot.drain import Drain, Patience
from gpu_worker.slot.lane_order import lane_order
from gpu_worker.slot.retry_policy import Ending, decide
from serinette import errors
from serinette.names import Lane


@pytest.mark.parametrize(
    ("high", "normal", "low"),
    [(180, 10, 10), (180, 20, 0), (180, 0, 20), (0, 180, 20), (200, 0, 0), (0, 200, 0), (0, 0, 200)],
)
def test_of_ten_claims_one_goes_to_a_lower_lane_with_work_and_to_each_in_turn(high: int, normal: int, low: int) -> None:
    shares = {Lane.HIGH: high, Lane.NORMAL: normal, Lane.LOW: low}
    busy = [lane for lane, share in shares.items() if share]
    taken = [next(lane for lane in lane_order(claims) if lane in busy) for claims in range(200)]
    assert {lane: taken.count(lane) for lane in Lane} == shares


@pytest.mark.parametrize(
    ("error", "retries_left", "ending", "code"),
    [
        (errors.EngineCrashed("gone"), 1, Ending.RETRIED, "engine_crashed"),
        (errors.EngineCrashed("gone"), 0, Ending.FAILED, "engine_crashed"),
        (errors.EngineStalled("silent"), 2, Ending.RETRIED, "engine_stalled"),
        (errors.StoreUnavailable("away"), 1, Ending.RETRIED, "store_unavailable"),
        (errors.JobTimeout("late"), 2, Ending.FAILED, "timeout"),
        (errors.EngineOutOfMemory("full"), 2, Ending.FAILED, "out_of_memory"),
        (errors.InvalidSpec("bad"), 2, Ending.FAILED, "invalid_spec"),
        (errors.Canceled("asked"), 2, Ending.CANCELED, None),
        (errors.HandBack("leaving"), 0, Ending.RETURNED, None),
        (errors.Superseded("lost"), 0, Ending.RETURNED, None),
        (RedisConnectionError("away"), 0, Ending.RETURNED, None),
        (OSError("disk full"), 1, Ending.RETRIED, "internal"),
        (ZeroDivisionError("ours"), 2, Ending.FAILED, "internal"),
    ],
)
def test_what_becomes_of_an_attempt(error: Exception, retries_left: int, ending: Ending, code: str | None) -> None:
    decision = decide(error, retries_left)
    assert (decision.ending, decision.error and decision.error.code) == (ending, code)


def test_an_unexpected_error_shows_clients_no_path() -> None:
    decision = decide(FileNotFoundError(2, "No such file", "/secret/place"), 0)
    assert decision.error and "secret" not in decision.error.message
    assert "FileNotFoundError" in decision.error.message


def test_a_drain_lets_the_job_in_hand_finish_until_its_time_is_over() -> None:
    drain = Drain(timeout_s=0.2)
    drain.holding = True
    assert not (drain.requested or drain.over or drain.must_leave)
    drain.on_signal(signal.SIGTERM, None)
    assert drain.requested
    assert not drain.over
    time.sleep(0.25)
    assert drain.over
    assert not drain.must_leave, "it may still report to Redis that it gives the job back"


def test_an_idle_slot_leaves_at_once() -> None:
    drain = Drain(timeout_s=3600)
    drain.on_signal(signal.SIGTERM, None)
    assert drain.must_leave


def test_a_second_signal_ends_the_drain_and_an_echo_of_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    at_s: Any = count(100.0, 0.5)
    monkeypatch.setattr(time, "monotonic", lambda: next(at_s))
    drain = Drain(timeout_s=3600)
    drain.on_signal(signal.SIGTERM, None)
    drain.on_signal(signal.SIGTERM, None)
    assert not drain.over
    next(at_s)
    drain.on_signal(signal.SIGTERM, None)
    assert drain.over


def test_patience_has_no_end_until_the_slot_must_leave() -> None:
    leaving = False
    patience = Patience(lambda: leaving)
    pauses = [patience.compute(failures) for failures in (1, 2, 10, 5_000)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 1.0
    leaving = True
    with pytest.raises(StopRequested):
        patience.compute(1)


@pytest.mark.parametrize(
    ("code", "kind"), [("out_of_memory", errors.EngineOutOfMemory), ("new", errors.GenerationError)]
)
def test_an_error_comes_back_by_its_code(code: str, kind: type[errors.SerinetteError]) -> None:
    made = errors.of_code(code, "why")
    assert type(made) is kind
    assert made.message == "why"
