-- Of `limit` tokens of a shard behind an id those of a status are INVALID.
-- KEYS: shard. ARGV: status, reason, id or '', limit. Gives how many, and the id of the last one that was looked at.
local shard, after, count = KEYS[1], ARGV[3], 0
local ids = ids_behind(shard, after, ARGV[4])
for _, id in ipairs(ids) do
    local key = shard .. ':t:' .. id
    local t = call('HMGET', key, 's', 'l')
    if t[1] == ARGV[1] then
        call('HSET', key, 's', 'INVALID', 'w', ARGV[2], 'n', 0)
        call('HDEL', key, 'v', 'k')
        undue(shard, id, t[2])
        index(shard, id)
        count = count + 1
    end
end
return {count, #ids, ids[#ids] or ''}
