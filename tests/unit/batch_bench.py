"""Batches on a real Valkey and a directory store: the gateway's part, the controller's, and slots moved by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from api.batches.book import Book
from api.batches.desk import Desk
from api.batches.shelf import Shelf
from api.maintenance.batches import Batches
from api.settings import GatewaySettings, MaintenanceSettings
from api.targets import Targets
from api.tenancy.accounts import Accounts
from serinette.batch import Batch, BatchLine, BatchOptions
from serinette.job import JobError
from serinette.jobs import Jobs
from serinette.names import Keys, Lane, batch_errors_key, batch_output_key
from serinette.store import Store
from tests.jobs import entry, fail, succeed, take

TENANT = "default"


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
        settings = GatewaySettings.model_validate(given)
        self.redis = Redis.from_url(self.redis_url)
        self.keys = Keys()
        self.jobs = Jobs(self.redis, self.keys.prefix)
        self.store = Store.open(settings)
        self.desk = Desk(
            book=Book(self.redis, self.keys, settings.retention_s),
            shelf=Shelf(self.store),
            jobs=self.jobs,
            settings=settings,
            targets=Targets(settings.webhook_networks),
            declared=lambda _: None,
            limits=Accounts(self.redis, self.keys, lambda _: None).limits,
            part_lines=self.part_lines,
        )
        self.duty = self.new_duty()

    def new_duty(self, redis: Redis | None = None, backlog: int | None = None) -> Batches:
        """The controller's part, started anew."""
        given = {"redis_url": self.redis_url, "store_url": self.store_url, "batch_backlog": backlog or self.backlog}
        return Batches(redis or self.redis, self.store, MaintenanceSettings.model_validate(given))

    def create(self, count: int, tenant: str = TENANT, key: str | None = None, **options: Any) -> Batch:
        """A batch of lines that name themselves."""
        lines = [json.dumps({"prompt": f"song {n}", "custom_id": f"id {n}"}).encode() for n in range(1, count + 1)]
        return self.desk.create(tenant, lines, BatchOptions.model_validate(options), key)[0]

    def look(self, batch: Batch) -> Batch:
        return self.desk.get(batch.tenant, batch.id)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Those that are not 0."""
        return {name: count for name, count in self.look(batch).request_counts.model_dump().items() if count}

    def waiting(self) -> list[str]:
        found: Any = self.redis.zrange(self.keys.waiting("default", Lane.LOW), 0, -1)
        return [job_id.decode() for job_id in found]

    def begin(self, count: int) -> list[str]:
        """Begin the jobs that wait longest."""
        ids = self.waiting()[:count]
        for job_id in ids:
            assert take(self.jobs, job_id), "a job was begun twice"
            self.begun[job_id] += 1
        return ids

    def end(self, job_ids: Sequence[str], failing: Sequence[str] = ()) -> None:
        """End jobs that were begun, those of a prompt in `failing` in failure."""
        for job_id in job_ids:
            prompt = entry(self.jobs, job_id).spec.prompt
            if prompt in failing:
                fail(self.jobs, self.store, job_id, JobError(code="invalid_output", message="nothing was heard"))
            else:
                succeed(self.jobs, self.store, job_id, [prompt.encode()])

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
            found += self.desk.lines(batch.tenant, batch.id, len(found), 250)
        return found

    def _file(self, key: str) -> list[BatchLine]:
        return [BatchLine.model_validate_json(line) for line in self.store.get(key).splitlines()]
