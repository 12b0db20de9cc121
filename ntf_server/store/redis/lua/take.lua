#!lua flags=allow-oom
-- Hand out tokens. KEYS: shards. ARGV: offset ms, seconds that a code and a message are worth a push, number of this
-- call, then of each shard: its fence, how many that are due, how many that memory has already; ids of these, ids of those. Gives the content of
-- each; those that are not, or of a shard that is another node's by now, are left out.
local now, a, out = now_ms(ARGV[1]), 5, {}
local mark = ARGV[4]
for _, shard in ipairs(KEYS) do
    local mine, from_due, count = call('HGET', shard, 'fence') == ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    count = count + from_due
    a = a + 3
    for i = 0, count - 1 do
        local id = ARGV[a + i]
        local lane = mine and call('HGET', shard .. ':t:' .. id, 'l')
        local has = false
        if lane and i < from_due then
            has = call('ZREM', shard .. ':due:' .. lane, id) == 1
            if has then head(shard, lane) end
        elseif lane then
            has = call('HEXISTS', shard .. ':taken', id) == 1
        end
        has = has or (lane and call('HGET', shard .. ':taken', id) == mark) -- the answer of before did not arrive
        if has then
            call('HSET', shard .. ':taken', id, mark)
            out[#out + 1] = content(shard, id, now, tonumber(ARGV[2]), tonumber(ARGV[3]), fields(shard, id))
        end
    end
    a = a + count
end
return out
