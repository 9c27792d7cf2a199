"""What the ledger writes as one step each, in Lua: Redis runs a script whole or not at all (serinette/ledger.py).

Scripts that count or keep a tenant's books are run behind those of tally.py and usage.py, which they call.
"""

from __future__ import annotations

from serinette.webhook import TELL_AFTER_S

# A claim. Refused (0) once the job has an outcome or its cancel flag is set (-1). ARGV: attempt id, worker, now, max
# events. An earlier claim that nobody ended was given up by the sweep, or is a frozen slot's: it has lost the job now.
BEGIN = """
if redis.call('HEXISTS', KEYS[1], 'outcome') == 1 then return 0 end
if redis.call('HEXISTS', KEYS[1], 'cancel') == 1 then return -1 end
if redis.call('HEXISTS', KEYS[1], 'owner') == 1 then
    local name = 'attempt:' .. redis.call('HGET', KEYS[1], 'attempts')
    local before = cjson.decode(redis.call('HGET', KEYS[1], name))
    before.outcome = 'superseded'
    before.ended_at = ARGV[3]
    redis.call('HSET', KEYS[1], name, cjson.encode(before))
    count(KEYS[3], 'attempts_ended', 'superseded', '')
end
local number = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'attempt:' .. number, cjson.encode({
    number = number, id = ARGV[1], worker = ARGV[2], started_at = ARGV[3], outcome = 'running'}))
redis.call('HDEL', KEYS[1], 'progress')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'type', 'started',
    'data', cjson.encode({attempt = number, worker = ARGV[2]}))
book_begin(KEYS[1])
return number
"""

# Progress of the attempt in charge. ARGV: attempt id, Progress JSON, max events.
# Answers 1 written, 0 not (another attempt is in charge, or it is over), -1 written but cancel is requested.
PROGRESS = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] or redis.call('HEXISTS', KEYS[1], 'outcome') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'progress', ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'type', 'progress', 'data', ARGV[2])
if redis.call('HEXISTS', KEYS[1], 'cancel') == 1 then return -1 end
return 1
"""

# The end of an attempt that is not the end of the job. ARGV: attempt id, outcome, error JSON or '', now, max events.
END_ATTEMPT = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
local name = 'attempt:' .. redis.call('HGET', KEYS[1], 'attempts')
local attempt = cjson.decode(redis.call('HGET', KEYS[1], name))
attempt.outcome = ARGV[2]
attempt.ended_at = ARGV[4]
if ARGV[3] ~= '' then attempt.error = cjson.decode(ARGV[3]) end
local written = cjson.encode(attempt)
redis.call('HSET', KEYS[1], name, written)
redis.call('HDEL', KEYS[1], 'owner', 'progress')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'type', 'attempt', 'data', written)
count(KEYS[3], 'attempts_ended', ARGV[2], code_of(ARGV[3]))
if ARGV[2] == 'failed' then count(KEYS[3], 'retries', code_of(ARGV[3])) end
book_return(KEYS[1])
return 1
"""

# The end of the job: the first outcome stays, is told once and is added to its tenant's day once.
# KEYS: ledger, events, live, tally. ARGV: job id, outcome, error JSON or '', event JSON, TTL seconds, now, max events,
# key of the unrecorded, key of the webhooks (last). An attempt that is not the one that ends the job may only be frozen
# and record a song yet, or have died and left one: maintenance sees to it that the store says what is decided here.
SETTLE = """
local submitted = redis.call('ZSCORE', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
book_leave(KEYS[1])
if redis.call('HSETNX', KEYS[1], 'outcome', ARGV[2]) == 0 then return 0 end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[3]) end
count(KEYS[4], 'jobs_ended', ARGV[2], code_of(ARGV[3]))
local number = redis.call('HGET', KEYS[1], 'attempts')
local held = redis.call('HEXISTS', KEYS[1], 'owner') == 1
if number and (tonumber(number) > 1 or ARGV[2] ~= 'succeeded') then
    redis.call('ZADD', ARGV[8], redis.call('TIME')[1], ARGV[1])
end
if number and held then
    local name = 'attempt:' .. number
    local attempt = cjson.decode(redis.call('HGET', KEYS[1], name))
    attempt.outcome = ARGV[2]
    attempt.ended_at = ARGV[6]
    if ARGV[3] ~= '' then attempt.error = cjson.decode(ARGV[3]) end
    redis.call('HSET', KEYS[1], name, cjson.encode(attempt))
    count(KEYS[4], 'attempts_ended', ARGV[2], code_of(ARGV[3]))
end
redis.call('HSET', KEYS[1], 'ended_at', ARGV[6])
redis.call('HDEL', KEYS[1], 'owner', 'progress')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'type', ARGV[2], 'data', ARGV[4])
book_end(KEYS[1], ARGV[2], submitted, cjson.decode(ARGV[4]).usage)
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
if redis.call('HEXISTS', KEYS[1], 'webhook') == 1 then
    redis.call('ZADD', ARGV[#ARGV], redis.call('TIME')[1] + TELL_AFTER_S, ARGV[1])
end
return 1
""".replace("TELL_AFTER_S", str(TELL_AFTER_S))

# KEYS: ledger, events. ARGV: now, max events. Answers 0 when the job is over, 1 when the flag is (or was) set.
REQUEST_CANCEL = """
if redis.call('HEXISTS', KEYS[1], 'outcome') == 1 then return 0 end
if redis.call('HSETNX', KEYS[1], 'cancel', ARGV[1]) == 1 then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'type', 'cancel_requested', 'data', '{}')
end
return 1
"""

# The end of a job that nobody has submitted: whoever does so late finds it over, and no slot begins it. KEYS: ledger,
# RQ's job, live, in flight. ARGV: job id, outcome, error JSON, now, TTL seconds. Answers 0 when there is a job, 1 when
# there is none and will be none.
CALL_OFF = """
if redis.call('EXISTS', KEYS[2]) == 1 or redis.call('HEXISTS', KEYS[1], 'attempts') == 1 then return 0 end
local outcome = redis.call('HGET', KEYS[1], 'outcome')
if outcome and outcome ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'outcome', ARGV[2], 'error', ARGV[3], 'ended_at', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return 1
"""
