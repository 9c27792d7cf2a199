"""What RQ 3.0.0 leaves open, measured, and closed here: the rows of docs/reliability.md that no other test holds."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.connection import Connection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend
from rq.worker import Worker, WorkerStatus

from gpu_worker.slot.drain import Patience
from gpu_worker.slot.held_job import HeldJob
from serinette.errors import EngineCrashed
from serinette.job import JobStatus, Record
from serinette.jobs.registries import trim_registries
from serinette.names import Keys, record_key
from serinette.settings import SharedSettings
from serinette.spec import AudioFormat, GenerationSpec
from serinette.store import Store
from tests.jobs import TENANT, charged_attempts
from tests.processes import eventually
from tests.unit.slot_bench import Slot, SlotBench, SpoolBench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def recorded(bench: SlotBench, job_id: str) -> Record:
    return Record.model_validate_json(bench.store.get(record_key(TENANT, job_id)))


@contextmanager
def at_work(bench: SlotBench, slot: Slot, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Thread]:
    """RQ's whole loop, in a thread, which cannot have signals: `bench.drain` is asked to leave in their place."""
    monkeypatch.setattr(slot, "_install_signal_handlers", lambda: None)
    working = threading.Thread(target=slot.work, kwargs={"logging_level": "WARNING"})
    working.start()
    try:
        yield working
    finally:
        bench.drain.on_signal(signal.SIGTERM, None)
        resume(bench.redis)
        working.join()


def states(redis: Redis) -> list[str]:
    """What `rq info` shows of the workers."""
    return [worker.get_state() for worker in Worker.all(redis)]


def crash(_: HeldJob) -> None:
    raise EngineCrashed("gone")


def test_a_claim_that_was_held_for_long_costs_no_retry_and_generates_nothing_twice(bench: SlotBench) -> None:
    """RQ's cleanup of intermediate lists queues such a claim again, at the cost of a retry, and both run."""
    job_id = bench.order()
    frozen = bench.slot()
    taken = frozen.take()
    assert taken
    StartedJobRegistry("default.normal", bench.redis, serializer=JSONSerializer).cleanup()
    assert not bench.slot().run_one()
    frozen.execute_job(*taken)
    assert [attempt.outcome for attempt in bench.entry(job_id).attempts] == ["succeeded"]
    assert bench.rq_job(job_id).retries_left == 2
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)


def test_a_retry_needs_no_scheduler(bench: SlotBench) -> None:
    """With an interval RQ parks it as `scheduled`, for a process that is not run here."""
    job_id, behind = bench.order(), bench.order()
    slot = bench.slot()
    bench.engine.meanwhile = crash
    slot.run_one()
    assert bench.waiting() == [job_id, behind]
    assert bench.rq_job(job_id).get_status() == "queued"
    assert bench.redis.zcard("rq:scheduled:default.normal") == 0


def test_of_several_jobs_that_one_slot_holds_the_canceled_one_ends_and_is_not_retried(
    redis: Redis, tmp_path: Path
) -> None:
    """RQ's stop reaches the first execution of a worker only; two of them overwrite each other, and one is retried."""
    bench = SpoolBench.at(redis, tmp_path)
    jobs = [bench.order() for _ in range(3)]
    slot = bench.spooling()
    with bench.away():
        for _ in jobs:
            slot.run_one()
        for job_id in jobs[:2]:
            bench.board.cancel(job_id)
        for held, _ in slot.spooled.held:
            held.beat()
    slot.send_spooled()
    assert [bench.entry(job_id).status for job_id in jobs] == ["canceled", "canceled", "succeeded"]
    assert bench.waiting() == []
    assert all(len(bench.entry(job_id).attempts) == 1 for job_id in jobs)


@pytest.mark.parametrize("idle", [True, False], ids=["while it is idle", "before it starts"])
def test_no_job_begins_while_rq_is_suspended(bench: SlotBench, monkeypatch: pytest.MonkeyPatch, idle: bool) -> None:
    slot = bench.slot()
    first = bench.order() if idle else None
    if not first:
        suspend(bench.redis)
    with at_work(bench, slot, monkeypatch):
        if first:
            assert eventually(lambda: bench.entry(first).status is JobStatus.SUCCEEDED)
            time.sleep(0.2)  # it sleeps until a job comes
            suspend(bench.redis)
        job_id = bench.order()
        assert eventually(lambda: states(bench.redis) == [WorkerStatus.SUSPENDED])
        time.sleep(1.2)  # longer than an idle slot sleeps
        assert bench.waiting() == [job_id]
        assert bench.entry(job_id).attempts == ()
        resume(bench.redis)
        assert eventually(lambda: bench.entry(job_id).status is JobStatus.SUCCEEDED, timeout_s=5)
        assert eventually(lambda: states(bench.redis) == [WorkerStatus.IDLE])


def test_a_suspended_slot_beats_and_leaves_at_once(bench: SlotBench, monkeypatch: pytest.MonkeyPatch) -> None:
    suspend(bench.redis)
    slot = bench.slot()
    job_id = bench.order()
    with at_work(bench, slot, monkeypatch) as working:
        assert eventually(lambda: states(bench.redis) == [WorkerStatus.SUSPENDED], timeout_s=5)
        bench.redis.expire(slot.key, 5)
        slot._known_until_s = 0.0  # as if its next heartbeat were due
        assert eventually(lambda: int(bench.redis.ttl(slot.key)) > 5, timeout_s=5)
        bench.drain.on_signal(signal.SIGTERM, None)
        working.join(5)
        assert not working.is_alive()
    assert bench.waiting() == [job_id]


