-- While an attempt runs: beat, resume, overdue, lapse.

-- beat: id, attempt id, slot, seconds of a lease (0: never expires), TTL of RQ's worker key, progress JSON or ''.
-- Answers as `attempt_state`.
function transitions.beat()
    local id, attempt, slot = given(2, 'id'), given(3, 'attempt'), given(4, 'slot')
    local lease_s, worker_s = number(given(5, 'lease_s'), 'lease_s'), number(given(6, 'worker_s'), 'worker_s')
    local progress, at = given(7, 'progress'), clock()
    local answer, member = attempt_state(id, attempt), id .. ':' .. attempt
    if answer == 'mine' or answer == 'cancel' then
        -- A heartbeat that arrives after its slot was declared dead must not renew the lease.
        if not redis.call('ZSCORE', own .. 'dead-slots', slot) then
            redis.call('ZADD', own .. 'leases', lease_end(at, lease_s), member)
        end
        redis.call('HSET', rq_key(id), 'last_heartbeat', iso(at))
        redis.call('HSET', execution_key(member), 'last_heartbeat', seconds(at))
        if progress ~= '' then
            set(id, 'progress', progress)
            event(id, 'progress', progress)
        end
    elseif answer == 'lost' then
        unmark(member)
    end
    local worker = rq_worker_key(slot)
    if redis.call('EXISTS', worker) == 1 then
        redis.call('HSET', worker, 'last_heartbeat', iso(at))
        redis.call('EXPIRE', worker, math.ceil(worker_s))
    end
    return answer
end

-- resume: id, attempt id, slot, seconds of a lease, number of RQ's fields and values, these, then the record as the
-- attempt knows it. Redis lost the job, and the slot has the only copy. Answers as `attempt_state`.
function transitions.resume()
    local id, attempt, slot = given(2, 'id'), given(3, 'attempt'), given(4, 'slot')
    local lease_s, rq_count = number(given(5, 'lease_s'), 'lease_s'), number(given(6, 'rq_count'), 'rq_count')
    local job, fields = record_from(7 + rq_count, {'tenant', 'pool', 'lane', 'ttl_s', 'attempts', 'created_at'})
    local at = clock()
    local answer = attempt_state(id, attempt)
    if answer ~= 'unknown' then return answer end
    local created_at = number(job.created_at, 'created_at')
    check_kept(job)
    whole(job.attempts, 'attempts')
    set(id, unpack(fields))
    set(id, 'state', 'running', 'owner', attempt)
    redis.call('HDEL', record_key(id), 'cancel', 'progress')
    for _, index in ipairs({'live', 'jobs:' .. job.tenant, 'in-flight:' .. job.tenant}) do
        redis.call('ZADD', own .. index, created_at, id)
    end
    redis.call('ZADD', own .. 'running:' .. job.tenant, at, id)
    if job.batch then redis.call('SADD', batch_key('running', job), id) end
    redis.call('SADD', prefix .. ':queues', list_key(queue_of(job)))
    redis.call('HSET', rq_key(id), unpack(ARGV, 7, 6 + rq_count))
    redis.call('HSET', rq_key(id), 'status', 'started', 'created_at', iso(created_at), 'enqueued_at', iso(created_at),
        'started_at', iso(at), 'last_heartbeat', iso(at), 'worker_name', slot)
    mark(id, job, attempt, slot, lease_end(at, lease_s), at)
    event(id, 'started', '{"attempt":' .. job.attempts .. ',"worker":' .. cjson.encode(slot) .. '}')
    return 'mine'
end

-- overdue: seconds of a lease, most. Current attempts whose lease expired, as `job:attempt`; marks of other attempts
-- are removed. After a gap between two calls, or a step of the clock backward, every lease is extended: the server may
-- have been down, so that no slot could renew it, or its time means nothing. Not one that was extended before and has
-- had no heartbeat since: where calls always come late, no lease would expire.
function transitions.overdue()
    local lease_s, most, at = number(given(2, 'lease_s'), 'lease_s'), number(given(3, 'most'), 'most'), clock()
    local watched = tonumber(redis.call('GET', own .. 'watched') or 0)
    redis.call('SET', own .. 'watched', seconds(at))
    if at < watched or at - watched > lease_s / 2 then
        local extended, lease_until = tonumber(redis.call('GET', own .. 'extended') or -1), string.format('%.17g', at + lease_s)
        -- Neither leases of dead slots, which lapse has set to 0, nor leases that never expire.
        local leases = redis.call('ZRANGE', own .. 'leases', '(0', '(+inf', 'BYSCORE', 'WITHSCORES')
        for i = 1, #leases, 2 do
            if tonumber(leases[i + 1]) ~= extended then redis.call('ZADD', own .. 'leases', lease_until, leases[i]) end
        end
        if watched > 0 then redis.call('SET', own .. 'extended', lease_until) end  -- not at the first call of all
    end
    local due = {}
    for _, member in ipairs(redis.call('ZRANGE', own .. 'leases', '-inf', at, 'BYSCORE', 'LIMIT', 0, most)) do
        local id, attempt = parts_of(member)
        local answer = id and attempt_state(id, attempt)
        if answer == 'mine' or answer == 'cancel' then due[#due + 1] = member
        elseif id then unmark(member) else redis.call('ZREM', own .. 'leases', member) end
    end
    return due
end

-- lapse: slot, seconds. A slot's process has ended: its leases expire now, and a claim that it sent before and that
-- arrives late gets no job.
function transitions.lapse()
    local slot, kept_s, at = given(2, 'slot'), number(given(3, 'kept_s'), 'kept_s'), clock()
    redis.call('ZREMRANGEBYSCORE', own .. 'dead-slots', '-inf', at)
    redis.call('ZADD', own .. 'dead-slots', at + kept_s, slot)
    redis.call('EXPIRE', own .. 'dead-slots', math.ceil(kept_s))
    for _, member in ipairs(redis.call('SMEMBERS', held_key(slot))) do
        redis.call('ZADD', own .. 'leases', 'XX', 0, member)
    end
    return 1
end
