#!lua flags=allow-oom
-- A node lives. KEYS: zset of nodes, the store's clock, the store's hash. ARGV: offset ms, node, ms for which that is
-- true (0: it ends), now in ms as the node knows it, or 0, the store's id. Gives all that live; nothing, and nothing is
-- done, if another store is there, or none.
-- It uses no other keys.
if call('HGET', KEYS[3], 'id') ~= ARGV[5] then return false end
local now = now_ms(ARGV[1])
if ARGV[3] == '0' then
    call('ZREM', KEYS[1], ARGV[2])
else
    call('ZADD', KEYS[1], text(now + tonumber(ARGV[3])), ARGV[2])
end
call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now))
if tonumber(call('HGET', KEYS[2], 'last') or 0) < tonumber(ARGV[4]) then call('HSET', KEYS[2], 'last', ARGV[4]) end
return call('ZRANGE', KEYS[1], 0, -1)
