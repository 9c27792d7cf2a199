"""Whether an older version left unfinished work: this one does not know its layout in Redis and would lose it.

Versions before one record per job kept a hash per job, `PREFIX:serinette:ledger:ID`, which this version never writes.
Both keep batches and the outbox under the same keys; what distinguishes them is that hash, and of a batch the field
`running`, which older versions wrote when it was entered (serinette/batches/repository.py counts a set instead).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from redis import Redis

from serinette.batch import is_batch_id
from serinette.names import Keys

_CHUNK = 1_000


def old_work(redis: Redis, keys: Keys) -> str:
    """What an older version has not finished, and what to do about it; empty when nothing remains. Raises RedisError.

    Unfinished batches are also paused ones, and those of which no line has a job at the moment.
    """
    pending = (name for name in _members(redis, keys.webhooks) if not is_batch_id(name))  # batches' are read as ever
    counts = {
        "unfinished jobs": _old_jobs(redis, keys, _members(redis, keys.live)),
        "unfinished batches": _old_batches(redis, keys, _members(redis, keys.batches)),
        "pending webhooks": _old_jobs(redis, keys, pending),
    }
    remains = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return remains and (
        f"in the layout of an older version remain: {remains}. Put the older version back, let its workers finish "
        "these jobs and batches or cancel them (paused batches, too), wait until webhooks are delivered or given "
        "up, and upgrade when python -m controller check-drained says that nothing is left"
    )


def _old_jobs(redis: Redis, keys: Keys, job_ids: Iterator[str]) -> int:
    """Of these, those that have the older version's hash and nothing of this version's."""
    count = 0
    while chunk := set(islice(job_ids, _CHUNK)):
        with redis.pipeline(transaction=False) as pipe:
            for job_id in chunk:
                pipe.exists(keys.job(job_id), keys.ended_job(job_id))
                pipe.exists(f"{keys.prefix}:serinette:ledger:{job_id}")
            answers = pipe.execute()
        count += sum(old and not new for new, old in zip(answers[::2], answers[1::2], strict=True))
    return count


def _old_batches(redis: Redis, keys: Keys, batch_ids: Iterator[str]) -> int:
    count = 0
    while chunk := set(islice(batch_ids, _CHUNK)):
        with redis.pipeline(transaction=False) as pipe:
            for batch_id in chunk:
                pipe.hexists(keys.batch(batch_id), "running")
            count += sum(pipe.execute())
    return count


def _members(redis: Redis, key: str) -> Iterator[str]:
    found: Iterator[tuple[Any, float]] = redis.zscan_iter(key, count=_CHUNK)
    return (member.decode() for member, _ in found)
