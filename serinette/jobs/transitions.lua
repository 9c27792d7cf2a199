-- The life cycle of a job: every change of a job's state is one call of this script (docs/decisions/0001).
--
-- KEYS[1]: the prefix of all keys, RQ's among them. ARGV[1]: the transition; its other arguments are named in its
-- comment. A script is isolated but not rolled back: a transition reads and checks everything before its first write.
-- Specs, results, progress and errors are stored as the strings that came in: cjson would round large numbers.

local prefix = KEYS[1]
local own = prefix .. ':serinette:'

-- Most entries of a lane that one call examines: the server answers no other client meanwhile.
local MOST_LOOKED_AT = 100
local MOST_EVENTS = 100
local MOST_ATTEMPTS_KEPT = 10
local MOST_TOKENS = 1000
-- Terminal event of a job that is canceled when its attempt is released.
local CANCELED = '{"status":"canceled","usage":{"gpu_s":%.3f,"size_bytes":0}}'
-- Largest number accepted: more is no valid time, count or number of bytes.
local LARGEST = 1e12
-- For this long an attempt that was frozen learns that its job was erased, and does not restore it.
local ERASED_KEPT_S = 6 * 3600
-- Characters of the ids of a slot's last claims: about ten.
local CLAIMS_KEPT = 340
local USAGE_KEPT_S = 400 * 86400
-- TTL of the sets of held attempts, longer than any attempt runs.
local HELD_KEPT_S = 2 * 86400

local function number(text, name)
    local value = type(text) == 'string' and string.match(text, '^%d[%d.eE+-]*$') and tonumber(text)
    if not value or value > LARGEST then
        error({err = 'ERR ' .. name .. ' must be a number from 0 to 1e12, got ' .. tostring(text)})
    end
    return value
end

local function whole(text, name)
    local value = number(text, name)
    if value ~= math.floor(value) or not string.match(text, '^%d+$') then
        error({err = 'ERR ' .. name .. ' must be a whole number, got ' .. tostring(text)})
    end
    return value
end

local function one_of(value, name, allowed)
    for _, each in ipairs(allowed) do if value == each then return value end end
    error({err = 'ERR ' .. name .. ' must be one of ' .. table.concat(allowed, ', ') .. ', got ' .. tostring(value)})
end

local function given(index, name)
    local value = ARGV[index]
    if not value then error({err = 'ERR ' .. name .. ' is missing'}) end
    return value
end

local function pairs_from(first, name)
    if (#ARGV - first + 1) % 2 ~= 0 then error({err = 'ERR ' .. name .. ' must be fields and values'}) end
    return {unpack(ARGV, first)}
end

-- The record's fields from an argument on, by name and flat.
local function record_from(first, required)
    local flat, job = pairs_from(first, 'record'), {}
    for i = 1, #flat, 2 do job[flat[i]] = flat[i + 1] end
    for _, name in ipairs(required) do
        if not job[name] then error({err = 'ERR the record lacks ' .. name}) end
    end
    return job, flat
end

local function clock()
    local time = redis.call('TIME')
    return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function seconds(at) return string.format('%.6f', at) end

-- As RQ writes times. Days to a date by the algorithm of H. Hinnant's "chrono-compatible low-level date algorithms".
local function iso(at)
    local whole = math.floor(at)
    local day, second = math.floor(whole / 86400), whole % 86400
    local z = day + 719468
    local era = math.floor(z / 146097)
    local doe = z - era * 146097
    local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
    local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
    local mp = math.floor((5 * doy + 2) / 153)
    local month = mp < 10 and mp + 3 or mp - 9
    return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', yoe + era * 400 + (month <= 2 and 1 or 0), month,
        doy - math.floor((153 * mp + 2) / 5) + 1, math.floor(second / 3600), math.floor(second / 60) % 60, second % 60,
        math.floor((at - whole) * 1000000))
end

-- Keys

