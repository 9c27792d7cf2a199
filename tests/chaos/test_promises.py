"""The judgment over one job: what counts as lost, stuck, doubled, or ended wrongly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.ledger import Promise
from tests.chaos.plan import Cancel, Nature, Order
from tests.chaos.promises import Fault, Found, judge

ORDER = Order(number=3, client=0, tenant="acme", key="song-1", prompt="", nature=Nature.GOOD)
SONG = {"songs/a-0.mp3": "digest"}
OTHER = {"songs/b-0.mp3": "digest"}
FORGOT = [(100.0, 101.5)]


def promise(order: Order = ORDER, accepted_at: float = 90.0, **known: Any) -> Promise:
    return Promise(order, "job", accepted_at, **{"ends": [("succeeded", 99.0)], **known})


def found(order: Order = ORDER, ends: Any = (("succeeded", 99.0),), **seen: Any) -> Found:
    whole: dict[str, Any] = {
        "promise": promise(order, ends=list(ends)),
        "status": "succeeded",
        "answered": SONG,
        "recorded": SONG,
        "stored": SONG,
        "terminal_events": ("succeeded",),
        "webhook_ids": frozenset({"msg_job_succeeded"}),
    }
    return Found(**{**whole, **seen})


def silent(status: str, order: Order = ORDER, **seen: Any) -> Found:
    """A job that ended without a song."""
    return found(order, [(status, 99.0)], **{"status": status, "answered": {}, "recorded": None, "stored": {}, **seen})


POISON = replace(ORDER, nature=Nature.POISON)
CANCELED = replace(ORDER, cancel=Cancel.AT_ONCE)

CASES = {
    "all is well": (found(), set()),
    "a song is stored without a word": (found(stored={}), {Fault.LOST}),
    "it succeeded without a song": (found(answered={}, recorded={}, stored={}), {Fault.LOST}),
    "the gateway does not know it": (replace(silent("failed", POISON), status=None), {Fault.LOST}),
    "forgotten with its end": (
        replace(
            silent("canceled", CANCELED), status=None, promise=promise(CANCELED, 100.5, ends=[("canceled", 101.0)])
        ),
        set(),
    ),
    "forgotten after its end": (
        replace(silent("canceled", CANCELED), status=None, promise=promise(CANCELED, 90.0, ends=[("canceled", 101.0)])),
        {Fault.LOST},
    ),
    "forgotten with its song": (
        replace(silent("failed"), status=None, promise=promise(accepted_at=100.5, ends=[("succeeded", 101.0)])),
        {Fault.LOST},
    ),
    "it was forgotten, as Valkey forgot": (found(promise=promise(forgotten=[101.0])), set()),
    "its 202 came late": (found(promise=promise(forgotten=[102.0])), set()),
    "it was forgotten for no reason": (found(promise=promise(forgotten=[99.0])), {Fault.LOST}),
    "it runs for ever": (found(ends=(), status="running"), {Fault.STUCK}),
    "poison fails": (silent("failed", POISON), set()),
    "poison succeeds": (found(POISON), {Fault.WRONG}),
    "a good song fails": (silent("failed"), {Fault.WRONG}),
    "a canceled one ends so": (silent("canceled", CANCELED), set()),
    "a cancel comes too late": (found(CANCELED), set()),
    "canceled unasked": (silent("canceled"), {Fault.WRONG}),
    "two terminal events": (found(terminal_events=("succeeded", "failed")), {Fault.DUPLICATED}),
    "reported to end twice": (
        found(promise=promise(terminal_events=[("succeeded", 98.0), ("succeeded", 99.0)])),
        {Fault.DUPLICATED},
    ),
    "reported to end, forgotten, and reported again": (
        found(promise=promise(terminal_events=[("succeeded", 101.0), ("succeeded", 120.0)])),
        set(),
    ),
    "two webhooks": (found(webhook_ids=frozenset({"msg_job_succeeded", "msg_job_canceled"})), {Fault.DUPLICATED}),
    "another end was reported": (found(CANCELED, [("canceled", 90.0)]), {Fault.DUPLICATED}),
    "another end was reported, and forgotten": (found(CANCELED, [("canceled", 101.0)]), set()),
    "a second artifact": (found(stored=SONG | OTHER), {Fault.DUPLICATED}),
    "a song of a job that failed": (silent("failed", POISON, stored=OTHER), {Fault.DUPLICATED}),
    "other bytes than recorded": (found(stored={"songs/a-0.mp3": "other"}), {Fault.DUPLICATED}),
    "another song answered than recorded": (found(answered=OTHER, stored=SONG | OTHER), {Fault.DUPLICATED}),
}


@pytest.mark.parametrize("case", CASES)
def test_judgment(case: str) -> None:
    seen, faults = CASES[case]
    assert {finding.fault for finding in judge(seen, FORGOT)} == faults


@pytest.mark.parametrize("case", ["forgotten with its end", "it was forgotten, as Valkey forgot", "its 202 came late"])
def test_what_was_said_to_be_on_disk_may_not_be_forgotten(case: str) -> None:
    assert {finding.fault for finding in judge(CASES[case][0], FORGOT, fsync=True)} == {Fault.LOST}
