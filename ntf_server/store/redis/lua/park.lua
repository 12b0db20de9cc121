#!lua flags=allow-oom
-- Tokens that memory has are due in the store instead. KEYS: shards. ARGV: offset ms, then of each shard how many; ids.
-- Gives lanes that have more.
local now, a, out = now_ms(ARGV[1]), 2, {}
for _, shard in ipairs(KEYS) do
    local count = tonumber(ARGV[a])
    for i = a + 1, a + count do
        local id = ARGV[i]
        if call('HDEL', shard .. ':taken', id) == 1 then
            local lane, at = call('HGET', shard .. ':t:' .. id, 'l'), pending(shard, id, now)
            if lane and at then
                due(shard, id, lane, at)
                out[#out + 1] = lane
            end
        end
    end
    a = a + count + 1
end
return out