def test_a_suspended_slot_sends_what_waits_for_the_store(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = SpoolBench.at(redis, tmp_path)
    with at_work(bench, bench.spooling(), monkeypatch):
        with bench.away():
            job_id = bench.order()
            assert eventually(lambda: len(bench.parcels) == 1)
            suspend(redis)
            assert eventually(lambda: states(redis) == [WorkerStatus.SUSPENDED], timeout_s=5)
            assert bench.entry(job_id).status is JobStatus.RUNNING
        assert eventually(lambda: bench.entry(job_id).status is JobStatus.SUCCEEDED)
        assert eventually(lambda: states(redis) == [WorkerStatus.SUSPENDED], timeout_s=5)


def test_a_job_is_performed_off_the_main_thread(bench: SlotBench) -> None:
    """RQ's deadline is SIGALRM, which only a main thread may arm."""
    job_id, slot = bench.order(), bench.slot()
    working_thread = threading.Thread(target=slot.run_one)
    working_thread.start()
    working_thread.join()
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)


@pytest.mark.parametrize("answer_lost", [False, True], ids=["not sent", "answer lost"])
@pytest.mark.parametrize("end", [None, crash], ids=["well", "crash"])
def test_a_connection_that_breaks_anywhere_costs_nothing(
    bench: SlotBench, redis_url: str, end: Callable[[HeldJob], None] | None, answer_lost: bool
) -> None:
    """In RQ a ConnectionError while it records a success queues the finished job again, and it is generated twice."""
    for round_trips in count():
        job_id = bench.order()
        breaking = Breaking(answer_lost)
        slot = bench.slot(breaking.connect(redis_url))
        if end:
            bench.engine.meanwhile = end
        breaking.arm(round_trips)
        assert slot.run_one()
        if end:
            assert bench.waiting() == [job_id]
            bench.slot().run_one()
        bench.assert_ended(job_id, JobStatus.SUCCEEDED)
        assert charged_attempts(bench.entry(job_id)) == (1 if end else 0)
        assert len(bench.entry(job_id).attempts) == (2 if end else 1)
        if not breaking.broke:
            break
    assert round_trips > 1, "the connection never broke in the midst of it"


class Breaking:
    """A patient client, as a slot's, whose connection breaks once: before its n-th sending, or right behind it."""

    def __init__(self, answer_lost: bool) -> None:
        self._left = 1_000_000
        self._answer_lost = answer_lost
        self.broke = False

    def arm(self, round_trips: int) -> None:
        """Break before or behind the n-th sending from now on."""
        self._left = round_trips

    def connect(self, url: str) -> Redis:
        outer = self

        class Fragile(Connection):
            def send_packed_command(self, command: Any, check_health: bool = True) -> None:
                outer._left -= 1
                breaks = outer._left < 0 and not outer.broke
                outer.broke = outer.broke or breaks
                if not breaks or outer._answer_lost:
                    super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]  # redis-py's
                if breaks:
                    if outer._answer_lost:
                        self.read_response()
                    self.disconnect()  # type: ignore[no-untyped-call]  # redis-py's
                    raise RedisConnectionError("broken, as asked")

        client = Redis(connection_pool=ConnectionPool.from_url(url, connection_class=Fragile))
        client.set_retry(Retry(Patience(lambda: False), retries=-1))
        return client


def test_redis_never_holds_a_song(bench: SlotBench) -> None:
    """RQ keeps what a job returns: here names of objects, never their bytes."""
    job_id = bench.order(GenerationSpec(prompt="jazz", seed=7, format=AudioFormat.WAV, variations=4))
    bench.slot().run_one()
    songs = [bench.store.get(artifact.key) for artifact in recorded(bench, job_id).artifacts]
    assert all(song.startswith(b"RIFF") for song in songs)
    for key in bench.redis.scan_iter():
        dumped = bench.redis.dump(key)
        assert dumped is not None and b"RIFF" not in dumped
        assert len(dumped) < 20_000, key


def test_a_pickle_in_a_lane_is_never_opened(bench: SlotBench, tmp_path: Path) -> None:
    """RQ's default serializer would run what any client of Redis has written."""
    opened = tmp_path / "opened"

    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(opened),)

    job_id = bench.order()
    bench.redis.hset(f"rq:job:{job_id}", "data", pickle.dumps(Payload()))
    assert bench.slot().run_one()
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)
    assert not opened.exists()


@pytest.mark.parametrize("lost", ["its key expired", "all of Redis"])
def test_a_slot_that_redis_forgot_registers_again(bench: SlotBench, lost: str) -> None:
    slot = bench.slot()
    slot.register_birth()  # type: ignore[no-untyped-call]  # RQ's own
    if lost == "all of Redis":
        bench.redis.flushdb()
    else:
        bench.redis.delete(slot.key)
        trim_registries(bench.redis, bench.keys, 3600)
    assert Worker.all(bench.redis) == []
    slot.heartbeat()
    [found] = Worker.all(bench.redis)
    assert (found.name, found.get_state()) == (slot.name, WorkerStatus.IDLE)
    assert found.birth_date
