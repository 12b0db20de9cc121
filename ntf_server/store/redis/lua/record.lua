#!lua flags=allow-oom
-- What came of claims. KEYS: shards. ARGV: offset ms, seconds that a code and a message are worth a push, then of each
-- shard: its fence, how many claims; of each: id, number of the call that claimed it, registration, how it ended, the push's tail in
-- field i (behind when), then kind if it was delivered, why it is dead if it is, else ms after which it is due
-- again; how many queues went out; of each: queue, the first 12 bytes of its notification.
-- Gives for each claim 0 (it counts no more), 1 (recorded), 2 (and memory has it still: there is more), or that and expired
-- codes, checks and notifications; and at the end lanes and times of what is due in the store.
local now, a, out, lanes = now_ms(ARGV[1]), 4, {}, {}
local seconds = math.floor(now / 1000)
local code_ttl, message_ttl = tonumber(ARGV[2]), tonumber(ARGV[3])
local seconds_text, pushed_at = text(seconds), struct.pack('>d', seconds)

local function later(shard, id, lane, at)
    due(shard, id, lane, at)
    lanes[#lanes + 1] = {lane, text(at - now)}
end

-- Of these queues the newest is what went out, and what comes next is behind it.
local function went_out(shard, id, t, q, from, count, changes)
    local queues, h = {}, q.h
    for i = 1, count do
        local at, value = from + 2 * (i - 1), t[8 + i]
        local queue = ARGV[at]
        if value and value:byte(21) == 0 and value:sub(1, 12) == ARGV[at + 1] then
            queues[#queues + 1] = queue
            if #h > 0 then drop_from(h, queue) end
            h[#h + 1] = queue
            set(changes, queue, sent_as(value, SENT))
        end
    end
    if #queues == 0 then return end
    went(shard, id, q, queues)
    while #h > 6 do table.remove(h, 1) end
end

local function delivered(shard, id, kind, status)
    local key = shard .. ':t:' .. id
    if kind == '2' then
        call('HDEL', key, 'k')
        call('HSET', key, 'pa', seconds_text)
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

-- What came of a claim, what of that is not written yet (`changes` of the token's fields), and when it is due again.
local function outcome(shard, id, t, ended, from)
    local detail, result, at = ARGV[from + 1], 1, nil
    if ended == 'untried' then return result, {}, pending(shard, id, now) and now + tonumber(detail) end
    local changes, tries = {'i', pushed_at .. ARGV[from]}, '0'
    if ended == 'delivered' then
        set(changes, 'd', seconds_text)
        if detail == '1' then
            went_out(shard, id, t, t.q, from + 3, tonumber(ARGV[from + 2]), changes)
            at = pending(shard, id, now, {t[2], t[5], t[6], t[4], #t.q.u > 0})
        else
            delivered(shard, id, detail, t[2])
            at = pending(shard, id, now)
        end
        if at and at <= now then result = 2 end
    elseif ended == 'dead' then
        local key = shard .. ':t:' .. id
        call('HSET', key, 's', 'INVALID', 'w', detail)
        call('HDEL', key, 'v', 'k')
        index(shard, id)
    elseif ended == 'expired' then
        local codes, checks, count = give_up(shard, id, t)
        at = pending(shard, id, now)
        result = {at and at <= now and 2 or 1, codes, checks, count}
    else
        tries = text(tonumber(t[7] or 0) + 1)
        at = pending(shard, id, now) and now + tonumber(detail)
    end
    if tries ~= t[7] then set(changes, 'n', tries) end
    return result, changes, at
end

-- The short way: a message of one queue was delivered, and nothing else of the token, a plain one, is due. Gives whether
-- it is that.
local function quick(key, id, t, mark, registration, from, released)
    local m, since, count, at = plain(t[2], t[5], t[6], t[4], t[7], t[8])
    if m ~= tonumber(mark) or count ~= 1 or t[1] ~= registration then return false end
    local q, value, queue, behind = t[8], t[9], name_at(t[8], at)
    if queue ~= ARGV[from + 3] or not value or value:byte(21) ~= 0 or value:sub(1, 12) ~= ARGV[from + 4] then return false end
    local first, sent, name, last = behind, 0, name_at(q, behind)
    local second = last
    while name do
        sent = sent + 1
        if sent == 6 then first = second end
        name, last = name_at(q, last)
    end
    q = struct.pack(Q_HEAD, 0, since, 0, 0) .. q:sub(first) .. q:sub(at, behind - 1)
    call('HSET', key, 'i', pushed_at .. ARGV[from], 'd', seconds_text, queue, sent_as(value, SENT), 'q', q)
    released[#released + 1] = id
    return true
end

-- It is due before memory has it no more.
local function one(shard, id, mark, registration, ended, from, released)
    local key, count, t = shard .. ':t:' .. id, ARGV[from + 2], nil
    if count == '1' then
        t = call('HMGET', key, 'g', 's', 'l', 'x', 'v', 'k', 'n', 'q', ARGV[from + 3])
        if ended == 'delivered' and ARGV[from + 1] == '1' and quick(key, id, t, mark, registration, from, released) then
            return 1
        end
    else
        local queues = {}
        for i = from + 3, from + 1 + 2 * tonumber(count), 2 do queues[#queues + 1] = ARGV[i] end
        t = call('HMGET', key, 'g', 's', 'l', 'x', 'v', 'k', 'n', 'q', unpack(queues))
    end
    t.q = unpack_q(t[8])
    if t.q.m ~= tonumber(mark) then
        if call('HGET', shard .. ':taken', id) == mark then call('HDEL', shard .. ':taken', id) end -- it was cut off there
        return 0
    end
    local result, changes, at = 0, {'n', '0'}, nil
    if t[1] ~= registration or t[4] then
        at = not t[4] and pending(shard, id, now)
    else
        result, changes, at = outcome(shard, id, t, ended, from)
    end
    if result ~= 2 and (type(result) == 'number' or result[1] ~= 2) then
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
        a = a + 7 + 2 * tonumber(ARGV[a + 6])
    end
    if #released > 0 then call('HDEL', shard .. ':taken', unpack(released)) end
end
out[#out + 1] = lanes
return out
