#!lua flags=allow-oom
-- What came of claims. KEYS: shards. ARGV: offset ms, seconds that a code and a message are worth a push, then of each
-- shard: its fence, how many claims; of each: id, number of the call that claimed it, registration, how it ended, push id, reason, ms after which it is due
-- again, why it is dead, kind, how many queues went out; of each: queue, the first 12 bytes of its notification.
-- Gives for each claim 0 (it counts no more), 1 (recorded), 2 (and memory has it still: there is more), then expired
-- codes, checks and notifications; and at the end lanes and times of what is due in the store.
local now, a, out, lanes = now_ms(ARGV[1]), 4, {}, {}
local seconds = math.floor(now / 1000)
local code_ttl, message_ttl = tonumber(ARGV[2]), tonumber(ARGV[3])

local function later(shard, id, lane, at)
    due(shard, id, lane, at)
    lanes[#lanes + 1] = {lane, text(at - now)}
end

-- Of these queues the newest is what went out, and what comes next is behind it.
local function went_out(shard, id, t, from, count, changes)
    local q, queues = t.q, {}
    for i = 1, count do
        local at = from + 2 * (i - 1)
        local queue, value = ARGV[at], t[8 + i]
        if value and value:byte(21) == 0 and value:sub(1, 12) == ARGV[at + 1] then
            queues[#queues + 1] = queue
            drop_from(q.h, queue)
            q.h[#q.h + 1] = queue
            set(changes, queue, sent_as(value, 1))
        end
    end
    if #queues == 0 then return end
    went(shard, id, q, queues)
    while #q.h > 6 do table.remove(q.h, 1) end
end

local function delivered(shard, id, kind, status)
    local key = shard .. ':t:' .. id
    if kind == '2' then
        call('HDEL', key, 'k')
        call('HSET', key, 'pa', text(seconds))
    else
        call('HDEL', key, 'v')
        if status == 'REGISTERED' then call('HSET', key, 's', 'CONFIRMED') end
    end
    index(shard, id)
end

local function give_up(shard, id, t)
    local key, codes, checks, count = shard .. ':t:' .. id, 0, 0, 0
    if t[5] and tonumber(t[5]) <= seconds - code_ttl then codes = call('HDEL', key, 'v') end
    if t[6] and tonumber(t[6]) <= seconds - message_ttl then checks = call('HDEL', key, 'k') end
    index(shard, id)
    count, t.q = expire(shard, id, seconds - message_ttl, 2000)
    return codes, checks, count
end

-- What came of a claim, and what of that is not written yet: `changes` of the token's fields, and when it is due again.
local function outcome(shard, id, t, ended, from)
    local push, reason, after, dead, kind, count = ARGV[from], ARGV[from + 1], tonumber(ARGV[from + 2]), ARGV[from + 3],
        ARGV[from + 4], tonumber(ARGV[from + 5])
    local result, known = {1, 0, 0, 0}, nil
    if ended == 'untried' then return result, {}, pending(shard, id, now) and now + after end
    local key = shard .. ':t:' .. id
    local changes, tries = {'i', pushed(seconds, push, ended, reason)}, 0
    if ended == 'delivered' then
        set(changes, 'd', text(seconds))
        if kind == '1' then
            went_out(shard, id, t, from + 6, count, changes)
            known = {t[2], t[5], t[6], t[4], #t.q.u > 0}
        else
            delivered(shard, id, kind, t[2])
        end
    elseif ended == 'dead' then
        call('HSET', key, 's', 'INVALID', 'w', dead)
        call('HDEL', key, 'v', 'k')
        index(shard, id)
    elseif ended == 'expired' then
        result[2], result[3], result[4] = give_up(shard, id, t)
    else
        tries = tonumber(t[7] or 0) + 1
    end
    if tries ~= tonumber(t[7] or nil) then set(changes, 'n', tries) end
    local at = pending(shard, id, now, known)
    if at and ended ~= 'delivered' and ended ~= 'expired' then
        at = now + after
    elseif at and at <= now then
        result[1] = 2
    end
    return result, changes, at
end

-- It is due before memory has it no more.
local function one(shard, id, mark, registration, ended, from, released)
    local key, queues = shard .. ':t:' .. id, {}
    for i = from + 6, from + 4 + 2 * tonumber(ARGV[from + 5]), 2 do queues[#queues + 1] = ARGV[i] end
    local t = call('HMGET', key, 'g', 's', 'l', 'x', 'v', 'k', 'n', 'q', unpack(queues))
    t.q = unpack_q(t[8])
    if t.q.m ~= tonumber(mark) then
        if call('HGET', shard .. ':taken', id) == mark then call('HDEL', shard .. ':taken', id) end -- it was cut off there
        return 0
    end
    local result, changes, at = 0, {'n', 0}, nil
    if t[1] ~= registration or t[4] then
        at = not t[4] and pending(shard, id, now)
    else
        result, changes, at = outcome(shard, id, t, ended, from)
    end
    if result == 0 or result[1] == 1 then
        if at then later(shard, id, t[3], at) end
        t.q.m = 0
        released[#released + 1] = id
    end
    set(changes, 'q', pack_q(t.q))
    call('HSET', key, unpack(changes))
    return result
end

for _, shard in ipairs(KEYS) do
    local mine, count, released = call('HGET', shard, 'fence') == ARGV[a], tonumber(ARGV[a + 1]), {}
    a = a + 2
    for _ = 1, count do
        out[#out + 1] = mine and one(shard, ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], a + 4, released) or 0
        a = a + 10 + 2 * tonumber(ARGV[a + 9])
    end
    if #released > 0 then call('HDEL', shard .. ':taken', unpack(released)) end
end
out[#out + 1] = lanes
return out
