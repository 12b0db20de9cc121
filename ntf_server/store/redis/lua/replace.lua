-- Another device token and code: REGISTERED.
-- KEYS: its shard. ARGV: offset ms, id, lane, record, sealed code, seconds that the code waits, '1' as for `revive`,
-- the record that it has now. 0: it is gone, or another's by now.
local shard, id, lane = KEYS[1], ARGV[2], ARGV[3]
local key = shard .. ':t:' .. id
local t = call('HMGET', key, 'r', 'l')
if t[1] == ARGV[4] then return 1 end -- it is done
if t[1] ~= ARGV[8] then return 0 end
if ARGV[7] == '1' then let_go(shard, id) end
local now = now_ms(ARGV[1])
local seconds = math.floor(now / 1000)
undue(shard, id, t[2])
call('HSET', key, 's', 'REGISTERED', 'ra', text(seconds), 'aa', text(seconds), 'l', lane, 'r', ARGV[4], 'c', ARGV[5],
    'v', text(seconds + tonumber(ARGV[6])), 'n', 0)
call('HDEL', key, 'w', 'k', 'd')
call('HINCRBY', key, 'g', 1)
index(shard, id)
if call('HEXISTS', shard .. ':taken', id) == 0 then due(shard, id, lane, pending(shard, id, now)) end
return 1
