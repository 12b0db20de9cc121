-- Records of queues, for who speaks for the server, or did last: in an earlier session too, as nobody else has what came
-- in that. KEYS: buckets. ARGV: node, fence, then of each bucket how many; ids.
-- Gives of each bucket the server's address, then the records.
local a, out = 3, {}
for n, bucket in ipairs(KEYS) do
    local s = call('HMGET', bucket, 'fence', 'node', 'address')
    local kept, fence = tonumber(s[1] or nil), tonumber(ARGV[2])
    if kept and kept > fence and s[2] ~= ARGV[1] then
        return redis.error_reply('FENCED another node speaks for this server')
    end
    if kept and kept < fence then call('HSET', bucket, 'fence', ARGV[2], 'node', ARGV[1]) end
    local last = a + tonumber(ARGV[a])
    out[n] = read(bucket, a + 1, last, {s[3]})
    a = last + 1
end
return out
