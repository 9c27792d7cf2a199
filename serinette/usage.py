"""What tenants' jobs took, per UTC day. Written by the ledger as a job ends, in the same transaction, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field
from redis import Redis

from serinette.names import Keys

# A year and a month, for whoever writes invoices; a day of a tenant takes some 200 bytes.
DAYS_KEPT = 400

# The tenants' books, kept by the ledger's scripts (serinette/ledger.py), which begin with this. Sets and not counters:
# entering or leaving twice changes nothing. A job of an older gateway has no tenant in its ledger and is in no book.
BOOK_SCRIPT = """
local function book(ledger, name)
    local tenant = redis.call('HGET', ledger, 'tenant')
    local base, job_id = string.match(ledger, '^(.*:)ledger:([^:]+)$')
    return tenant and base .. name .. ':' .. tenant, job_id
end
local function unix_s()
    local time = redis.call('TIME')
    return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function book_started(ledger)
    local base, job_id = string.match(ledger, '^(.*:)ledger:([^:]+)$')
    redis.call('ZREM', base .. 'deadlines', job_id)
end
local function book_begin(ledger)
    book_started(ledger)
    redis.call('HSET', ledger, 'began', string.format('%.3f', unix_s()))
    local running, job_id = book(ledger, 'running')
    if running then redis.call('ZADD', running, unix_s(), job_id) end
end
local function book_return(ledger)
    local running, job_id = book(ledger, 'running')
    if running then redis.call('ZREM', running, job_id) end
end
local function book_leave(ledger)
    book_started(ledger)
    book_return(ledger)
    local in_flight, job_id = book(ledger, 'in-flight')
    if in_flight then redis.call('ZREM', in_flight, job_id) end
end
local function book_end(ledger, outcome, submitted, last)
    local began = tonumber(redis.call('HGET', ledger, 'began') or unix_s())
    local queue_s = string.format('%.3f', math.max(0, began - tonumber(submitted or began)))
    local earlier_gpu_s = tonumber(redis.call('HGET', ledger, 'gpu_s') or 0)
    local gpu_s = string.format('%.3f', earlier_gpu_s + last.gpu_s)
    redis.call('HSET', ledger, 'usage', cjson.encode({
        gpu_s = tonumber(gpu_s), queue_s = tonumber(queue_s), size_bytes = last.size_bytes}))
    local usage = book(ledger, 'usage')
    if not usage then return end
    local day = usage .. ':' .. math.floor(unix_s() / 86400)
    redis.call('HINCRBYFLOAT', day, 'gpu_s', gpu_s)
    redis.call('HINCRBYFLOAT', day, 'queue_s', queue_s)
    redis.call('HINCRBY', day, 'size_bytes', string.format('%.0f', last.size_bytes))
    redis.call('HINCRBY', day, outcome, 1)
    redis.call('EXPIRE', day, DAYS_KEPT * 86400)
end
""".replace("DAYS_KEPT", str(DAYS_KEPT))

_EPOCH = date(1970, 1, 1)


class Sums(BaseModel):
    """Sums over jobs that ended."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    gpu_s: float = Field(0.0, description="Seconds in the engine.")
    queue_s: float = Field(0.0, description="Seconds that jobs waited for their last attempt.")
    size_bytes: int = Field(0, description="Of the songs.")

    @computed_field(description="All that ended.")  # type: ignore[prop-decorator]  # pydantic's documented order
    @property
    def jobs(self) -> int:
        """All that ended."""
        return self.succeeded + self.failed + self.canceled

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        names = Sums.model_fields
        return Sums(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Day(Sums):
    """One UTC day of one tenant."""

    day: date


def day_number(day: date) -> int:
    """Days since 1970-01-01, as a key names one."""
    return (day - _EPOCH).days


def day_of(day: date, raw: Mapping[Any, Any]) -> Day:
    """Read the hash as `HGETALL` gives it; a day without jobs is all zeros."""
    return Day(day=day, **{name.decode(): value.decode() for name, value in raw.items()})


def read_days(redis: Redis, keys: Keys, tenant: str, days: Sequence[date]) -> list[Day]:
    """A tenant's days, in the order asked for."""
    with redis.pipeline(transaction=False) as pipe:
        for day in days:
            pipe.hgetall(keys.usage(tenant, day_number(day)))
        return [day_of(day, raw) for day, raw in zip(days, pipe.execute(), strict=True)]
