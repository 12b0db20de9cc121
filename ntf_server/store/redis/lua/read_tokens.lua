-- Registrations, with all that their shard has of them. KEYS: shard. ARGV: how many queues of each are enough, ids.
-- Gives of each: its fields and values, when it is due in ms or '', when the first notification arrived that did not
-- go out or '', how many queues it has; these, and queue and value of each newest notification, if they are not too many.
local shard, enough, out = KEYS[1], tonumber(ARGV[1]), {}
for i = 2, #ARGV do
    local id = ARGV[i]
    local key, values, queues = shard .. ':t:' .. id, shard .. ':n:' .. id, shard .. ':q:' .. id
    local at, first, received = call('ZSCORE', shard .. ':due:' .. (call('HGET', key, 'l') or ''), id), nil, ''
    if not at then first = call('ZRANGE', shard .. ':u:' .. id, 0, 0)[1] end
    local value = first and call('HGET', values, first)
    if value then
        local _, _, seconds = stamp(value)
        received = text(seconds)
    end
    local count = call('SCARD', queues)
    local many = count > enough
    out[#out + 1] = {call('HGETALL', key), at and text(tonumber(at)) or '', received, count,
        many and {} or call('SMEMBERS', queues), many and {} or call('HGETALL', values)}
end
return out