local function record_key(id) return own .. 'job:' .. id end
local function ended_key(id) return own .. 'ended:' .. id end
local function erased_key(id) return own .. 'erased:' .. id end
local function rq_key(id) return prefix .. ':job:' .. id end
local function queue_of(job) return job.pool .. '.' .. job.lane end
local function list_key(queue) return prefix .. ':queue:' .. queue end
local function waiting_key(queue) return own .. 'waiting:' .. queue end
local function started_key(queue) return prefix .. ':wip:' .. queue end
local function batch_key(of, job) return own .. 'batch-' .. of .. ':' .. job.batch end
local function wake_key(pool) return own .. 'wake:' .. pool end
local function worker_of(slot) return string.match(slot, '^(.+)%.[^.]+%.[^.]+$') end

-- Whether the server has this batch, not only counts that a line's end left after the server lost it.
local function batch_known(batch) return redis.call('HEXISTS', own .. 'batch:' .. batch, 'header') == 1 end

-- Unix time at which a job of this id was erased last, nil if none was within hours.
local function erased_at(id)
    local found = redis.call('GET', erased_key(id))
    return found and tonumber(string.match(found, '^%S+'))
end

local ENDED = {succeeded = 'finished', failed = 'failed', canceled = 'canceled'}
-- Fields of a batch's hash that count its ended lines.
local BATCH_COUNTS = {succeeded = 'completed', failed = 'failed', canceled = 'canceled'}

local function read(id)
    local flat = redis.call('HGETALL', record_key(id))
    if #flat == 0 then return nil end
    local job = {}
    for i = 1, #flat, 2 do job[flat[i]] = flat[i + 1] end
    return job, flat
end

local function set(id, ...) redis.call('HSET', record_key(id), ...) end

local function event(id, kind, data)
    redis.call('XADD', own .. 'events:' .. id, 'MAXLEN', '~', MOST_EVENTS, '*', 'type', kind, 'data', data)
end

local function count(...) redis.call('HINCRBY', own .. 'counters', table.concat({...}, '|'), 1) end

local function observe(measure, labels, bounds, value)
    local bucket = 'inf'
    for bound in string.gmatch(bounds, '%S+') do
        if value <= tonumber(bound) then bucket = bound break end
    end
    local name = measure .. '|' .. labels .. '|'
    redis.call('HINCRBY', own .. 'counters', name .. bucket, 1)
    redis.call('HINCRBYFLOAT', own .. 'counters', name .. 'sum', seconds(value))
end

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
    redis.call('ZADD', prefix .. ':executions:' .. id, '+inf', attempt)
    redis.call('HSET', prefix .. ':execution:' .. member, 'id', attempt, 'job_id', id, 'created_at', seconds(at),
        'last_heartbeat', seconds(at), 'worker_name', slot, 'queue', queue, 'pool', job.pool)
    local executions = prefix .. ':worker:' .. slot .. ':executions'
    redis.call('SADD', executions, member)
    redis.call('EXPIRE', executions, HELD_KEPT_S)
    if worker then
        redis.call('SADD', own .. 'held:' .. worker, member)
        redis.call('EXPIRE', own .. 'held:' .. worker, HELD_KEPT_S)
        redis.call('SADD', own .. 'busy:' .. job.pool, worker)
    end
    if redis.call('EXISTS', prefix .. ':worker:' .. slot) == 1 then
        redis.call('HSET', prefix .. ':worker:' .. slot, 'state', 'busy', 'current_job', id)
    end
end

local function unmark(member)
    local id, attempt = string.match(member, '^(.*):([^:]*)$')
    local execution = prefix .. ':execution:' .. member
    local known = redis.call('HMGET', execution, 'worker_name', 'queue', 'pool')
    local slot, queue, pool = known[1], known[2], known[3]
    redis.call('ZREM', own .. 'leases', member)
    redis.call('DEL', execution)
    redis.call('ZREM', prefix .. ':executions:' .. id, attempt)
    if queue then redis.call('ZREM', started_key(queue), member) end
    if not slot then return end
    redis.call('SREM', prefix .. ':worker:' .. slot .. ':executions', member)
    local rq_worker, worker = prefix .. ':worker:' .. slot, worker_of(slot)
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

