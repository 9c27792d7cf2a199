"""Jobs in the states that killed processes leave them in, and the controller's sweeper beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from controller.settings import ControllerSettings
from controller.sweep_plan import Action
from controller.sweeper import Sweeper
from serinette.job import JobStatus, Record
from serinette.jobs import Claimed, Entry, Outcome, calls
from serinette.jobs.finishing import find_record, put_record, record_of
from serinette.names import Keys
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.jobs import TENANT, TTL_S, Board, assert_ended
from tests.unit.slot_bench import a_result

RETENTION_S = TTL_S
SPEC = GenerationSpec(prompt="jazz", seed=7)


@dataclass
class Counted:
    """In place of the metrics: what the sweeper says it did."""

    actions: list[Action] = field(default_factory=list)
    rounds: int = 0

    def reconciled(self, action: Any, number: int = 1) -> None:
        self.actions += [action] * number

    def round_ended(self) -> None:
        self.rounds += 1


@dataclass
class Bench:
    """A gateway, a slot and a controller, each a few moves of the typed face."""

    redis: Redis
    keys: Keys
    store: Store

    @property
    def board(self) -> Board:
        return Board(self.redis, self.keys)

    def submit(self, *, attempts: int = 3, **given: Any) -> str:
        return self.board.submit(None, given.pop("spec", SPEC), max_attempts=attempts, **given)

    def begin(self, job_id: str, slot: str = "pod-1.0.abc", lease_s: float = 20) -> Claimed:
        """A slot has taken this job."""
        claimed = self.board.jobs(
            calls.take(job_id, f"attempt-of-{slot}-{len(self.entry(job_id).attempts)}", calls.Lease(slot, lease_s))
        )
        assert isinstance(claimed, Claimed)
        return claimed

    def lost(self, **given: Any) -> str:
        """A job whose slot sent no heartbeat for a whole lease."""
        job_id = self.submit(**given)
        self.begin(job_id)
        self.pass_leases()
        return job_id

    def pass_leases(self) -> None:
        """A whole lease has passed, watched, without a heartbeat."""
        seconds, micros = self.redis.time()
        self.redis.set("rq:serinette:watched", seconds + micros / 1e6 - 1)
        self.board.lapse_leases()

    def song(self, job_id: str) -> Record:
        """The attempt in charge put its record, and no more."""
        entry = self.entry(job_id)
        outcome = Outcome(JobStatus.SUCCEEDED, result=a_result(job_id))
        return put_record(self.store, record_of(entry, entry.attempts[-1], outcome))

    def record(self, job_id: str) -> Record | None:
        return find_record(self.store, TENANT, job_id)

    def entry(self, job_id: str) -> Entry:
        return self.board.entry(job_id)

    def sweeper(self, client: Redis | None = None, counted: Counted | None = None, **settings: Any) -> Sweeper:
        whole_s = settings.pop("whole_s", 600)
        made = ControllerSettings.model_validate({"retention_s": RETENTION_S, **settings})
        return Sweeper(client or self.redis, self.store, made, counted, whole_s)  # type: ignore[arg-type]  # stands in

    def sweep(self, client: Redis | None = None, **settings: Any) -> list[Action]:
        """One round; what was done."""
        counted = Counted()
        self.sweeper(client, counted, **settings)()
        return counted.actions

    def assert_over(self, job_id: str, status: JobStatus) -> None:
        """It has ended so, once, and the store says the same as far as it says anything."""
        assert_ended(self.board, job_id, status)
        record = self.record(job_id)
        assert record is None or record.status is status


__all__ = ["RETENTION_S", "SPEC", "TENANT", "Bench", "Counted", "a_result"]
