#!lua flags=allow-oom
-- Tokens that memory has are due in the store instead. KEYS: shards. ARGV: offset ms, how many calls the node has
-- made, then of each shard its fence, how many; ids. Of later calls (`was_handed`) nothing is.
-- Gives lanes that have more.
local now, calls, a, out = now_ms(ARGV[1]), tonumber(ARGV[2]), 3, {}
for _, shard in ipairs(KEYS) do
    local mine, count = call('HGET', shard, 'fence') == ARGV[a], tonumber(ARGV[a + 1])
    for i = a + 2, mine and a + 1 + count or 0 do
        local id = ARGV[i]
        local t = call('HMGET', shard .. ':t:' .. id, 's', 'v', 'k', 'x', 'q', 'l')
        local q = unpack_q(t[5])
        if q.m ~= 0 and q.m <= calls then
            t[5] = #q.u > 0
            local at = pending(shard, id, now, t)
            if at then
                due(shard, id, t[6], at)
                out[#out + 1] = t[6]
            end
            let_go(shard, id)
        end
    end
    a = a + count + 2
end
return out
