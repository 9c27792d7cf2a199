"""The transactional outbox: ends of jobs and batches whose webhook is to be sent, entered by the step that ends them
(serinette/jobs, serinette/batches/repository.py).

One sorted set, `Keys.webhooks`: ids by the Unix second, by Redis's own clock, at which they are due.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis

from serinette import counters
from serinette.batch import is_batch_id
from serinette.jobs import Jobs, calls
from serinette.names import Keys
from serinette.webhook import Delivery

# Take what is due, out of every other replica's sight until it should have been sent.
# KEYS: webhooks. ARGV: seconds until others may take it, most jobs.
_TAKE = """#!lua flags=allow-oom
local at = tonumber(redis.call('TIME')[1])
local due = redis.call('ZRANGE', KEYS[1], '-inf', at, 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, job in ipairs(due) do redis.call('ZADD', KEYS[1], at + ARGV[1], job) end
return due
"""


@dataclass(frozen=True, slots=True)
class Outbox:
    """On one Redis. A replica that takes an entry and dies leaves it to be taken again: at least once."""

    redis: Redis
    keys: Keys

    def take(self, hidden_s: int, count: int) -> list[str]:
        """Up to `count` jobs and batches that are due; no other replica gets them within `hidden_s`."""
        due: Any = self.redis.register_script(_TAKE)([self.keys.webhooks], [hidden_s, count])
        return [job_id.decode() for job_id in due]

    def log(self, job_id: str, ended_at: str, delivery: Delivery, again_s: float | None) -> None:
        """Log one try on its job, unless that has another end by now; the next follows after `again_s`, or never."""
        outcome = "delivered" if delivery.delivered else "given_up" if again_s is None else "failed"
        counters.count(self.redis, self.keys, counters.WEBHOOKS, outcome)
        record, number = self._record_of(job_id), delivery.number
        logged = ("HSET", record, "deliveries", number, f"delivery:{number}", delivery.model_dump_json())
        over = ("ZREM", self.keys.webhooks, job_id)
        again: calls.Command = over
        if again_s is not None:
            again = ("ZADD", self.keys.webhooks, "XX", int(self.redis.time()[0]) + math.ceil(again_s), job_id)
        jobs = Jobs(self.redis, self.keys.prefix)
        if not jobs(calls.guarded([(("HGET", record, "ended_at"), ended_at)], [logged, again])):
            jobs(calls.guarded([(("EXISTS", record), 0)], [over]))

    def put_back(self, delays_s: Mapping[str, float]) -> None:
        """Have entries that were taken due again after so many seconds; that is no try."""
        if delays_s:
            at: Any = self.redis.time()
            due = {name: at[0] + math.ceil(delay_s) for name, delay_s in delays_s.items()}
            self.redis.zadd(self.keys.webhooks, due, xx=True)

    def drop(self, job_id: str) -> None:
        """Never send this one."""
        over, record = ("ZREM", self.keys.webhooks, job_id), self._record_of(job_id)
        jobs = Jobs(self.redis, self.keys.prefix)
        if not jobs(calls.guarded([(("EXISTS", record), 1)], [over, ("HSETNX", record, "deliveries", 0)])):
            jobs(calls.guarded([], [over]))

    def _record_of(self, name: str) -> str:
        """The hash in which the tries of a job or batch are logged."""
        return self.keys.batch(name) if is_batch_id(name) else self.keys.job(name)
