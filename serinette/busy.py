"""Which workers hold work: what KEDA counts as those that keep their place, however many songs each holds.

A worker is a pod; its slots claim jobs one by one. So beside a pool's set of busy workers each worker has a set of the
attempts that it holds, and leaves the first with the last of the second. Both are written in the transactions that
begin and end an attempt, so that nobody sees a claimed job that keeps no worker. Entering or leaving twice changes
nothing, and what killed slots leave behind is found by comparing with RQ's started registry, which those transactions
write too (api/maintenance/busy.py).
"""

from __future__ import annotations

from collections.abc import Collection

from redis import Redis
from redis.client import Pipeline

from serinette.names import Keys

# Of a worker that was killed while it drained, nobody else asks. No attempt is as long.
_FORGOTTEN_AFTER_S = 2 * 86_400

# KEYS: attempts of the worker, busy workers of its pool. ARGV: worker, attempts.
_LEAVE = """
redis.call('SREM', KEYS[1], unpack(ARGV, 2))
if redis.call('SCARD', KEYS[1]) == 0 then redis.call('SREM', KEYS[2], ARGV[1]) end
"""


def worker_of(slot: str) -> str:
    """The worker that a slot belongs to, by the name that its supervisor gave it: `{worker}.{number}.{random}`."""
    return slot.rsplit(".", 2)[0]


def enter(pipe: Pipeline, keys: Keys, pool: str, worker: str, attempt: str) -> None:
    """A worker begins to hold an attempt, `{job id}:{execution id}`; rides in the claim."""
    pipe.sadd(keys.held(worker), attempt)
    pipe.expire(keys.held(worker), _FORGOTTEN_AFTER_S)
    pipe.sadd(keys.busy(pool), worker)


def leave(redis: Redis | Pipeline, keys: Keys, pool: str, worker: str, attempts: Collection[str]) -> None:
    """A worker holds these attempts no more; rides in their end."""
    redis.eval(_LEAVE, 2, keys.held(worker), keys.busy(pool), worker, *(attempts or [""]))


def host_of(worker: str) -> str:
    """The host, and so the pod, of a worker: its supervisor's name is `{host}-{random}`, anew at each start."""
    return worker.rpartition("-")[0] or worker
