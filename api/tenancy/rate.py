"""Requests per minute of one tenant, over all gateways."""

from __future__ import annotations

from typing import Any

from redis import asyncio as redis_asyncio
from redis.exceptions import RedisError

from serinette.errors import QueueUnavailable, RateLimited
from serinette.names import Keys

# The generic cell rate algorithm (ITU-T I.371) with a burst of a whole minute: one number says when the allowance is
# full again. Redis's own clock, since the gateways' differ. ARGV: requests per minute. Answers milliseconds to wait.
_SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now) + 60000 / tonumber(ARGV[1])
local early = full - now - 60000
if early > 1 then return math.ceil(early) end
redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX', math.ceil(full - now))
return 0
"""


async def count_request(redis: redis_asyncio.Redis, keys: Keys, tenant: str, per_minute: int | None) -> None:
    """Count one request.

    Raises:
        RateLimited: it is one too many; it counts for nothing.
        QueueUnavailable: Redis does not answer.
    """
    if per_minute is None:
        return
    try:
        # redis-py annotates an answer or an awaitable alike.
        wait_ms: Any = await redis.eval(_SCRIPT, 1, keys.rate(tenant), str(per_minute))
    except RedisError as error:
        raise QueueUnavailable("requests cannot be counted, for the queue does not answer; try again") from error
    if wait_ms:
        raise RateLimited(
            f"tenant {tenant} may send {per_minute} requests a minute; wait as long as Retry-After says",
            retry_after_s=wait_ms / 1000,
        )