-- Ends a job, once. `last`: gpu_s and size_bytes of the last attempt, the terminal event, JSON of the error, its code.
local function end_job(id, job, outcome, at, last)
    local queue, began = queue_of(job), tonumber(job.began or at)
    local queue_s = math.max(0, began - tonumber(job.created_at))
    local gpu_s = tonumber(job.gpu_s or 0) + last.gpu_s
    set(id, 'state', outcome, 'ended_at', seconds(at), 'usage', string.format(
        '{"gpu_s":%.3f,"queue_s":%.3f,"size_bytes":%.0f}', gpu_s, queue_s, last.size_bytes))
    if last.reason ~= '' then set(id, 'error', last.reason) end
    if job.state == 'queued' then leave_list(queue, id) end
    redis.call('ZREM', waiting_key(queue), id)
    for _, index in ipairs({'live', 'deadlines', 'in-flight:' .. job.tenant, 'running:' .. job.tenant}) do
        redis.call('ZREM', own .. index, id)
    end
    local day = own .. 'usage:' .. job.tenant .. ':' .. math.floor(at / 86400)
    redis.call('HINCRBYFLOAT', day, 'gpu_s', string.format('%.3f', gpu_s))
    redis.call('HINCRBYFLOAT', day, 'queue_s', string.format('%.3f', queue_s))
    redis.call('HINCRBY', day, 'size_bytes', string.format('%.0f', last.size_bytes))
    redis.call('HINCRBY', day, outcome, 1)
    redis.call('EXPIRE', day, USAGE_KEPT_S)
    count('jobs_ended', job.pool, outcome, last.code)
    event(id, outcome, last.event)
    if job.webhook then redis.call('ZADD', own .. 'webhooks', at + number(job.webhook_after_s, 'webhook_after_s'), id) end
    redis.call('ZADD', own .. 'ended', at, id)
    if job.batch and redis.call('ZREM', batch_key('live', job), id) == 1 and batch_known(job.batch) then
        redis.call('HINCRBY', own .. 'batch:' .. job.batch, BATCH_COUNTS[outcome], 1)
    end
    redis.call('HSET', rq_key(id), 'status', ENDED[outcome], 'ended_at', iso(at))
    redis.call('ZADD', prefix .. ':' .. ENDED[outcome] .. ':' .. queue, at + job.ttl_s, id)
    for _, key in ipairs({record_key(id), own .. 'events:' .. id, own .. 'log:' .. id, rq_key(id)}) do
        redis.call('EXPIRE', key, job.ttl_s)
    end
end

-- Checks the fields that end_job reads as numbers between its writes.
local function check_kept(job)
    whole(job.ttl_s, 'ttl_s')
    if job.webhook then number(job.webhook_after_s, 'webhook_after_s') end
end

-- The same of a job whose attempt or whole life is to end now, and all else that is read for that between writes.
local function check_record(job)
    for _, name in ipairs({'tenant', 'pool', 'lane', 'created_at', job.owner and 'attempt:' .. job.attempts}) do
        if not job[name] then error({err = 'ERR the record lacks ' .. name}) end
    end
    for _, name in ipairs({'created_at', 'began', 'gpu_s', 'start_by'}) do if job[name] then number(job[name], name) end end
    for _, name in ipairs({'attempts', 'charged'}) do if job[name] then whole(job[name], name) end end
    check_kept(job)
end

local transitions = {}

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
    for _, member in ipairs(redis.call('SMEMBERS', prefix .. ':worker:' .. slot .. ':executions')) do
        local id, of = string.match(member, '^(.*):([^:]*)$')
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
        redis.call('HSET', prefix .. ':execution:' .. member, 'last_heartbeat', seconds(at))
        if progress ~= '' then
            set(id, 'progress', progress)
            event(id, 'progress', progress)
        end
    elseif answer == 'lost' then
        unmark(member)
    end
    local worker = prefix .. ':worker:' .. slot
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

