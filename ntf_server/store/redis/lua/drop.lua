#!lua flags=allow-oom
-- Delete a token: nobody finds it from now on. Its queues are left in :q:ID, and it in the shard's set :gone, until they
-- are cleared.
-- KEYS: its shard. ARGV: id, '1': only if it never was ACTIVE and its code waits, offset ms. Gives its record, or nothing.
local shard, id = KEYS[1], ARGV[1]
local key = shard .. ':t:' .. id
local t = call('HMGET', key, 'r', 'l', 'o', 'v')
if not t[1] then return false end
if ARGV[2] == '1' and (t[3] or not t[4] or tonumber(t[4]) <= math.floor(now_ms(ARGV[3]) / 1000)) then return false end
undue(shard, id, t[2])
call('HDEL', shard .. ':taken', id)
call('DEL', key, shard .. ':u:' .. id, shard .. ':n:' .. id)
call('ZREM', shard .. ':coming', id)
index(shard, id)
call('ZREM', shard .. ':waiting', id)
call('SADD', shard .. ':gone', id)
return t[1]
