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
from serinette.names import Keys
from serinette.webhook import Delivery

# Take what is due, out of every other replica's sight until it should have been sent.
# KEYS: webhooks. ARGV: seconds until others may take it, most jobs.
_TAKE = """
local at = tonumber(redis.call('TIME')[1])
local due = redis.call('ZRANGE', KEYS[1], '-inf', at, 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, job in ipairs(due) do redis.call('ZADD', KEYS[1], at + ARGV[1], job) end
return due
"""

# KEYS: record, webhooks. ARGV: job id, number, Delivery JSON, seconds until the next try or '' for none.
_LOG = """
if redis.call('EXISTS', KEYS[1]) == 0 or ARGV[4] == '' then
    redis.call('ZREM', KEYS[2], ARGV[1])
else
    redis.call('ZADD', KEYS[2], 'XX', redis.call('TIME')[1] + ARGV[4], ARGV[1])
end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'deliveries', ARGV[2], 'delivery:' .. ARGV[2], ARGV[3])
return 1
"""

# KEYS: record, webhooks. ARGV: job id.
_DROP = """
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSETNX', KEYS[1], 'deliveries', 0) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Outbox:
    """On one Redis. A replica that takes an entry and dies leaves it to be taken again: at least once."""

    redis: Redis
    keys: Keys

    def take(self, hidden_s: int, count: int) -> list[str]:
        """Up to `count` jobs and batches that are due; no other replica gets them within `hidden_s`."""
        due: Any = self.redis.eval(_TAKE, 1, self.keys.webhooks, hidden_s, count)
        return [job_id.decode() for job_id in due]

    def log(self, job_id: str, delivery: Delivery, again_s: float | None) -> None:
        """Log one try on its job; the next follows after `again_s`, or never."""
        keys = [self._record_of(job_id), self.keys.webhooks]
        again = "" if again_s is None else math.ceil(again_s)
        outcome = "delivered" if delivery.delivered else "given_up" if again_s is None else "failed"
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.eval(_LOG, 2, *keys, job_id, delivery.number, delivery.model_dump_json(), again)
            counters.count(pipe, self.keys, counters.WEBHOOKS, outcome)
            pipe.execute()

    def put_back(self, delays_s: Mapping[str, float]) -> None:
        """Have entries that were taken due again after so many seconds; that is no try."""
        if delays_s:
            at: Any = self.redis.time()
            due = {name: at[0] + math.ceil(delay_s) for name, delay_s in delays_s.items()}
            self.redis.zadd(self.keys.webhooks, due, xx=True)

    def drop(self, job_id: str) -> None:
        """Never send this one."""
        self.redis.eval(_DROP, 2, self._record_of(job_id), self.keys.webhooks, job_id)

    def _record_of(self, name: str) -> str:
        """The hash in which the tries of a job or batch are logged."""
        return self.keys.batch(name) if is_batch_id(name) else self.keys.job(name)
