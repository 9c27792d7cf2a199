-- The end of an attempt or of its job: release, finish, recorded, cancel.

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
    local outcome = one_of(given(4, 'outcome'), 'outcome', OUTCOMES)
    local last = {reason = given(5, 'error'), code = given(6, 'code'), event = given(8, 'event'),
        gpu_s = number(given(9, 'gpu_s'), 'gpu_s'), size_bytes = number(given(10, 'size_bytes'), 'size_bytes')}
    local result, recorded, if_overdue, run = given(7, 'result'), given(11, 'recorded') == '1', given(12, 'if_overdue') == '1', given(13, 'run')
    local by, created_at, digest = given(14, 'by'), given(15, 'created_at'), given(16, 'digest')
    local counted, at, job, erased = pairs_from(17, 'counters'), clock(), read(id), erased_at(id)
    for i = 2, #counted, 2 do number(counted[i], 'counters') end
    if job and not ENDED[job.state] then check_record(job) end
    local function unmark_caller() if by ~= '' then unmark(id .. ':' .. by) end end
    local other = digest ~= '' and job and (job.digest or '') ~= '' and job.digest ~= digest
        and number(created_at, 'created_at') < tonumber(job.created_at)
    if other or erased and created_at ~= '' and number(created_at, 'created_at') <= erased then
        unmark_caller()
        if not job then redis.call('ZADD', own .. 'unrecorded', at, id) end  -- what it put into the store must go
        return {'erased', ''}
    end
    if not job then return {redis.call('EXISTS', ended_key(id)) == 1 and 'ended' or erased and 'erased' or 'unknown', ''} end
    if ENDED[job.state] then
        unmark_caller()
        if recorded then set(id, 'recorded', '1') end
        return {'ended', job.state, '0'}
    end
    local lease = job.owner and redis.call('ZSCORE', own .. 'leases', id .. ':' .. job.owner)
    if if_overdue and lease and tonumber(lease) > at then return {'held', job.state} end
    -- An end that is not in the store may be decided only by the current attempt, or by any caller if there is none.
    if not recorded and (job.owner or '') ~= attempt then
        unmark_caller()
        return {'held', job.state}
    end
    if job.owner then
        if job.owner == attempt then
            close_attempt(id, job, outcome, at, last.reason, last.code)
            local slot = redis.call('HGET', execution_key(id .. ':' .. attempt), 'worker_name')
            if slot and redis.call('EXISTS', rq_worker_key(slot)) == 1 then
                local counter = outcome == 'succeeded' and 'successful_job_count' or 'failed_job_count'
                redis.call('HINCRBY', rq_worker_key(slot), counter, 1)
            end
            unmark(id .. ':' .. attempt)
        else  -- it may run on until its next heartbeat; its marks are removed then, or when its lease expires
            close_attempt(id, job, 'superseded', at, '', '')
        end
    end
    unmark_caller()
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
    local id, outcome = given(2, 'id'), one_of(given(3, 'outcome'), 'outcome', OUTCOMES)
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