-- release: id, attempt id, failed or returned, error JSON or '', its code, gpu seconds, '1': only if its lease ran out.
-- Ends the attempt and puts its job at the front of its lane, or ends the job if a cancel was requested. Answers
-- 'released', or as `attempt_state`.
function transitions.release()
    local id, attempt = given(2, 'id'), given(3, 'attempt')
    local outcome = one_of(given(4, 'outcome'), 'outcome', {'failed', 'returned'})
    local reason, code, gpu_s = given(5, 'error'), given(6, 'code'), number(given(7, 'gpu_s'), 'gpu_s')
    local if_overdue, at = given(8, 'if_overdue') == '1', clock()
    local answer, member = attempt_state(id, attempt), id .. ':' .. attempt
    if answer == 'lost' then unmark(member) end
    if answer ~= 'mine' and answer ~= 'cancel' then return answer end
    local lease = redis.call('ZSCORE', own .. 'leases', member)
    if if_overdue and lease and tonumber(lease) > at then return answer end
    local job = read(id)
    check_record(job)
    if job.cancel then
        close_attempt(id, job, 'canceled', at, '', '')
        unmark(member)
        redis.call('ZADD', own .. 'unrecorded', at, id)
        local terminal = string.format(CANCELED, tonumber(job.gpu_s or 0) + gpu_s)
        end_job(id, job, 'canceled', at, {reason = '', code = '', event = terminal, gpu_s = gpu_s, size_bytes = 0})
        return 'lost'
    end
    local text = close_attempt(id, job, outcome, at, reason, code)
    unmark(member)
    if outcome == 'failed' then
        redis.call('HINCRBY', record_key(id), 'charged', 1)
        redis.call('HINCRBYFLOAT', record_key(id), 'gpu_s', gpu_s)
        if (tonumber(redis.call('HGET', rq_key(id), 'retries_left')) or 0) > 0 then
            redis.call('HINCRBY', rq_key(id), 'retries_left', -1)
        end
        count('retries', job.pool, code)
    end
    set(id, 'state', 'queued')
    redis.call('HSET', rq_key(id), 'status', 'queued', 'enqueued_at', iso(at), 'started_at', '', 'worker_name', '')
    event(id, 'attempt', text)
    wait(id, job, true, at)
    return 'released'
end

