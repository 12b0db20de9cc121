-- A token is to have a queue, or to lose it: should who asked die, it is settled later (:doubts).
-- KEYS: its shard. ARGV: offset ms, id, queue, how many it may have (0: any number).
-- 0: it is gone; 1: it may; 2: it has too many.
local shard, id, queue, limit = KEYS[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local queues = shard .. ':q:' .. id
if call('EXISTS', shard .. ':t:' .. id) == 0 then return 0 end
if limit > 0 and call('SISMEMBER', queues, queue) == 0 and call('SCARD', queues) >= limit then return 2 end
call('SADD', queues, queue)
call('ZADD', shard .. ':doubts', text(now_ms(ARGV[1])), string.char(#id) .. id .. queue)
return 1
