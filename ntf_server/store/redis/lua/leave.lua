#!lua flags=allow-oom
-- A token has queues no more. KEYS: its shard. ARGV: id, queues.
local shard, id = KEYS[1], ARGV[1]
local key, queues = shard .. ':t:' .. id, {unpack(ARGV, 2)}
call('SREM', shard .. ':q:' .. id, unpack(queues))
local t = call('HMGET', key, 'l', 'q')
if not t[1] then return 0 end
local q = unpack_q(t[2])
went(shard, id, q, queues)
for _, queue in ipairs(queues) do drop_from(q.h, queue) end
call('HSET', key, 'q', pack_q(q))
call('HDEL', key, unpack(queues))
return 1
