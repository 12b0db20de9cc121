#!lua flags=allow-oom
-- A queue's newest notification that cannot be read is given up; what else its token has is due.
-- KEYS: shard. ARGV: offset ms, id, queue, fence and number of calls as `was_handed` takes them: if none of these handed the
-- token out, that is done. Gives the token's lane, or nothing.
local shard, id, queue = KEYS[1], ARGV[2], ARGV[3]
local key = shard .. ':t:' .. id
local t = call('HMGET', key, 'l', 'q')
if not t[1] then return false end
if not was_handed(shard, id, ARGV[4], ARGV[5]) then return t[1] end
local q = unpack_q(t[2])
went(shard, id, q, {queue})
drop_from(q.h, queue)
call('HSET', key, 'q', pack_q(q))
call('HDEL', key, queue)
due(shard, id, t[1], pending(shard, id, now_ms(ARGV[1])))
let_go(shard, id)
return t[1]
