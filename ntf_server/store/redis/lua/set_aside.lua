#!lua flags=allow-oom
-- A token that cannot be read: nobody is pushed to. KEYS: shard. ARGV: offset ms, id. 1: it was not set aside before.
local shard, id = KEYS[1], ARGV[2]
local key = shard .. ':t:' .. id
local lane = call('HGET', key, 'l')
if not lane then return 0 end
undue(shard, id, lane)
let_go(shard, id)
return call('HSETNX', key, 'x', text(math.floor(now_ms(ARGV[1]) / 1000)))
