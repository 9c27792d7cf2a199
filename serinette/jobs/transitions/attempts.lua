-- What holds a job while it runs: an attempt, its lease and its marks. No transition is here.

-- Attempts. One is kept as JSON that ends with its outcome: `,"outcome":"running"}` as long as it runs.

local RUNNING = ',"outcome":"running"}'

local function attempt_json(text, outcome, at, reason)
    local head = string.sub(text, 1, -#RUNNING - 1)
    local why = reason ~= '' and ',"error":' .. reason or ''
    return head .. ',"outcome":"' .. outcome .. '","ended_at":' .. seconds(at) .. why .. '}'
end

-- A lease of 0 seconds never expires: a container runs on while no process renews its lease.
local function lease_end(at, lease_s) return lease_s == 0 and '+inf' or at + lease_s end

-- Marks of a running attempt: its lease, its worker's busy mark, RQ's execution and started registry.
local function mark(id, job, attempt, slot, lease_until, at)
    local member, queue, worker = id .. ':' .. attempt, queue_of(job), worker_of(slot)
    redis.call('ZADD', own .. 'leases', lease_until, member)
    redis.call('ZADD', started_key(queue), '+inf', member)
    redis.call('ZADD', executions_key(id), '+inf', attempt)
    redis.call('HSET', execution_key(member), 'id', attempt, 'job_id', id, 'created_at', seconds(at),
        'last_heartbeat', seconds(at), 'worker_name', slot, 'queue', queue, 'pool', job.pool)
    redis.call('SADD', held_key(slot), member)
    redis.call('EXPIRE', held_key(slot), HELD_KEPT_S)
    if worker then
        redis.call('SADD', own .. 'held:' .. worker, member)
        redis.call('EXPIRE', own .. 'held:' .. worker, HELD_KEPT_S)
        redis.call('SADD', own .. 'busy:' .. job.pool, worker)
    end
    if redis.call('EXISTS', rq_worker_key(slot)) == 1 then
        redis.call('HSET', rq_worker_key(slot), 'state', 'busy', 'current_job', id)
    end
end

local function unmark(member)
    local id, attempt = parts_of(member)
    local known = redis.call('HMGET', execution_key(member), 'worker_name', 'queue', 'pool')
    local slot, queue, pool = known[1], known[2], known[3]
    redis.call('ZREM', own .. 'leases', member)
    redis.call('DEL', execution_key(member))
    redis.call('ZREM', executions_key(id), attempt)
    if queue then redis.call('ZREM', started_key(queue), member) end
    if not slot then return end
    redis.call('SREM', held_key(slot), member)
    local rq_worker, worker = rq_worker_key(slot), worker_of(slot)
    if redis.call('HGET', rq_worker, 'current_job') == id then
        redis.call('HDEL', rq_worker, 'current_job')
        redis.call('HSET', rq_worker, 'state', 'idle')
    end
    if worker and pool then
        redis.call('SREM', own .. 'held:' .. worker, member)
        if redis.call('SCARD', own .. 'held:' .. worker) == 0 then
            redis.call('SREM', own .. 'busy:' .. pool, worker)
        end
    end
end

-- Ends the current attempt, not its job.
local function close_attempt(id, job, outcome, at, reason, code)
    local name = 'attempt:' .. job.attempts
    local text = attempt_json(job[name], outcome, at, reason)
    set(id, name, text)
    redis.call('HDEL', record_key(id), 'owner', 'progress')
    redis.call('ZREM', own .. 'running:' .. job.tenant, id)
    if job.batch then redis.call('SREM', batch_key('running', job), id) end
    count('attempts_ended', job.pool, outcome, code)
    return text
end

local function start(id, job, attempt, slot, lease_s, at)
    local attempts = tonumber(job.attempts or 0) + 1
    local text = '{"number":' .. attempts .. ',"id":' .. cjson.encode(attempt) .. ',"worker":' .. cjson.encode(slot) ..
        ',"started_at":' .. seconds(at) .. RUNNING
    set(id, 'state', 'running', 'owner', attempt, 'attempts', attempts, 'attempt:' .. attempts, text,
        'began', seconds(at))
    redis.call('HDEL', record_key(id), 'progress', 'attempt:' .. attempts - MOST_ATTEMPTS_KEPT)
    redis.call('ZREM', waiting_key(queue_of(job)), id)
    redis.call('ZREM', own .. 'deadlines', id)
    redis.call('ZADD', own .. 'running:' .. job.tenant, at, id)
    if job.batch then redis.call('SADD', batch_key('running', job), id) end
    mark(id, job, attempt, slot, lease_end(at, lease_s), at)
    redis.call('HSET', rq_key(id), 'status', 'started', 'started_at', iso(at), 'last_heartbeat', iso(at), 'ended_at',
        '', 'worker_name', slot)
    event(id, 'started', '{"attempt":' .. attempts .. ',"worker":' .. cjson.encode(slot) .. '}')
    return attempts
end

-- State of a job from the view of one attempt: mine, cancel (mine, cancel requested), waits (queued), lost (held by
-- another attempt, or ended), unknown (not in Redis).
local function attempt_state(id, attempt)
    local known = redis.call('HMGET', record_key(id), 'state', 'owner', 'cancel', 'erased_at')
    if not known[1] then
        return redis.call('EXISTS', ended_key(id), erased_key(id)) > 0 and 'lost' or 'unknown'
    end
    if known[2] == attempt and known[1] == 'running' then return known[3] and 'cancel' or 'mine' end
    -- The attempt may be one of the erased job that had this id.
    return known[1] == 'queued' and not known[4] and 'waits' or 'lost'
end
