-- The same registration again: alive, its code due; one that was due before, and is not out, is not put off.
-- KEYS: its shard. ARGV: offset ms, id, seconds that the code waits, fence and number of calls, if
-- memory has it but no claim is out (`was_handed`), or '' and 0.
-- Gives status, registration's fields as `find` does; nothing if it is gone.
local shard, id = KEYS[1], ARGV[2]
local key = shard .. ':t:' .. id
local t = call('HMGET', key, 's', 'v', 'l')
if not t[1] then return false end
if was_handed(shard, id, ARGV[4], ARGV[5]) then let_go(shard, id) end
local now = now_ms(ARGV[1])
local seconds = math.floor(now / 1000)
local out = call('HEXISTS', shard .. ':taken', id) == 1
local at = seconds + tonumber(ARGV[3])
if t[2] and not out then at = math.max(seconds, math.min(tonumber(t[2]), at)) end
call('HSET', key, 's', ALIVE[t[1]] and t[1] or 'REGISTERED', 'ra', text(seconds), 'aa', text(seconds), 'v', text(at))
call('HDEL', key, 'w')
call('HINCRBY', key, 'g', 1)
index(shard, id)
if not out then
    undue(shard, id, t[3])
    call('HSET', key, 'n', 0)
    due(shard, id, t[3], pending(shard, id, now))
end
return call('HMGET', key, 's', 'p', 'o')
