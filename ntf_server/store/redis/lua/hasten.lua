-- Bring forward what was made due by a clock that was ahead. KEYS: shards. ARGV: offset ms, by how many ms it was ahead,
-- for how many ms at most; then providers. What waits for that long for another reason is tried early, once.
-- Gives lanes that have such.
local now, ahead, out = now_ms(ARGV[1]), tonumber(ARGV[2]), {}
local first = '(' .. text(now + ahead - tonumber(ARGV[3]))
for _, shard in ipairs(KEYS) do
    for i = 4, #ARGV do
        for _, lane in ipairs(call('ZRANGE', shard .. ':lanes:' .. ARGV[i], 0, -1)) do
            local found = call('ZRANGEBYSCORE', shard .. ':due:' .. lane, first, '+inf', 'WITHSCORES', 'LIMIT', 0, 500)
            for n = 1, #found, 2 do
                call('ZADD', shard .. ':due:' .. lane, text(math.max(now, tonumber(found[n + 1]) - ahead)), found[n])
            end
            if #found > 0 then
                head(shard, lane)
                out[#out + 1] = lane
            end
        end
    end
end
return out
