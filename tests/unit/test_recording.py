"""Every end without a song reaches job.json, also one that nobody could record in its moment (decision 0012)."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis
from rq.executions import Execution

from api.maintenance.records import Records
from api.queue import JobQueue
from api.settings import GatewaySettings
from gpu_worker.slot.hold import Hold
from serinette.errors import EngineCrashed, InvalidOutput, NotFound
from serinette.job import Record
from serinette.names import Keys, artifact_key, record_key, song_prefix
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.maintenance_bench import RETENTION_S, TENANT
from tests.unit.test_spool import Pier


@pytest.fixture
def pier(redis: Redis, keys: Keys, tmp_path: Path) -> Pier:
    (tmp_path / "store").mkdir()
    made = Pier(redis, keys, Store.open(SharedSettings(store_url=f"file://{tmp_path / 'store'}")))
    made.directory = tmp_path
    return made


def records(pier: Pier) -> Records:
    return Records(pier.redis, pier.ledger, pier.store)


def gateway(pier: Pier) -> JobQueue:
    return JobQueue(pier.redis, pier.store, pier.ledger, GatewaySettings(retention_s=RETENTION_S))


def unrecorded(pier: Pier) -> list[str]:
    return [job_id.decode() for job_id in pier.redis.zrange(pier.keys.unrecorded, 0, -1)]  # type: ignore[union-attr]


def recorded(pier: Pier, job_id: str) -> Record | None:
    try:
        return Record.model_validate_json(pier.store.get(record_key(TENANT, job_id)))
    except NotFound:
        return None


def crash(_: Hold) -> None:
    raise EngineCrashed("gone")


def break_down(_: Hold) -> None:
    raise InvalidOutput("nan")


def attempt(pier: Pier, end: object) -> None:
    slot = pier.spooling()
    pier.engine.meanwhile = end  # type: ignore[assignment]
    slot.sing_one()


def canceled_retry(pier: Pier) -> str:
    job_id = pier.order()
    attempt(pier, crash)
    assert pier.waiting() == [job_id]
    assert gateway(pier).cancel(TENANT, job_id).status == "canceled"
    return job_id


def test_a_canceled_retry_is_recorded(pier: Pier) -> None:
    job_id = canceled_retry(pier)
    assert recorded(pier, job_id) is None
    records(pier).step()
    found, entry = recorded(pier, job_id), pier.entry(job_id)
    assert found
    assert (found.status, found.ended_at, found.attempt.id) == ("canceled", entry.ended_at, entry.attempts[-1].id)
    assert unrecorded(pier) == []


def test_a_failure_while_the_store_is_away_is_recorded_when_it_is_back(pier: Pier) -> None:
    job_id = pier.order()
    attempt(pier, crash)
    telling = records(pier)
    slot = pier.spooling()
    leaving = pier.away()

    def without_a_store(hold: Hold) -> None:
        leaving.__enter__()
        break_down(hold)

    pier.engine.meanwhile = without_a_store
    slot.sing_one()
    assert pier.entry(job_id).outcome == "failed"
    telling.step()
    assert unrecorded(pier) == [job_id], "it waits for the store"
    leaving.__exit__(None, None, None)
    records(pier).step()
    found = recorded(pier, job_id)
    assert found and found.error
    assert (found.status, found.error.code) == ("failed", "invalid_output")
    assert unrecorded(pier) == []


def test_a_zombies_song_that_came_in_between_is_taken_back(pier: Pier) -> None:
    """Clients were told of the end; the store must not say otherwise for as long as it keeps the job."""
    job_id = pier.order()
    slot = pier.spooling()
    executions: list[Execution] = []
    pier.engine.meanwhile = lambda hold: executions.append(hold.execution)
    put = pier.store.put_if_absent

    def frozen_before_it_puts(key: str, data: bytes) -> bool:
        """For longer than the reaper waits; it wakes when all is over."""
        pier.store.put_if_absent = put  # type: ignore[method-assign]
        pier.mend(job_id, *executions)
        assert pier.waiting() == [job_id]
        gateway(pier).cancel(TENANT, job_id)
        return put(key, data)

    pier.store.put_if_absent = frozen_before_it_puts  # type: ignore[method-assign]
    slot.sing_one()
    zombie = recorded(pier, job_id)
    assert zombie and zombie.status == "succeeded", "nobody told the slot yet"
    records(pier).step()
    found = recorded(pier, job_id)
    assert found and found.status == "canceled" == pier.entry(job_id).outcome
    assert [each.key for each in pier.store.list(song_prefix(TENANT, job_id))] == [record_key(TENANT, job_id)]


def test_only_what_the_store_may_not_know_is_told_again(pier: Pier) -> None:
    sung, broken, waiting = pier.order(), pier.order(), pier.order()
    attempt(pier, lambda _: None)
    attempt(pier, break_down)
    gateway(pier).cancel(TENANT, waiting)
    assert [pier.entry(job_id).outcome for job_id in (sung, broken, waiting)] == ["succeeded", "failed", "canceled"]
    assert unrecorded(pier) == [broken], "neither a song at the first attempt nor a job that nobody began"


@pytest.mark.parametrize(("last", "outcome"), [(lambda _: None, "succeeded"), (break_down, "failed")])
@pytest.mark.parametrize("crashes", [0, 1])
def test_songs_of_attempts_that_died_before_their_record_are_erased(
    pier: Pier, crashes: int, last: object, outcome: str
) -> None:
    job_id = pier.order()
    left = artifact_key(TENANT, job_id, "dead", 0, "wav")
    pier.store.put(left, b"song")
    for _ in range(crashes):
        attempt(pier, crash)
    attempt(pier, last)
    assert pier.entry(job_id).outcome == outcome
    records(pier).step()
    record = recorded(pier, job_id)
    assert record and record.status == outcome
    kept = {record_key(TENANT, job_id), *(artifact.key for artifact in record.artifacts)}
    if (crashes, outcome) == (0, "succeeded"):  # no other attempt was known of: retention takes it
        kept |= {left}
    assert {each.key for each in pier.store.list(song_prefix(TENANT, job_id))} == kept


def test_an_erased_job_is_not_recorded(pier: Pier) -> None:
    """Neither when it was erased before, nor when it is while its record is written."""
    before = canceled_retry(pier)
    gateway(pier).erase(TENANT, before)
    assert unrecorded(pier) == []

    meanwhile = canceled_retry(pier)
    telling = records(pier)
    put = telling._put

    def put_and_lose_the_race(record: Record) -> None:
        put(record)
        pier.ledger.forget(meanwhile, TENANT)

    telling._put = put_and_lose_the_race  # type: ignore[method-assign]
    telling.step()
    assert list(pier.store.list("songs")) == []
    assert unrecorded(pier) == []
