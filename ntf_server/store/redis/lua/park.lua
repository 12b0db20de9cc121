#!lua flags=allow-oom
-- Tokens that memory has are due in the store instead. KEYS: shards. ARGV: offset ms, then of each shard how many; ids.
-- Gives lanes that have more.
local now, a, out = now_ms(ARGV[1]), 2, {}
for _, shard in ipairs(KEYS) do
    local count = tonumber(ARGV[a])
    for i = a + 1, a + count do
        local id = ARGV[i]
        local t = call('HMGET', shard .. ':t:' .. id, 's', 'v', 'k', 'x', 'q', 'l')
        local q = unpack_q(t[5])
        if q.m ~= 0 then
            t[5] = #q.u > 0
            local at = pending(shard, id, now, t)
            if at then
                due(shard, id, t[6], at)
                out[#out + 1] = t[6]
            end
            let_go(shard, id)
        end
    end
    a = a + count + 1
end
return out
