-- The life cycle of a job: every change of a job's state is one call of one script (docs/decisions/0001), which
-- serinette/jobs/script.py makes of the files of this folder. This one has what all others use; no transition is here.
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

local function by_name(flat)
    local found = {}
    for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
    return found
end

-- The record's fields from an argument on, by name and flat.
local function record_from(first, required)
    local flat = pairs_from(first, 'record')
    local job = by_name(flat)
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
local function rq_worker_key(slot) return prefix .. ':worker:' .. slot end
local function held_key(slot) return rq_worker_key(slot) .. ':executions' end
local function executions_key(id) return prefix .. ':executions:' .. id end
local function execution_key(member) return prefix .. ':execution:' .. member end
-- An attempt is a member of sets as `job:attempt`.
local function parts_of(member) return string.match(member, '^(.*):([^:]*)$') end
local function worker_of(slot) return string.match(slot, '^(.+)%.[^.]+%.[^.]+$') end

-- Whether the server has this batch, not only counts that a line's end left after the server lost it.
local function batch_known(batch) return redis.call('HEXISTS', own .. 'batch:' .. batch, 'header') == 1 end

-- Unix time at which a job of this id was erased last, nil if none was within hours.
local function erased_at(id)
    local found = redis.call('GET', erased_key(id))
    return found and tonumber(string.match(found, '^%S+'))
end

local OUTCOMES = {'succeeded', 'failed', 'canceled'}
-- RQ's words for them, and names of its registries.
local ENDED = {succeeded = 'finished', failed = 'failed', canceled = 'canceled'}
-- Fields of a batch's hash that count its ended lines.
local BATCH_COUNTS = {succeeded = 'completed', failed = 'failed', canceled = 'canceled'}

local function read(id)
    local flat = redis.call('HGETALL', record_key(id))
    if #flat == 0 then return nil end
    return by_name(flat), flat
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
