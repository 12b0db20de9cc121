-- What a registration is to become by this attempt: it does (`apply`) once the pair of its device token and verify key is
-- claimed for that. What another attempt prepared of it comes no more.
-- KEYS: its shard. ARGV: offset ms, id, attempt, lane, record, sealed code, seconds that the code waits, the record that it
-- has now, '' of a new one. 0: it has another one by now, or not yet all of an old one of this id is deleted.
local shard, id = KEYS[1], ARGV[2]
if (call('HGET', shard .. ':t:' .. id, 'r') or '') ~= ARGV[8] or call('SISMEMBER', shard .. ':gone', id) == 1 then return 0 end
call('ZADD', shard .. ':coming', text(now_ms(ARGV[1])), id)
call('HSET', shard .. ':n:' .. id, 'a', ARGV[3], 'l', ARGV[4], 'r', ARGV[5], 'c', ARGV[6], 'wait', ARGV[7])
return 1