-- finish: id, id of the attempt that produced the outcome or '', outcome, error JSON or '', its code, result JSON or '',
-- terminal event, gpu seconds, bytes, '1' if job.json is in the store, '1': only if the lease expired, run JSON or '',
-- id of the attempt that calls or '', created_at and digest of the job that is to end or '' and '', then fields of the
-- counters and their increments. Answers {'ended', its state} if the job has ended, by this call or before, {'unknown'},
-- {'held'} if another attempt holds it or the lease has not expired, or {'erased'}: this end is of an erased job, or of
-- an earlier request with the same id.
function transitions.finish()
    local id, attempt = given(2, 'id'), given(3, 'attempt')
    local outcome = one_of(given(4, 'outcome'), 'outcome', {'succeeded', 'failed', 'canceled'})
    local last = {reason = given(5, 'error'), code = given(6, 'code'), event = given(8, 'event'),
        gpu_s = number(given(9, 'gpu_s'), 'gpu_s'), size_bytes = number(given(10, 'size_bytes'), 'size_bytes')}
    local result, recorded, if_overdue, run = given(7, 'result'), given(11, 'recorded') == '1', given(12, 'if_overdue') == '1', given(13, 'run')
    local by, created_at, digest = given(14, 'by'), given(15, 'created_at'), given(16, 'digest')
    local counted, at, job, erased = pairs_from(17, 'counters'), clock(), read(id), erased_at(id)
    for i = 2, #counted, 2 do number(counted[i], 'counters') end
    if job and not ENDED[job.state] then check_record(job) end
    local other = digest ~= '' and job and (job.digest or '') ~= '' and job.digest ~= digest
        and number(created_at, 'created_at') < tonumber(job.created_at)
    if other or erased and created_at ~= '' and number(created_at, 'created_at') <= erased then
        if by ~= '' then unmark(id .. ':' .. by) end
        if not job then redis.call('ZADD', own .. 'unrecorded', at, id) end  -- what it put into the store must go
        return {'erased', ''}
    end
    if not job then return {redis.call('EXISTS', ended_key(id)) == 1 and 'ended' or erased and 'erased' or 'unknown', ''} end
    if ENDED[job.state] then
        if by ~= '' then unmark(id .. ':' .. by) end
        if recorded then set(id, 'recorded', '1') end
        return {'ended', job.state, '0'}
    end
    local lease = job.owner and redis.call('ZSCORE', own .. 'leases', id .. ':' .. job.owner)
    if if_overdue and lease and tonumber(lease) > at then return {'held', job.state} end
    -- An end that is not in the store may be decided only by the current attempt, or by any caller if there is none.
    if not recorded and (job.owner or '') ~= attempt then
        if by ~= '' then unmark(id .. ':' .. by) end
        return {'held', job.state}
    end
    if job.owner then
        if job.owner == attempt then
            close_attempt(id, job, outcome, at, last.reason, last.code)
            local slot = redis.call('HGET', prefix .. ':execution:' .. id .. ':' .. attempt, 'worker_name')
            if slot and redis.call('EXISTS', prefix .. ':worker:' .. slot) == 1 then
                local counter = outcome == 'succeeded' and 'successful_job_count' or 'failed_job_count'
                redis.call('HINCRBY', prefix .. ':worker:' .. slot, counter, 1)
            end
            unmark(id .. ':' .. attempt)
        else  -- it may run on until its next heartbeat; its marks are removed then, or when its lease expires
            close_attempt(id, job, 'superseded', at, '', '')
        end
    end
    if by ~= '' then unmark(id .. ':' .. by) end
    if result ~= '' then set(id, 'result', result) end
    if run ~= '' then set(id, 'run', run) end
    if recorded then set(id, 'recorded', '1') end
    -- The sweeper still has to write this end to the store, or to remove songs of attempts that did not win.
    if not recorded or tonumber(job.attempts or 0) > 1 then redis.call('ZADD', own .. 'unrecorded', at, id) end
    end_job(id, job, outcome, at, last)
    for i = 1, #counted, 2 do redis.call('HINCRBYFLOAT', own .. 'counters', counted[i], counted[i + 1]) end
    return {'ended', outcome, '1'}
end

-- recorded: id, outcome, created_at as in the record. The store says that this job ended so. Answers 'marked', 'shrunk',
-- 'gone' (erased: what was put must go), or 'other': the job was erased and submitted anew.
function transitions.recorded()
    local id, outcome = given(2, 'id'), one_of(given(3, 'outcome'), 'outcome', {'succeeded', 'failed', 'canceled'})
    local created_at, known = given(4, 'created_at'), redis.call('HMGET', record_key(id), 'state', 'created_at')
    if known[1] == outcome and known[2] == created_at then
        redis.call('ZREM', own .. 'unrecorded', id)
        set(id, 'recorded', '1')
        return 'marked'
    end
    local shrunk = redis.call('EXISTS', ended_key(id)) == 1
    if known[1] and ENDED[known[1]] or not known[1] and not shrunk then redis.call('ZADD', own .. 'unrecorded', clock(), id) end
    return known[1] and 'other' or shrunk and 'shrunk' or 'gone'
end

