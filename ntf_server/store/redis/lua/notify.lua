-- Notifications of tokens' queues: each becomes its queue's newest, unless a later one is there; the token is due, or
-- handed out.
-- KEYS: shards. ARGV: offset ms, seconds that a code and a message are worth a push, number of this call, then of each shard: the fence under
-- which the asking node has it or '', how many tokens; of each token: id, '1' if it may be handed out, how many queues;
-- of each: queue, fence, number, rest of the value (from the time of arrival on).
-- Gives for each token 0 (gone), 1 (nothing to do), {lane} (due now, of a shard that the node has), 2 (due now, of
-- another) or its content.
local now, a, out = now_ms(ARGV[1]), 5, {}
local mark = ARGV[4]

local arrived = {} -- in each shard, the number of the last one; each call has numbers of its own

local function next_number(shard)
    arrived[shard] = (arrived[shard] or call('INCRBY', shard .. ':arrived', 65536) - 65536) + 1
    return text(arrived[shard])
end

local function keep_newest(shard, id, count)
    local fresh = false
    for _ = 1, count do
        local queue, fence, number = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
        local values = shard .. ':n:' .. id
        local old = call('HGET', values, queue)
        local newer = true
        if old then
            local f, n, _, sent = stamp(old)
            newer = fence > f or (fence == f and (number > n or (number == n and sent == 0))) -- once more
        end
        if newer then
            call('HSET', values, queue, struct.pack('>dI4', fence, number) .. ARGV[a + 3])
            call('ZADD', shard .. ':u:' .. id, next_number(shard), queue)
            if old then call('ZREM', shard .. ':h:' .. id, queue) end
            call('ZADD', shard .. ':waiting', 'LT', text((struct.unpack('>d', ARGV[a + 3]))), id)
            fresh = true
        end
        a = a + 4
    end
    return fresh
end

for _, shard in ipairs(KEYS) do
    local fence, count = ARGV[a], tonumber(ARGV[a + 1])
    local mine = fence ~= '' and call('HGET', shard, 'fence') == fence
    a = a + 2
    for _ = 1, count do
        local id, free, queues = ARGV[a], ARGV[a + 1] == '1', tonumber(ARGV[a + 2])
        a = a + 3
        local t = fields(shard, id)
        if not t[1] then
            a = a + 4 * queues
            out[#out + 1] = 0
        else
            local fresh = keep_newest(shard, id, queues)
            local lane, taken = t[5], call('HGET', shard .. ':taken', id)
            if mine and free and taken == mark then -- the answer of before did not arrive
                out[#out + 1] = content(shard, id, now, tonumber(ARGV[2]), tonumber(ARGV[3]), t)
            elseif not fresh or t[1] ~= 'ACTIVE' or t[4] or taken or waits(shard, id, lane, t[2], now) then
                out[#out + 1] = 1
            elseif mine and free then
                call('HSET', shard .. ':taken', id, mark)
                out[#out + 1] = content(shard, id, now, tonumber(ARGV[2]), tonumber(ARGV[3]), t)
            else
                due(shard, id, lane, now)
                out[#out + 1] = mine and {lane} or 2
            end
        end
    end
end
return out
