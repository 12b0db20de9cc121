-- Lanes of a provider. KEYS: shards. ARGV: offset ms, provider, first, limit.
-- Gives now in ms; then of each shard lanes that have something due and when, and when the next lane behind is.
local now, out = now_ms(ARGV[1]), {}
local until_now = text(now)
out[1] = until_now
for _, shard in ipairs(KEYS) do
    local key = shard .. ':lanes:' .. ARGV[2]
    out[#out + 1] = call('ZRANGEBYSCORE', key, '-inf', until_now, 'WITHSCORES', 'LIMIT', ARGV[3], ARGV[4])
    out[#out + 1] = call('ZRANGEBYSCORE', key, '(' .. until_now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or ''
end
return out
