-- Into a lane: submit, enter_batch, move, heal.

-- Queues a job: RQ's list, the waiting set (which decides), and a token that wakes one idle slot.
local function wait(id, job, front, at)
    local queue = queue_of(job)
    redis.call('SADD', prefix .. ':queues', list_key(queue))
    redis.call(front and 'LPUSH' or 'RPUSH', list_key(queue), id)
    redis.call('ZADD', waiting_key(queue), string.format('%.0f', (front and -at or at) * 1000000), id)
    if redis.call('RPUSH', wake_key(job.pool), '1') > MOST_TOKENS then redis.call('LPOP', wake_key(job.pool)) end
end

-- Removes an id near the ends of RQ's list, where that is cheap. A deeper id is skipped when it reaches the head.
local function leave_list(queue, id)
    local key = list_key(queue)
    if redis.call('LPOS', key, id, 'MAXLEN', MOST_LOOKED_AT) then
        redis.call('LREM', key, 1, id)
    elseif redis.call('LPOS', key, id, 'RANK', -1, 'MAXLEN', MOST_LOOKED_AT) then
        redis.call('LREM', key, -1, id)
    end
end

-- Resets RQ's hash and registries of a job that an `rq worker`, started by mistake, took out of RQ's list.
local function rq_waits(id, queue)
    redis.call('HSET', rq_key(id), 'status', 'queued', 'started_at', '', 'ended_at', '', 'worker_name', '')
    redis.call('PERSIST', rq_key(id))
    for _, registry in ipairs({'finished', 'failed', 'canceled', 'scheduled', 'deferred'}) do
        redis.call('ZREM', prefix .. ':' .. registry .. ':' .. queue, id)
    end
end

-- submit: id, limits of the tenant (JSON, or '' to read them from Redis), most jobs in the lane, '1' if the write must
-- reach the disk, number of RQ's fields and values, these, then the record's fields and values.
-- Answers {'new', place in the lane, created_at} | {'known', place in the lane from 0 or '', record...} | {'ended', text} | {'refused', what, count,
-- bound} | {'no_aof'}.
function transitions.submit()
    local id, limits_text, most_waiting = given(2, 'id'), given(3, 'limits'), number(given(4, 'most'), 'most')
    local fsync, rq_count = given(5, 'fsync') == '1', number(given(6, 'rq_count'), 'rq_count')
    local job, fields = record_from(7 + rq_count, {'tenant', 'pool', 'lane', 'ttl_s', 'schema'})
    check_kept(job)
    number(job.schema, 'schema')
    if job.start_in_s then number(job.start_in_s, 'start_in_s') end
    if job.batch then whole(job.line, 'line') end
    if fsync and redis.pcall('WAITAOF', 1, 0, 0).err then return {'no_aof'} end
    local known, flat = read(id)
    if known then
        if fsync then redis.call('HINCRBY', record_key(id), 'synced', 1) end
        if job.batch and not ENDED[known.state] then redis.call('ZADD', batch_key('live', job), job.line, id) end
        local place = known.state == 'queued' and redis.call('ZRANK', waiting_key(queue_of(known)), id)
        for at, part in ipairs({'known', place and tostring(place) or ''}) do table.insert(flat, at, part) end
        return flat
    end
    local ended = redis.call('GET', ended_key(id))
    if ended then
        if fsync then redis.call('SET', own .. 'synced', id) end
        return {'ended', ended}
    end
    local erased, queue = erased_at(id), queue_of(job)
    local at = math.max(clock(), (erased or 0) + 0.00001)  -- it was erased by another server's clock, perhaps
    local in_flight, running = own .. 'in-flight:' .. job.tenant, own .. 'running:' .. job.tenant
    if limits_text == '' then limits_text = redis.call('HGET', own .. 'tenants', job.tenant) or '{}' end
    local limits = cjson.decode(limits_text)
    local function limit(name) if limits[name] ~= nil and limits[name] ~= cjson.null then return limits[name] end end
    local lanes = limit('lanes')
    if lanes then
        local allowed = false
        for _, lane in ipairs(lanes) do allowed = allowed or lane == job.lane end
        if not allowed then return {'refused', 'lane', '0', table.concat(lanes, ', ')} end
    end
    local spent = redis.call('HGET', own .. 'usage:' .. job.tenant .. ':' .. math.floor(at / 86400), 'gpu_s') or '0'
    local unfinished, waiting = redis.call('ZCARD', in_flight), redis.call('ZCARD', waiting_key(queue))
    for _, bound in ipairs({
        {'gpu', tonumber(spent), limit('gpu_seconds_per_day')}, {'in_flight', unfinished, limit('jobs_in_flight')},
        {'queued', unfinished - redis.call('ZCARD', running), limit('queued_jobs')},
        {'waiting', waiting, most_waiting},
    }) do
        if bound[3] and bound[2] >= bound[3] then return {'refused', bound[1], tostring(bound[2]), tostring(bound[3])} end
    end
    set(id, 'state', 'queued', 'created_at', seconds(at), unpack(fields))
    if erased then set(id, 'erased_at', seconds(erased)) end
    if job.start_in_s then
        set(id, 'start_by', seconds(at + job.start_in_s))
        redis.call('ZADD', own .. 'deadlines', at + job.start_in_s, id)
    end
    for _, index in ipairs({own .. 'live', own .. 'jobs:' .. job.tenant, in_flight}) do
        redis.call('ZADD', index, at, id)
    end
    if job.batch then redis.call('ZADD', batch_key('live', job), job.line, id) end
    local written = iso(at)
    redis.call('HSET', rq_key(id), 'status', 'queued', 'created_at', written, 'enqueued_at', written,
        unpack(ARGV, 7, 6 + rq_count))
    wait(id, job, false, at)
    return {'new', waiting + 1, seconds(at)}
