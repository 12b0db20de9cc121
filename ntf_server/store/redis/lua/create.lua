-- A new registration, REGISTERED, its code due. Does nothing if it is there (0), or not yet all of an old one of this
-- id is deleted (2).
-- KEYS: its shard. ARGV: offset ms, id, lane, record, sealed code, seconds that the code waits.
local shard, id, lane = KEYS[1], ARGV[2], ARGV[3]
local key = shard .. ':t:' .. id
if call('EXISTS', key) == 1 then return 0 end
if call('SISMEMBER', shard .. ':gone', id) == 1 then return 2 end
local now = now_ms(ARGV[1])
local seconds = math.floor(now / 1000)
call('HSET', key, 's', 'REGISTERED', 'g', 0, 'ra', text(seconds), 'aa', text(seconds), 'l', lane, 'r', ARGV[4], 'c', ARGV[5],
    'v', text(seconds + tonumber(ARGV[6])), 'p', 0)
index(shard, id)
due(shard, id, lane, math.max(now, (seconds + tonumber(ARGV[6])) * 1000))
return 1
