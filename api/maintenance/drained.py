"""Whether jobs of before the upgrade remain: this version does not know their layout in Redis and would lose them."""

from __future__ import annotations

from itertools import islice

from redis import Redis

from serinette.names import Keys

_CHUNK = 1_000


def old_jobs(redis: Redis, keys: Keys) -> int:
    """Unfinished jobs that have a ledger, as versions before one record per job kept it, and no record.

    Raises RedisError.
    """
    count, found = 0, redis.zscan_iter(keys.live, count=_CHUNK)
    while chunk := [job_id.decode() for job_id, _ in islice(found, _CHUNK)]:
        with redis.pipeline(transaction=False) as pipe:
            for job_id in chunk:
                pipe.exists(keys.job(job_id))
                pipe.exists(f"{keys.prefix}:serinette:ledger:{job_id}")
            answers = pipe.execute()
        count += sum(old and not new for new, old in zip(answers[::2], answers[1::2], strict=True))
    return count


def refusal(count: int) -> str:
    """What to do about that many."""
    return (
        f"{count} unfinished jobs are in the layout of an older version: put the older version back, let its workers "
        "finish or cancel these jobs, and upgrade when python -m api.maintenance check-drained says that none is left"
    )
