#!lua flags=allow-oom
-- Hand out tokens. KEYS: shards. ARGV: offset ms, seconds that a code and a message are worth a push, number of this
-- call, then of each shard: its fence, how many that are due, how many that memory has already; ids of these, ids of those. Gives the content of
-- each; those that are not, or of a shard that is another node's by now, are left out.
local now, a, out = now_ms(ARGV[1]), 5, {}
local code_ttl, message_ttl, mark = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

-- It is due until it is known to be handed out.
local function one(shard, id, t, is_due)
    local answer, at = content(shard, id, now, code_ttl, message_ttl, t)
    if answer[2] ~= -1 and t.q.m ~= mark then
        call('HSET', shard .. ':taken', id, mark)
        t.q.m = mark
        call('HSET', shard .. ':t:' .. id, 'q', pack_q(t.q))
    end
    if is_due then call('ZREM', shard .. ':due:' .. t[5], id) end
    if answer[2] == -1 then
        due(shard, id, t[5], at)
        let_go(shard, id)
    end
    return answer
end

for _, shard in ipairs(KEYS) do
    local mine, from_due, count = call('HGET', shard, 'fence') == ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    local lanes = {}
    count = count + from_due
    a = a + 3
    for i = 0, mine and count - 1 or -1 do
        local id = ARGV[a + i]
        local t = fields(shard, id, {})
        local lane = t[5]
        local is_due = lane and i < from_due and call('ZSCORE', shard .. ':due:' .. lane, id)
        local has = is_due or (lane and i >= from_due and t.q.m ~= 0)
        has = has or (lane and t.q.m == mark) -- the answer of before did not arrive
        if has then out[#out + 1] = one(shard, id, t, is_due) end
        if has and i < from_due then lanes[lane] = true end
    end
    for lane in pairs(lanes) do head(shard, lane) end
    a = a + count
end
return out
