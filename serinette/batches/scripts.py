"""What changes a batch's hash as one step each, in Lua (serinette/batches/record.py).

Every script that moves a batch on names the round it means, and how far it saw it: a late caller changes nothing.
"""

from __future__ import annotations

# A new batch. KEYS: batch, unfinished, the tenant's. ARGV: id, created, most unfinished batches of the tenant, then
# fields and values. Answers 1 entered, 0 it is there already, -1 the tenant has as many as it may.
ENTER = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local unfinished = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
    if redis.call('ZSCORE', KEYS[2], id) then unfinished = unfinished + 1 end
end
if unfinished >= tonumber(ARGV[3]) then return -1 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
return 1
"""

# KEYS: batch. ARGV: status to take, then those it may be taken from. Answers the status that it then has.
MOVE = """
local status = redis.call('HGET', KEYS[1], 'status')
for i = 2, #ARGV do
    if status == ARGV[i] then
        redis.call('HSET', KEYS[1], 'status', ARGV[1])
        redis.call('HDEL', KEYS[1], 'waiting_for')
        return ARGV[1]
    end
end
return status
"""

# Another round for the lines without songs. KEYS: batch, unfinished, webhooks. ARGV: id. Answers 1, or 0: none is left.
RETRY = """
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'completed' and status ~= 'canceled' then return 0 end
local failed = redis.call('HGET', KEYS[1], 'failed') + redis.call('HGET', KEYS[1], 'canceled')
if failed == 0 then return 0 end
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], 'status', 'in_progress', 'released', 0, 'failed', 0, 'canceled', 0)
redis.call('HINCRBY', KEYS[1], 'round', 1)
redis.call('HDEL', KEYS[1], 'ended_at', 'running')  -- the second marks an older version's (controller/upgrade_check.py)
redis.call('ZADD', KEYS[2], redis.call('HGET', KEYS[1], 'created'), ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
"""

# Lines that have ended, each counted when it is first entered. KEYS: batch, open parts, part. ARGV: round, part, then
# line and LineEnd in turn.
_GATHER = """
local counts = {succeeded = 'completed', failed = 'failed', canceled = 'canceled', called_off = 'canceled'}
local function gather(first)
    for i = first, #ARGV, 2 do
        if redis.call('HSETNX', KEYS[3], ARGV[i], ARGV[i + 1]) == 1 and counts[ARGV[i + 1]] then
            redis.call('HINCRBY', KEYS[1], counts[ARGV[i + 1]], 1)
        end
    end
    return 1
end
if redis.call('HGET', KEYS[1], 'round') ~= ARGV[1] then return 0 end
"""

GATHER = (
    _GATHER
    + """
if redis.call('SISMEMBER', KEYS[2], ARGV[2]) == 0 then return 0 end
return gather(3)
"""
)

# The cursor, over lines of one part whose jobs are in the queue, or which have ended and are gathered here.
# KEYS: as of GATHER. ARGV: round, part, cursor before, cursor after, then as of GATHER. Answers 1, or 0: another did.
ADVANCE = (
    _GATHER
    + """
if redis.call('HGET', KEYS[1], 'released') ~= ARGV[3] then return 0 end
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[1], 'released', ARGV[4])
return gather(5)
"""
)

# A part whose lines are all in the store. KEYS: as of GATHER. ARGV: round, part.
CLOSE = """
if redis.call('HGET', KEYS[1], 'round') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[3])
return redis.call('SREM', KEYS[2], ARGV[2])
"""

# All lines have ended. KEYS: batch, open parts. Answers 1 when only the files are to be written.
FINALIZE = """
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'finalizing' then return 1 end
if not status or status == 'completed' or status == 'canceled' then return 0 end
if redis.call('SCARD', KEYS[2]) > 0 then return 0 end
if redis.call('HGET', KEYS[1], 'released') ~= redis.call('HGET', KEYS[1], 'total') then return 0 end
redis.call('HSET', KEYS[1], 'status', 'finalizing', 'ends_as', status == 'canceling' and 'canceled' or 'completed')
redis.call('HDEL', KEYS[1], 'waiting_for')
return 1
"""

# KEYS: batch, unfinished, webhooks, its ended jobs. ARGV: id, round, now, TTL seconds. Answers 1 for the one who ended
# it.
END = """
if redis.call('HGET', KEYS[1], 'status') ~= 'finalizing' then return 0 end
if redis.call('HGET', KEYS[1], 'round') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'status', redis.call('HGET', KEYS[1], 'ends_as'), 'ended_at', ARGV[3])
redis.call('HDEL', KEYS[1], 'deliveries')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[4])
redis.call('EXPIRE', KEYS[1], ARGV[4])
if redis.call('HEXISTS', KEYS[1], 'webhook') == 1 then
    redis.call('ZADD', KEYS[3], redis.call('TIME')[1], ARGV[1])
end
return 1
"""

# Why no more lines are released, or '': a batch that is gone stays gone. KEYS: batch. ARGV: words.
WAITS_FOR = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[1] == '' then return redis.call('HDEL', KEYS[1], 'waiting_for') end
return redis.call('HSET', KEYS[1], 'waiting_for', ARGV[1])
"""
