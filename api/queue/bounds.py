"""Whether one more job may come in: bounds of its lane and of its tenant, counted and taken at one moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from api.queue.explain import Pool
from api.queue.pressure import room_for_tenant_s, room_in_lane_s, until_midnight_s
from serinette.credentials import Limits
from serinette.errors import GpuTimeSpent, LaneFull, LaneNotAllowed, SerinetteError, TooManyInFlight, TooManyQueued
from serinette.job import now
from serinette.names import Keys, Lane, queue_name
from serinette.usage import day_number

# Between its admission and its place in the lane's list a job is counted as reserved; whoever dies there is counted
# for so long.
_RESERVED_S = 10

# Refuses with {what, count, bound}, or enters the job among the live ones and in its tenant's book: a submit that is
# cut short is then found by the sweep. Of the books, what ended without leaving them (an older slot's jobs) is thrown
# out when it would make us refuse. KEYS: live, ledger, in flight, running, usage of the day, tenants' limits, reserved,
# the lane's list. ARGV: job id, now, tenant, lane, bound of the lane, declared limits or '', reservation seconds.
_ADMIT = """
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then return {} end
local said = ARGV[6] ~= '' and ARGV[6] or redis.call('HGET', KEYS[6], ARGV[3])
local limits = said and cjson.decode(said) or {}
local function limit(name)
    local value = limits[name]
    if value ~= nil and value ~= cjson.null then return value end
end
local lanes = limit('lanes')
if lanes then
    local allowed = false
    for _, lane in ipairs(lanes) do allowed = allowed or lane == ARGV[4] end
    if not allowed then return {'lane', '0', table.concat(lanes, ', ')} end
end
local gpu_s, spent = limit('gpu_seconds_per_day'), redis.call('HGET', KEYS[5], 'gpu_s') or '0'
if gpu_s and tonumber(spent) >= gpu_s then return {'gpu', spent, tostring(gpu_s)} end
local function count()
    local in_flight = redis.call('ZCARD', KEYS[3])
    return in_flight, in_flight - redis.call('ZCARD', KEYS[4])
end
local most, most_queued = limit('jobs_in_flight'), limit('queued_jobs')
local in_flight, queued = count()
if (most and in_flight >= most) or (most_queued and queued >= most_queued) then
    for _, key in ipairs({KEYS[3], KEYS[4]}) do
        redis.call('ZINTERSTORE', key, 2, key, KEYS[1], 'WEIGHTS', 1, 0)
    end
    in_flight, queued = count()
end
if most and in_flight >= most then return {'in_flight', tostring(in_flight), tostring(most)} end
if most_queued and queued >= most_queued then return {'queued', tostring(queued), tostring(most_queued)} end
redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', ARGV[2])
local waiting = redis.call('LLEN', KEYS[8]) + redis.call('ZCARD', KEYS[7])
if waiting >= tonumber(ARGV[5]) then return {'waiting', tostring(waiting), ARGV[5]} end
redis.call('ZADD', KEYS[7], tonumber(ARGV[2]) + tonumber(ARGV[7]), ARGV[1])
redis.call('EXPIRE', KEYS[7], ARGV[7])
redis.call('ZADD', KEYS[1], 'NX', ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], 'NX', ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], 'tenant', ARGV[3])
return {}
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bound that is reached. `what` is one of lane, gpu, in_flight, queued, waiting."""

    what: str
    count: float
    bound: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """Admits jobs on one Redis. `declared` tells a tenant's limits where a file does; Redis tells the others'."""

    redis: Redis
    keys: Keys
    max_waiting: int
    declared: Callable[[str], Limits | None]

    def admit(self, tenant: str, job_id: str, pool: str, lane: Lane) -> Refusal | None:
        """Enter a job, unless a bound forbids it. A job that is entered already is admitted again."""
        keys, at, queue = self.keys, now(), queue_name(pool, lane)
        limits = self.declared(tenant)
        told: Any = self.redis.eval(
            _ADMIT,
            8,
            *(keys.live, keys.ledger(job_id), keys.in_flight(tenant), keys.running(tenant)),
            *(keys.usage(tenant, day_number(at.date())), keys.tenants, keys.reserved(queue)),
            Queue(queue, self.redis, serializer=JSONSerializer).key,
            *(job_id, at.timestamp(), tenant, lane.value, self.max_waiting),
            *(limits.model_dump_json() if limits else "", _RESERVED_S),
        )
        return Refusal(told[0].decode(), float(told[1]), told[2].decode()) if told else None

    def entered(self, job_id: str, pool: str, lane: Lane) -> None:
        """The job is in its lane's list, or will not come there."""
        self.redis.zrem(self.keys.reserved(queue_name(pool, lane)), job_id)


def error_of(refusal: Refusal, tenant: str, lane: Lane, pool: Pool) -> SerinetteError:
    """What to tell whoever submitted."""
    count, bound = f"{refusal.count:g}", refusal.bound
    mine_s = room_for_tenant_s(pool, int(refusal.count))
    match refusal.what:
        case "lane":
            return LaneNotAllowed(f"lane: tenant {tenant} may use {bound}, not {lane}", field="lane")
        case "gpu":
            message = f"tenant {tenant} has used {count} of its {bound} GPU-seconds of this UTC day; go on tomorrow"
            return GpuTimeSpent(message, retry_after_s=until_midnight_s(now()))
        case "in_flight":
            message = f"tenant {tenant} has {count} unfinished jobs and may have {bound}; wait for one to end"
            return TooManyInFlight(message, retry_after_s=mine_s)
        case "queued":
            message = f"{count} jobs of tenant {tenant} wait and {bound} may; wait for one to begin"
            return TooManyQueued(message, retry_after_s=mine_s)
        case _:
            message = f"{count} jobs wait in lane {lane} of pool {pool.name}, and {bound} may; try again later"
            return LaneFull(message, retry_after_s=room_in_lane_s(pool, lane))
