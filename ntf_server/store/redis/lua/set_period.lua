-- KEYS: a token's shard. ARGV: offset ms, id, minutes.
local shard, id = KEYS[1], ARGV[2]
local key = shard .. ':t:' .. id
local t = call('HMGET', key, 'p', 'pa')
if not t[1] then return 0 end
local seconds = math.floor(now_ms(ARGV[1]) / 1000)
local goes_on = t[1] == ARGV[3] and t[2] and tonumber(t[2]) <= seconds
call('HSET', key, 'p', ARGV[3], 'pa', goes_on and t[2] or text(seconds))
if ARGV[3] == '0' then call('HDEL', key, 'k') end
index(shard, id)
return 1
