-- When the first of each provider is due. KEYS: shards. ARGV: offset ms, providers. Gives ms until then, '' for never.
local now, out = now_ms(ARGV[1]), {}
for i = 2, #ARGV do
    local lanes, first = {}, nil
    for n, shard in ipairs(KEYS) do lanes[n] = shard .. ':lanes:' .. ARGV[i] end
    if call('EXISTS', unpack(lanes)) > 0 then -- seldom: one command for all tells that nothing is
        for _, shard in ipairs(KEYS) do
            local at = tonumber(call('ZRANGE', shard .. ':lanes:' .. ARGV[i], 0, 0, 'WITHSCORES')[2] or nil)
            if at and (not first or at < first) then first = at end
        end
    end
    out[#out + 1] = first and text(math.max(0, first - now)) or ''
end
return out
