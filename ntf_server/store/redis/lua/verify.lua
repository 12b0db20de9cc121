-- The code was right: ACTIVE. KEYS: its shard. ARGV: offset ms, id, the sealed code that was compared.
-- 0: gone, not alive, or another code by now; 1 done; 2 done, and something is due.
local shard, id = KEYS[1], ARGV[2]
local key = shard .. ':t:' .. id
local t = call('HMGET', key, 's', 'c', 'l', 'x')
if t[2] ~= ARGV[3] or not ALIVE[t[1]] or t[4] then return 0 end
local now = now_ms(ARGV[1])
call('HSET', key, 's', 'ACTIVE', 'o', 1, 'aa', text(math.floor(now / 1000)))
call('HDEL', key, 'v')
index(shard, id)
if call('HEXISTS', shard .. ':taken', id) == 1 then return 1 end
undue(shard, id, t[3])
call('HSET', key, 'n', 0)
local at = pending(shard, id, now)
if not at then return 1 end
due(shard, id, t[3], at)
return 2
