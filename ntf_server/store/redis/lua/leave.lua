#!lua flags=allow-oom
-- A token has queues no more. KEYS: its shard. ARGV: id, queues.
local shard, id = KEYS[1], ARGV[1]
for i = 2, #ARGV do
    call('SREM', shard .. ':q:' .. id, ARGV[i])
    call('HDEL', shard .. ':n:' .. id, ARGV[i])
    call('ZREM', shard .. ':u:' .. id, ARGV[i])
    call('ZREM', shard .. ':h:' .. id, ARGV[i])
end
return call('EXISTS', shard .. ':t:' .. id)