-- cancel: id, tenant, terminal event; to prevent a job that is not yet submitted from being so, also error JSON and the
-- record's fields and values. Answers the state of the job, or 'unknown'.
function transitions.cancel()
    local id, tenant, terminal, at = given(2, 'id'), given(3, 'tenant'), given(4, 'event'), clock()
    local job = read(id)
    if not job and redis.call('EXISTS', ended_key(id)) == 1 then return 'ended' end
    if not job then
        if not ARGV[5] then return 'unknown' end
        local called_off, fields = record_from(6, {})
        local ttl_s = whole(called_off.ttl_s, 'ttl_s')
        set(id, 'state', 'canceled', 'tenant', tenant, 'error', ARGV[5], 'created_at', seconds(at), 'ended_at', seconds(at),
            'called_off', '1', unpack(fields))
        redis.call('EXPIRE', record_key(id), ttl_s)
        return 'called_off'
    end
    if job.tenant ~= tenant then return 'unknown' end
    if ENDED[job.state] then return job.called_off and 'called_off' or job.state end
    check_record(job)
    if redis.call('HSETNX', record_key(id), 'cancel', seconds(at)) == 1 then event(id, 'cancel_requested', '{}') end
    if job.state == 'queued' then
        redis.call('ZADD', own .. 'unrecorded', at, id)
        end_job(id, job, 'canceled', at, {reason = '', code = '', event = terminal, gpu_s = 0, size_bytes = 0})
        return 'canceled'
    end
    redis.call('PUBLISH', own .. 'cancels', id)
    return 'running'
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
        local id, attempt = string.match(member, '^(.*):([^:]*)$')
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
    for _, member in ipairs(redis.call('SMEMBERS', prefix .. ':worker:' .. slot .. ':executions')) do
        redis.call('ZADD', own .. 'leases', 'XX', 0, member)
    end
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

-- restore: id, outcome, seconds of retention left, terminal event, number of RQ's fields and values, these, then the
-- record's fields and values. Restores an ended job from the store; nothing is counted or reported again. Answers 1, or
-- 0: it exists.
function transitions.restore()
    local id, outcome = given(2, 'id'), one_of(given(3, 'outcome'), 'outcome', {'succeeded', 'failed', 'canceled'})
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

local function forget(id, job)
    local queue = job and job.pool and job.lane and queue_of(job)
    -- Marks of attempts that never reported again.
    for _, attempt in ipairs(redis.call('ZRANGE', prefix .. ':executions:' .. id, 0, -1)) do unmark(id .. ':' .. attempt) end
    redis.call('DEL', record_key(id), own .. 'events:' .. id, own .. 'log:' .. id, rq_key(id), prefix .. ':executions:' .. id)
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

-- look: ids. Answers for each {record..., place in its lane from 0 or '', text of a shrunk job or ''}.
function transitions.look()
    local found = {}
    for i = 2, #ARGV do
        local id = ARGV[i]
        local job, flat = read(id)
        local place = job and job.state == 'queued' and redis.call('ZRANK', waiting_key(queue_of(job)), id)
        found[#found + 1] = {flat or {}, place and tostring(place) or '', not job and redis.call('GET', ended_key(id)) or ''}
    end
    return found
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

-- guarded: JSON list of {command, expected answer, '' for nil}, JSON list of commands to run if all match. A compare and
-- set for decisions made elsewhere from values read before. Answers 1, or 0: nothing was run.
function transitions.guarded()
    local guards, commands = cjson.decode(given(2, 'guards')), cjson.decode(given(3, 'commands'))
    for _, guard in ipairs(guards) do
        if tostring(redis.call(unpack(guard[1])) or '') ~= guard[2] then return 0 end
    end
    for _, command in ipairs(commands) do redis.call(unpack(command)) end
    return 1
end

local transition = transitions[ARGV[1]]
if not transition then return redis.error_reply('ERR there is no transition ' .. tostring(ARGV[1])) end
local done, answer = pcall(transition)
if done then return answer end
return redis.error_reply(type(answer) == 'table' and answer.err or tostring(answer))
