#!lua flags=allow-oom
-- What of a shard is over its time to live, whoever is to be pushed to; tokens that memory has are left.
-- KEYS: shard. ARGV: offset ms, fence, seconds that a code and a message are worth a push, how many of each.
-- Gives how many codes, checks and notifications, and '1' if there may be more.
local shard, now, limit = KEYS[1], now_ms(ARGV[1]), tonumber(ARGV[5])
local refused = holds(shard, ARGV[2])
if refused then return refused end
local seconds = math.floor(now / 1000)
local old_code, old = seconds - tonumber(ARGV[3]), seconds - tonumber(ARGV[4])
local counts, more = {0, 0, 0}, false

local function each(key, oldest, give_up)
    local ids = call('ZRANGEBYSCORE', key, '-inf', text(oldest), 'LIMIT', 0, limit)
    for _, id in ipairs(ids) do
        if call('HEXISTS', shard .. ':taken', id) == 0 then
            give_up(id, shard .. ':t:' .. id)
            local lane = call('HGET', shard .. ':t:' .. id, 'l')
            if lane and not pending(shard, id, now) then
                undue(shard, id, lane)
                call('HSET', shard .. ':t:' .. id, 'n', 0)
            end
        end
    end
    more = more or #ids == limit
end

each(shard .. ':codes', old_code, function(id, key)
    counts[1] = counts[1] + call('HDEL', key, 'v')
    index(shard, id)
end)
each(shard .. ':checks', old, function(id, key)
    counts[2] = counts[2] + call('HDEL', key, 'k')
    index(shard, id)
end)
each(shard .. ':waiting', old, function(id, key)
    local count, q = expire(shard, id, old, limit)
    counts[3] = counts[3] + count
    if q.u[1] then
        local _, _, received = stamp(call('HGET', key, q.u[1]))
        q.since = math.max(received, old + 1)
        call('HSET', key, 'q', pack_q(q))
        call('ZADD', shard .. ':waiting', text(q.since), id)
    else
        q.since = 0
        if call('EXISTS', key) == 1 then call('HSET', key, 'q', pack_q(q)) end
        call('ZREM', shard .. ':waiting', id)
    end
end)
counts[4] = more and '1' or ''
return counts
