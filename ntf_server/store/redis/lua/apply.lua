-- A registration becomes what this attempt prepared: new, or with another device token and code; REGISTERED. Whoever finds
-- the pair claimed for that may ask for it, not only who claimed it.
-- KEYS: its shard. ARGV: offset ms, id, attempt, fence and number of calls as for `revive`.
-- Gives 1, or 0 if that is done, or comes no more; and the record that it has now, nothing if it is not there.
local shard, id = KEYS[1], ARGV[2]
local key, coming = shard .. ':t:' .. id, shard .. ':n:' .. id
local new, old = call('HMGET', coming, 'a', 'l', 'r', 'c', 'wait'), call('HMGET', key, 'r', 'l')
if new[1] ~= ARGV[3] then return {0, old[1]} end
if was_handed(shard, id, ARGV[4], ARGV[5]) then let_go(shard, id) end
local now, lane = now_ms(ARGV[1]), new[2]
local seconds = math.floor(now / 1000)
if old[2] then undue(shard, id, old[2]) end
call('HSET', key, 's', 'REGISTERED', 'ra', text(seconds), 'aa', text(seconds), 'l', lane, 'r', new[3], 'c', new[4],
    'v', text(seconds + tonumber(new[5])), 'n', 0)
call('HDEL', key, 'w', 'k', 'd')
call('HSETNX', key, 'p', 0)
call('HINCRBY', key, 'g', 1)
index(shard, id)
if call('HEXISTS', shard .. ':taken', id) == 0 then due(shard, id, lane, pending(shard, id, now)) end
call('DEL', coming)
call('ZREM', shard .. ':coming', id)
return {1, new[3]}
