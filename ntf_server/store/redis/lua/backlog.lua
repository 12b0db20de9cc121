-- What of a provider is to be pushed. KEYS: shards. ARGV: offset ms, provider.
-- Gives how many tokens are due, how many will be, and for how many ms the first of those that are due has been.
local now, due, all, first = now_ms(ARGV[1]), 0, 0, nil
for _, shard in ipairs(KEYS) do
    local lanes = shard .. ':lanes:' .. ARGV[2]
    local since = tonumber(call('ZRANGE', lanes, 0, 0, 'WITHSCORES')[2])
    if since and since < (first or now) then first = since end
    for _, lane in ipairs(call('ZRANGE', lanes, 0, -1)) do
        local key = shard .. ':due:' .. lane
        due, all = due + call('ZCOUNT', key, '-inf', text(now)), all + call('ZCARD', key)
    end
end
return {due, all - due, now - (first or now)}
