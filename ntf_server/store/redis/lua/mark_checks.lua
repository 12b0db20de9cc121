-- Checks of a shard whose period is over become due. Each has a delay of its own, up to a tenth of its period.
-- KEYS: shard. ARGV: offset ms, limit, '1' quiet tokens only. Gives how many were looked at, then lanes that have more.
local shard, now, limit = KEYS[1], now_ms(ARGV[1]), tonumber(ARGV[2])
local seconds, seen, out = math.floor(now / 1000), 0, {0}
for _, id in ipairs(call('ZRANGEBYSCORE', shard .. ':period', '-inf', text(seconds), 'LIMIT', 0, 10 * limit)) do
    if seen == limit then break end
    local key = shard .. ':t:' .. id
    local t = call('HMGET', key, 'p', 'pa', 'd', 'l', 'v')
    local period, began = tonumber(t[1]) * 60, tonumber(t[2])
    local spread = (struct.unpack('>I4', id .. '\0\0\0\0') + began) % math.floor(period / 10)
    if began > seconds or began + period + spread <= seconds then
        seen = seen + 1
        local pushed = tonumber(t[3] or nil)
        if ARGV[3] == '1' and pushed and pushed <= seconds and pushed > math.max(began, seconds - period) then
            call('HSET', key, 'pa', t[3])
        else
            call('HSET', key, 'k', text(seconds), 'pa', text(math.min(began, seconds)))
            if call('HEXISTS', shard .. ':taken', id) == 0 and not waits(shard, id, t[4], t[5], now) then
                due(shard, id, t[4], now)
                out[#out + 1] = t[4]
            end
        end
        index(shard, id)
    end
end
out[1] = seen
return out
