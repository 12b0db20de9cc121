#!lua flags=allow-oom
-- What came of claims. KEYS: shards. ARGV: offset ms, seconds that a code and a message are worth a push, then of each
-- shard: its fence, how many claims; of each: id, number of the call that claimed it, registration, how it ended, push id, reason, ms after which it is due
-- again, why it is dead, kind, how many queues went out; of each: queue, fence, number.
-- Gives for each claim 0 (it counts no more), 1 (recorded), 2 (and memory has it still: there is more), then expired
-- codes, checks and notifications; and at the end lanes and times of what is due in the store.
local now, a, out, lanes = now_ms(ARGV[1]), 4, {}, {}
local seconds = math.floor(now / 1000)
local code_ttl, message_ttl = tonumber(ARGV[2]), tonumber(ARGV[3])

local function later(shard, id, lane, at)
    due(shard, id, lane, at)
    lanes[#lanes + 1] = {lane, text(at - now)}
end

local function went_out(shard, id, from, count)
    local values, unsent, sent = shard .. ':n:' .. id, shard .. ':u:' .. id, shard .. ':h:' .. id
    for i = from, from + 3 * (count - 1), 3 do
        local queue = ARGV[i]
        local value = call('HGET', values, queue)
        if value then
            local fence, number = stamp(value)
            if fence == tonumber(ARGV[i + 1]) and number == tonumber(ARGV[i + 2]) then
                local arrived = call('ZSCORE', unsent, queue)
                if arrived then
                    call('HSET', values, queue, sent_as(value, 1))
                    call('ZREM', unsent, queue)
                    call('ZADD', sent, arrived, queue)
                end
            end
        end
    end
    call('ZREMRANGEBYRANK', sent, 0, -7)
end

local function delivered(shard, id, kind, status, from, count)
    local key = shard .. ':t:' .. id
    if kind == '1' then
        went_out(shard, id, from, count)
    elseif kind == '2' then
        call('HDEL', key, 'k')
        call('HSET', key, 'pa', text(seconds))
        index(shard, id)
    else
        call('HDEL', key, 'v')
        if status == 'REGISTERED' then call('HSET', key, 's', 'CONFIRMED') end
        index(shard, id)
    end
end

local function give_up(shard, id)
    local key = shard .. ':t:' .. id
    local t, codes, checks = call('HMGET', key, 'v', 'k'), 0, 0
    if t[1] and tonumber(t[1]) <= seconds - code_ttl then codes = call('HDEL', key, 'v') end
    if t[2] and tonumber(t[2]) <= seconds - message_ttl then checks = call('HDEL', key, 'k') end
    index(shard, id)
    return codes, checks, expire(shard, id, seconds - message_ttl, 2000)
end

local function one(shard, id, mark, registration, ended, from)
    local key = shard .. ':t:' .. id
    local push, reason, after, dead, kind, count = ARGV[from], ARGV[from + 1], tonumber(ARGV[from + 2]), ARGV[from + 3],
        ARGV[from + 4], tonumber(ARGV[from + 5])
    local t = call('HMGET', key, 'g', 's', 'l', 'x', 'v', 'k')
    if call('HGET', shard .. ':taken', id) ~= mark or not t[1] then return 0 end
    if t[1] ~= registration or t[4] then
        call('HSET', key, 'n', 0)
        call('HDEL', shard .. ':taken', id)
        local at = not t[4] and pending(shard, id, now)
        if at then later(shard, id, t[3], at) end
        return 0
    end
    local result = {1, 0, 0, 0}
    if ended == 'untried' then
        call('HDEL', shard .. ':taken', id)
        if pending(shard, id, now) then later(shard, id, t[3], now + after) end
        return result
    end
    if ended == 'delivered' then
        call('HSET', key, 'i', push, 'ia', text(seconds), 'e', ended, 'er', reason, 'n', 0, 'd', text(seconds))
        delivered(shard, id, kind, t[2], from + 6, count)
    else
        call('HSET', key, 'i', push, 'ia', text(seconds), 'e', ended, 'er', reason)
    end
    if ended == 'dead' then
        call('HSET', key, 's', 'INVALID', 'w', dead, 'n', 0)
        call('HDEL', key, 'v', 'k')
        index(shard, id)
    elseif ended == 'expired' then
        call('HSET', key, 'n', 0)
        result[2], result[3], result[4] = give_up(shard, id)
    elseif ended ~= 'delivered' then
        call('HINCRBY', key, 'n', 1)
    end
    local unchanged = ended == 'delivered' and kind == '1' and {t[2], t[5], t[6], t[4]}
    local at = pending(shard, id, now, unchanged or nil)
    if at and ended ~= 'delivered' and ended ~= 'expired' then at = now + after end
    if at and at <= now and (ended == 'delivered' or ended == 'expired') then
        result[1] = 2
        return result
    end
    call('HDEL', shard .. ':taken', id)
    if at then later(shard, id, t[3], at) end
    return result
end

for _, shard in ipairs(KEYS) do
    local mine, count = call('HGET', shard, 'fence') == ARGV[a], tonumber(ARGV[a + 1])
    a = a + 2
    for _ = 1, count do
        out[#out + 1] = mine and one(shard, ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], a + 4) or 0
        a = a + 10 + 3 * tonumber(ARGV[a + 9])
    end
end
out[#out + 1] = lanes
return out
