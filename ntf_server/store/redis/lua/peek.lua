-- Tokens of lanes that are due. KEYS: shards. ARGV: offset ms, then of each lane: lane, limit.
-- Gives now in ms; then of each shard and lane tokens and times, the oldest first, and when the next behind them is due.
local now, out = now_ms(ARGV[1]), {}
local until_now = text(now)
out[1] = until_now
for _, shard in ipairs(KEYS) do
    for i = 2, #ARGV, 2 do
        local key = shard .. ':due:' .. ARGV[i]
        local found = call('ZRANGEBYSCORE', key, '-inf', until_now, 'WITHSCORES', 'LIMIT', 0, ARGV[i + 1])
        out[#out + 1] = found
        out[#out + 1] = call('ZRANGE', key, #found / 2, #found / 2, 'WITHSCORES')[2] or ''
    end
end
return out
