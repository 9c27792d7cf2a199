-- Out of a lane: claim, take.

-- Whether a slot may claim the job from this queue now, or the reason why not. A job that was moved to another pool
-- may still be in the middle of its old list.
local function claimable(job, queue, schema, at)
    if not job or not pcall(check_record, job) then return 'unknown' end
    if job.state ~= 'queued' or queue_of(job) ~= queue then return 'gone' end
    if (tonumber(job.schema) or math.huge) > schema then return 'newer' end
    if job.start_by and (job.attempts or '0') == '0' and at >= tonumber(job.start_by) then return 'expired' end
    return 'yes'
end

-- The first claimable job of a lane, and whether more entries are to be examined. Ids of jobs that are not queued, or
-- whose deadline is over (the sweeper ends those), are dropped; unknown ids are set aside. Jobs of a newer schema go
-- back to where they were, or to the tail if a whole call saw no others.
local function first_of(queue, schema, at)
    local list, put_back, found = list_key(queue), {}, nil
    local looked_at = 0
    while not found and looked_at < MOST_LOOKED_AT do
        local id = redis.call('LPOP', list)
        if not id then break end
        looked_at = looked_at + 1
        local job = read(id)
        local why = claimable(job, queue, schema, at)
        if why == 'yes' then found = {id, job} end
        if why == 'newer' then put_back[#put_back + 1] = id end
        if why == 'unknown' then
            redis.call('RPUSH', own .. 'unknown:' .. queue, id)
            redis.call('ZREM', waiting_key(queue), id)
        end
    end
    local full = #put_back == MOST_LOOKED_AT
    for i = #put_back, 1, -1 do
        if full then redis.call('RPUSH', list, put_back[#put_back + 1 - i]) else redis.call('LPUSH', list, put_back[i]) end
    end
    -- RQ's list was emptied by another program: the waiting set decides.
    if not found and redis.call('LLEN', list) == 0 then
        for _, id in ipairs(redis.call('ZRANGE', waiting_key(queue), 0, MOST_LOOKED_AT - 1)) do
            local job = read(id)
            local why = claimable(job, queue, schema, at)
            if why == 'yes' then
                rq_waits(id, queue)
                return {id, job}, false
            end
            if why == 'gone' or why == 'unknown' then redis.call('ZREM', waiting_key(queue), id) end
        end
    end
    return found, not found and looked_at == MOST_LOOKED_AT and not full
end

-- Whether `rq suspend` is in effect: then no attempt starts.
local function suspended() return redis.call('EXISTS', prefix .. ':suspended') == 1 end

local function claimed(id)
    local job, flat = read(id)
    for place, part in ipairs({'job', id, job.attempts}) do table.insert(flat, place, part) end
    return flat
end

-- claim: attempt id, slot, seconds of a lease, highest schema that it can read, pool, '1' if it came by a token, bounds
-- of the histogram of waits, then lanes in the order to look at them.
-- Answers {'job', id, number of the attempt, record...} | {'none'} | {'more'}: nothing yet, ask again.
function transitions.claim()
    local attempt, slot, lease_s = given(2, 'attempt'), given(3, 'slot'), number(given(4, 'lease_s'), 'lease_s')
    local schema, pool, woken, bounds = number(given(5, 'schema'), 'schema'), given(6, 'pool'), given(7, 'woken'), given(8, 'bounds')
    given(9, 'lanes')
    local at = clock()
    if redis.call('ZSCORE', own .. 'dead-slots', slot) then return {'none'} end
    -- The call is repeated because its answer was lost: return the same job.
    for _, member in ipairs(redis.call('SMEMBERS', held_key(slot))) do
        local id, of = parts_of(member)
        if of == attempt and redis.call('HGET', record_key(id), 'owner') == attempt then return claimed(id) end
    end
    -- A duplicate that arrives when its attempt is over gets no job: no process would work on it.
    local claims_key = own .. 'claims:' .. slot
    local claims = redis.call('GET', claims_key) or ''
    if string.find(claims, attempt, 1, true) then return {'none'} end
    if suspended() then return {'none'} end
    local more = false
    for i = 9, #ARGV do
        local found, again = first_of(pool .. '.' .. ARGV[i], schema, at)
        more = more or again
        if found then
            local id, job = found[1], found[2]
            if (job.attempts or '0') == '0' then
                observe('wait_seconds', pool .. '|' .. job.lane, bounds, math.max(0, at - tonumber(job.created_at)))
            end
            start(id, job, attempt, slot, lease_s, at)
            redis.call('SET', claims_key, string.sub(attempt .. ' ' .. claims, 1, CLAIMS_KEPT), 'EX', HELD_KEPT_S)
            if woken ~= '1' then redis.call('LPOP', wake_key(pool)) end
            return claimed(id)
        end
    end
    if more then return {'more'} end
    redis.call('DEL', wake_key(pool))
    return {'none'}
end

-- take: id, attempt id, slot, seconds of a lease (0: never expires). Claims one given job, for the runner of
-- containers, which decides the order itself. Answers as claim.
function transitions.take()
    local id, attempt, slot = given(2, 'id'), given(3, 'attempt'), given(4, 'slot')
    local lease_s, at = number(given(5, 'lease_s'), 'lease_s'), clock()
    local job = read(id)
    if not job then return {'none'} end
    if job.owner ~= attempt then
        if suspended() or claimable(job, queue_of(job), math.huge, at) ~= 'yes' then return {'none'} end
        leave_list(queue_of(job), id)
        redis.call('HDEL', record_key(id), 'log_at', 'ran_s', 'placed')
        redis.call('DEL', own .. 'log:' .. id)
        start(id, job, attempt, slot, lease_s, at)
    end
    return claimed(id)
end
