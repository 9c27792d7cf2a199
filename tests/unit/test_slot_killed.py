"""A slot killed at every round trip to Redis: maintenance and the next slot end the job exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

import pytest
from redis import Redis

from gpu_worker.slot.hold import Hold
from serinette.errors import Canceled, EngineCrashed, HandBack, InvalidOutput
from serinette.job import JobStatus
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.maintenance_bench import assert_over
from tests.unit.slot_bench import Slot, SlotBench
from tests.unit.test_maintenance_killed import Killed, mortal

# A pipeline that is thrown away wants to say goodbye to Redis, and dies again.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# A job's life from the pop to the record of its end takes at least so many round trips.
FEWEST_ROUND_TRIPS = 10


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


@pytest.fixture(autouse=True)
def _threads_die_quietly() -> Iterator[None]:
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, Killed) else before(args)
    yield
    threading.excepthook = before


def well(_: Hold) -> None:
    """The song is sung."""


def crash(_: Hold) -> None:
    raise EngineCrashed("gone")


def break_down(_: Hold) -> None:
    raise InvalidOutput("nan")


def hand_back(_: Hold) -> None:
    raise HandBack("leaving")


def cancel(hold: Hold) -> None:
    raise Canceled("asked")


@pytest.mark.parametrize(
    ("end", "outcomes"),
    [
        (well, {JobStatus.SUCCEEDED}),
        (crash, {JobStatus.SUCCEEDED}),
        (break_down, {JobStatus.FAILED, JobStatus.SUCCEEDED}),
        (hand_back, {JobStatus.SUCCEEDED}),
        (cancel, {JobStatus.CANCELED, JobStatus.SUCCEEDED}),
    ],
)
def test_every_death_is_survived(
    bench: SlotBench, redis_url: str, end: Callable[[Hold], None], outcomes: set[JobStatus]
) -> None:
    for round_trips in count():
        job_id = bench.order()
        survived = False
        with suppress(Killed):
            slot = bench.slot(mortal(redis_url, 3 + round_trips))  # a slot's construction takes three
            bench.engine.meanwhile = flagged(bench, job_id, end)
            slot.sing_one()
            survived = True
        rescue(bench, job_id)
        entry = bench.entry(job_id)
        outcome = entry.outcome
        assert outcome in outcomes
        assert outcome is JobStatus.CANCELED or not entry.cancel_requested
        assert entry.owner is None
        assert outcome
        assert_over(bench, job_id, outcome)
        if survived:
            break
    assert round_trips > FEWEST_ROUND_TRIPS, "the death was never in the midst of it"


def flagged(bench: SlotBench, job_id: str, end: Callable[[Hold], None]) -> Callable[[Hold], None]:
    """The end; a cancel has its flag in the ledger first."""

    def meanwhile(hold: Hold) -> None:
        if end is cancel:
            bench.ledger.request_cancel(job_id)
        end(hold)

    return meanwhile


def rescue(bench: SlotBench, job_id: str) -> None:
    """Maintenance that has waited long enough, then a slot that is well."""
    slot: Slot | None = None
    for _ in range(6):
        maintenance = bench.rounds()
        maintenance()
        maintenance()
        if bench.entry(job_id).outcome:
            return
        slot = slot or bench.slot()
        if job_id in bench.waiting():
            slot.sing_one()
