"""Batches on a real Valkey and a directory store: the gateway's part, the controller's, and slots moved by hand."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from api.batches.service import BatchService
from api.settings import GatewaySettings
from controller.batches import Batches
from controller.settings import ControllerSettings
from serinette.batch import Batch, BatchLine, BatchOptions
from serinette.batches.lines import BatchFiles
from serinette.batches.repository import BatchRepository
from serinette.credentials import Limits
from serinette.job import JobError, JobStatus
from serinette.jobs import Claimed, Jobs, Lease, Outcome, calls
from serinette.jobs.finishing import finish_as, put_record, record_of
from serinette.names import Keys, Lane, artifact_key, batch_errors_key, batch_output_key
from serinette.store import Store
from serinette.webhook_targets import Targets
from tests.jobs import Board
from tests.unit.slot_bench import a_result

TENANT = "default"


def take(jobs: Jobs, job_id: str) -> bool:
    """Have a slot begin this job; whether it could."""
    return isinstance(jobs(calls.take(job_id, uuid.uuid4().hex, Lease("pod.0.test", 20.0))), Claimed)


@dataclass
class BatchBench:
    """Parts are small, so that a few lines fill several."""

    redis_url: str
    store_url: str
    backlog: int = 10
    part_lines: int = 4
    begun: Counter[str] = field(default_factory=Counter)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {"redis_url": self.redis_url, "store_url": self.store_url, **self.settings}
        self.gateway = settings = GatewaySettings.model_validate(given)
        self.redis = Redis.from_url(self.redis_url)
        self.keys = Keys()
        self.jobs = Jobs(self.redis, self.keys.prefix)
        self.board = Board(self.redis, self.keys)
        self.store = Store.open(settings)
        self.batches = BatchService(
            repository=BatchRepository(self.jobs, self.keys, settings.retention_s),
            files=BatchFiles(self.store),
            settings=settings,
            targets=Targets(settings.webhook_networks),
            declared=lambda _: None,
            limits=lambda _: Limits(),
            part_lines=self.part_lines,
        )
        self.duty = self.new_duty()

    def new_duty(self, redis: Redis | None = None, backlog: int | None = None) -> Batches:
        """The controller's part, started anew."""
        given = {"redis_url": self.redis_url, "store_url": self.store_url, "batch_backlog": backlog or self.backlog}
        return Batches(redis or self.redis, self.store, ControllerSettings.model_validate(given))

    def create(self, count: int, tenant: str = TENANT, key: str | None = None, **options: Any) -> Batch:
        """A batch of lines that name themselves."""
        lines = [json.dumps({"prompt": f"song {n}", "custom_id": f"id {n}"}).encode() for n in range(1, count + 1)]
        return self.batches.create(tenant, lines, BatchOptions.model_validate(options), key)[0]

    def look(self, batch: Batch) -> Batch:
        seen = self.batches.get(batch.tenant, batch.id)
        assert seen.request_counts.released <= seen.request_counts.total, "a line was counted twice"
        return seen

    def counts(self, batch: Batch) -> dict[str, int]:
        """Those that are not 0."""
        return {name: count for name, count in self.look(batch).request_counts.model_dump().items() if count}

    def waiting(self) -> list[str]:
        return self.board.waiting(Lane.LOW)

    def begin(self, count: int) -> list[str]:
        """Begin the jobs that wait longest."""
        ids = self.waiting()[:count]
        for job_id in ids:
            assert take(self.jobs, job_id), "a job was begun twice"
            self.begun[job_id] += 1
        return ids

    def end(self, job_ids: Sequence[str], failing: Sequence[str] = ()) -> None:
        """End jobs that were begun as their slots do, those of a prompt in `failing` in failure."""
        for job_id in job_ids:
            held = self.board.entry(job_id)
            attempt, prompt = held.attempts[-1], held.spec.prompt
            if prompt in failing:
                outcome = Outcome(JobStatus.FAILED, JobError(code="invalid_output", message="no audio"))
            else:
                key, made = artifact_key(held.tenant, job_id, attempt.id, 0, "mp3"), a_result(job_id)
                self.store.put(key, prompt.encode())
                song = made.artifacts[0].model_copy(update={"key": key, "size_bytes": len(prompt)})
                outcome = Outcome(JobStatus.SUCCEEDED, result=made.model_copy(update={"artifacts": (song,)}))
            finish_as(self.jobs, put_record(self.store, record_of(held, attempt, outcome)))

    def generate(self, count: int = 1_000, failing: Sequence[str] = ()) -> None:
        """Begin and end what waits."""
        self.end(self.begin(count), failing)

    def run(self, batch: Batch, failing: Sequence[str] = (), rounds: int = 100) -> Batch:
        """Rounds and songs in turn until the batch has ended."""
        for _ in range(rounds):
            self.duty()
            if (seen := self.look(batch)).status.ended:
                return seen
            self.generate(failing=failing)
        raise AssertionError(f"the batch did not end: {self.look(batch)}")

    def output(self, batch: Batch, round: int = 0) -> list[BatchLine]:
        return self._file(batch_output_key(batch.tenant, batch.id, round))

    def errors(self, batch: Batch, round: int = 0) -> list[BatchLine]:
        return self._file(batch_errors_key(batch.tenant, batch.id, round))

    def lines(self, batch: Batch) -> list[BatchLine]:
        """All lines as the route answers them."""
        found: list[BatchLine] = []
        while len(found) < batch.request_counts.total:
            found += self.batches.lines(batch.tenant, batch.id, len(found), 250)
        return found

    def _file(self, key: str) -> list[BatchLine]:
        return [BatchLine.model_validate_json(line) for line in self.store.get(key).splitlines()]
