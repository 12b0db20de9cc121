-- Registrations, with all that their shard has of them. KEYS: shard. ARGV: how many queues of each are enough, ids.
-- Gives of each: when it is due in ms or '', when the first notification arrived that did not go out or '', how many
-- queues it has; these, and its fields and values, each queue's newest notification among them, if they are not too many.
local shard, enough, out = KEYS[1], tonumber(ARGV[1]), {}
for i = 2, #ARGV do
    local id = ARGV[i]
    local key, queues = shard .. ':t:' .. id, shard .. ':q:' .. id
    local t = call('HMGET', key, 'l', 'q')
    local at, received = call('ZSCORE', shard .. ':due:' .. (t[1] or ''), id), ''
    local first = not at and unpack_q(t[2]).u[1]
    local value = first and call('HGET', key, first)
    if value then
        local _, _, seconds = stamp(value)
        received = text(seconds)
    end
    local count = call('SCARD', queues)
    local many = count > enough
    out[#out + 1] = {at and text(tonumber(at)) or '', received, count, many and {} or call('SMEMBERS', queues),
        many and {} or call('HGETALL', key)}
end
return out
