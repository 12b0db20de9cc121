#!lua flags=allow-oom
-- A code that waits for its turn gets another one. KEYS: its shard. ARGV: offset ms, id, seconds from now.
local shard, id = KEYS[1], ARGV[2]
local key = shard .. ':t:' .. id
local t = call('HMGET', key, 'v', 'l')
local now = now_ms(ARGV[1])
local seconds = math.floor(now / 1000)
if not t[1] or tonumber(t[1]) <= seconds then return 0 end
call('HSET', key, 'v', text(seconds + tonumber(ARGV[3])))
index(shard, id)
if call('HEXISTS', shard .. ':taken', id) == 1 then return 0 end
undue(shard, id, t[2])
due(shard, id, t[2], pending(shard, id, now))
return 1
