-- At any time: look, guarded. At the end of the script, the transition that was asked for is called.

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