end

-- enter_batch: id, tenant, created_at, most unfinished batches of the tenant, '1' if the write must reach the disk, then
-- fields and values of its hash. Answers 'new', 'known', 'full': the tenant has reached that bound, or 'no_aof'.
function transitions.enter_batch()
    local id, tenant, created_at = given(2, 'id'), given(3, 'tenant'), number(given(4, 'created_at'), 'created_at')
    local most, fsync, fields = number(given(5, 'most'), 'most'), given(6, 'fsync') == '1', pairs_from(7, 'batch')
    if fsync and redis.pcall('WAITAOF', 1, 0, 0).err then return 'no_aof' end
    if batch_known(id) then return 'known' end
    if redis.call('ZINTERCARD', 2, own .. 'tenant-batches:' .. tenant, own .. 'batches') >= most then return 'full' end
    redis.call('HSET', own .. 'batch:' .. id, unpack(fields))
    for _, index in ipairs({'batches', 'tenant-batches:' .. tenant}) do redis.call('ZADD', own .. index, created_at, id) end
    return 'new'
end

-- move: id, its pool, another pool. Moves a queued job to the back of its lane there. Answers 1, or 0: it is no longer
-- queued in its pool.
function transitions.move()
    local id, from, to, at = given(2, 'id'), given(3, 'from'), given(4, 'to'), clock()
    local job = read(id)
    if not job or job.state ~= 'queued' or job.pool ~= from then return 0 end
    leave_list(queue_of(job), id)
    redis.call('ZREM', waiting_key(queue_of(job)), id)
    job.pool = to
    set(id, 'pool', to)
    redis.call('HSET', rq_key(id), 'origin', queue_of(job))
    wait(id, job, false, at)
    return 1
end

-- heal: queue, most. Puts the oldest queued jobs back into RQ's list if another program removed them from it. Answers
-- how many.
function transitions.heal()
    local queue, most = given(2, 'queue'), number(given(3, 'most'), 'most')
    local missing = {}
    for _, id in ipairs(redis.call('ZRANGE', waiting_key(queue), 0, most - 1)) do
        if not redis.call('LPOS', list_key(queue), id, 'MAXLEN', 10 * MOST_LOOKED_AT) then missing[#missing + 1] = id end
    end
    local healed = 0
    for i = #missing, 1, -1 do
        if redis.call('HGET', record_key(missing[i]), 'state') == 'queued' then
            rq_waits(missing[i], queue)
            redis.call('LPUSH', list_key(queue), missing[i])
            redis.call('RPUSH', wake_key(string.match(queue, '^(.*)%.[^.]*$')), '1')
            healed = healed + 1
        else
            redis.call('ZREM', waiting_key(queue), missing[i])
        end
    end
    return healed
end
