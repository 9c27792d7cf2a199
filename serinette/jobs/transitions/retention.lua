-- What is kept of an ended job: shrink, erase, restore.

local function forget(id, job)
    local queue = job and job.pool and job.lane and queue_of(job)
    -- Marks of attempts that never reported again.
    for _, attempt in ipairs(redis.call('ZRANGE', executions_key(id), 0, -1)) do unmark(id .. ':' .. attempt) end
    redis.call('DEL', record_key(id), own .. 'events:' .. id, own .. 'log:' .. id, rq_key(id), executions_key(id))
    for _, index in ipairs({'live', 'ended', 'deadlines', 'unrecorded', 'webhooks'}) do redis.call('ZREM', own .. index, id) end
    if queue then
        redis.call('ZREM', waiting_key(queue), id)
        for _, registry in pairs(ENDED) do redis.call('ZREM', prefix .. ':' .. registry .. ':' .. queue, id) end
    end
end

-- shrink: id, text that replaces its record, created_at as in the record. Answers 1, or 0: it has not ended, or its
-- whole record is still needed, or it is another job.
function transitions.shrink()
    local id, text, created_at = given(2, 'id'), given(3, 'text'), given(4, 'created_at')
    local job, left_s = read(id), redis.call('TTL', record_key(id))
    if not job or job.created_at ~= created_at or not ENDED[job.state] or not job.recorded or left_s < 1 or redis.call('ZSCORE', own .. 'unrecorded', id)
        or redis.call('ZSCORE', own .. 'webhooks', id) then return 0 end
    redis.call('SET', ended_key(id), text, 'EX', left_s)
    forget(id, job)
    return 1
end

-- erase: id, tenant. Deletes all of an ended job. Answers 1, or 0: it has not ended.
function transitions.erase()
    local id, tenant = given(2, 'id'), given(3, 'tenant')
    local job = read(id)
    if job and (job.tenant ~= tenant or not ENDED[job.state]) then return 0 end
    forget(id, job)
    redis.call('DEL', ended_key(id), own .. 'share:' .. id)
    local at = clock()
    redis.call('SET', erased_key(id), seconds(at) .. ' ' .. tenant, 'EX', ERASED_KEPT_S)
    redis.call('ZADD', own .. 'unrecorded', at, id)  -- for the sweeper to delete its objects, should the caller die
    for _, index in ipairs({'jobs:', 'in-flight:', 'running:'}) do redis.call('ZREM', own .. index .. tenant, id) end
    return 1
end

-- restore: id, outcome, seconds of retention left, terminal event, number of RQ's fields and values, these, then the
-- record's fields and values. Restores an ended job from the store; nothing is counted or reported again. Answers 1, or
-- 0: it exists.
function transitions.restore()
    local id, outcome = given(2, 'id'), one_of(given(3, 'outcome'), 'outcome', OUTCOMES)
    local left_s, terminal, rq_count = number(given(4, 'left_s'), 'left_s'), given(5, 'event'), number(given(6, 'rq_count'), 'rq_count')
    local job, fields = record_from(7 + rq_count, {'tenant', 'pool', 'lane', 'created_at', 'ended_at'})
    local created_at, ended_at = number(job.created_at, 'created_at'), number(job.ended_at, 'ended_at')
    if redis.call('EXISTS', record_key(id), ended_key(id), erased_key(id)) > 0 then return 0 end
    set(id, 'state', outcome, 'recorded', '1', unpack(fields))
    redis.call('HSET', rq_key(id), unpack(ARGV, 7, 6 + rq_count))
    redis.call('HSET', rq_key(id), 'status', ENDED[outcome], 'created_at', iso(created_at), 'ended_at', iso(ended_at))
    redis.call('SADD', prefix .. ':queues', list_key(queue_of(job)))
    redis.call('ZADD', prefix .. ':' .. ENDED[outcome] .. ':' .. queue_of(job), clock() + left_s, id)
    redis.call('ZADD', own .. 'jobs:' .. job.tenant, created_at, id)
    redis.call('ZADD', own .. 'ended', ended_at, id)
    event(id, outcome, terminal)
    for _, key in ipairs({record_key(id), own .. 'events:' .. id, rq_key(id)}) do
        redis.call('EXPIRE', key, math.ceil(left_s))
    end
    return 1
end
