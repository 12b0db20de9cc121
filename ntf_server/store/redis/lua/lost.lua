-- Checks for tokens whose server may have lost notifications. KEYS: shards. ARGV: offset ms, seconds within which a push
-- is as good, then of each shard how many; ids. Gives those that get one, and at the end lanes that have more.
local now, a, out, lanes = now_ms(ARGV[1]), 3, {}, {}
local seconds = math.floor(now / 1000)
local since = seconds - tonumber(ARGV[2])
for _, shard in ipairs(KEYS) do
    local count = tonumber(ARGV[a])
    for i = a + 1, a + count do
        local id = ARGV[i]
        local key = shard .. ':t:' .. id
        local t = call('HMGET', key, 's', 'x', 'k', 'd', 'l', 'v', 'q')
        local pushed = tonumber(t[4] or nil)
        local woken = pushed and pushed >= since and pushed <= seconds
        if t[1] == 'ACTIVE' and not t[2] and not t[3] and not woken and not has_unsent(t[7]) then
            call('HSET', key, 'k', text(seconds))
            index(shard, id)
            out[#out + 1] = id
            if call('HEXISTS', shard .. ':taken', id) == 0 and not waits(shard, id, t[5], t[6], now) then
                due(shard, id, t[5], now)
                lanes[#lanes + 1] = t[5]
            end
        end
    end
    a = a + count + 1
end
out[#out + 1] = lanes
return out
