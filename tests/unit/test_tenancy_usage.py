"""Usage by a real slot: what is counted, and that it is counted once whatever dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

import pytest
from redis import Redis

from gpu_worker.slot.hold import Hold
from serinette.errors import EngineCrashed, HandBack, InvalidOutput
from serinette.job import JobStatus, Stage, Usage, now
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from serinette.usage import Day, read_days
from tests.unit.maintenance_bench import TENANT
from tests.unit.slot_bench import SlotBench
from tests.unit.test_maintenance_killed import Killed, mortal
from tests.unit.test_slot_killed import crash, rescue, well

# A pipeline that is thrown away wants to say goodbye to Redis, and dies again.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# The imagined engine says so of every song.
SING_S = 0.1


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


@pytest.fixture(autouse=True)
def _threads_die_quietly() -> Iterator[None]:
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, Killed) else before(args)
    yield
    threading.excepthook = before


def today(bench: SlotBench) -> Day:
    return read_days(bench.redis, bench.keys, TENANT, [now().date()])[0]


def usage(bench: SlotBench, job_id: str) -> Usage:
    found = bench.entry(job_id).usage
    assert found
    return found


@pytest.mark.parametrize("end", [well, crash])
def test_a_job_is_counted_once_whatever_dies(bench: SlotBench, redis_url: str, end: Callable[[Hold], None]) -> None:
    gpu_s = 0.0
    for round_trips in count():
        job_id = bench.order()
        survived = False
        with suppress(Killed):
            slot = bench.slot(mortal(redis_url, 3 + round_trips))  # a slot's construction takes three
            bench.engine.meanwhile = end
            slot.sing_one()
            survived = True
        rescue(bench, job_id)
        day = today(bench)
        assert (day.jobs, day.succeeded) == (round_trips + 1, round_trips + 1)
        gpu_s += usage(bench, job_id).gpu_s
        assert day.gpu_s == pytest.approx(gpu_s, abs=0.001)
        assert usage(bench, job_id).gpu_s >= SING_S
        for book in (bench.keys.in_flight(TENANT), bench.keys.running(TENANT)):
            assert bench.redis.zcard(book) == 0
        if survived:
            break
    assert round_trips > 5, "the death was never in the midst of it"


@pytest.mark.parametrize(
    ("error", "outcome", "charged"),
    [
        (EngineCrashed("gone"), None, True),
        (InvalidOutput("nan"), JobStatus.FAILED, True),
        (HandBack("leaving"), None, False),
    ],
)
def test_who_is_charged_for_an_attempt_that_did_not_sing(
    bench: SlotBench, error: Exception, outcome: JobStatus | None, charged: bool
) -> None:
    def sing_a_while(hold: Hold) -> None:
        hold.clock.tell(Stage.WAITING_FOR_ENGINE)
        hold.clock.tell(Stage.DENOISING, 1)
        hold.clock._reached = [(stage, at_s - 5) for stage, at_s in hold.clock._reached]
        raise error

    job_id = bench.order()
    slot = bench.slot()
    bench.engine.meanwhile = sing_a_while
    slot.sing_one()
    assert bench.entry(job_id).outcome is outcome
    if outcome is None:
        slot = bench.slot()
        slot.sing_one()
        assert bench.entry(job_id).outcome is JobStatus.SUCCEEDED
    sung_s = 0 if outcome else SING_S
    assert usage(bench, job_id).gpu_s == pytest.approx(sung_s + (5 if charged else 0), abs=1)
    assert today(bench).gpu_s == usage(bench, job_id).gpu_s
