#!lua flags=allow-oom
-- A queue's newest notification that cannot be read is given up; what else its token has is due.
-- KEYS: shard. ARGV: offset ms, id, queue. Gives the token's lane, or nothing.
local shard, id, queue = KEYS[1], ARGV[2], ARGV[3]
call('HDEL', shard .. ':n:' .. id, queue)
call('ZREM', shard .. ':u:' .. id, queue)
call('ZREM', shard .. ':h:' .. id, queue)
call('HDEL', shard .. ':taken', id)
local lane = call('HGET', shard .. ':t:' .. id, 'l')
if not lane then return false end
due(shard, id, lane, pending(shard, id, now_ms(ARGV[1])))
return lane
